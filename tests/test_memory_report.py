"""optimizer.memory and ``python -m mlx_opt memory``, beside what MLX measures."""

import gc
import json

import mlx.core as mx
import mlx.nn as nn
import pytest

import mlx_opt
from mlx_opt.__main__ import main

MATRIX = (512, 1024)
N = 3 * 512 * 1024


def tree(dtype, value=0.0):
    return {"layers": [{"w": mx.full(MATRIX, value, dtype)} for _ in range(3)]}


def measured(optimizer, dtype):
    """The peak of a step and what is left behind it, in bytes."""
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    w = tree(dtype)
    optimizer.init(w)
    mx.eval(w, optimizer.state)
    for _ in range(2 * optimizer.accumulate):
        g = tree(dtype, 1.0)
        mx.eval(g)
        held = mx.get_active_memory()  # MLX looks for a peak only where it allocates
        mx.reset_peak_memory()
        w = optimizer.apply_gradients(g, w)
        del g
        mx.eval(w, optimizer.state)
        mx.synchronize()
    return max(mx.get_peak_memory(), held) - before, mx.get_active_memory() - before


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("AdamW", {}),
        ("AdamW", {"state_dtype": mx.bfloat16}),
        ("AdamW", {"state_dtype": {"v": mx.float32}}),
        ("AdamW", {"accumulate": 2}),
        ("AdamW", {"accumulate": 2, "accumulate_dtype": mx.float32}),
        ("AdEMAMix", {}),
        ("SGD", {}),
        ("Adafactor", {}),
        ("Lamb", {"state_dtype": "float32"}),
    ],
    ids=str,
)
def test_a_step_holds_what_memory_says(rule, options, dtype):
    memory = getattr(mlx_opt, rule)(learning_rate=0.1, **options).memory(tree(dtype), show=False)
    peak, after = measured(getattr(mlx_opt, rule)(learning_rate=0.1, **options), dtype)
    assert memory.elements == N
    assert memory.step_peak == pytest.approx(peak, rel=0.01)
    assert memory.between_steps - memory.pending == pytest.approx(after, rel=0.01)


def test_it_counts_by_slot_and_evaluates_and_changes_nothing():
    optimizer = mlx_opt.AdEMAMix(0.1, state_dtype=mx.bfloat16)
    huge = {"w": mx.zeros((2**20, 2**20), mx.bfloat16)}
    before = mx.get_active_memory()
    memory = optimizer.memory(huge, show=False)
    assert memory.state == {"": 12, "m1": 2**41, "m2": 2**42, "v": 2**41}
    assert mx.get_active_memory() == before
    assert set(optimizer.state) == {"step", "learning_rate"}


def test_it_counts_the_state_that_there_is():
    optimizer, w = mlx_opt.AdamW(0.1), {"a": mx.zeros(10), "b": mx.zeros(6)}
    optimizer.apply_gradients({"a": mx.ones(10)}, {"a": w["a"]})
    optimizer.state["a"]["m"] = optimizer.state["a"]["m"].astype(mx.float16)
    optimizer.state["a"]["another"] = mx.zeros(5)
    optimizer.state["copies"] = {"a": mx.zeros(7)}
    state = optimizer.memory(w, show=False).state
    assert state == {"": 12, "m": 20 + 24, "v": 40 + 24, "another": 20, "copies": 28}


def test_frozen_parameters_of_the_model_and_of_groups():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 4))
    model.layers[0].freeze()
    groups = [mlx_opt.freeze("*bias")]
    optimizer = mlx_opt.AdamW(0.1, groups=groups, accumulate=4, accumulate_dtype=mx.bfloat16)
    memory = optimizer.memory(model, show=False)
    assert memory.parameters == memory.gradients == 4 * (32 + 4)
    assert memory.frozen == 4 * 64
    assert memory.state == {"": 12, "m": 4 * 32, "v": 4 * 32}
    assert memory.pending == 2 * 32
    assert memory.means == 4 * 32
    assert memory.step_peak == 2 * memory.parameters + memory.frozen + 12 + 8 * 32 + 64 + 128


def test_optimizers_of_several_parts():
    w = {"a": mx.zeros((4, 4)), "b": mx.zeros(4)}
    multi = mlx_opt.MultiOptimizer(
        [mlx_opt.Lion(0.1), mlx_opt.AdamW(0.1)], [lambda path, x: x.ndim == 2], accumulate=2
    )
    muon = mlx_opt.Muon(0.1, fallback=mlx_opt.AdamW(0.1))
    found = multi.memory(w, show=False)
    assert found.state == {"": 24, "m": 64 + 16, "v": 16} and found.pending == 80
    assert muon.memory(w, show=False).state == {"": 24, "v": 64 + 16, "m": 16}


def test_an_optimizer_whose_states_are_divided():
    w = {"a": mx.zeros((4, 4)), "b": mx.zeros(4)}
    optimizer = mlx_opt.Sharded(mlx_opt.AdamW(0.1))
    assert optimizer.memory(w, show=False) == mlx_opt.AdamW(0.1).memory(w, show=False)


def test_the_table(capsys):
    mlx_opt.AdamW(0.1, accumulate=2).memory({"w": mx.zeros((1000, 1000))})
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["AdamW,", "1,000,000", "trained", "elements"]
    assert ["parameters", "4", "MB", "4.00"] in lines
    assert ["peak", "of", "a", "step", "20", "MB", "20.00"] in lines


def test_the_command_lists_choices(capsys):
    line = ["memory", "--params", "1.2e9", "--dtype", "bfloat16", "--rule", "AdamW", "SGD"]
    assert main([*line, "--json"]) == 0
    choices = json.loads(capsys.readouterr().out)["choices"]
    assert [(each["rule"], each["state_dtype"], each["step_peak"] / 1.2e9) for each in choices] == [
        ("AdamW", "promoted", pytest.approx(8)),
        ("AdamW", "float32", pytest.approx(12)),
        ("SGD", "promoted", pytest.approx(6)),
        ("SGD", "float32", pytest.approx(8)),
    ]
    assert main([*line, "--state-dtype", "v=float32", "--accumulate", "4"]) == 0
    text = capsys.readouterr().out
    assert "v=float32" in text and "14.4 GB" in text and "12.00" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--params", "none"], "argument --params: expected a number of 1 or more, got none"),
        (["--params", "5", "--rule", "Adm"], "there is no rule Adm"),
        (
            ["--params", "5", "--rule", "Lion", "--state-dtype", "v=float32"],
            "Lion: state_dtype: there is no 'v'; it has m",
        ),
        (["--params", "5", "--state-dtype", "int4"], "expected float32, float16, bfloat16 or int8"),
        (["--params", "5", "--accumulate", "0"], "AdamW: accumulate: expected 1 or more, got 0"),
    ],
)
def test_a_wrong_command_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["memory", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
