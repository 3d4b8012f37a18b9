"""The command ``python -m mlx_opt``."""

from __future__ import annotations

import argparse
import importlib.machinery
import io
import json
import os
import runpy
import sys
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import NoReturn

from .tools import info, memory_options

PROGRAM = "python -m mlx_opt"
EXIT_CODES = "Exit codes: 2 for a wrong command line, 1 if something is off, otherwise 0."
RUN_HELP = """\
Run a program with mlx.optimizers' classes replaced by mlx_opt's; the program
itself is not changed. It gets its arguments, its name __main__ and its folder
on sys.path as from python, and its exit code is passed on.

Replaced are the names in the module mlx.optimizers, its submodules among
them. What the program imports with "from mlx.optimizers.optimizers import
..." stays mlx's own, and so does everything in processes that it spawns. A
line on stderr says that mlx_opt is in use."""
RUN_EXAMPLES = f"""\
examples:
  {PROGRAM} run train.py --epochs 3
  {PROGRAM} run -m mlx_lm lora --train --model ..."""

JSON_SCHEMA = 1
"""The version of the structure that --json prints; it grows when a key changes or goes."""

Frames = TracebackType | None


class PrintVersion(argparse.Action):
    """Prints the version, even if mlx_opt cannot be imported, and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        print(f"mlx_opt {version()}")
        parser.exit()


class PrintCMakeDir(argparse.Action):
    """Prints where the CMake package for C++ programs is, and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        print(os.path.join(os.path.dirname(__file__), "share", "cmake", "mlx_opt"))
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Fused, in-place optimizers for MLX: a drop-in for mlx.optimizers.",
        epilog=EXIT_CODES,
    )
    parser.add_argument(
        "--version", action=PrintVersion, nargs=0, help="print mlx_opt's version, and exit"
    )
    parser.add_argument(
        "--cmake-dir",
        action=PrintCMakeDir,
        nargs=0,
        help="print the folder of the CMake package, for -Dmlx_opt_ROOT=, and exit",
    )
    commands = parser.add_subparsers(metavar="command", dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="run an unchanged program with mlx_opt's optimizers",
        usage=f"{PROGRAM} run [-h] [-q] (script.py | -m module) [argument ...]",
        description=RUN_HELP,
        epilog=RUN_EXAMPLES,
        formatter_class=plain,
    )
    run.add_argument("-q", "--quiet", action="store_true", help="do not say that mlx_opt is in use")
    run.add_argument("-m", dest="module", action="store_true", help="run a module, as python -m")
    run.add_argument(
        "program",
        metavar="script.py",
        help="a path, or with -m a module's name; what follows are the program's own arguments",
    )
    run.set_defaults(usage_error=run.error)
    report = argparse.ArgumentParser(add_help=False)
    report.add_argument("--json", action="store_true", help="print JSON, for programs")
    commands.add_parser(
        "info",
        parents=[report],
        help="versions, devices, threads, and what to mend if something is off",
        description="Print what this installation is and whether it can work on this machine.",
        epilog=EXIT_CODES,
    )
    commands.add_parser(
        "selftest",
        parents=[report],
        help="check the fused rules against float64, on each device of this machine",
        description="Run the fused rules on each device of this machine and compare them with a "
        "float64 reference. The table is made to be pasted into an issue.",
        epilog=EXIT_CODES,
    )
    commands.add_parser("bench", help="time the optimizers beside mlx's and PyTorch's")
    memory = commands.add_parser(
        "memory",
        parents=[report],
        help="what rules and dtypes would hold in memory, beside each other",
        description="Print what parameters, gradients and state would hold in memory.",
        epilog=EXIT_CODES,
    )
    memory_options.add_arguments(memory)
    return parser


