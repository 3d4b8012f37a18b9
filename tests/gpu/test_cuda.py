"""The CUDA backend against the CPU's, and what only a GPU can show. Skipped without one."""

import gc
import os
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_opt
from cases import CASES, DTYPES, RULES, dtype_name, wide

if not mx.is_available(mx.gpu):
    pytest.skip("there is no GPU", allow_module_level=True)

MIXES = [(w, g, m) for w in DTYPES for g in DTYPES for m in DTYPES]
SHAPES = [(1,), (7,), (64,), (4096,), (4097,), (3, 5), (130, 67), (256, 512), (1, 9), (2, 3, 4), ()]


def values(shape, seed, dtype=mx.float32):
    x = np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)
    return mx.array(x).astype(dtype)


def steps(case, device, parameters, gradients, slots=mx.float32, count=3):
    """Parameters and state after some steps on a device; the inputs are made there anew."""
    with mx.stream(device):
        tree = {k: f() for k, f in parameters.items()}
        optimizer = case.ours(0.01)
        optimizer.init({k: mx.zeros(x.shape, slots) for k, x in tree.items()})
        for i in range(count):
            tree = optimizer.apply_gradients({k: f(i) for k, f in gradients.items()}, tree)
            mx.eval(tree, optimizer.state)
        state = {k: optimizer.state[k] for k in tree}
    return tree, state


def assert_devices_agree(case, parameters, gradients, **options):
    on_gpu = steps(case, mx.gpu, parameters, gradients, **options)
    on_cpu = steps(case, mx.cpu, parameters, gradients, **options)
    got, expected = _flat(on_gpu), _flat(on_cpu)
    assert got.keys() == expected.keys()
    # The devices round intermediate values differently, so a stored number may differ by one unit,
    # and the next step's results with it.
    coarsest = max(SPACING[x.dtype] for x in expected.values())
    for name, x in expected.items():
        assert got[name].dtype == x.dtype, name
        a, b = wide(got[name]), wide(x)
        scale = np.abs(b[np.isfinite(b)]).max(initial=0.0)
        tolerance = 2 * SPACING[x.dtype] * scale + 0.05 * coarsest
        finite = a != b  # else both may be the same infinity, which has no difference
        assert np.all(np.abs(a[finite] - b[finite]) <= tolerance), name


def _flat(trees):
    return dict(tree_flatten(list(trees)))


SPACING = {mx.float32: 1e-6, mx.float16: 2**-10, mx.bfloat16: 2**-7}

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_rule = pytest.mark.parametrize("case", RULES, ids=str)


@each_case
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_every_rule_gives_what_the_cpu_gives(case, dtype):
    parameters = {f"p{i}": lambda s=s: values(s, 1, dtype) for i, s in enumerate(SHAPES)}
    gradients = {f"p{i}": lambda t, s=s: values(s, 2 + t, dtype) for i, s in enumerate(SHAPES)}
    assert_devices_agree(case, parameters, gradients, slots=dtype)


@each_rule
def test_every_mix_of_dtypes_gives_what_the_cpu_gives(case):
    parameters, gradients = {}, {}
    for i, (w, g, _) in enumerate(MIXES):
        parameters[f"p{i}"] = lambda w=w: values((129,), 1, w)
        gradients[f"p{i}"] = lambda t, g=g: values((129,), 2 + t, g)
    for slots in DTYPES:
        assert_devices_agree(case, parameters, gradients, slots=slots)


