"""What mlx_opt keeps in a state, in one place; and parameters of any name beside it."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import mlx_opt

from .photo import differences, photo

OURS = "mlx_opt"
OPTIONS = {"max_norm": 1.0, "skip_nonfinite": True}
NAMES = ["grad_norm", "skipped", "fallback", "states", "m", "v"]


def muon(**options):
    return mlx_opt.Muon(0.1, fallback=mlx_opt.AdamW(0.1), **options)


MAKERS = {
    "SGD": lambda: mlx_opt.SGD(0.1, momentum=0.9),
    "AdamW": lambda: mlx_opt.AdamW(0.1),
    "Adafactor": lambda: mlx_opt.Adafactor(),
    "Muon": muon,
}
each_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def model_of(*names):
    model = nn.Module()
    for i, name in enumerate(names):
        model[name] = mx.full((3, 2) if i % 2 else (4,), 1.0 + i)
    return model


def gradients_of(model, scale=1.0):
    return tree_map(lambda x: scale * x, model.parameters())


def trained(optimizer, model, steps=3, **options):
    for _ in range(steps):
        optimizer.update(model, gradients_of(model), **options)
        mx.eval(model.parameters(), optimizer.state)
    return model.parameters()


def renamed(tree, old, new):
    return {new if key == old else key: value for key, value in tree.items()}


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
@pytest.mark.parametrize("name", NAMES)
@each_maker
def test_a_parameter_of_any_name_trains_like_others(make, name, options):
    got = trained(make(), model_of("other", name, "last"), **options)
    expected = trained(make(), model_of("other", "weight", "last"), **options)
    assert not differences(photo(renamed(got, name, "weight")), photo(expected), 0)


@pytest.mark.parametrize("name", NAMES)
@each_maker
def test_a_parameter_of_any_name_has_its_own_state(make, name):
    optimizer, plain = make(), make()
    trained(optimizer, model_of("other", name), **OPTIONS)
    trained(plain, model_of("other", "weight"), **OPTIONS)
    assert not differences(photo(renamed(optimizer.state, name, "weight")), photo(plain.state), 0)


@each_maker
def test_the_root_has_the_keys_of_mlx_and_one_more(make):
    optimizer, model = make(), model_of("a", "b")
    trained(optimizer, model, **OPTIONS)
    vectors = {"a"} if not isinstance(optimizer, mlx_opt.Muon) else set()
    rate = {"learning_rate"} if optimizer.state.get("learning_rate") is not None else set()
    assert optimizer.state.keys() == {"step", "b", OURS} | rate | vectors
    for path, leaf in tree_flatten(optimizer.state[OURS]):
        assert isinstance(leaf, mx.array), path
    assert {"grad_norm", "skipped"} <= optimizer.state[OURS].keys()


def test_the_interface_is_two_properties():
    optimizer, model = mlx_opt.AdamW(0.1), model_of("a")
    assert optimizer.grad_norm is None and optimizer.skipped is None
    trained(optimizer, model)
    assert optimizer.grad_norm is None and optimizer.skipped is None
    optimizer.update(model, {"a": mx.array([3.0, 4.0, 0.0, 0.0])}, max_norm=1.0)
    assert optimizer.grad_norm.item() == 5 and optimizer.skipped is None
    optimizer.update(model, {"a": mx.full((4,), mx.nan)}, skip_nonfinite=True)
    assert optimizer.skipped.item() == 1 and optimizer.skipped.shape == ()
    optimizer.update(model, {"a": mx.zeros(4)}, skip_nonfinite=True)
    assert optimizer.skipped.item() == 1 and optimizer.grad_norm.item() == 0


def test_the_parts_of_a_multi_optimizer_have_one_norm_and_count():
    parts = [mlx_opt.SGD(0.1), mlx_opt.AdamW(0.1)]
    optimizer = mlx_opt.MultiOptimizer(parts, [lambda path, _: path == "a"])
    model = model_of("a", "b")
    assert optimizer.grad_norm is None and optimizer.skipped is None
    gradients = {"a": mx.full((4,), mx.inf), "b": mx.ones((3, 2))}
    optimizer.update(model, gradients, skip_nonfinite=True)
    assert optimizer.skipped.item() == 1 and optimizer.grad_norm.item() == mx.inf
    assert all(part.skipped.item() == 1 for part in parts)


@each_maker
@pytest.mark.parametrize("call", ["update", "apply_gradients", "init"])
def test_a_parameter_of_the_reserved_name_is_refused(make, call):
    optimizer, model = make(), model_of("a", OURS)
    before = photo([model, optimizer.state])
    arguments = {
        "update": (model, gradients_of(model)),
        "apply_gradients": (gradients_of(model), model),
        "init": (model.parameters(),),
    }
    with pytest.raises(ValueError, match=f"{OURS}.*reserved"):
        getattr(optimizer, call)(*arguments[call])
    assert not differences(photo([model, optimizer.state]), before, 0)


def test_below_the_root_the_name_is_free():
    model = nn.Module()
    model.layer = {OURS: mx.ones(3)}
    trained(mlx_opt.AdamW(0.1), model, **OPTIONS)
    assert model.layer[OURS][0].item() < 1


def old_form(state):
    """A state as it was saved when the entries stood at the root."""
    state = dict(state)
    return state | state.pop(OURS)


@each_maker
def test_a_checkpoint_with_the_entries_at_the_root_loads(make):
    model = model_of("a", "b")
    straight = make()
    trained(straight, model, **OPTIONS)
    saved = tree_map(mx.array, [model.parameters(), old_form(straight.state)])

    resumed, other = make(), model_of("a", "b")
    other.update(saved[0])
    resumed.state = tree_unflatten(tree_flatten(saved[1]))
    assert resumed.grad_norm.item() == straight.grad_norm.item()
    assert resumed.skipped.item() == 0
    trained(straight, model, **OPTIONS)
    trained(resumed, other, **OPTIONS)
    got, expected = [other, resumed.state], [model, straight.state]
    assert not differences(photo(got), photo(expected), 0)


@each_maker
def test_a_checkpoint_goes_on_where_it_was_saved(make):
    model = model_of("a", "b")
    straight = make()
    trained(straight, model, **OPTIONS)
    saved = tree_map(mx.array, [model.parameters(), straight.state])
    resumed, other = make(), model_of("a", "b")
    other.update(saved[0])
    resumed.state = tree_unflatten(tree_flatten(saved[1]))
    trained(straight, model, **OPTIONS)
    trained(resumed, other, **OPTIONS)
    got, expected = [other, resumed.state], [model, straight.state]
    assert not differences(photo(got), photo(expected), 0)


def test_an_old_checkpoint_may_have_parameters_of_the_names():
    """An entry that is a dict is a parameter's state."""
    model = model_of("grad_norm", "skipped")
    straight = mlx_opt.AdamW(0.1)
    trained(straight, model)
    resumed, other = mlx_opt.AdamW(0.1), model_of("grad_norm", "skipped")
    other.update(tree_map(mx.array, model.parameters()))
    resumed.state = tree_map(mx.array, straight.state)
    assert resumed.grad_norm is None and resumed.skipped is None
    trained(straight, model)
    trained(resumed, other)
    assert not differences(photo([other, resumed.state]), photo([model, straight.state]), 0)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_norm_that_nobody_asks_for_again_holds_nothing(steps):
    """A loop that evaluates the model alone does not grow."""
    model = model_of("a")
    optimizer = mlx_opt.SGD(0.001)
    gradients = {"a": mx.ones(4)}

    def used(count):
        for _ in range(count):
            for _ in range(steps):
                optimizer.update(model, gradients, skip_nonfinite=True)
            mx.eval(model.parameters())
        mx.synchronize()  # the counting of a small step may still be queued
        return mx.get_active_memory()

    before = used(200)
    assert used(500) <= before + 64
