"""An MLX that no part was built for: every rule by its formula, with one warning.

A process where mlx.core has another version runs `unfused_steps.py` for all rules; the states go
from there to here and back as files.
"""

import json
import os
import subprocess
import sys
import textwrap

import mlx.core as mx
import mlx.optimizers as stock
import pytest

import mlx_opt
from cases import CASES, SUMMING, normal
from mlx_opt.tools import parts
from unfused_steps import HIDDEN, name_of, read, run, tree

HERE = os.path.dirname(__file__)
MUON = [
    ("Muon", {}),
    ("Muon", {"ns_coefficients": "polar_express", "nesterov": False}),
    ("Muon", {"normuon": True, "equalize": "rows", "split": {"*matrix": [2, 4]}}),
    ("Muon", {"adamuon": True, "normalize": "frobenius"}),
]
OPTIMIZERS = [(case.rule, case.options) for case in [*CASES, *SUMMING]] + MUON
IDS = [name_of(*each) for each in OPTIMIZERS]
IN_STOCK = [
    (each.rule, each.options) for each in CASES if each.is_in_stock and each.rule != "Adafactor"
] + MUON[:1]


def python(code, *arguments, **variables):
    """Run code where no part serves MLX."""
    prologue = f"import mlx.core as mx\nmx.__version__ = {HIDDEN!r}\n"
    return subprocess.run(
        [sys.executable, "-c", prologue + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([HERE, *sys.path]), **variables},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of two steps here and of two steps there, each with two more of the other."""
    folder = tmp_path_factory.mktemp("steps")
    for i, (rule, options) in enumerate(OPTIMIZERS):
        run(rule, options, None, folder / f"{i}.here")
    done = python(
        """
        import json, pathlib, sys, unfused_steps as steps
        folder = pathlib.Path(sys.argv[1])
        for i, (rule, options) in enumerate(json.loads(sys.argv[2])):
            steps.run(rule, options, None, folder / f"{i}.there")
            steps.run(rule, options, folder / f"{i}.here", folder / f"{i}.here-there")
        """,
        folder,
        json.dumps(OPTIMIZERS),
    )
    assert done.returncode == 0, done.stderr
    for i, (rule, options) in enumerate(OPTIMIZERS):
        run(rule, options, folder / f"{i}.there", folder / f"{i}.there-here")
    return folder


def assert_equal_files(folder, i, one, other):
    found, expected = read(folder / f"{i}.{one}"), read(folder / f"{i}.{other}")
    assert found.keys() == expected.keys()
    for key, x in found.items():
        assert (x.dtype, x.shape) == (expected[key].dtype, expected[key].shape), key
        half = x.dtype != mx.float32
        exact = mx.allclose(x, expected[key], rtol=2e-2 if half else 2e-4, atol=2e-5)
        assert exact, (key, x, expected[key])


@pytest.mark.parametrize("i", range(len(OPTIMIZERS)), ids=IDS)
def test_a_rule_takes_the_steps_of_the_part(folder, i):
    assert_equal_files(folder, i, "there", "here")


@pytest.mark.parametrize("i", range(len(OPTIMIZERS)), ids=IDS)
def test_a_state_goes_on_in_the_other_way(folder, i):
    assert_equal_files(folder, i, "there-here", "here-there")


@pytest.mark.parametrize("each", IN_STOCK, ids=lambda each: name_of(*each))
def test_a_rule_of_stock_takes_stocks_steps(folder, each):
    rule, options = each
    optimizer, w = getattr(stock, rule)(0.01, **options), tree(0)["float32"]
    optimizer.init(w)
    for step in (1, 2):
        w = optimizer.apply_gradients(tree(step)["float32"], w)
    found = read(folder / f"{OPTIMIZERS.index(each)}.there")
    for name, x in w.items():
        assert mx.allclose(found[f"w.float32.{name}"], x, rtol=1e-4, atol=1e-5), name


def test_everything_of_the_interface_works(tmp_path):
    """Groups, schedules, clipping, a loss scale, mx.compile, MultiOptimizer and Muon's fallback
    give what they give here."""
    steps = "import sys, unfused_steps as steps; steps.run_features(sys.argv[1])"
    done = python(steps, tmp_path / "there")
    assert done.returncode == 0, done.stderr
    from unfused_steps import run_features

    run_features(tmp_path / "here")
    found, expected = read(tmp_path / "there"), read(tmp_path / "here")
    assert found.keys() == expected.keys() and len(found) > 10
    for key, x in found.items():
        assert mx.allclose(x, expected[key], rtol=1e-4, atol=1e-6), key


def test_it_warns_once_where_mlx_opt_is_imported():
    done = python("import mlx_opt\nimport mlx_opt.optimizers\nmlx_opt.AdamW(0.1)")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning") == 1
    assert "<string>:3: RuntimeWarning: mlx_opt has no compiled part for mlx" in done.stderr
    assert done.stderr.count("pip install") == 1
    assert f"=={parts.versions()[0]}'" in done.stderr


def test_it_can_be_refused():
    done = python("import mlx_opt", MLX_OPT_REQUIRE_FUSED="1")
    assert done.returncode == 1
    assert "ImportError: MLX_OPT_REQUIRE_FUSED is set, and mlx_opt has no compiled" in done.stderr
    assert python("import mlx_opt", MLX_OPT_REQUIRE_FUSED="0").returncode == 0


@pytest.mark.parametrize("command", ["info", "selftest"])
def test_a_command_tells_it(command):
    pytest.importorskip("rich")
    code = f"""
        from mlx_opt import __main__
        raise SystemExit(__main__.main([{command!r}]))
    """
    done = python(code)
    assert done.returncode == 1
    assert "problem: mlx_opt has no compiled part for mlx" in done.stdout


def test_threads_are_checked_and_one():
    done = python(
        """
        import mlx_opt
        mlx_opt.set_num_threads(2)
        assert mlx_opt.num_threads() == 1
        try:
            mlx_opt.set_num_threads(0)
        except ValueError as error:
            print(error)
        """
    )
    assert done.stdout == "threads: expected 1 to 1024, got 0\n"


def test_an_error_changes_nothing_and_names_the_parameter(tmp_path):
    done = python(
        """
        import mlx_opt
        model = {"a": mx.ones(2), "b": mx.ones(2)}
        optimizer = mlx_opt.Lion(0.1)
        optimizer.init(model)
        for gradients in ({"a": mx.ones(2), "b": mx.ones(3)}, {"a": mx.ones(2), "c": mx.ones(2)}):
            try:
                optimizer.apply_gradients(gradients, model)
            except (KeyError, ValueError) as error:
                print(error)
        assert optimizer.step.item() == 0 and not optimizer.state["a"]["m"].any()
        """
    )
    assert done.stdout.splitlines() == [
        "b: gradient (3,), parameter (2,)",
        "'c: there is a gradient but no parameter'",
    ], done.stderr


def test_the_data_of_the_rules_are_those_of_the_part():
    for rule, description in mlx_opt.descriptions.BY_RULE.items():
        assert mlx_opt._ext.program(rule).rule == rule
        assert description.optimizer in mlx_opt.descriptions.OPTIMIZERS
    w = normal(3, seed=0)
    assert mlx_opt.SGD(0.1).apply_gradients({"w": w}, {"w": w})["w"].shape == (3,)


def test_gradients_are_negated_and_clipped_and_parameters_averaged():
    done = python(
        """
        import mlx.nn as nn
        import mlx_opt as optim
        w, g = {"w": mx.zeros(3)}, {"w": mx.array([3.0, -4.0, 0.5])}
        print(optim.SGD(1.0, maximize=True).apply_gradients(g, w, max_value=1.0)["w"].tolist())
        group = optim.Group("w", maximize=True)
        print(optim.SGD(1.0, groups=[group]).apply_gradients(g, w)["w"].tolist())
        optimizer = optim.SGDScheduleFree(1.0, momentum=0.5)
        for _ in range(2):
            w = optimizer.apply_gradients({"w": mx.ones(3)}, w)
        print(w["w"].tolist(), optimizer.eval_parameters(w)["w"].tolist())
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[1.0, -1.0, 0.5]",
        "[3.0, -4.0, 0.5]",
        "[-1.75, -1.75, -1.75] [-1.5, -1.5, -1.5]",
    ]
