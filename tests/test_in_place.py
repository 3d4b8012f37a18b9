"""`update` overwrites the parameters if no other reference can observe it, and only then.

The oracle is `apply_gradients`, which makes new arrays.
"""

import copy
import gc
import threading

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

import mlx_opt
from cases import (
    DTYPES,
    RULES,
    SLOW_SUBSET,
    Case,
    assert_same,
    copied,
    dtype_name,
    each_dtype,
    is_lazy,
    normal,
)
from test_held_buffers import EXPORTS, WAYS, other_stream, read

ADAMW = Case("AdamW")
ADAFACTOR = [
    Case("Adafactor", {"relative_step": False, "weight_decay": 0.1}),
    Case("Adafactor", {"warmup_init": True, "beta_1": 0.9}),
]
each_rule = pytest.mark.parametrize("case", RULES + ADAFACTOR, ids=str)
each_of_slow_subset = pytest.mark.parametrize("case", SLOW_SUBSET + ADAFACTOR, ids=str)
SIZE = 96  # 9216 elements, as the ways of holding need: more than one chunk of work


class Layer(nn.Module):
    def __init__(self, seed, dtype):
        super().__init__()
        self.weight = normal(SIZE, SIZE, seed=seed, dtype=dtype)
        self.bias = normal(33, seed=seed, dtype=dtype)


class Model(nn.Module):
    def __init__(self, dtype=mx.float32):
        super().__init__()
        self.layers = [Layer(1, dtype), Layer(2, dtype)]
        self.head = {"scale": normal(seed=3, dtype=dtype), "none": mx.zeros((0, 4), dtype)}


def gradients(model, step):
    g = tree_map(lambda x: normal(*x.shape, seed=100 + step, dtype=x.dtype), model.parameters())
    mx.eval(g)
    return g


def begin(case, dtype=mx.float32, steps=2):
    """A model and its optimizer after some steps, everything evaluated."""
    model, optimizer = Model(dtype), case.ours(0.1)
    walk(model, optimizer, range(steps))
    return model, optimizer


def walk(model, optimizer, steps, evaluate=mx.eval):
    for step in steps:
        optimizer.update(model, gradients(model, step))
        evaluate(model.parameters(), optimizer.state)
    mx.eval(model.parameters(), optimizer.state)


def plain(case, dtype, steps):
    """What `steps` of apply_gradients make of the same model: parameters and state."""
    model, optimizer = Model(dtype), case.ours(0.1)
    for step in range(steps):
        model.update(optimizer.apply_gradients(gradients(model, step), model))
        mx.eval(model.parameters(), optimizer.state)
    return model.parameters(), optimizer.state


def occupy():
    """Give the stream so much to do that what is queued next is still to be done for a while."""
    x = mx.ones((600, 600))
    mx.async_eval(x @ x)


IN_ROOT = {"step", "learning_rate", *(name for case in RULES for name in case.keeps)}


def leaves(model, optimizer):
    """What a step in place overwrites."""
    trees = {"model": model.parameters(), "state": optimizer.state}
    return {
        path: leaf
        for path, leaf in tree_flatten(trees)
        if path.removeprefix("state.") not in IN_ROOT
    }


def is_in_place(model, optimizer, step=7):
    """True if a step makes no graph and leaves the arrays the same objects."""
    if mx.default_device().type == mx.gpu:
        mx.synchronize()  # a thread of MLX's lets go of what it held after the GPU is done
    before = {path: id(x) for path, x in leaves(model, optimizer).items()}
    optimizer.update(model, gradients(model, step))
    after = leaves(model, optimizer)
    graph = any(is_lazy(x) for x in after.values())
    mx.eval(model.parameters(), optimizer.state)
    return not graph and {path: id(x) for path, x in after.items()} == before


@each_dtype
@each_rule
def test_arrays_that_only_the_trees_hold_remain_and_get_the_new_values(case, dtype):
    model, optimizer = begin(case, dtype)
    for step in range(2, 6):
        assert is_in_place(model, optimizer, step)
    assert_same((model.parameters(), optimizer.state), plain(case, dtype, 6))


@each_dtype
@each_rule
def test_a_pipeline_gives_the_numbers_of_new_arrays(case, dtype):
    model, optimizer = Model(dtype), case.ours(0.1)
    walk(model, optimizer, range(12), mx.async_eval)
    assert_same((model.parameters(), optimizer.state), plain(case, dtype, 12))


