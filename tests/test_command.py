"""python -m mlx_opt: run, info, and what it says of a wrong command line."""

import io
import json
import os
import subprocess
import sys
import textwrap
from datetime import datetime
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_opt.benchmarks import rules_table
from mlx_opt.benchmarks.measure import Result, Run
from mlx_opt.benchmarks.options import OPTIONAL_PEERS, OURS
from mlx_opt.benchmarks.peers import LIMIT, PEERS
from mlx_opt.benchmarks.report import table
from mlx_opt.benchmarks.together import table_together
from mlx_opt.benchmarks.workloads import Workload, model_named
from rich.console import Console

import mlx_opt
from mlx_opt import _ext, info

MINE = "import mlx.optimizers as optim; print(optim.AdamW.__module__)"


def command(*arguments, cwd=None):
    line = [sys.executable, "-m", "mlx_opt", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=cwd)


@pytest.fixture
def script(tmp_path):
    def write(code, name="train.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(code))
        return path

    return write


def test_a_script_is_run_with_mlx_opts_classes(script):
    done = command("run", script(MINE))
    assert (done.returncode, done.stdout.strip()) == (0, "mlx_opt.optimizers"), done.stderr


def test_a_module_is_run_with_mlx_opts_classes(script, tmp_path):
    script(MINE, "trainer.py")
    done = command("run", "-m", "trainer", cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "mlx_opt.optimizers"), done.stderr


def test_a_script_finds_itself_as_python_would_have_it(script, tmp_path):
    script("value = 7", "neighbour.py")
    path = script("""
        import sys
        import neighbour
        print(__name__, sys.argv[1:], neighbour.value, __file__ == sys.argv[0])
    """)
    done = command("run", path, "--epochs", "3", "-m", "--help")
    expected = "__main__ ['--epochs', '3', '-m', '--help'] 7 True"
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--", "-5"),
        ("a", "--", "b"),
        ("--", "--", "-m"),
        ("-", "--", ""),
        ("--",),
        ("-h", "--x=--"),
    ],
)
@pytest.mark.parametrize("module", [False, True])
def test_every_argument_is_the_programs(script, tmp_path, arguments, module):
    path = script("import sys; print(sys.argv[1:])", "shown.py")
    program = ("-m", "shown") if module else (path,)
    plain = subprocess.run(
        [sys.executable, *program, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    done = command("run", *program, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, plain.stdout), done.stderr
    assert done.stdout.strip() == str(list(arguments))


def test_a_script_may_be_named_behind_two_dashes(script):
    done = command("run", "--", script("import sys; print(sys.argv[1:])"), "--", "1")
    assert (done.returncode, done.stdout.strip()) == (0, "['--', '1']"), done.stderr


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import sys; sys.exit(5)", 5),
        ("raise SystemExit", 0),
        ("raise SystemExit('no')", 1),
        ("raise RuntimeError", 1),
        ("", 0),
    ],
)
def test_the_exit_status_is_the_scripts(script, code, status):
    assert command("run", script(code)).returncode == status


def test_a_traceback_begins_in_the_script(script):
    done = command("run", "--quiet", script("def f():\n    raise RuntimeError('mine')\nf()"))
    lines = done.stderr.splitlines()
    assert "train.py" in lines[1] and lines[-1] == "RuntimeError: mine"
    assert "mlx_opt" not in done.stderr


def test_a_trained_model_is_that_of_the_script_alone(script):
    path = script("""
        import mlx.core as mx
        import mlx.nn as nn
        import mlx.optimizers as optim

        mx.random.seed(0)
        model, optimizer = nn.Linear(4, 1), optim.AdamW(0.05)
        x = mx.random.normal((32, 4))
        y = x.sum(axis=1, keepdims=True)
        step = nn.value_and_grad(model, lambda x, y: mx.mean((model(x) - y) ** 2))
        for _ in range(50):
            loss, g = step(x, y)
            optimizer.update(model, g)
            mx.eval(model, optimizer.state)
        print(loss.item())
    """)
    plain = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120)
    ours = command("run", path)
    assert float(ours.stdout) == pytest.approx(float(plain.stdout), rel=1e-3)


def test_info_names_versions_devices_and_threads():
    done = command("info")
    assert f"built for mlx {mx.__version__}" in done.stdout
    assert _ext.vector_level() in done.stdout
    assert f"{_ext.num_threads()} (" in done.stdout
    assert (done.returncode == 0) == _ext.available()
    assert ("All is well." in done.stdout) == (done.returncode == 0)


@pytest.mark.parametrize(
    "arguments",
    [(), ("frobnicate",), ("run",), ("run", "no/such/script.py"), ("run", "-m", "no.such.module")],
)
def test_a_wrong_command_line_is_exit_status_2_and_says_why(arguments):
    done = command(*arguments)
    assert done.returncode == 2
    assert "usage: python -m mlx_opt" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("quiet", [False, True])
