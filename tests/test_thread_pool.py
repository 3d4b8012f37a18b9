"""The threads of a step on the CPU, as Python sets and sees them."""

import os
import subprocess
import sys

import mlx.core as mx
import pytest

import mlx_opt
from cases import assert_same, each_dtype, each_rule, normal

pytestmark = pytest.mark.usefixtures("cpu")

# From less than a chunk to many: together they are cut at odd places.
SHAPES = [(7,), (300_001,), (123, 457), (8192,), (64, 64), (1,), (0,), (50_000,)]


@pytest.fixture(autouse=True)
def restore():
    before = mlx_opt.num_threads()
    yield
    mlx_opt.set_num_threads(before)


def tree(seed, dtype):
    return {str(i): normal(*shape, seed=seed, dtype=dtype) for i, shape in enumerate(SHAPES)}


@each_dtype
@each_rule
def test_any_number_of_threads_gives_the_same_bits(case, dtype):
    w0, gradients = tree(0, dtype), [tree(1 + step, dtype) for step in range(3)]
    results = []
    for threads in (1, 2, 7):
        mlx_opt.set_num_threads(threads)
        assert mlx_opt.num_threads() == threads
        optimizer, w = case.ours(0.1), w0
        for g in gradients:
            w = optimizer.apply_gradients(g, w)
            mx.eval(w, optimizer.state)
        results.append((w, optimizer.state))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


@pytest.mark.parametrize("layout", ["transposed", "reversed", "broadcast"])
def test_any_number_of_threads_reads_a_strided_gradient_alike(layout):
    w = normal(513, 301, seed=1)
    g = {
        "transposed": lambda: normal(301, 513, seed=2).T,
        "reversed": lambda: normal(513, 301, seed=2)[::-1, ::-1],
        "broadcast": lambda: mx.broadcast_to(normal(301, seed=2), (513, 301)),
    }[layout]()
    results = []
    for threads in (1, 2, 7):
        mlx_opt.set_num_threads(threads)
        results.append(mlx_opt.AdamW(0.1).apply_gradients({"w": g}, {"w": w}))
        mx.eval(results[-1])
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_the_number_may_change_between_steps_that_are_queued():
    again, optimizer = mlx_opt.AdamW(0.1), mlx_opt.AdamW(0.1)
    w = clean = tree(0, mx.float32)
    for step in range(12):
        mlx_opt.set_num_threads(1 + step % 5)
        w = optimizer.apply_gradients(tree(1 + step, mx.float32), w)
        mx.async_eval(w, optimizer.state)
    mx.eval(w, optimizer.state)
    for step in range(12):
        clean = again.apply_gradients(tree(1 + step, mx.float32), clean)
        mx.eval(clean, again.state)
    assert_same(w, clean)


@pytest.mark.parametrize("threads", [0, -1, 1025, -(2**31)])
def test_an_impossible_number_is_refused_and_changes_nothing(threads):
    mlx_opt.set_num_threads(3)
    with pytest.raises(ValueError, match=f"from 1 to 1024, got {threads}"):
        mlx_opt.set_num_threads(threads)
    assert mlx_opt.num_threads() == 3


@pytest.mark.parametrize("threads", ["2", 2.5, None])
def test_what_is_no_number_is_a_type_error(threads):
    with pytest.raises(TypeError):
        mlx_opt.set_num_threads(threads)


def test_the_most_threads_do_the_work_of_few():
    mlx_opt.set_num_threads(1024)
    many = mlx_opt.AdamW(0.1).apply_gradients(tree(1, mx.float32), tree(0, mx.float32))
    mx.eval(many)
    mlx_opt.set_num_threads(1)
    assert_same(mlx_opt.AdamW(0.1).apply_gradients(tree(1, mx.float32), tree(0, mx.float32)), many)


def run(code, threads, *arguments):
    """Runs Python with MLX_OPT_NUM_THREADS set, or unset where `threads` is None."""
    environment = {k: v for k, v in os.environ.items() if k != "MLX_OPT_NUM_THREADS"}
    if threads is not None:
        environment["MLX_OPT_NUM_THREADS"] = threads
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("threads", ["1", "2", "7", "1024"])
def test_the_environment_sets_the_number(threads):
    done = run("import mlx_opt; print(mlx_opt.num_threads())", threads)
    assert (done.returncode, done.stdout.strip()) == (0, threads), done.stderr


@pytest.mark.parametrize("threads", [None, ""])
def test_without_it_the_number_is_that_of_the_usable_cores(threads):
    done = run("import mlx_opt; print(mlx_opt.num_threads())", threads)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert (done.returncode, done.stdout.strip()) == (0, str(cores)), done.stderr


def test_fewer_usable_cores_are_fewer_threads():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no processor affinity on this system")
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    done = run(code + "import mlx_opt; print(mlx_opt.num_threads())", None)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


STEP = """
import mlx.core as mx, mlx_opt
try:
    w = mlx_opt.SGD(1.0).apply_gradients({"w": mx.ones(100_000)}, {"w": mx.ones(100_000)})
    mx.eval(w)
except ValueError as error:
    print("refused:", error)
else:
    print("done", mx.all(w["w"] == 0).item())
"""


@pytest.mark.parametrize("threads", ["0", "-3", "1025", "many", "2 threads", "1e2", "9" * 30])
def test_an_impossible_environment_is_refused_where_it_is_first_used(threads):
    done = run("import mlx_opt; mlx_opt.num_threads()", threads)
    assert done.returncode == 1
    assert "ValueError: MLX_OPT_NUM_THREADS: the number of threads must be from 1" in done.stderr


@pytest.mark.parametrize("threads", ["0", "many"])
def test_an_impossible_environment_does_not_end_the_process(threads):
    done = run(STEP, threads)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("refused:", "done True"))


UPDATE = """
import sys
import mlx.core as mx, mlx.nn as nn, mlx_opt
model, optimizer = nn.Linear(500, 400), getattr(mlx_opt, sys.argv[1])(learning_rate=0.1)
gradients = {"weight": mx.ones((400, 500)), "bias": mx.ones(400)}
optimizer.init(model.trainable_parameters())
before = model.weight + 0
mx.eval(model, gradients, optimizer.state, before)
try:
    optimizer.update(model, gradients, **eval(sys.argv[2]))
except ValueError as error:
    print(error)
print(mx.array_equal(model.weight, before).item(), optimizer.state["step"].item())
"""


@pytest.mark.parametrize("options", ["{}", "{'max_norm': 1.0}"])
@pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
def test_an_impossible_environment_is_refused_before_a_step_changes_anything(name, options):
    done = run(UPDATE, "many", name, options)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith("MLX_OPT_NUM_THREADS: ") and lines[0].endswith("got many")
    assert lines[1] == "True 0"


def test_setting_the_number_overrules_the_environment():
    code = "import mlx_opt; mlx_opt.set_num_threads(3); print(mlx_opt.num_threads())"
    assert run(code, "2").stdout.strip() == "3"
    assert run(code, "many").stdout.strip() == "3"
