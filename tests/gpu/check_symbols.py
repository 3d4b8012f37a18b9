"""Whether a part finds all its symbols in MLX's CUDA builds, without a GPU.

    python tests/gpu/check_symbols.py FOLDER/mlx-0.32.4/libmlx_opt_cuda.so

Downloads MLX's CUDA wheels (90 MB each) into a temporary folder; needs pip and nm.
"""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = ["mlx-cuda-13", "mlx-cuda-12"]
# Symbols of libcuda and libnvrtc, which libmlx loads, and weak ones.
ELSEWHERE = re.compile(r"cu[A-Z]\w*|nvrtc\w+|_ITM_\w+|__\w+__|__cxa_finalize")


def symbols(library: Path, kind: str) -> dict[str, str]:
    """The names of undefined symbols, and their versions."""
    lines = subprocess.run(
        ["nm", "-D", f"--{kind}-only", library], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    names = (line.split()[-1] for line in lines)
    return {name.split("@")[0]: name.partition("@")[2] for name in names}


def libmlx(package: str, version: str, folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        + ["--only-binary=:all:", f"{package}=={version}"],
        check=True,
    )
    with zipfile.ZipFile(next(folder.glob(package.replace("-", "_") + "-*.whl"))) as wheel:
        return Path(wheel.extract("mlx/lib/libmlx.so", folder / package))


def main() -> int:
    version = Path(sys.argv[1]).resolve().parent.name.removeprefix("mlx-")
    wanted = {name for name, needs in symbols(Path(sys.argv[1]), "undefined").items() if not needs}
    result = 0
    for package in PACKAGES:
        with tempfile.TemporaryDirectory() as folder:
            library = libmlx(package, version, Path(folder))
            known = symbols(library, "defined").keys() | symbols(library, "undefined").keys()
        missing = sorted(x for x in wanted - known if not ELSEWHERE.fullmatch(x))
        print(f"{package} {version}: {len(wanted)} symbols, missing: {missing or 'none'}")
        result |= bool(missing)
    return result


if __name__ == "__main__":
    sys.exit(main())
