"""What may include what: python tests/layers.py [ROOT]. Part of `make lint`.

Reads the includes of csrc and the imports of python/mlx_opt from their text, prints what is wrong
and exits with 1 if anything is: a circle, or an include that MAY_INCLUDE does not allow.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

# The folders of csrc/mlx_opt and csrc, the lowest first, and which of those before it each may
# include beside itself. backend/backend and mlx_opt are headers, not folders.
MAY_INCLUDE = {
    "types": "",
    "rules": "",
    "step": "types rules",
    "backend/backend": "types rules step",
    "backend/gpu": "types rules step",
    "backend/cpu/kernels": "types rules",
    "backend/cpu": "types rules step backend/cpu/kernels",
    "backend/cuda": "types rules step backend/backend backend/gpu",
    "backend/metal": "types rules step backend/backend backend/gpu",
    "backend": "types rules step backend/backend backend/metal",
    "graph": "types rules step backend/cpu backend",
    "algorithms": "types rules step backend/cpu backend graph",
    "eager": "types rules step backend graph algorithms",
    "api": "types rules step backend graph algorithms eager",
    "mlx_opt": "types graph api",
    "tools": "types rules step",
    "bindings": (
        "types rules step backend/cpu/kernels backend/cpu backend graph algorithms eager api"
    ),
}
# A header, its .cpp and the kernel texts of the same name count as one unit.
SUFFIX = re.compile(r"(\.cu|\.metal)?\.(h|cpp)$")


def room_of(path: str) -> str:
    return SUFFIX.sub("", path)


def folder_of(room: str) -> str | None:
    """The entry of MAY_INCLUDE that a room belongs to: the longest that it begins with."""
    path = room.removeprefix("mlx_opt/") + "/"
    found = [name for name in MAY_INCLUDE if path.startswith(name + "/")]
    return max(found, key=len, default=None)


def includes(csrc: Path) -> Iterator[tuple[str, str]]:
    """Pairs of files of csrc of which the first includes the second."""
    files = {str(path.relative_to(csrc)) for path in csrc.rglob("*") if SUFFIX.search(path.name)}
    for file in sorted(files):
        text = (csrc / file).read_text()
        for included in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.M):
            beside = os.path.normpath(os.path.join(os.path.dirname(file), included))
            used = beside if beside in files else included
            if used in files:
                yield file, used


def imports(package: Path) -> Iterator[tuple[str, str]]:
    """Pairs of modules of a package of which the first imports the second, be it in a function.

    The packages' own __init__ are left out: Python runs them before any module, asked or not.
    """
    modules = {
        ".".join((package.name, *path.relative_to(package).with_suffix("").parts)): path
        for path in package.rglob("*.py")
        if path.name != "__init__.py"
    }
    for name, path in sorted(modules.items()):
        for node in ast.walk(ast.parse(path.read_text())):
            for target in imported(node, name):
                if target in modules:
                    yield name, target


def imported(node: ast.AST, module: str) -> Iterator[str]:
    """What a statement may import, by its full name."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = module.split(".")[: -node.level] if node.level else []
        source = ".".join([*base, *filter(None, [node.module])])
        yield source
        yield from (f"{source}.{alias.name}" for alias in node.names)


def circle(pairs: list[tuple[str, str]]) -> list[str]:
    """A circle among pairs of user and used, said in a line, or nothing."""
    graph: dict[str, set[str]] = {}
    for user, used in pairs:
        if user != used:
            graph.setdefault(user, set()).add(used)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["a circle: " + " -> ".join(reversed(error.args[1]))]
    return []


def forbidden(user: str, used: str) -> str | None:
    """Why one file of csrc may not include another."""
    folder, other = folder_of(room_of(user)), folder_of(room_of(used))
    if folder is None or other is None:
        return f"{user if folder is None else used} is in no folder that tests/layers.py knows"
    if other != folder and other not in MAY_INCLUDE[folder].split():
        return f"{user} includes {used}, but {folder} may include: {MAY_INCLUDE[folder]}"
    return None


def problems(root: Path) -> list[str]:
    files = list(includes(root / "csrc"))
    return [
        *filter(None, (forbidden(*pair) for pair in files)),
        *circle([(room_of(user), room_of(used)) for user, used in files]),
        *circle(list(imports(root / "python" / "mlx_opt"))),
    ]


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))
