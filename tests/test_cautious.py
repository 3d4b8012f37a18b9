"""`cautious` of Adam, AdamW and Lion."""

import copy
import pickle

import mlx.core as mx
import numpy as np
import pytest

import mlx_opt
from cases import assert_same, normal, wide
from mlx_opt import Group
from mlx_opt.sharding.leaves import divides_tensors

BETAS = (0.8, 0.95)


def masked_step(cls, g, **options):
    """The second step's update, and which of its elements agree with the gradient."""
    w = {"w": mx.zeros(g.shape)}
    optimizer = cls(0.1, betas=BETAS, weight_decay=0.0, **options)
    first = optimizer.apply_gradients({"w": normal(*g.shape, seed=5)}, w)
    second = optimizer.apply_gradients({"w": g}, first)
    plain = cls(0.1, betas=BETAS, weight_decay=0.0, **{**options, "cautious": False})
    plain.apply_gradients({"w": normal(*g.shape, seed=5)}, w)
    whole = -wide(plain.apply_gradients({"w": g}, w)["w"])
    return wide(first["w"]) - wide(second["w"]), whole, whole * wide(g) > 0


@pytest.mark.parametrize("stored", ["the parameter", "the state"])
def test_squares_that_float16_does_not_have_do_not_make_a_step_larger(stored):
    g, options = normal(500), {"betas": BETAS, "weight_decay": 0.0, "bias_correction": True}
    dtype = mx.float16 if stored == "the parameter" else mx.float32
    g = mx.sign(g) * mx.maximum(mx.abs(g), 1e-2) * 1e-3
    optimizer = mlx_opt.AdamW(0.01, cautious=True, **options, state_dtype=mx.float16)
    w = {"w": mx.zeros(500, dtype)}
    for _ in range(2):
        w = optimizer.apply_gradients({"w": g.astype(dtype)}, w)
    assert (optimizer.state["w"]["v"] == 0).sum() > 100
    assert mx.abs(w["w"]).max() < 0.05  # all elements agree, so it is AdamW


@pytest.mark.parametrize("options", [{}, {"nesterov": True, "bias_correction": True}])
def test_adamw_steps_by_what_agrees_with_the_gradient_over_its_part(options):
    g = normal(40, 33, seed=6)
    got, whole, agrees = masked_step(mlx_opt.AdamW, g, cautious=True, **options)
    assert 0.2 < agrees.mean() < 0.95
    np.testing.assert_allclose(got, np.where(agrees, whole / agrees.mean(), 0), atol=2e-7)


def test_lion_counts_one_element_more():
    g = normal(5, 3, seed=6)
    got, whole, agrees = masked_step(mlx_opt.Lion, g, cautious=True)
    expected = np.where(agrees, whole * 15 / (agrees.sum() + 1), 0)
    np.testing.assert_allclose(got, expected, atol=2e-7)


def test_adam_is_adamw_without_decay():
    w, g = {"w": normal(7, 9)}, {"w": normal(7, 9, seed=1)}
    adam = mlx_opt.Adam(0.1, cautious=True).apply_gradients(g, w)
    assert_same(adam, mlx_opt.AdamW(0.1, weight_decay=0.0, cautious=True).apply_gradients(g, w))


def test_the_scale_is_at_most_a_thousand():
    n = 5000
    optimizer = mlx_opt.AdamW(1e-3, betas=(0.9, 0.9), weight_decay=0.0, cautious=True)
    w = optimizer.apply_gradients({"w": mx.ones(n)}, {"w": mx.zeros(n)})
    g = mx.where(mx.arange(n) == 7, 1.0, -1e-3)
    after = wide(optimizer.apply_gradients({"w": g}, w)["w"]) - wide(w["w"])
    m, v = 0.9 * 0.1 + 0.1, 0.9 * 0.1 + 0.1
    assert after[7] == pytest.approx(-1000 * 1e-3 * m / np.sqrt(v), rel=1e-5)
    assert not np.delete(after, 7).any()


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (mlx_opt.AdamW, {"amsgrad": True}, "cautious does not go with amsgrad"),
        (
            mlx_opt.Adam,
            {"weight_decay": 0.1},
            'cautious needs a weight_decay_kind other than "coupled"',
        ),
        (
            mlx_opt.Lion,
            {"weight_decay": 0.1, "weight_decay_kind": "coupled"},
            'cautious needs a weight_decay_kind other than "coupled"',
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(cls, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        cls(0.1, cautious=True, **options)
    w, later = {"w": mx.ones(3)}, cls(0.1, **options)
    later.cautious = True
    grouped = cls(0.1, groups=[Group("w", cautious=True, **options)])
    for optimizer in (later, grouped):
        with pytest.raises(ValueError, match=message):
            optimizer.apply_gradients(w, w)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_is_cautious(again):
    optimizer = mlx_opt.Lion(0.1, cautious=True)
    w, g = {"w": normal(7, 9)}, {"w": normal(7, 9, seed=1)}
    expected = again(optimizer).apply_gradients(g, w)
    assert_same(optimizer.apply_gradients(g, w), expected)
    assert "cautious=True" in repr(optimizer)


def test_members_of_a_group_of_processes_need_whole_tensors_only_if_it_is_cautious():
    assert not divides_tensors(mlx_opt.AdamW(0.1))
    assert divides_tensors(mlx_opt.AdamW(0.1, cautious=True))
    groups = [Group("a", name="a", momentum=lambda step: 0.9), Group("b", nesterov=True)]
    assert not divides_tensors(mlx_opt.SGD(0.1, momentum=0.9, groups=groups))
    assert divides_tensors(mlx_opt.Lion(0.1, groups=[Group("b", cautious=True)]))