@each_rule
def test_steps_that_nobody_waits_for_give_the_numbers_of_new_arrays(case):
    model, optimizer = begin(case)
    g = [gradients(model, step) for step in range(2, 40)]
    for each in g:
        optimizer.update(model, each)
    mx.eval(model.parameters(), optimizer.state)
    assert_same((model.parameters(), optimizer.state), plain(case, mx.float32, 40))


@pytest.mark.parametrize(
    ("case", "source"),
    [
        *((ADAMW, source) for source in ("parameter", "gradient", "m", "v")),
        *((ADAFACTOR[1], source) for source in ("parameter", "gradient", "exp_avg")),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("way", "dtype"),
    [
        pytest.param(hold, dtype, id=f"{way}-{dtype_name(dtype)}")
        for way, hold in {**WAYS, **EXPORTS}.items()
        for dtype in DTYPES
        if not (way in EXPORTS and dtype == mx.bfloat16)  # NumPy has none
    ],
)
def test_what_somebody_holds_keeps_its_value(way, case, source, dtype):
    model, optimizer = begin(case, dtype)
    g = gradients(model, 2)

    def array():
        sources = {"parameter": model.layers[1].weight, "gradient": g["layers"][1]["weight"]}
        return {**sources, **optimizer.state["layers"][1]["weight"]}[source]

    expected = read(way(copied(array())))
    held = way(array())
    optimizer.update(model, g)
    mx.eval(model.parameters(), optimizer.state)
    walk(model, optimizer, range(3, 5))
    got = read(held)
    np.testing.assert_equal(got, expected)
    assert_same((model.parameters(), optimizer.state), plain(case, dtype, 5))


@each_of_slow_subset
def test_an_array_in_two_places_of_a_model_is_not_overwritten_under_the_other(case):
    model, optimizer = begin(case)
    model.layers[0].weight = model.layers[1].weight
    assert not is_in_place(model, optimizer)
    assert is_in_place(model, optimizer)  # each has its own now


def test_copies_of_a_model_keep_their_values():
    model, optimizer = begin(ADAMW)
    copies = [
        copy.deepcopy(model),
        copy.copy(model.layers[0]),
        dict(tree_flatten(model.parameters())),
        tree_map(lambda x: x[...], model.parameters()),
        tree_map(lambda x: mx.stop_gradient(x), model.parameters()),
    ]
    mx.eval(copies[3:])
    before = [tree_map(copied, c.parameters() if isinstance(c, nn.Module) else c) for c in copies]
    walk(model, optimizer, range(2, 5))
    for kept, expected in zip(copies, before, strict=True):
        assert_same(kept.parameters() if isinstance(kept, nn.Module) else kept, expected)


def test_lazy_gradients_and_lazy_parameters_make_a_graph():
    model, optimizer = begin(ADAMW)
    g = gradients(model, 2)
    optimizer.update(model, tree_map(lambda x: x * 1, g))
    assert all(is_lazy(x) for x in leaves(model, optimizer).values())
    optimizer.update(model, g)  # its parameters are not evaluated yet
    assert all(is_lazy(x) for x in leaves(model, optimizer).values())
    mx.eval(model.parameters(), optimizer.state)
    assert is_in_place(model, optimizer)


def test_lazy_results_are_new_objects_where_the_old_ones_are_held():
    model, optimizer = begin(ADAMW)
    held = [model.layers[0].weight, optimizer.state["layers"][1]["bias"]["m"]]
    before = [copied(x) for x in held]
    paths = {"model.layers.0.weight", "state.layers.1.bias.m"}
    ids = {path: id(x) for path, x in leaves(model, optimizer).items()}
    optimizer.update(model, tree_map(lambda x: x * 1, gradients(model, 2)))
    after = leaves(model, optimizer)
    assert {path for path, x in after.items() if id(x) != ids[path]} == paths
    mx.eval(model.parameters(), optimizer.state)
    assert_same(held, before)
    assert_same((model.parameters(), optimizer.state), plain(ADAMW, mx.float32, 3))


def test_a_step_that_changes_a_dtype_makes_new_arrays():
    model, optimizer = begin(ADAMW, mx.bfloat16)
    g = tree_map(lambda x: x.astype(mx.float32), gradients(model, 2))
    mx.eval(g)
    optimizer.update(model, g)
    mx.eval(model.parameters(), optimizer.state)
    assert model.layers[0].weight.dtype == mx.float32
    assert is_in_place(model, optimizer)


def test_a_module_with_an_update_of_its_own_is_updated_by_it():
    class Counted(Model):
        calls = 0

        def update(self, parameters, strict=True):
            self.calls += 1
            return super().update(parameters, strict)

    model, optimizer = Counted(), mlx_opt.SGD(0.1)
    for step in range(3):
        optimizer.update(model, gradients(model, step))
        mx.eval(model.parameters())
    assert model.calls == 3


def test_an_update_that_a_model_is_given_is_called():
    model, optimizer = begin(ADAMW)
    calls = []
    model.update = calls.append
    optimizer.update(model, gradients(model, 2))
    assert len(calls) == 1


def test_a_model_may_go_before_its_step_is_done():
    gc.collect()
    mx.synchronize()
    before = mx.get_active_memory()
    for seed in range(10):
        model, optimizer = begin(ADAMW)
        g = gradients(model, seed)
        occupy()
        optimizer.update(model, g)
        del model, optimizer, g
        gc.collect()
        mx.clear_cache()
        mx.eval(mx.ones((SIZE, SIZE)) * 2)
    mx.synchronize()
    assert mx.get_active_memory() <= before + 4096


def test_an_error_leaves_everything_as_it_was():
    model, optimizer = begin(ADAMW)
    before = tree_map(copied, (model.parameters(), optimizer.state))
    g = gradients(model, 2)
    g["layers"][1]["bias"] = mx.zeros((34,))
    with pytest.raises(ValueError, match=r"layers\.1\.bias: gradient \(34,\), parameter \(33,\)"):
        optimizer.update(model, g)
    assert_same((model.parameters(), optimizer.state), before)
    assert is_in_place(model, optimizer)


@each_of_slow_subset
def test_steps_on_another_stream_follow_those_before(case):
    model, optimizer = begin(case)
    streams = [mx.default_stream(mx.default_device()), mx.new_stream(mx.default_device())]
    g = [gradients(model, step) for step in range(2, 12)]
    for step in range(10):
        with mx.stream(streams[step % 2]):
            if step % 2 == 0:
                occupy()
            optimizer.update(model, g[step])
    mx.eval(model.parameters(), optimizer.state)
    assert_same((model.parameters(), optimizer.state), plain(case, mx.float32, 12))


@each_of_slow_subset
def test_gradients_begun_on_another_stream_are_waited_for(case):
    model, optimizer = begin(case)
    for step in range(2, 6):
        values = gradients(model, step)
        with mx.stream(other_stream):
            occupy()
            g = tree_map(lambda x: x * 1, values)
            mx.async_eval(g)
        optimizer.update(model, g)
        mx.eval(model.parameters(), optimizer.state)
    assert_same((model.parameters(), optimizer.state), plain(case, mx.float32, 6))


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_what_somebody_takes_while_a_step_is_queued_keeps_its_value(way):
    model, optimizer = begin(ADAMW)
    g = [gradients(model, step) for step in range(2, 5)]
    clean = Model()
    clean.update(plain(ADAMW, mx.float32, 3)[0])
    expected = read(way(copied(clean.layers[1].weight)))
    occupy()
    optimizer.update(model, g[0])
    held = way(model.layers[1].weight)
    optimizer.update(model, g[1])
    optimizer.update(model, g[2])
    mx.eval(model.parameters(), optimizer.state)
    np.testing.assert_equal(read(held), expected)
    assert_same((model.parameters(), optimizer.state), plain(ADAMW, mx.float32, 5))


def test_threads_train_models_of_their_own():
    expected = plain(ADAMW, mx.float32, 8)
    results = {}

    def train(index):
        with mx.stream(mx.new_stream(mx.default_device())):
            model, optimizer = begin(ADAMW, steps=0)
            walk(model, optimizer, range(8), mx.async_eval)
            results[index] = (model.parameters(), optimizer.state)

    threads = [threading.Thread(target=train, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(4):
        assert_same(results[index], expected)


def test_two_models_may_take_turns():
    pairs = [begin(ADAMW), begin(ADAMW)]
    for step in range(2, 8):
        for model, optimizer in pairs:
            optimizer.update(model, gradients(model, step))
    for model, optimizer in pairs:
        mx.eval(model.parameters(), optimizer.state)
        assert_same((model.parameters(), optimizer.state), plain(ADAMW, mx.float32, 8))
