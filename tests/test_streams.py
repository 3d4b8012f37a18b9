"""Streams, Python threads and pipelines: the numbers are those of one step after the other."""

import io
import threading

import mlx.core as mx
import numpy as np
import pytest

import mlx_opt
from cases import assert_same, copied, each_dtype, each_of_slow_subset, each_rule, normal


def tree(seed, dtype=mx.float32):
    def x(*shape):
        return normal(*shape, seed=seed, dtype=dtype)

    # More than the MiB for which a step waits.
    return {"a": x(500, 530), "layers": [{"b": x(57)}, (x(), x(3, 5, 7))]}


def walk(optimizer, steps, dtype=mx.float32, evaluate=mx.eval, seed=0):
    w = tree(seed, dtype)
    for step in range(steps):
        w = optimizer.apply_gradients(tree(seed + 1 + step, dtype), w)
        evaluate(w, optimizer.state)
    mx.eval(w, optimizer.state)
    return w


@each_dtype
@each_rule
def test_a_pipeline_gives_the_numbers_of_a_synchronous_loop(case, dtype):
    pipelined, plain = case.ours(0.1), case.ours(0.1)
    assert_same(walk(pipelined, 12, dtype, mx.async_eval), walk(plain, 12, dtype))
    assert_same(pipelined.state, plain.state)


@each_rule
def test_a_graph_of_many_steps_gives_the_numbers_of_one_step_at_a_time(case):
    lazy, plain = case.ours(0.1), case.ours(0.1)
    assert_same(walk(lazy, 12, evaluate=lambda *trees: None), walk(plain, 12))
    assert_same(lazy.state, plain.state)


@each_rule
def test_half_evaluated_steps_give_the_numbers_of_whole_ones(case):
    """Only the parameters, or only one of them, or only the state are evaluated in each step."""
    parts = [
        lambda w, state: mx.eval(w),
        lambda w, state: mx.eval(w["layers"][0]),
        lambda w, state: mx.async_eval(state),
        lambda w, state: mx.eval(state["a"]),
    ]
    turn = iter(parts * 3)
    partial, plain = case.ours(0.1), case.ours(0.1)
    got = walk(partial, 12, evaluate=lambda *trees: next(turn)(*trees))
    assert_same(got, walk(plain, 12))
    assert_same(partial.state, plain.state)


@each_rule
def test_a_step_runs_on_the_stream_of_its_context(case):
    stream = mx.new_stream(mx.default_device())
    elsewhere, plain = case.ours(0.1), case.ours(0.1)
    with mx.stream(stream):
        got = walk(elsewhere, 6, evaluate=mx.async_eval)
    assert_same(got, walk(plain, 6))


@each_rule
def test_steps_may_change_streams(case):
    streams = [mx.default_stream(mx.default_device()), mx.new_stream(mx.default_device())]
    changing, plain = case.ours(0.1), case.ours(0.1)
    w = tree(0)
    for step in range(10):
        with mx.stream(streams[step % 2]):
            w = changing.apply_gradients(tree(1 + step), w)
        mx.async_eval(w, changing.state)
    assert_same(w, walk(plain, 10))
    assert_same(changing.state, plain.state)


def test_a_reader_on_another_stream_sees_the_values_of_its_time():
    reader = mx.new_stream(mx.default_device())
    optimizer, again = mlx_opt.AdamW(0.1), mlx_opt.AdamW(0.1)
    w, clean = tree(0), tree(0)
    seen, expected = [], []
    for step in range(10):
        seen.append(mx.sum(mx.abs(w["a"]), axis=0, stream=reader))
        mx.async_eval(seen[-1])
        expected.append(copied(mx.sum(mx.abs(clean["a"]), axis=0)))
        w = optimizer.apply_gradients(tree(1 + step), w)
        mx.async_eval(w, optimizer.state)
        clean = again.apply_gradients(tree(1 + step), clean)
        mx.eval(clean, again.state)
    assert_same(seen, expected)


ASKING = {
    "eval": lambda x: mx.eval(x),
    "item": lambda x: x[0, 0].item(),
    "tolist": lambda x: x[0].tolist(),
    "bool": lambda x: bool(x[0, 0]),
    "float": lambda x: float(x[0, 0]),
    "numpy": lambda x: np.array(x),
    "a-numpy-view": lambda x: np.array(x, copy=False),
    "memoryview": lambda x: memoryview(x),
    "repr": lambda x: repr(x),
    "equality": lambda x: bool(mx.array_equal(x, x)),
    "a-file": lambda x: mx.save(io.BytesIO(), x),
}


@pytest.mark.parametrize("asking", list(ASKING))
def test_whatever_asks_for_a_value_gets_that_of_the_steps_before(asking):
    optimizer, plain = mlx_opt.AdamW(0.1), mlx_opt.AdamW(0.1)
    w = tree(0)
    for step in range(5):
        w = optimizer.apply_gradients(tree(1 + step), w)
        mx.async_eval(w, optimizer.state)
        w = optimizer.apply_gradients(tree(50 + step), w)
        ASKING[asking](w["a"])
    clean = tree(0)
    for step in range(5):
        clean = plain.apply_gradients(tree(1 + step), clean)
        clean = plain.apply_gradients(tree(50 + step), clean)
        mx.eval(clean, plain.state)
    assert_same(w, clean)


def run_in_threads(count, work):
    """`work(index)` in as many threads at once; what they return, or the first error raised."""
    results, errors = [None] * count, []
    gate = threading.Barrier(count)

    def run(index):
        try:
            gate.wait()
            results[index] = work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@pytest.mark.parametrize("own_stream", [True, False], ids=["own-stream", "default-stream"])
@each_of_slow_subset
def test_threads_train_side_by_side(case, own_stream):
    def work(index):
        optimizer = case.ours(0.1)
        if own_stream:
            with mx.stream(mx.new_stream(mx.default_device())):
                w = walk(optimizer, 8, evaluate=mx.async_eval, seed=1000 * index)
        else:
            w = walk(optimizer, 8, seed=1000 * index)
        return w, optimizer.state

    for index, (w, state) in enumerate(run_in_threads(4, work)):
        optimizer = case.ours(0.1)
        assert_same(w, walk(optimizer, 8, seed=1000 * index))
        assert_same(state, optimizer.state)


def test_a_thread_takes_over_what_another_began():
    optimizer, plain = mlx_opt.AdamW(0.1), mlx_opt.AdamW(0.1)
    w = tree(0)
    for step in range(6):

        def work(_, step=step, w=w):
            new = optimizer.apply_gradients(tree(1 + step), w)
            mx.eval(new, optimizer.state)
            return new

        (w,) = run_in_threads(1, work)
    assert_same(w, walk(plain, 6))


def test_threads_may_read_the_same_parameters():
    shared = tree(0)
    expected = mlx_opt.AdamW(0.1).apply_gradients(tree(1), tree(0))
    mx.eval(shared, expected)

    def work(_):
        with mx.stream(mx.new_stream(mx.default_device())):
            optimizer = mlx_opt.AdamW(0.1)
            new = optimizer.apply_gradients(tree(1), shared)
            mx.eval(new, optimizer.state)
            return new

    for new in run_in_threads(4, work):
        assert_same(new, expected)
    assert_same(shared, tree(0))
