"""The compiled part for the MLX that is running or, if there is none, the formulas in its place.

This module replaces itself by one of them; both have the interface in _ext.pyi.
"""

import sys

from .tools import parts

if parts.is_served():
    sys.modules[__name__] = parts.load(__name__)
else:
    from . import unfused

    sys.modules[__name__] = unfused
