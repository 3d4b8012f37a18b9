"""The check of a wheel finds what it is there to find, and the one source of each version."""

import hashlib
import re
import struct
import zipfile

import check_wheel
import elf
import macho
import pytest

from conftest import ROOT, output

LIBRARY = f"mlx_opt/lib/mlx_opt/mlx-{check_wheel.RELEASES[-1]}/libmlx_opt.so"


@pytest.fixture
def changed(wheel, tmp_path):
    """A copy of the wheel with other contents; None leaves a file out."""

    def change(contents):
        path = tmp_path / wheel.name
        with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                data = contents.get(name, old.read(name))
                if data is not None:
                    new.writestr(name, data)
            for name in contents.keys() - set(old.namelist()):
                new.writestr(name, contents[name])
        return path

    return change


def contents(wheel, name):
    with zipfile.ZipFile(wheel) as file:
        return file.read(name)


def refusal(path, forbidden=()):
    with pytest.raises(check_wheel.Wrong) as error:
        check_wheel.check(path, list(forbidden))
    return str(error.value)


def test_the_wheel_is_good(wheel):
    check_wheel.check(wheel, [])


def test_a_file_too_many_or_too_few_is_found(changed):
    assert refusal(changed({"mlx_opt/extra.cpp": b""})) == "mlx_opt/extra.cpp does not belong in it"
    assert refusal(changed({LIBRARY: None})) == f"{LIBRARY} is missing"


def test_a_part_that_is_missing_is_found(wheel):
    with pytest.raises(check_wheel.Wrong, match="mlx-9.9.9/.* is missing"):
        check_wheel.check(wheel, [], [*check_wheel.RELEASES, "9.9.9"])


def test_a_path_of_the_build_is_found(changed, wheel):
    data = contents(wheel, LIBRARY)
    path = changed({LIBRARY: data + b"\0/home/me/mlx_opt/csrc/graph/ops.cpp\0"})
    assert refusal(path) == f"{LIBRARY} names /home/me/mlx_opt/csrc/graph/ops.cpp"
    path = changed({LIBRARY: data + b"/srv/agent/3"})
    assert refusal(path, ["/srv/agent"]) == f"{LIBRARY} names /srv/agent"


def test_a_header_that_includes_the_inside_is_found(changed):
    name = "mlx_opt/include/mlx_opt/mlx_opt.h"
    path = changed({name: b'#include "mlx_opt/graph/ops.h"\n'})
    assert refusal(path) == f"{name} includes mlx_opt/graph/ops.h, which is not installed"


def test_an_absolute_rpath_and_symbols_are_found(changed, wheel, tmp_path):
    library = tmp_path / "library.so"
    library.write_bytes(contents(wheel, LIBRARY))
    output("patchelf", "--set-rpath", "/usr/lib/mlx", library)
    assert refusal(changed({LIBRARY: library.read_bytes()})) == (
        f"{LIBRARY} has the rpath /usr/lib/mlx"
    )
    source = tmp_path / "source.cpp"
    source.write_text("int f() { return 1; }")
    output("c++", "-shared", "-fPIC", "-g", "-Wl,-rpath,$ORIGIN", source, "-o", library)
    with library.open("rb") as file:
        assert {".symtab", ".debug_info"} <= set(elf.read(file).debug)


def test_too_large_a_wheel_is_found(changed, monkeypatch):
    monkeypatch.setattr(check_wheel, "MOST_BYTES", 1000)
    assert "1,000 at most are allowed" in refusal(changed({}))


def test_a_signature_that_does_not_fit_is_found():
    page = bytes(range(256)) * 16
    assert macho.signature_problems(page, len(page), signed(page)) == []
    touched = b"x" + page[1:]
    assert macho.signature_problems(touched, len(page), signed(page)) == [
        "has a signature that page 0 does not fit"
    ]
    assert macho.signature_problems(page + page, 2 * len(page), signed(page)) == [
        "has a signature that does not cover all of it"
    ]


def signed(page):
    """An ad-hoc signature of one page, as a linker writes it."""
    digest = hashlib.sha256(page).digest()
    head = struct.pack(">9I", macho.CODE_DIRECTORY, 0, 0x20400, 2, 44, 0, 0, 1, len(page))
    head += struct.pack(">4B", len(digest), 2, 0, 12)
    directory = head.ljust(44, b"\0") + digest
    return struct.pack(">3I2I", macho.SUPER_BLOB, 0, 1, 0, 20) + directory


def test_versions_are_written_once():
    project = (ROOT / "pyproject.toml").read_text()
    assert len(re.findall(r"mlx(?:\[\w+\])?\s*[=<>~]=", project)) == 1
    assert f'dependencies = ["mlx>={check_wheel.RELEASES[0]}"]' in project
    version = re.search(r'^version = "(.*)"', project, re.M)[1]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    others = [ROOT / "CMakeLists.txt", *(ROOT / "csrc").rglob("*.in"), ROOT / "Makefile"]
    assert not [path for path in others if version in path.read_text()]