LAYOUTS = {
    "transposed": lambda s: lambda x: values(s, x).T,
    "transposed-bfloat16": lambda s: lambda x: values(s, x, mx.bfloat16).T,
    "misaligned": lambda s: lambda x: values((s[0] * s[1] + 3,), x)[3:].reshape(s[1], s[0]),
    "misaligned-by-8": lambda s: lambda x: values((s[0] * s[1] + 2,), x)[2:].reshape(s[1], s[0]),
    "rows": lambda s: lambda x: values((2 * s[1], s[0]), x)[::2],
    "columns": lambda s: lambda x: values((s[1], 2 * s[0] + 1), x)[:, 1::2],
    "backwards": lambda s: lambda x: values((s[1], s[0]), x)[::-1],
    "broadcast": lambda s: lambda x: mx.broadcast_to(values((s[0],), x), (s[1], s[0])),
    "scalar": lambda s: lambda x: mx.broadcast_to(values((), x), (s[1], s[0])),
    "transposed-slice": lambda s: lambda x: values((s[0], s[1] + 5), x)[:, 5:].T,
    "many-dimensions": lambda s: (
        lambda x: values((s[0], 2, 3, s[1]), x)[:, ::2, 1:2].T.reshape(s[1], s[0])
    ),
    "no-two-dimensions-merge": lambda s: (
        lambda x: mx.broadcast_to(values((1, s[0]), x), (s[1], s[0]))[::-1, ::-1]
    ),
}
MATRICES = [(64, 64), (65, 63), (1, 200), (200, 1), (300, 4), (3, 1000), (257, 1030), (128, 4096)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("matrix", MATRICES, ids=str)
@pytest.mark.parametrize("case", [RULES[0], RULES[7]], ids=str)
def test_any_layout_of_gradient_or_parameter(case, matrix, layout):
    plain = lambda x: values((matrix[1], matrix[0]), x)  # noqa: E731
    odd = LAYOUTS[layout](matrix)
    assert_devices_agree(
        case,
        {"gradient": lambda: plain(1), "parameter": lambda: odd(1), "both": lambda: odd(1)},
        {
            "gradient": lambda t: odd(2 + t),
            "parameter": lambda t: plain(2 + t),
            "both": lambda t: odd(2 + t),
        },
        slots=odd(1).dtype,
    )


def test_a_thousand_tensors_of_all_kinds_in_one_step():
    sizes = [int(x) for x in np.random.default_rng(0).integers(0, 9000, 1000)]
    parameters = {f"p{i}": lambda n=n: values((n,), 1) for i, n in enumerate(sizes)}
    gradients = {f"p{i}": lambda t, n=n: values((n,), 2 + t) for i, n in enumerate(sizes)}
    assert_devices_agree(RULES[7], parameters, gradients, count=2)


def test_arrays_made_on_the_cpu():
    w, g = values((1000,), 1), values((1000,), 2)
    with mx.stream(mx.cpu):
        w2, g2 = w * 1.0, g * 1.0
    optimizer, other = mlx_opt.AdamW(0.1), mlx_opt.AdamW(0.1)
    got = optimizer.apply_gradients({"w": g2}, {"w": w2})["w"]
    expected = other.apply_gradients({"w": g}, {"w": w})["w"]
    assert np.array_equal(np.array(got), np.array(expected))


def test_a_result_goes_on_to_the_cpu_and_back():
    optimizer = mlx_opt.SGD(0.5)
    w = {"w": mx.ones((5000,))}
    for _ in range(4):
        w = optimizer.apply_gradients({"w": mx.ones((5000,))}, w)
        with mx.stream(mx.cpu):
            w = {"w": w["w"] * 2}
    assert np.array_equal(np.array(w["w"]), np.full(5000, 1.0))


def test_streams_of_their_own_at_once():
    streams = [mx.new_stream(mx.gpu) for _ in range(3)]
    optimizers = [mlx_opt.AdamW(0.01) for _ in streams]
    trees = [{"w": values((70000,), 5)} for _ in streams]
    for step in range(10):
        for i, stream in enumerate(streams):
            with mx.stream(stream):
                gradient = values((70000,), 100 + step)
                trees[i] = optimizers[i].apply_gradients({"w": gradient}, trees[i])
                mx.async_eval(trees[i], optimizers[i].state)
    results = [np.array(tree["w"]) for tree in trees]
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_a_stream_waits_for_another():
    other = mx.new_stream(mx.gpu)
    optimizer = mlx_opt.SGD(1.0)
    tree = {"w": mx.zeros((1 << 22,))}
    for _ in range(5):
        with mx.stream(other):
            gradient = -mx.ones((1 << 22,)) * 1.0
        tree = optimizer.apply_gradients({"w": gradient}, tree)
        with mx.stream(other):
            tree = {"w": tree["w"] + 1}
    assert np.array_equal(np.array(tree["w"]), np.full(1 << 22, 10.0))


def test_steps_queued_without_waiting_are_right():
    def run(evaluate):
        optimizer = mlx_opt.AdamW(0.01)
        tree = {f"p{i}": values((3000,), i) for i in range(40)}
        for step in range(30):
            gradients = {k: values((3000,), 1000 + step) for k in tree}
            tree = optimizer.apply_gradients(gradients, tree)
            evaluate(tree, optimizer.state)
        return tree, optimizer.state

    (a, s), (b, t) = run(mx.eval), run(mx.async_eval)
    for name in a:
        assert np.array_equal(np.array(a[name]), np.array(b[name]))
        assert np.array_equal(np.array(s[name]["v"]), np.array(t[name]["v"]))


def active_memory():
    gc.collect()
    mx.synchronize()
    return mx.get_active_memory()


def test_queued_steps_hold_few_sets_of_buffers():
    before = active_memory()
    optimizer = mlx_opt.AdamW(0.01)
    size = 1 << 24
    tree, gradient = {"w": mx.zeros((size,))}, {"w": mx.ones((size,))}
    mx.eval(tree, gradient)
    mx.reset_peak_memory()
    for _ in range(40):
        tree = optimizer.apply_gradients(gradient, tree)
        mx.async_eval(tree, optimizer.state)
    mx.synchronize()
    assert (mx.get_peak_memory() - before) / size <= 4 + 5 * 12


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=dtype_name)
def test_synchronous_steps_are_in_place(dtype, compiled):
    before = active_memory()
    optimizer = mlx_opt.AdamW(0.01)
    size, count = 1 << 20, 8
    tree = {f"p{i}": mx.ones((size,), dtype) for i in range(count)}
    gradients = {f"p{i}": mx.ones((size,), dtype) for i in range(count)}
    optimizer.init(tree)
    mx.eval(tree, gradients, optimizer.state)
    state = [tree, optimizer.state]

    def step(gradients):
        tree.update(optimizer.apply_gradients(gradients, tree))

    if compiled:
        step = mx.compile(step, inputs=state, outputs=state)
    for _ in range(5):
        step(gradients)
        mx.eval(state)
        mx.synchronize()
    mx.reset_peak_memory()
    for _ in range(10):
        step(gradients)
        mx.eval(state)
        mx.synchronize()
    per_parameter = (mx.get_peak_memory() - before) / (size * count)
    assert per_parameter <= 4 * dtype.size * 1.01


