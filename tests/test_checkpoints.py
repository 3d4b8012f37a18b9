"""Checkpoints: state written by one package is read by the other."""

import mlx.core as mx
import mlx.optimizers as stock
import pytest
from mlx.utils import tree_flatten, tree_unflatten

import mlx_opt
from cases import assert_close, each_dtype, each_rule, normal, signature

STEPS = 3


def tree(seed, dtype=mx.float32):
    def x(*shape):
        return normal(*shape, seed=seed, dtype=dtype)

    layers = [{"weight": x(4, 5)}, {"weight": x(2), "pair": (x(3), x())}]
    return {"embedding": x(7, 3), "layers": layers, "scale": x()}


def save(path, optimizer):
    mx.save_safetensors(str(path), dict(tree_flatten(optimizer.state)))


def load(path, optimizer):
    optimizer.state = tree_unflatten(list(mx.load(str(path)).items()))


def steps(optimizer, w, first):
    for step in range(first, first + STEPS):
        w = optimizer.apply_gradients(tree(10 + step), w)
    return w


@pytest.mark.parametrize("writer", ["ours", "stock"])
@pytest.mark.parametrize("reader", ["ours", "stock"])
@each_rule
def test_training_goes_on_from_the_others_checkpoint(case, writer, reader, tmp_path):
    written = getattr(case, writer)(0.1)
    w = steps(written, tree(1), 0)
    save(tmp_path / "state.safetensors", written)

    read = getattr(case, reader)(0.9)
    load(tmp_path / "state.safetensors", read)
    assert sorted(signature(read.state)) == sorted(signature(written.state))
    assert read.step.item() == STEPS
    w = steps(read, w, STEPS)

    straight = case.stock(0.1)
    expected = steps(straight, steps(straight, tree(1), 0), STEPS)
    assert_close(dict(sorted(tree_flatten(w))), dict(sorted(tree_flatten(expected))), 2e-5)
    assert read.step.item() == 2 * STEPS


@each_dtype
@each_rule
def test_a_checkpoint_is_read_back_to_the_bit(case, dtype, tmp_path):
    optimizer = case.ours(0.1)
    w = optimizer.apply_gradients(tree(2, dtype), tree(1, dtype))
    save(tmp_path / "state.safetensors", optimizer)
    again = case.ours(0.9)
    load(tmp_path / "state.safetensors", again)
    for _ in range(2):
        expected = optimizer.apply_gradients(tree(3, dtype), w)
        got = again.apply_gradients(tree(3, dtype), w)
        assert_close(got, expected, 0)


def test_a_checkpoint_of_another_precision_is_used_as_it_is(tmp_path):
    results = []
    for package in (mlx_opt, stock):
        optimizer = package.AdamW(0.1)
        optimizer.apply_gradients(tree(2), tree(1))
        path = str(tmp_path / "state.safetensors")
        state = {k: x.astype(mx.bfloat16) for k, x in tree_flatten(optimizer.state) if k != "step"}
        mx.save_safetensors(path, state | {"step": optimizer.step})
        load(path, optimizer)
        w = optimizer.apply_gradients(tree(3), tree(1))
        results.append(signature(w) + sorted(signature(optimizer.state)))
    assert results[0] == results[1]


def test_saving_then_training_leaves_the_file_as_it_was(tmp_path):
    optimizer = mlx_opt.AdamW(0.1)
    w = optimizer.apply_gradients(tree(2), tree(1))
    state = dict(tree_flatten(optimizer.state))
    path = tmp_path / "state.safetensors"
    mx.save_safetensors(str(path), state)
    written = path.read_bytes()
    for step in range(3):
        w = optimizer.apply_gradients(tree(3 + step), w)
        mx.eval(w, optimizer.state)
    mx.save_safetensors(str(path), state)  # the arrays kept from before
    assert path.read_bytes() == written


def test_a_multi_optimizers_state_goes_both_ways(tmp_path):
    def build(package):
        optimizers = [package.SGD(0.1, momentum=0.9), package.AdamW(0.1)]
        return package.MultiOptimizer(optimizers, [lambda path, _: "layers" in path])

    for writer, reader in ((mlx_opt, stock), (stock, mlx_opt)):
        written, read = build(writer), build(reader)
        written.init(tree(1))
        w = steps(written, tree(1), 0)
        save(tmp_path / "state.safetensors", written)
        read.init(tree(1))
        load(tmp_path / "state.safetensors", read)
        a, b = steps(written, w, STEPS), steps(read, w, STEPS)
        assert_close(a, b, 2e-5)
