"""The state dict: whose it is, what is in it, when it is made, and how it is replaced."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import pytest

import mlx_opt
from cases import (
    Case,
    assert_close,
    assert_same,
    each_case,
    each_dtype,
    each_rule,
    flat,
    normal,
    signature,
)

OTHERS = [
    Case("Adafactor"),
    Case("Adafactor", {"beta_1": 0.9, "weight_decay": 0.1}),
    Case("Muon", {"weight_decay": 0.1}),
]


def tree(seed, dtype=mx.float32):
    def x(*shape):
        return normal(*shape, seed=seed, dtype=dtype)

    return {"a": x(3, 4), "layers": [{"weight": x(5), "pair": (x(), x(2))}]}


@each_dtype
@each_case
def test_keys_shapes_and_dtypes_are_stocks(case, dtype):
    ours, theirs = case.ours(0.1), case.stock(0.1)
    assert signature(ours.state) == signature(theirs.state)
    for optimizer in (ours, theirs):
        optimizer.init(tree(1, dtype))
    assert signature(ours.state) == signature(theirs.state)
    for step in range(3):
        for optimizer in (ours, theirs):
            optimizer.apply_gradients(tree(2 + step, dtype), tree(1, dtype))
        assert signature(ours.state) == signature(theirs.state)


@each_rule
def test_the_dict_is_one_object_from_before_init_on(case):
    optimizer = case.ours(0.1)
    state = optimizer.state
    optimizer.init(tree(1))
    assert optimizer.state is state
    inner, leaf = state["layers"], state["a"]
    optimizer.learning_rate = 0.2
    for step in range(2):
        optimizer.update(tree(1), tree(2 + step))
        assert optimizer.state is state
        assert state["layers"] is inner and state["a"] is leaf
    assert state["step"].item() == 2


@each_rule
def test_the_first_update_initialises_what_init_would(case):
    early, late = case.ours(0.1), case.ours(0.1)
    early.init(tree(1))
    assert not late._initialized and early._initialized
    assert_same(early.apply_gradients(tree(2), tree(1)), late.apply_gradients(tree(2), tree(1)))
    assert late._initialized
    assert_same(early.state, late.state)


@each_rule
def test_init_zeroes_no_state_that_is_there(case):
    optimizer = case.ours(0.1)
    optimizer.apply_gradients(tree(2), tree(1))
    before = dict(flat(optimizer.state))
    optimizer.init(tree(1))
    after = flat(optimizer.state)
    assert after.keys() == before.keys()
    assert all(after[path] is x for path, x in before.items())


@pytest.mark.parametrize("package", [mlx_opt, stock])
def test_init_with_more_parameters_fills_only_the_gaps(package):
    optimizer = package.AdamW(0.1)
    optimizer.apply_gradients({"a": tree(2)["a"]}, tree(1))
    old = optimizer.state["a"]["m"]
    optimizer.init(tree(1))
    assert optimizer.state["a"]["m"] is old
    assert mx.all(optimizer.state["layers"][0]["weight"]["m"] == 0).item()
    assert optimizer.step.item() == 1


@each_rule
def test_loaded_state_is_used_and_its_gaps_are_filled(case):
    trained = case.ours(0.1)
    w = trained.apply_gradients(tree(2), tree(1))
    g = tree(3)
    ours, theirs = case.ours(0.5), case.stock(0.5)
    for optimizer in (ours, theirs):
        state = copy.deepcopy(trained.state)
        del state["layers"]
        state["a"] = dict(state["a"])
        optimizer.state = state
        assert optimizer.state is state
        assert not optimizer._initialized
    assert_close(ours.apply_gradients(g, w), theirs.apply_gradients(g, w), 2e-5)
    assert_close(ours.state, theirs.state, 2e-6)
    assert ours.learning_rate.item() == pytest.approx(0.1)  # the loaded one


@pytest.mark.parametrize("package", [mlx_opt, stock])
def test_an_empty_leaf_in_loaded_state_is_a_gap(package):
    optimizer = package.Adam(0.1)
    optimizer.state = optimizer.state | {"a": {}, "layers": [{"weight": {}}]}
    optimizer.apply_gradients(tree(2), tree(1))
    assert optimizer.state["a"].keys() == {"m", "v"}
    assert optimizer.state["layers"][0].keys() == {"weight", "pair"}


@each_rule
def test_a_deep_copy_goes_its_own_way(case):
    optimizer = case.ours(0.1)
    w = optimizer.apply_gradients(tree(2), tree(1))
    twin = copy.deepcopy(optimizer)
    snapshot = copy.deepcopy(optimizer.state)
    assert_same(twin.state, optimizer.state)
    a = optimizer.apply_gradients(tree(3), w)
    assert_same(twin.state, snapshot)
    b = twin.apply_gradients(tree(3), w)
    assert_same(a, b)
    assert_same(twin.state, optimizer.state)


@each_rule
def test_a_pickled_optimizer_goes_on_where_it_was(case):
    optimizer = case.ours(0.1)
    w = optimizer.apply_gradients(tree(2), tree(1))
    twin = pickle.loads(pickle.dumps(optimizer))
    assert type(twin) is type(optimizer) and twin._initialized
    assert_same(twin.apply_gradients(tree(3), w), optimizer.apply_gradients(tree(3), w))
    assert_same(twin.state, optimizer.state)


@each_rule
def test_slots_may_be_shared_by_two_optimizers(case):
    """A shallow copy of the state, as a user saves it, is not changed by the next step."""
    optimizer = case.ours(0.1)
    optimizer.apply_gradients(tree(2), tree(1))
    saved = {path: (x, mx.array(x)) for path, x in flat(optimizer.state).items()}
    mx.eval([copy for _, copy in saved.values()])
    optimizer.apply_gradients(tree(3), tree(1))
    mx.eval(optimizer.state)
    for path, (held, value) in saved.items():
        assert mx.array_equal(held, value).item(), path


def test_state_is_made_of_the_gradients_where_init_is_left_to_the_update():
    w, g = {"w": mx.ones(3)}, {"w": mx.ones(3, mx.bfloat16)}
    for package in (mlx_opt, stock):
        optimizer = package.Adam(0.1)
        optimizer.apply_gradients(g, w)
        assert optimizer.state["w"]["m"].dtype == mx.bfloat16


def test_the_learning_rate_is_an_array_in_the_state():
    optimizer = mlx_opt.AdamW(0.25)
    assert optimizer.learning_rate is optimizer.state["learning_rate"]
    optimizer.learning_rate = 0.5
    assert optimizer.state["learning_rate"].item() == 0.5
    assert optimizer.state["learning_rate"].dtype == mx.float32


def test_a_model_trained_with_either_package_is_the_same_model():
    results = []
    for package in (mlx_opt, stock):
        mx.random.seed(3)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
        optimizer = package.AdamW(0.01, weight_decay=0.1)
        x, y = normal(16, 6, seed=1), normal(16, 1, seed=2)
        loss_and_grad = nn.value_and_grad(
            model, lambda x, y, model=model: mx.mean((model(x) - y) ** 2)
        )
        for _ in range(20):
            _, g = loss_and_grad(x, y)
            optimizer.update(model, g)
            mx.eval(model, optimizer.state)
        results.append((model.parameters(), optimizer.state))
    assert_close(results[0], results[1], 1e-3)
