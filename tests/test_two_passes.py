"""Rules whose step needs sums over each tensor: Lamb and AdamH."""

import mlx.core as mx
import numpy as np
import pytest

import mlx_opt
from cases import DTYPES, assert_exact, assert_same, dtype_name, normal, wide
from mlx_opt import _ext, references

OPTIONS = {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}

# Around the lengths of a vector, of a block of the CPU's kernels, of a chunk and of several.
SHAPES = [
    (),
    (1,),
    (7,),
    (17,),
    (255,),
    (257,),
    (16, 33),
    (300, 700),
    (1000, 333),
    (0, 3),
    (3, 4, 5),
]

each_pair = pytest.mark.parametrize(
    ("w_dtype", "g_dtype"), [(w, g) for w in DTYPES for g in DTYPES], ids=dtype_name
)


def reference(w, gradients, **options):
    options = {"learning_rate": 0.05} | OPTIONS | options
    return references.run("Lamb", wide(w), [wide(g) for g in gradients], options)


def assert_near(got, expected, tolerance=2e-6):
    got = wide(got)
    assert got.shape == expected.shape
    if got.size:
        assert np.abs(got - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-30)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ten_steps_give_those_of_float64(shape):
    w, gradients = normal(*shape, seed=1), [normal(*shape, seed=2 + i) for i in range(10)]
    optimizer = mlx_opt.Lamb(0.05, **OPTIONS)
    tree = {"w": w}
    for g in gradients:
        tree = optimizer.apply_gradients({"w": g}, tree)
    expected, state = reference(w, gradients)
    assert_near(tree["w"], expected)
    assert_near(optimizer.state["w"]["m"], state["m"])
    assert_near(optimizer.state["w"]["v"], state["v"])


LAYOUTS = {
    "transposed": lambda x: mx.contiguous(x.T).T,
    "strided": lambda x: mx.repeat(x, 2, axis=1)[:, ::2],
    "reversed": lambda x: mx.contiguous(x[::-1])[::-1],
    "broadcast": lambda x: mx.broadcast_to(x[:1], x.shape),
}


