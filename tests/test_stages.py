"""A step in a graph updates the parameters in the order in which their gradients end."""

import gc

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

import mlx_opt
from cases import assert_close, assert_same, normal

WIDTH, LAYERS = 128, 12
OPTIMIZERS = {
    "AdamW": lambda: mlx_opt.AdamW(1e-2, weight_decay=0.1, groups=[mlx_opt.no_decay()]),
    "without scalars": lambda: mlx_opt.SGD(0.1),
    "several rules": lambda: mlx_opt.MultiOptimizer(
        [mlx_opt.Lion(1e-3), mlx_opt.AdamW(1e-2)], [lambda path, _: "3" in path]
    ),
    "two passes": lambda: mlx_opt.Lamb(1e-2),
    "rows and columns": lambda: mlx_opt.Adafactor(1e-2, relative_step=False),
    "codes": lambda: mlx_opt.AdamW(1e-2, state_dtype="int8"),
}


@pytest.fixture
def stages():
    """Sets the least bytes of a stage."""
    yield mlx_opt._ext.set_stage_bytes
    mlx_opt._ext.set_stage_bytes()


class Model(nn.Module):
    def __init__(self, dtype=mx.float32, width=WIDTH):
        super().__init__()
        self.layers = [nn.Linear(width, width) for _ in range(LAYERS)]
        shapes = {path: x.shape for path, x in tree_flatten(self.parameters())}
        weights = [
            (path, normal(*shape, seed=i, scale=0.06).astype(dtype))
            for i, (path, shape) in enumerate(shapes.items())
        ]
        self.load_weights(weights)

    def __call__(self, x):
        for layer in self.layers:
            x = nn.relu(layer(x))
        return x


def trained(optimizer, compiled, dtype=mx.float32, width=WIDTH, **limits):
    """The model, and the peak memory of the last step."""
    model = Model(dtype, width)
    optimizer.init(model.trainable_parameters())
    gradients_of = nn.value_and_grad(model, lambda model, x: model(x).square().mean())
    state = [model.state, optimizer.state]

    def step(x):
        loss, gradients = gradients_of(model, x)
        optimizer.update(model, gradients, **limits)
        return loss

    if compiled:
        step = mx.compile(step, inputs=state, outputs=state)
    for i in range(3):
        mx.eval(state)
        mx.reset_peak_memory()
        mx.eval(step(normal(4, width, seed=100 + i).astype(dtype)), state)
    return model, mx.get_peak_memory()


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "lazy"])
@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_stages_change_no_bit(build, compiled, stages, compiler):
    results = []
    for least in (1 << 40, 1):
        stages(least)
        optimizer = build()
        model, _ = trained(optimizer, compiled)
        results.append((model.parameters(), optimizer.state))
    if isinstance(optimizer, mlx_opt.Lamb):  # its sums are cut at other places
        assert_close(*map(list, results), 1e-6)
    else:
        assert_same(*results)


def test_a_clipped_step_has_one_stage(stages, compiler):
    results = []
    for least in (1 << 40, 1):
        stages(least)
        optimizer = mlx_opt.AdamW(1e-2)
        model, _ = trained(optimizer, True, max_norm=0.1)
        results.append((model.parameters(), optimizer.state, optimizer.grad_norm))
    assert_same(*results)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "lazy"])
def test_the_gradients_of_a_stage_are_freed_before_the_next(compiled, stages, compiler, cpu):
    width, peaks = 1024, []
    for least in (1 << 40, 4 << 20):  # waiting for less memory than a MiB would not pay
        stages(least)
        gc.collect()
        before = mx.get_active_memory()
        peak = trained(mlx_opt.AdamW(1e-3), compiled, width=width)[1]
        peaks.append((peak - before) / (LAYERS * width * (width + 1)))
    assert 15.9 < peaks[0]
    assert peaks[1] < 13.3


def test_half_precision_parameters_with_masters(stages, compiler):
    results = []
    for least in (1 << 40, 1):
        stages(least)
        optimizer = mlx_opt.AdamW(1e-2, master_weights="remainder")
        model, _ = trained(optimizer, True, mx.bfloat16)
        results.append((model.parameters(), optimizer.state))
    assert_same(*results)


def test_vmap(stages, compiler):
    w, g = ({name: normal(3, 20, seed=i) for i, name in enumerate("abc", j)} for j in (0, 9))

    def step(w, g):
        optimizer = mlx_opt.AdamW(1e-2)
        for _ in range(2):
            w = optimizer.apply_gradients(g, w)
        return w

    results = []
    for least in (1 << 40, 1):
        stages(least)
        results.append([f(w, g) for f in (mx.vmap(step), mx.compile(mx.vmap(step)))])
    assert_same(*results)