def test_more_elements_than_32_bits_count():
    shape = (65537, 32771)
    if mx.device_info()["free_memory"] < 8 * shape[0] * shape[1]:
        pytest.skip("there is not enough memory")
    w = mx.zeros(shape, mx.bfloat16)
    optimizer = mlx_opt.SGD(1.0)
    w = optimizer.apply_gradients({"w": mx.full(shape, -2, mx.bfloat16)}, {"w": w})["w"]
    mx.eval(w)
    assert mx.all(w == 2).item()


CACHE_PROGRAM = """
import mlx.core as mx, mlx_opt, time
start = time.perf_counter()
w = mlx_opt.AdamW(0.5).apply_gradients({"w": mx.ones((10,))}, {"w": mx.ones((10,))})["w"]
mx.eval(w)
print(w.tolist()[0], time.perf_counter() - start)
"""


def first_step(folder):
    run = subprocess.run(
        [sys.executable, "-c", CACHE_PROGRAM],
        env={**os.environ, "MLX_OPT_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()[0]


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "nonsense"])
def test_a_damaged_cache_entry_is_compiled_anew(tmp_path, damage):
    expected = first_step(tmp_path)
    entries = sorted(tmp_path.iterdir())
    assert len(entries) == 2, "one kernel and its prologue"
    sound = [entry.read_bytes() for entry in entries]
    for entry, content in zip(entries, sound, strict=True):
        entry.write_bytes(
            {
                "truncated": content[: len(content) // 2],
                "changed": content[:-100] + bytes(100),
                "empty": b"",
                "nonsense": b"nonsense\n" * 100,
            }[damage]
        )
    assert first_step(tmp_path) == expected
    assert [entry.read_bytes() for entry in entries] == sound


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert first_step(blocked / "below") == first_step(tmp_path / "cache")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_the_norm_is_that_of_the_cpu(dtype):
    tensors = [values(s, 5, dtype) for s in (*SHAPES, (100_003,), (0,), (513, 700))]
    tensors += [tensors[6].T, tensors[7][::3, 1::2], mx.broadcast_to(tensors[0], (300, 4))]
    tensors.append(values((5001,), 6, dtype)[1:])
    on_gpu, on_cpu = (mlx_opt.clip_grad_norm(tensors, 1.0)[1].item() for _ in use_each_device())
    assert on_gpu == pytest.approx(on_cpu, rel=2e-7)


def use_each_device():
    for device in (mx.gpu, mx.cpu):
        with mx.stream(device):
            yield device


def test_the_norm_of_large_numbers_of_many_tensors():
    tensors = [mx.full((1000,), 3e19) for _ in range(1000)]
    assert mlx_opt.clip_grad_norm(tensors, 1.0)[1].item() == pytest.approx(3e22, rel=1e-6)
    halves = [mx.full((70_000,), 60_000.0, mx.float16) for _ in range(3)]
    expected = 60_000 * 210_000**0.5
    assert mlx_opt.clip_grad_norm(halves, 1.0)[1].item() == pytest.approx(expected, rel=1e-3)
