"""python -m mlx_opt: run, info, and what it says of a wrong command line."""

import subprocess
import sys
import textwrap

import mlx.core as mx
import pytest

from mlx_opt import _ext

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
    done = command("run", script("def f():\n    raise RuntimeError('mine')\nf()"))
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


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("info", "--help")])
def test_help_is_given(arguments):
    done = command(*arguments)
    assert done.returncode == 0 and "usage: python -m mlx_opt" in done.stdout


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
