"""The site: `make docs` builds it from these pages with Sphinx. What is ours is in _site/."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS)]

from _site import repository  # noqa: E402

project = "mlx_opt"
author = "The mlx_opt developers"
project_copyright = f"2026 {author}"
version = release = repository.PROJECT["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
    "_site.contents",
    "_site.cpp_api",
    "_site.pictures",
    "_site.python_api",
    "_site.sources",
]
exclude_patterns = ["_site"]
root_doc = "index"

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]  # as GitHub writes a formula
myst_heading_anchors = 4
myst_url_schemes = {"http": None, "https": None, "mailto": None, "source": None}

autodoc_member_order = "groupwise"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
cpp_id_attributes = ["MLX_OPT_API"]
highlight_language = "none"
smartquotes = False  # options have two hyphens

html_theme = "furo"
html_title = "mlx_opt"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_favicon = "_site/static/icon.svg"
html_copy_source = False
html_show_sphinx = False