@pytest.mark.parametrize("of", ["parameter", "gradient", "state"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_does_not_matter(layout, of):
    def laid(kind, x):
        return LAYOUTS[layout](x) if kind == of else x

    w, g = laid("parameter", normal(70, 45, seed=1)), laid("gradient", normal(70, 45, seed=2))
    got, expected = mlx_opt.Lamb(0.05, **OPTIONS), mlx_opt.Lamb(0.05, **OPTIONS)
    slots = {
        name: laid("state", mx.abs(normal(70, 45, seed=seed)))
        for name, seed in (("m", 3), ("v", 4))
    }
    for optimizer, change in ((got, lambda x: x), (expected, lambda x: mx.array(wide(x)))):
        optimizer.init({"w": w})
        optimizer.state["w"].update({k: change(x).astype(mx.float32) for k, x in slots.items()})
    plain = {"w": mx.array(wide(w), mx.float32)}
    expected = expected.apply_gradients({"w": mx.array(wide(g), mx.float32)}, plain)
    assert_near(got.apply_gradients({"w": g}, {"w": w})["w"], wide(expected["w"]), 1e-6)


@each_pair
def test_with_state_in_halves_the_parameter_follows_the_state_as_stored(w_dtype, g_dtype):
    w, g = normal(90, 50, seed=1).astype(w_dtype), normal(90, 50, seed=2).astype(g_dtype)
    optimizer = mlx_opt.Lamb(0.05, **OPTIONS)
    new = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
    m, v = (wide(optimizer.state["w"][name]) for name in ("m", "v"))
    u = (m / 0.2) / (np.sqrt(v / 0.05) + 1e-4) + 0.1 * wide(w)
    exact = wide(w) - 0.05 * np.linalg.norm(wide(w)) / np.linalg.norm(u) * u
    error = 1e-6 * (np.abs(wide(w)) + np.abs(exact - wide(w)))
    assert_exact(new, exact, error)


def test_a_parameter_of_zeros_moves_by_the_learning_rate_alone():
    new = mlx_opt.Lamb(0.5, eps=0.0).apply_gradients({"w": mx.ones(9)}, {"w": mx.zeros(9)})["w"]
    assert_near(new, np.full(9, -0.5))


def test_nothing_moves_without_gradient_and_decay():
    w = normal(40, seed=1)
    new = mlx_opt.Lamb(0.5, weight_decay=0.0).apply_gradients(
        {"w": mx.zeros(40)}, {"w": mx.array(w)}
    )
    assert_same(new, {"w": w})


def test_each_tensor_has_a_ratio_of_its_own():
    trees = [
        {f"w{i}": (i + 1) * normal(3 * i, 7, seed=seed + i) for i in range(40)} for seed in (1, 100)
    ]
    together = mlx_opt.Lamb(0.05, **OPTIONS).apply_gradients(trees[1], trees[0])
    for name, w in trees[0].items():
        alone = mlx_opt.Lamb(0.05, **OPTIONS).apply_gradients({"w": trees[1][name]}, {"w": w})
        assert_near(together[name], wide(alone["w"]), 1e-6)


def test_the_number_of_threads_does_not_matter():
    w, g = normal(700, 900, seed=1), normal(700, 900, seed=2)
    default = _ext.num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            _ext.set_num_threads(threads)
            results.append(mlx_opt.Lamb(0.05).apply_gradients({"w": g}, {"w": mx.array(w)}))
            mx.eval(results)
    finally:
        _ext.set_num_threads(default)
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_a_skipped_step_leaves_parameter_and_state():
    w, g = normal(33, 5, seed=1), normal(33, 5, seed=2)
    optimizer = mlx_opt.Lamb(0.05, **OPTIONS)
    tree = optimizer.apply_gradients({"w": g}, {"w": w})
    before = {name: wide(x) for name, x in optimizer.state["w"].items()}, wide(tree["w"])
    bad = mx.where(mx.arange(5) == 2, mx.inf, g)
    tree = optimizer.apply_gradients({"w": bad}, tree, skip_nonfinite=True)
    after = {name: wide(x) for name, x in optimizer.state["w"].items()}, wide(tree["w"])
    assert optimizer.skipped.item() == 1
    assert np.array_equal(before[1], after[1])
    assert all(np.array_equal(before[0][name], after[0][name]) for name in before[0])


def test_a_batch_of_parameters_has_a_ratio_each():
    w, g = normal(4, 6, 5, seed=1), normal(4, 6, 5, seed=2)

    def step(w, g):
        return mlx_opt.Lamb(0.05, **OPTIONS).apply_gradients({"w": g}, {"w": w})["w"]

    expected = [wide(step(w[i], g[i])) for i in range(4)]
    assert_near(mx.vmap(step)(w, g), np.stack(expected), 1e-6)


@pytest.mark.parametrize("shape", [(16, 33), (300, 700)], ids=str)
def test_adamh_keeps_the_norm_and_moves_by_the_learning_rate(shape):
    w = {"w": normal(*shape, seed=1)}
    optimizer, norm = mlx_opt.AdamH(0.05), np.linalg.norm(wide(w["w"]))
    for step in range(20):
        before = wide(w["w"])
        w = optimizer.apply_gradients({"w": normal(*shape, seed=2 + step)}, w)
        after = wide(w["w"])
        assert np.linalg.norm(after) == pytest.approx(norm, rel=2e-6)
        assert 0.8 < np.linalg.norm(after - before) / (0.05 * norm) < 1.001


def test_adamh_leaves_a_tensor_of_zeros_and_one_without_a_gradient():
    w = {"zeros": mx.zeros(9), "still": normal(9, seed=1)}
    optimizer = mlx_opt.AdamH(0.5)
    new = optimizer.apply_gradients({"zeros": mx.ones(9), "still": mx.zeros(9)}, w)
    assert_same(new, w)


def test_adamh_at_a_rate_of_1_along_the_parameter_gives_zeros():
    """The step then ends in the origin, which has no direction."""
    w = {"w": mx.ones((4, 4))}
    new = mlx_opt.AdamH(1.0, eps=0.0).apply_gradients(w, w)
    assert_same(new, {"w": mx.zeros((4, 4))})
