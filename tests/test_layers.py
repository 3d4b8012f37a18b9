"""tests/layers.py finds circles and includes that go up, where they are planted in a copy."""

import shutil
from pathlib import Path

import pytest

from layers import MAY_INCLUDE, SUFFIX, includes, problems, room_of

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "csrc/mlx_opt/"

pytestmark = pytest.mark.skipif(
    not (ROOT / "csrc").is_dir(), reason="the source is not beside the tests"
)


@pytest.fixture
def copy(tmp_path):
    for folder in ("csrc", "python"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def plant(root, file, line):
    path = root / file
    path.write_text(path.read_text() + line + "\n")


def test_the_source_has_neither():
    assert problems(ROOT) == []


def test_each_folder_includes_only_what_is_above_it_in_the_table():
    before = set()
    for folder, allowed in MAY_INCLUDE.items():
        assert set(allowed.split()) <= before
        before.add(folder)


def test_all_files_are_seen():
    csrc = ROOT / "csrc"
    pairs = set(includes(csrc))
    assert ("mlx_opt/rules/registry.h", "mlx_opt/rules/lion.h") in pairs
    assert ("mlx_opt/backend/find.cpp", "mlx_opt/backend/metal/backend.h") in pairs
    assert ("bindings/module.cpp", "bindings/part.h") in pairs
    files = {str(path.relative_to(csrc)) for path in csrc.rglob("*") if SUFFIX.search(path.name)}
    alone = files - {file for pair in pairs for file in pair}
    # The build puts a GPU's kernels together.
    assert {name for name in alone if not name.endswith((".cu.h", ".metal.h"))} == set()


def test_a_header_its_source_and_its_kernels_are_one_room():
    names = ("a/norm.h", "a/norm.cpp", "a/norm.cu.h", "a/norm.metal.h")
    assert {room_of(name) for name in names} == {"a/norm"}


@pytest.mark.parametrize(
    "file, line",
    [
        ("graph/donation.h", '#include "mlx_opt/graph/step_primitive.h"'),
        ("graph/donation.cpp", '#include "mlx_opt/graph/step_primitive.h"'),
        ("backend/cuda/uniforms.h", '#  include "norm.cu.h"'),
    ],
)
def test_a_circle_is_found(copy, file, line):
    if "uniforms" in file:
        plant(copy, SOURCE + "backend/cuda/norm.h", '#include "mlx_opt/backend/cuda/uniforms.h"')
    plant(copy, SOURCE + file, line)
    (problem,) = problems(copy)
    assert problem.startswith("a circle: ")
    assert room_of("mlx_opt/" + file) in problem


@pytest.mark.parametrize(
    "file, used",
    [
        ("graph/ops.h", "api/optimizer.h"),
        ("step/spec.h", "graph/vmap.cpp"),
        ("rules/lion.h", "types/storage.h"),
        ("types/storage.h", "rules/lion.h"),
        ("backend/cuda/update.cu.h", "backend/metal/tables.h"),
        ("backend/metal/tables.h", "backend/cpu/pool.h"),
        ("backend/cpu/step.h", "backend/gpu/formats.h"),
        ("backend/cpu/kernels/convert.h", "backend/cpu/pool.h"),
        ("graph/norm.cpp", "backend/cuda/norm.h"),
    ],
)
def test_an_include_that_goes_up_or_aside_is_found(copy, file, used):
    plant(copy, SOURCE + file, f'#include "mlx_opt/{used}"')
    assert problems(copy)[0].startswith(f"mlx_opt/{file} includes mlx_opt/{used}, but ")


def test_a_folder_that_has_no_place_yet_is_found(copy):
    (copy / SOURCE / "new").mkdir()
    (copy / SOURCE / "new/rule.h").write_text('#include "mlx_opt/rules/lion.h"\n')
    assert problems(copy) == [
        "mlx_opt/new/rule.h is in no folder that tests/layers.py knows",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "from . import multi",
        "from .multi import MultiOptimizer",
        "import mlx_opt.multi",
        "def later():\n    from mlx_opt.multi import MultiOptimizer",
    ],
)
def test_a_circle_of_pythons_imports_is_found(copy, line):
    plant(copy, "python/mlx_opt/trees.py", line)
    (problem,) = problems(copy)
    assert problem.startswith("a circle: ")
    assert "mlx_opt.trees" in problem and "mlx_opt.multi" in problem
