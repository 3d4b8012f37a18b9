"""Checks what a wheel contains: python packaging/check_wheel.py [--forbid TEXT ...] WHEEL ...

Its files and no others, relative rpaths, no debug symbols, no path of the machine that built it
(nor any TEXT), the metadata of pyproject.toml, its size. Prints the size of each part.
"""

from __future__ import annotations

import argparse
import email
import io
import re
import sys
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

import elf
import macho

ROOT = Path(__file__).parents[1]
MOST_BYTES = 3_000_000  # of a wheel for one release of MLX
MOST_BYTES_MORE = 500_000  # for each further release
RELEASES = (ROOT / "packaging/mlx_releases").read_text().split()
FIRST_FOR_CUDA = re.search(
    r"set\(first_mlx_for_cuda (.*)\)", (ROOT / "csrc/CMakeLists.txt").read_text()
)[1]

HEADERS = {
    "api/functions",
    "api/optimizer",
    "graph/clip_scale",
    "graph/norm",
    "mlx_opt",
    "types/arrays",
    "types/clipping",
    "types/coefficients",
    "types/export",
    "types/group",
    "types/hyperparameters",
    "types/master_weights",
    "types/named_arrays",
    "types/options",
    "version",
}
FILES = {
    "mlx_opt/*.py",
    "mlx_opt/py.typed",
    "mlx_opt/benchmarks/*.py",
    "mlx_opt/benchmarks/convergence_rates.json",
    "mlx_opt/tools/*.py",
    "mlx_opt/share/cmake/mlx_opt/mlx_opt*.cmake",
    "mlx_opt/share/pkgconfig/mlx_opt.pc",
    "*.dist-info/licenses/LICENSE",
    "*.dist-info/licenses/THIRD_PARTY.md",
    "*.dist-info/METADATA",
    "*.dist-info/RECORD",
    "*.dist-info/WHEEL",
    *(f"mlx_opt/include/mlx_opt/{name}.h" for name in HEADERS),
}
BINARIES = {
    "linux": {
        "libmlx_opt_kernels.so",
        "PART/_ext.*.so",
        "PART/libmlx_opt.so",
        "PART/libmlx_opt_cuda.so",
    },
    "macos": {"libmlx_opt_kernels.dylib", "PART/_ext.*.so", "PART/libmlx_opt.dylib"},
}
PARTS = "mlx_opt/lib/mlx_opt"

# The stub is made by importing the extension, which a cross build cannot.
FILES_OF = {"linux": FILES | {"mlx_opt/_ext.pyi"}, "macos": FILES}
# Folders that a build takes place in; those of the running machine (/usr, /etc, /proc) are no leak.
BUILD_PATH = re.compile(
    rb"/(?:home|root|tmp|work|build|Users|opt|mnt|private|var)/[\w.+-][\w./+-]*"
)


class Wrong(Exception):
    """What is wrong with a wheel."""


def require(holds: object, what: str) -> None:
    if not holds:
        raise Wrong(what)


def check_names(names: list[str], patterns: set[str]) -> None:
    for name in names:
        require(any(fnmatchcase(name, p) for p in patterns), f"{name} does not belong in it")
    for pattern in patterns:
        require(any(fnmatchcase(name, pattern) for name in names), f"{pattern} is missing")


def check_no_build_path(name: str, data: bytes, forbidden: list[str]) -> None:
    found = BUILD_PATH.search(data)
    require(not found, f"{name} names {found and found[0].decode()}")
    for text in forbidden:
        require(text.encode() not in data, f"{name} names {text}")


def check_header(name: str, data: bytes) -> None:
    for header in re.findall(r'#include [<"]mlx_opt/(.*?)\.h[>"]', data.decode()):
        require(header in HEADERS, f"{name} includes mlx_opt/{header}.h, which is not installed")


def check_metadata(data: bytes) -> None:
    metadata = email.message_from_bytes(data)
    project = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.*)"', project, re.M)[1]
    mlx = re.search(r'^dependencies = \["(mlx>=.*)"\]', project, re.M)[1]
    require(mlx == f"mlx>={RELEASES[0]}", f"{mlx} is not from the oldest of mlx_releases on")
    require(metadata["Version"] == version, f"the version is {metadata['Version']}")
    needs = metadata.get_all("Requires-Dist")
    require(mlx in needs, f"it does not depend on {mlx}")
    for extra in ("cpu", "cuda12", "cuda13"):
        require(f'mlx[{extra}]; extra == "{extra}"' in needs, f"there is no extra {extra}")


def check_binary(name: str, data: bytes, platform: str) -> None:
    binary = elf.read(io.BytesIO(data)) if platform == "linux" else macho.read(data)
    origin = "$ORIGIN" if platform == "linux" else "@loader_path"
    # The kernels need no library of the package.
    require(binary.rpaths or "kernels" in name, f"{name} has no rpath")
    for path in binary.rpaths:
        require(path.startswith(origin), f"{name} has the rpath {path}")
    require(not binary.debug, f"{name} has debug symbols: {binary.debug}")
    for problem in binary.problems:
        raise Wrong(f"{name} {problem}")


def binaries_of(platform: str, releases: list[str]) -> set[str]:
    """The patterns of the libraries in a wheel that serves these releases of MLX."""
    patterns = {f"{PARTS}/{name}" for name in BINARIES[platform]}
    found = {name.replace("PART", f"mlx-{release}") for name in patterns for release in releases}
    without_cuda = [each for each in releases if numbers(each) < numbers(FIRST_FOR_CUDA)]
    return found - {f"{PARTS}/mlx-{release}/libmlx_opt_cuda.so" for release in without_cuda}


def numbers(version: str) -> list[int]:
    return list(map(int, version.split(".")))


def check(path: Path, forbidden: list[str], releases: list[str] = RELEASES) -> None:
    platform = "macos" if "macosx" in path.name else "linux"
    with zipfile.ZipFile(path) as wheel:
        files = {info.filename: wheel.read(info) for info in wheel.infolist() if not info.is_dir()}
    binaries = binaries_of(platform, releases)
    targets = {f"{PARTS}/mlx-{release}/cmake/*.cmake" for release in releases}
    check_names(list(files), FILES_OF[platform] | binaries | targets)
    for name, data in files.items():
        check_no_build_path(name, data, forbidden)
        if name.endswith(".h"):
            check_header(name, data)
        if name.endswith("/METADATA"):
            check_metadata(data)
        if any(fnmatchcase(name, pattern) for pattern in binaries):
            check_binary(name, data, platform)
            print(f"{len(data):10,} {name}")
    size = path.stat().st_size
    print(f"{size:10,} {path.name}")
    most = MOST_BYTES + MOST_BYTES_MORE * (len(releases) - 1)
    require(size <= most, f"it has {size:,} bytes, {most:,} at most are allowed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forbid", action="append", default=[], metavar="TEXT")
    parser.add_argument("--mlx", action="append", metavar="RELEASE", help="all of mlx_releases")
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL")
    arguments = parser.parse_args()
    for wheel in arguments.wheels:
        try:
            check(wheel, arguments.forbid, arguments.mlx or RELEASES)
        except Wrong as wrong:
            print(f"{wheel.name}: {wrong}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