def test_running_a_script_says_so_once(script, quiet):
    path = script("import mlx_opt, mlx.optimizers as optim; optim.AdamW(0.1); mlx_opt.install()")
    done = command("run", *(["-q"] if quiet else []), path)
    expected = f"mlx_opt {mlx_opt.__version__} is in use in place of mlx.optimizers\n"
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == ("" if quiet else expected)


def test_the_version_is_printed():
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"mlx_opt {mlx_opt.__version__}\n")


def test_info_as_json_has_what_info_prints():
    done = command("info", "--json")
    report = json.loads(done.stdout)
    assert report["schema"] == 1
    assert report["facts"].keys() == info.report().facts.keys()
    assert (done.returncode == 0) == (report["problems"] == [])


def command_without(packages, *arguments):
    code = f"""
        import runpy, sys
        sys.modules.update(dict.fromkeys({packages}))
        sys.argv = ["", *{arguments}]
        runpy.run_module("mlx_opt", run_name="__main__")
    """
    line = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(line, capture_output=True, text=True, timeout=120, env=environment)


COMMANDS = [
    (), ("run",), ("info",), ("selftest",), ("memory",), ("bench",), ("bench", "--training"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_extra(command):
    done = command_without(["rich", "numpy", "matplotlib"], *command, "--help")
    assert done.returncode == 0, done.stderr
    assert " ".join(["usage: python -m mlx_opt", *command]) in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("rich", ("bench",), "bench"),
        ("matplotlib", ("bench", "--plot", "a.png"), "bench"),
        ("rich", ("selftest",), "selftest"),
        ("numpy", ("selftest",), "selftest"),
        ("rich", ("memory", "--params", "1e6"), "bench"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(missing, arguments, extra):
    done = command_without([missing], *arguments)
    assert done.returncode in (1, 2)
    assert f"needs {missing}: pip install 'mlx-opt[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_peers_that_can_be_named_are_those_that_are_timed():
    assert [peer for peer in PEERS if peer not in (OURS, LIMIT)] == OPTIONAL_PEERS


def test_a_benchmark_as_json_has_its_schema_and_time(tmp_path):
    path = tmp_path / "times.json"
    model = ("--model", "3*20x30,5", "--peers", "mlx", "--rounds", "2")
    done = command("bench", *model, "--json", path)
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    assert report["schema"] == 1
    assert datetime.fromisoformat(report["time"]).tzinfo is not None
    assert report["environment"]["mlx_opt"] == mlx_opt.__version__
    assert str(Path(mlx_opt.__file__).parent) not in path.read_text()
    assert [peer["peer"] for peer in report["runs"][0]["peers"]] == ["mlx_opt", "mlx", "limit"]


def test_several_rules_end_with_a_table_of_all(tmp_path):
    path = tmp_path / "times.json"
    rules = ("--rule", "AdamW", "--rule", "Lamb", "--rule", "AdamW-clipped")
    model = ("--model", "3*20x30,5", "--peers", "adamw", "--rounds", "2")
    done = command("bench", *model, *rules, "--json", path)
    assert done.returncode == 0, done.stderr
    *_, table = done.stdout.split("rule ")
    rows = [line.split() for line in table.splitlines()][2:5]
    adamw, lamb, clipped = ([row[0], *row[1:3]] for row in rows)
    assert adamw == ["AdamW", "8", "28"]
    assert lamb == ["Lamb", "8", "40"]
    assert clipped == ["AdamW-clipped", "8", "32"]
    assert rows[0][-2:] == ["1.00", "1.00"]
    of_file = rules_table.markdown(rules_table.runs_of(path)).splitlines()[2:]
    assert [line.replace("|", " ").split() for line in of_file] == rows


@pytest.mark.parametrize("width", [50, 80])
@pytest.mark.parametrize("together", [False, True])
def test_a_table_of_times_fits(width, together):
    console = Console(width=width, file=io.StringIO())
    names = ["AdamW-clipped", "AdamW"] if together else ["mlx_opt", "compiled", "limit"]
    workload = Workload("AdamW-clipped", model_named("gpt2"), "bfloat16")
    results = {name: Result(name, "about", [0.123, 0.124, 0.125], 10**10) for name in names}
    make = table_together if together else table
    console.print(make(Run(workload, results, in_turn=True), console))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any("124 ms" in line and "1.00" in line for line in lines)
    assert ("10-90 %" in "".join(lines).split("Medians")[0]) == (width == 80)
    assert not any("\N{HORIZONTAL ELLIPSIS}" in line for line in lines)


def test_rules_are_timed_in_turn_with_one_another():
    rules = [word for rule in ("AdamW", "AdamW-clipped", "Adafactor") for word in ("--rule", rule)]
    done = command("bench", "--together", "--model", "3*20x30,5", "--rounds", "2", *rules)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    for name, moved in (("AdamW", 28), ("AdamW-clipped", 32), ("Adafactor", 24), ("norm", 4)):
        assert rows[name][4] == str(moved)


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_rules_in_turn_with_one_another_are_not_written_down(option, tmp_path):
    done = command("bench", "--together", option, tmp_path / "file")
    assert done.returncode == 2 and "--together has none of" in done.stderr