def split_run(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split the command line of ``run`` after the program's name, because argparse would remove a
    ``--`` from the program's own arguments."""
    for i, word in enumerate(argv[1:], start=2):
        if not word.startswith("-"):
            return argv[:i], argv[i:]
    return argv, []


def version() -> str:
    try:
        from ._built import VERSION
    except ImportError:
        return "is not built"
    return VERSION


def print_info(as_json: bool) -> int:
    report = info.report()
    print(json.dumps({"schema": JSON_SCHEMA, **report._asdict()}, indent=2) if as_json else report)
    return 1 if report.problems else 0


def bench(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    try:
        from .benchmarks.cli import main as run_benchmarks
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        return fail("bench needs rich: pip install 'mlx-opt[bench]'")
    return run_benchmarks(options, parser)


def selftest(as_json: bool) -> int:
    try:
        from .tools.selftest import main as run_selftest
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("numpy", "rich"):
            raise
        return fail(f"selftest needs {error.name}: pip install 'mlx-opt[selftest]'")
    return run_selftest(as_json)


def memory(options: argparse.Namespace) -> int:
    from .tools import choices

    try:
        return choices.main(options)
    except ImportError as error:
        return fail(str(error))


def run_script(path: str, arguments: list[str]) -> None:
    """Do what ``python path arguments`` does."""
    full_path = os.path.abspath(path)
    with io.open_code(full_path) as file:
        source = file.read()
    sys.argv = [path, *arguments]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    # Not runpy, which removes its __main__ at the end, when atexit functions and threads may need
    # it.
    main = ModuleType("__main__")
    main.__dict__.update(
        __file__=full_path,
        __loader__=importlib.machinery.SourceFileLoader("__main__", full_path),
        __builtins__=__builtins__,
    )
    sys.modules["__main__"] = main
    exec(compile(source, full_path, "exec", dont_inherit=True), main.__dict__)


def run_module(name: str, arguments: list[str]) -> None:
    """Do what ``python -m name arguments`` does."""
    sys.argv = ["-m", *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def run(
    program: str,
    module: bool,
    arguments: list[str],
    quiet: bool,
    usage_error: Callable[[str], NoReturn],
) -> None:
    from . import install

    if not module and not os.path.isfile(program):
        usage_error(f"there is no script {program}")
    # Never undone: the program's threads and atexit functions may outlast it.
    install()
    if not quiet:
        print(f"mlx_opt {version()} is in use in place of mlx.optimizers", file=sys.stderr)
    try:
        (run_module if module else run_script)(program, arguments)
    except BaseException as error:
        frames = frames_of_program(error.__traceback__)
        if module and isinstance(error, ImportError) and frames is None:
            usage_error(str(error))
        sys.excepthook = without_own_frames(sys.excepthook)
        raise


def frames_of_program(frames: Frames) -> Frames:
    """The traceback from the program's first frame on; None if the program was not reached."""
    own = {__file__, runpy.run_module.__code__.co_filename}
    while frames is not None and frames.tb_frame.f_code.co_filename in own:
        frames = frames.tb_next
    return frames


def without_own_frames(hook: Callable) -> Callable:
    def show(kind: type[BaseException], error: BaseException, frames: Frames) -> None:
        frames = frames_of_program(frames)
        hook(kind, error.with_traceback(frames), frames)

    return show


def bench_training(options: argparse.Namespace) -> int:
    try:
        from .benchmarks.training import main as run_training
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("mlx_lm", "rich", "numpy"):
            raise
        return fail("bench --training needs mlx-lm and rich: pip install mlx-lm 'mlx-opt[bench]'")
    return run_training(options)


def bench_parser(argv: list[str]) -> argparse.ArgumentParser:
    from .benchmarks import options

    return options.build_training_parser() if "--training" in argv else options.build_parser()


def fail(message: str) -> int:
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return 1


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    own, arguments = split_run(argv) if argv[:1] == ["run"] else (argv, [])
    benchmarks = bench_parser(argv) if argv[:1] == ["bench"] else None
    asked = [each for each in argv[1:] if each != "--training"]
    options = benchmarks.parse_args(asked) if benchmarks else build_parser().parse_args(own)
    if not benchmarks and options.command == "info":
        return print_info(options.json)
    if error := info.import_error():
        return fail(str(error))
    if benchmarks:
        return bench_training(options) if "--training" in argv else bench(options, benchmarks)
    if options.command == "selftest":
        return selftest(options.json)
    if options.command == "memory":
        return memory(options)
    run(options.program, options.module, arguments, options.quiet, options.usage_error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
