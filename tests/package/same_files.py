"""Whether all files of a wheel are in another, with the same bytes: same_files.py OTHER WHEEL.

RECORD, which lists all files, may differ.
"""

import sys
import zipfile


def main() -> int:
    other, wheel = map(zipfile.ZipFile, sys.argv[1:])
    names = [name for name in wheel.namelist() if not name.endswith("/RECORD")]
    differing = [name for name in names if wheel.read(name) != other.read(name)]
    print(f"{len(names)} files of the wheel were built twice; different: {differing or 'none'}")
    return 1 if differing or not names else 0


if __name__ == "__main__":
    sys.exit(main())
