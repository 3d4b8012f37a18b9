"""The options that many optimizers share, against optax where it is installed.

AdamW with ``nesterov`` is left out: optax's nadamw corrects the bias of the two terms separately.

`pip install --group oracles` installs it; continuous integration does not.
"""

import mlx.core as mx
import numpy as np
import pytest

import mlx_opt
from cases import normal, wide

optax = pytest.importorskip("optax", reason="optax is not installed")

STEPS = 50
LEARNING_RATE = 0.01
SHAPES = {"attention.weight": (33, 7), "attention.bias": (33,), "norm.weight": (129,)}


def coupled(decay, inner):
    return optax.chain(optax.add_decayed_weights(decay), inner)


def no_decay(tree):
    return {path: path == "attention.weight" for path in tree}


def labels(tree):
    return {path: "norm" if path.startswith("norm") else "other" for path in tree}


def ascent(inner):
    return optax.chain(optax.scale(-1.0), inner)


PAIRS = {
    "Adam, coupled decay": (
        mlx_opt.Adam(LEARNING_RATE, weight_decay=0.1, bias_correction=True),
        coupled(0.1, optax.adam(LEARNING_RATE)),
    ),
    # Of bias-corrected squares optax takes the largest after the correction, torch before it.
    "Adam, amsgrad": (
        mlx_opt.Adam(LEARNING_RATE, amsgrad=True),
        optax.amsgrad(LEARNING_RATE, bias_correction_mu=False, bias_correction_nu=False),
    ),
    "AdamW, maximize": (
        mlx_opt.AdamW(LEARNING_RATE, weight_decay=0.1, bias_correction=True, maximize=True),
        ascent(optax.adamw(LEARNING_RATE, weight_decay=0.1)),
    ),
    "Lion, coupled decay": (
        mlx_opt.Lion(LEARNING_RATE, weight_decay=0.1, weight_decay_kind="coupled"),
        coupled(0.1, optax.lion(LEARNING_RATE, weight_decay=0.0)),
    ),
    "SGD, nesterov": (
        mlx_opt.SGD(LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=0.1),
        coupled(0.1, optax.sgd(LEARNING_RATE, momentum=0.9, nesterov=True)),
    ),
    "no_decay": (
        mlx_opt.AdamW(
            LEARNING_RATE, weight_decay=0.1, bias_correction=True, groups=[mlx_opt.no_decay()]
        ),
        optax.adamw(LEARNING_RATE, weight_decay=0.1, mask=no_decay),
    ),
    "groups": (
        mlx_opt.AdamW(
            LEARNING_RATE,
            weight_decay=0.1,
            bias_correction=True,
            groups=[
                mlx_opt.Group(
                    "norm*", learning_rate_scale=0.5, betas=[0.8, 0.9], eps=1e-4, weight_decay=0.0
                )
            ],
        ),
        optax.multi_transform(
            {
                "norm": optax.adamw(LEARNING_RATE / 2, b1=0.8, b2=0.9, eps=1e-4, weight_decay=0.0),
                "other": optax.adamw(LEARNING_RATE, weight_decay=0.1),
            },
            labels,
        ),
    ),
}
CLIPPED = {
    "max_norm": ({"max_norm": 1.0}, optax.clip_by_global_norm(1.0)),
    "max_value": ({"max_value": 0.5}, optax.clip(0.5)),
}


def gradients(step):
    return {
        path: wide(normal(*shape, seed=100 * step + i)).astype(np.float32)
        for i, (path, shape) in enumerate(SHAPES.items())
    }


def assert_same_walk(ours, theirs, **options):
    """The parameters are equal after many steps, whose updates are of the learning rate's size."""
    w = {path: normal(*shape) for path, shape in SHAPES.items()}
    expected = {path: wide(x).astype(np.float32) for path, x in w.items()}
    state = theirs.init(expected)
    for step in range(STEPS):
        g = gradients(step)
        w = ours.apply_gradients({path: mx.array(x) for path, x in g.items()}, w, **options)
        updates, state = theirs.update(g, state, expected)
        expected = optax.apply_updates(expected, updates)
    for path, x in w.items():
        np.testing.assert_allclose(wide(x), np.array(expected[path]), rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_options_follow_optax(name):
    assert_same_walk(*PAIRS[name])


@pytest.mark.parametrize("name", CLIPPED)
def test_clipping_follows_optax(name):
    options, clip = CLIPPED[name]
    ours = mlx_opt.AdamW(LEARNING_RATE, weight_decay=0.1, bias_correction=True)
    theirs = optax.chain(clip, optax.adamw(LEARNING_RATE, weight_decay=0.1))
    assert_same_walk(ours, theirs, **options)
