"""Numbers that a rule keeps for groups, under the groups' names: NAdam's `mu_product`."""

import copy
import pickle
import warnings

import mlx.core as mx
import mlx.nn as nn
import pytest

import mlx_opt
from cases import Case, assert_close, assert_same, mu_product, normal
from mlx_opt import Group

BETAS = [0.5, 0.9]
OWN = Case("NAdam", {"betas": BETAS})
SLOW = Case("NAdam", {"betas": BETAS, "momentum_decay": 0.5})


def groups():
    return [Group("b", name="b", betas=BETAS), mlx_opt.no_decay()]


def tree(seed):
    return {"a": normal(4, 3, seed=seed), "b": normal(9, seed=seed)}


def numbers_of(optimizer):
    return optimizer.state["mlx_opt"]["groups"]


def walk(optimizer, seeds, w=None, **options):
    w = tree(0) if w is None else w
    for seed in seeds:
        w = optimizer.apply_gradients(tree(seed), w, **options)
        mx.eval(w, optimizer.state)
    return w


def assert_product(number, case, steps):
    assert number.item() == pytest.approx(mu_product(case, steps), rel=1e-5)


def test_each_is_the_product_of_its_own_momenta():
    optimizer = mlx_opt.NAdam(0.01, groups=groups())
    walk(optimizer, range(1, 4))
    assert set(numbers_of(optimizer)) == {"b"}
    assert_product(numbers_of(optimizer)["b"]["mu_product"], OWN, 3)
    assert_product(optimizer.mu_product, Case("NAdam"), 3)


def test_groups_that_change_it_together_have_one_together():
    parts = [Group("*", name="decay", momentum_decay=0.5), Group("b", name="b", betas=BETAS)]
    optimizer = mlx_opt.NAdam(0.01, groups=parts)
    walk(optimizer, range(1, 4))
    assert set(numbers_of(optimizer)) == {"decay", "decay+b"}
    assert_product(numbers_of(optimizer)["decay+b"]["mu_product"], SLOW, 3)
    assert_product(
        numbers_of(optimizer)["decay"]["mu_product"], Case("NAdam", {"momentum_decay": 0.5}), 3
    )


def test_a_schedule_of_a_group():
    optimizer = mlx_opt.NAdam(
        0.01, groups=[Group("b", name="b", betas=[lambda step: 0.5 / (step + 1), 0.9])]
    )
    walk(optimizer, range(1, 4))
    product = 1.0
    for step in range(1, 4):
        product *= 0.5 / step * (1 - 0.5 * 0.96 ** (step * 4e-3))
    assert numbers_of(optimizer)["b"]["mu_product"].item() == pytest.approx(product, rel=1e-5)


def test_a_skipped_step_leaves_it():
    optimizer = mlx_opt.NAdam(0.01, groups=groups())
    bad = {"a": normal(4, 3), "b": mx.full(9, float("nan"))}
    w = optimizer.apply_gradients(bad, tree(0), skip_nonfinite=True)
    assert_same(w, tree(0))
    assert numbers_of(optimizer)["b"]["mu_product"].item() == 1
    walk(optimizer, [1])
    before = numbers_of(optimizer)["b"]["mu_product"].item()
    assert_product(numbers_of(optimizer)["b"]["mu_product"], OWN, 1)
    optimizer.apply_gradients(bad, w, skip_nonfinite=True)
    assert numbers_of(optimizer)["b"]["mu_product"].item() == before


def test_an_error_leaves_no_trace():
    optimizer = mlx_opt.NAdam(0.01, groups=groups())
    with pytest.raises(ValueError):
        optimizer.apply_gradients({**tree(1), "a": mx.ones(3)}, tree(0))
    assert "mlx_opt" not in optimizer.state


def test_in_place_in_compile_and_copied():
    optimizer, plain, model = (
        mlx_opt.NAdam(0.01, groups=groups()),
        mlx_opt.NAdam(0.01, groups=groups()),
        nn.Module(),
    )
    for name, x in tree(0).items():
        model[name] = x
    optimizer.init(model)
    expected = walk(plain, [1])
    optimizer.update(model, tree(1))
    mx.eval(model, optimizer.state)
    state = [model.state, optimizer.state]
    step = mx.compile(lambda g: optimizer.update(model, g), state, state)
    for seed in (2, 3):
        step(tree(seed))
        expected = walk(plain, [seed], expected)
    assert_close(model.parameters(), expected, 1e-6)
    assert_product(numbers_of(optimizer)["b"]["mu_product"], OWN, 3)
    for again in (copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert_same(walk(again, [4], expected), walk(copy.deepcopy(plain), [4], expected))


def test_a_resumed_run():
    first = mlx_opt.NAdam(0.01, groups=groups())
    w = walk(first, [1, 2])
    again = mlx_opt.NAdam(0.01, groups=groups())
    again.state = copy.deepcopy(first.state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(walk(again, [3], w), walk(copy.deepcopy(first), [3], w))
    other = mlx_opt.NAdam(0.01)
    other.state = copy.deepcopy(first.state)
    with pytest.warns(UserWarning, match="the optimizer has no groups b; dropped"):
        walk(other, [3], w)
    assert numbers_of(other) == {}


def test_a_group_of_a_later_run_begins_with_the_optimizers():
    first = mlx_opt.NAdam(0.01)
    w = walk(first, [1, 2])
    before = first.mu_product.item()
    second = mlx_opt.NAdam(0.01, groups=groups())
    second.state = first.state
    walk(second, [3], w)
    momentum = 0.5 * (1 - 0.5 * 0.96 ** (3 * 4e-3))
    number = numbers_of(second)["b"]["mu_product"].item()
    assert number == pytest.approx(before * momentum, rel=1e-5)
