"""The end of a process, and forks of it."""

import os
import subprocess
import sys
import textwrap

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

PRELUDE = """
import os, sys
import mlx.core as mx
import mlx_opt

def train(steps=3, evaluate=mx.eval):
    optimizer = mlx_opt.AdamW(0.1)
    w = {"w": mx.ones((1000, 500)), "b": [mx.ones(7)]}
    for _ in range(steps):
        w = optimizer.apply_gradients(w, w)
        evaluate(w, optimizer.state)
    return w

def child(work):
    # The exit status of a forked child that does the work and ends as a process does.
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def run(code):
    """Runs Python until it ends; one that hangs is an error."""
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def assert_clean(done, output=""):
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == output.split(), done.stderr
    assert "terminate" not in done.stderr and "Error" not in done.stderr, done.stderr


EXITS = {
    "steps-in-flight": "train(20, mx.async_eval)",
    "steps-in-flight-and-results-held": "w = train(20, mx.async_eval)",
    "a-graph-that-is-never-evaluated": "w = train(5, lambda *trees: None)",
    "after-synchronous-steps": "w = train()",
    "nothing-done": "",
    "only-the-pool-asked": "mlx_opt.num_threads()",
    "threads-added-in-flight": """
        mlx_opt.set_num_threads(2)
        w = train(5, mx.async_eval)
        mlx_opt.set_num_threads(16)
        w = train(5, mx.async_eval)
    """,
    "sys-exit-in-flight": "w = train(20, mx.async_eval); sys.exit(0)",
    "the-module-unloaded": """
        w = train(5, mx.async_eval)
        del sys.modules["mlx_opt"], mlx_opt, w
    """,
    "a-python-thread-in-flight": """
        import threading
        thread = threading.Thread(target=train, args=(20, mx.async_eval))
        thread.start()
        thread.join()
    """,
    "on-another-stream": """
        with mx.stream(mx.new_stream(mx.default_device())):
            w = train(20, mx.async_eval)
    """,
}


@pytest.mark.parametrize("name", list(EXITS))
def test_a_process_ends_cleanly_with(name):
    assert_clean(run(EXITS[name]))


def test_an_exception_in_flight_is_the_only_error():
    done = run("w = train(20, mx.async_eval)\nraise RuntimeError('mine')")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("RuntimeError: mine")


@needs_fork
def test_a_child_forked_before_the_first_use_trains(cpu):
    done = run("""
        def work():
            assert abs(train()["b"][0][0].item() - train()["b"][0][0].item()) == 0
            print("trained")
        print(child(work))
        train()
        print("parent")
    """)
    assert_clean(done, "trained 0 parent")


@needs_fork
def test_a_child_forked_after_use_ends_cleanly(cpu):
    assert_clean(run("train()\nprint(child(lambda: None))\ntrain()"), "0")


@needs_fork
def test_a_child_forked_with_steps_in_flight_ends_cleanly(cpu):
    code = """
        w = train(20, mx.async_eval)
        print(child(lambda: None))
        print(mx.all(mx.isfinite(w["w"])).item())
    """
    assert_clean(run(code), "0 True")


# A child has none of MLX's stream threads: with stock, too, it hangs on the parent's streams. A
# stream of its own is served, and so must our pool be.
@needs_fork
def test_a_child_forked_after_use_trains_on_a_stream_of_its_own(cpu):
    done = run("""
        mlx_opt.set_num_threads(3)
        expected = train()["b"][0][0].item()
        def work():
            mx.set_default_stream(mx.new_stream(mx.cpu))
            assert train()["b"][0][0].item() == expected
            print("trained", mlx_opt.num_threads())
        print(child(work))
        assert train()["b"][0][0].item() == expected
    """)
    assert_clean(done, "trained 3 0")


@needs_fork
def test_a_childs_child_trains_too(cpu):
    done = run("""
        train()
        def grandchild():
            mx.set_default_stream(mx.new_stream(mx.cpu))
            train()
        def work():
            mx.set_default_stream(mx.new_stream(mx.cpu))
            train()
            assert child(grandchild) == 0
        print(child(work))
    """)
    assert_clean(done, "0")


@needs_fork
def test_a_child_forked_after_a_refused_number_of_threads_lives_and_trains(cpu):
    done = run("""
        os.environ["MLX_OPT_NUM_THREADS"] = "none"
        try:
            mlx_opt.num_threads()
        except ValueError:
            print("refused")
        def work():
            mlx_opt.set_num_threads(2)
            train()
            print("trained")
        print(child(work))
    """)
    assert_clean(done, "refused trained 0")


@needs_fork
def test_a_child_has_the_number_of_threads_that_was_set(cpu):
    done = run("""
        mlx_opt.set_num_threads(3)
        def work():
            print(mlx_opt.num_threads())
            mlx_opt.set_num_threads(4)
        print(child(work), mlx_opt.num_threads())
    """)
    assert_clean(done, "3 0 3")


NO_MORE_THREADS = """
import resource, threading

def started():
    return len(os.listdir("/proc/self/task"))

def limit_threads():
    # The system's limit does not bind root.
    if os.geteuid() == 0:
        os.setresuid(65534, 65534, 65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
    try:
        threading.Thread(target=int).start()
    except RuntimeError:
        print("limited")

def lift_limit():
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))

def step(make):
    optimizer = make()
    w = {"w": mx.ones((2000, 60)), "b": mx.ones(7)}
    g = {"w": mx.full((2000, 60), 0.5), "b": mx.ones(7)}
    mx.eval(w, g)
    for _ in range(2):
        w = optimizer.apply_gradients(g, w, max_norm=1.0)
    mx.eval(w, optimizer.state)
    return [mx.sum(x).item() for x in (w["w"], w["b"], optimizer.grad_norm)]

mlx_opt.set_num_threads(1)
makers = [lambda: mlx_opt.AdamW(0.1), mlx_opt.Adafactor, lambda: mlx_opt.Muon(0.1)]
expected = [step(make) for make in makers]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the threads of a user")
@pytest.mark.parametrize("there", [1, 3])
def test_a_step_runs_with_the_threads_that_the_system_gives(cpu, there):
    done = run(
        NO_MORE_THREADS
        + f"""
mlx_opt.set_num_threads({there})
for make in makers:
    step(make)
limit_threads()
before = started()
mlx_opt.set_num_threads(8)
print([step(make) for make in makers] == expected, started() - before, mlx_opt.num_threads())
lift_limit()
print([step(make) for make in makers] == expected, started() - before)
"""
    )
    assert_clean(done, f"limited True 0 8 True {8 - there}")


def test_a_spawned_worker_trains(tmp_path):
    script = tmp_path / "spawn.py"
    code = """
        import multiprocessing
        import mlx.core as mx
        import mlx_opt

        def work(seed):
            w = {"w": mx.full(100_000, float(seed))}
            w = mlx_opt.SGD(1.0).apply_gradients({"w": mx.ones(100_000)}, w)
            return w["w"][0].item()

        if __name__ == "__main__":
            work(0)
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                print(pool.map(work, [1, 2, 3]))
    """
    script.write_text(textwrap.dedent(code))
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0.0, 1.0, 2.0]"
