"""Sharded with parameters that every member has, against one process with the averages."""

import copy

import mlx.core as mx
import mlx.nn as nn
from members import RANK, SIZE, WORLD, averages, distance, gradients, normal, raised
from mlx.utils import tree_flatten, tree_map

import mlx_opt
from mlx_opt import descriptions

SHAPES = {"matrix": (6, 5), "vector": (7,), "scalar": (), "empty": (0, 3)}


def tree(seed=1):
    layers = [
        {"weight": normal([seed, i], (5, 3)), "bias": normal([seed, 9 + i], (3,))} for i in range(3)
    ]
    return {"layers": layers, "pair": (normal(seed, (2, 2)),), "scale": normal(seed, ())}


def trained(optimizer, parameters, gradients_of, steps=3, first=0, **arguments):
    for step in range(first, first + steps):
        parameters = optimizer.apply_gradients(
            gradients_of(parameters, step), parameters, **arguments
        )
        mx.eval(parameters, optimizer.state)
    return parameters


def own(parameters, step):
    return gradients(parameters, step, RANK)


def sharded(optimizer, **arguments):
    return mlx_opt.Sharded(optimizer, WORLD, **arguments)


def assert_same(make, parameters, tolerance=2e-6, bucket_size=200, **arguments):
    one, divided = make(), sharded(make(), bucket_size=bucket_size)
    expected = trained(one, parameters, averages, **arguments)
    result = trained(divided, parameters, own, **arguments)
    assert distance(result, expected) < tolerance, distance(result, expected)
    return one, divided


def every_rule_equals_one_process():
    rules = descriptions.OPTIMIZERS
    parameters = {
        rule: {name: normal([i, k], shape) for k, (name, shape) in enumerate(SHAPES.items())}
        for i, rule in enumerate(rules)
    }

    def make():
        made = [getattr(mlx_opt, rule)(learning_rate=1e-2) for rule in rules]
        return mlx_opt.MultiOptimizer(
            made, [lambda path, _, rule=rule: path.startswith(rule + ".") for rule in rules[:-1]]
        )

    one, divided = assert_same(make, parameters, 1e-5, bucket_size=1 << 20, steps=20, max_norm=1.0)
    assert abs(one.grad_norm.item() - divided.grad_norm.item()) < 1e-5
    assert divided.step.item() == 20


def states_are_divided():
    parameters = {"a": mx.ones((100, 7)), "b": mx.ones(50), "c": mx.ones(())}
    optimizer = sharded(mlx_opt.AdamW(1e-3))
    optimizer.init(parameters)
    kept = sum(x.size for path, x in tree_flatten(optimizer.state) if path.endswith((".m", ".v")))
    assert kept <= 2 * -(-751 // SIZE), kept


def few_elements_and_odd_trees():
    def make():
        return mlx_opt.AdamW(1e-2)

    assert_same(make, {"w": normal(1, (1,))}, max_norm=0.1)
    assert_same(make, {"a.b": normal(1, (4,)), "1": [normal(2, (2,)), {"x": normal(3, (5, 1))}]})
    assert_same(make, {"empty": mx.zeros((0, 2))})


def dtypes_are_kept():
    parameters = {
        "half": normal(1, (9, 3)).astype(mx.float16),
        "brain": normal(2, (5,)).astype(mx.bfloat16),
        "single": normal(3, (4, 4)),
    }
    assert_same(lambda: mlx_opt.AdamW(1e-2), parameters, 1e-2)

    def wide(parameters, step):
        return tree_map(lambda x: x.astype(mx.float32), own(parameters, step))

    optimizer, half = sharded(mlx_opt.SGD(1e-2)), {"half": parameters["half"]}
    result = optimizer.apply_gradients(wide(half, 0), half)
    assert result["half"].dtype == mx.float32


def muon_has_a_fallback_and_groups():
    def make():
        return mlx_opt.Muon(
            1e-2,
            fallback=mlx_opt.AdamW(1e-3),
            groups=[mlx_opt.Group(lambda path, x: x.shape == (5, 3), weight_decay=0.5)],
        )

    assert_same(make, tree(), 1e-5, max_norm=0.5)


def schedules_groups_and_clipping_are_those_of_one_process():
    def make():
        return mlx_opt.AdamW(
            mlx_opt.cosine_decay(0.1, 10),
            groups=[mlx_opt.Group("*.bias", learning_rate_scale=0.1), mlx_opt.no_decay()],
        )

    one, divided = assert_same(make, tree(), max_norm=0.3, max_value=0.05)
    assert one.learning_rate.item() == divided.learning_rate.item()
    message = raised(
        ValueError,
        lambda: trained(
            sharded(mlx_opt.SGD(0.1, groups=[mlx_opt.Group("biass", weight_decay=0.1)])),
            tree(),
            own,
        ),
    )
    assert message.startswith('groups: "biass" matches no parameter'), message


def all_members_skip_the_same_steps():
    def one_is_wrong(parameters, step):
        found = own(parameters, step)
        if step == 1 and RANK == SIZE - 1:
            found["scale"] = mx.array(float("inf"))
        return found

    one, divided = mlx_opt.AdamW(1e-2), sharded(mlx_opt.AdamW(1e-2))
    divided.loss_scale = 4.0
    expected = trained(one, tree(), averages, 1)
    expected = trained(one, expected, averages, 1, first=2)

    def scaled(parameters, step):
        return tree_map(lambda g: 4 * g, one_is_wrong(parameters, step))

    result = trained(divided, tree(), scaled, 2)
    assert divided.skipped.item() == 1 and divided.loss_scale.item() == 2.0
    assert divided.step.item() == 1
    result = trained(
        divided, result, lambda p, step: tree_map(lambda g: 2 * g, one_is_wrong(p, step)), 1, 2
    )
    assert distance(result, expected) < 2e-6


def a_step_can_be_compiled():
    model, other = nn.Linear(5, 3), nn.Linear(5, 3)
    start = {"weight": normal(1, (3, 5)), "bias": normal(2, (3,))}
    model.update(start)
    other.update(start)
    plain, divided = mlx_opt.Muon(1e-2), sharded(mlx_opt.Muon(1e-2))
    state = [model.state, divided.state]
    traces = []

    def run(g):
        traces.append(1)
        divided.update(model, g, max_norm=0.5, skip_nonfinite=True)

    step = mx.compile(run, inputs=state, outputs=state)
    for number in range(4):
        step(own(start, number))
        mx.eval(state)
        plain.update(other, averages(start, number), max_norm=0.5, skip_nonfinite=True)
    assert distance(model.parameters(), other.parameters()) < 1e-5
    assert len(traces) <= 3, len(traces)
    assert divided.step.item() == 4


def arrays_may_be_in_lists():
    model, other = nn.Module(), nn.Module()
    for each in (model, other):
        each.several = [normal(1, (5, 3)), normal(2, (40,)), normal(3, (7,))]
    one, divided = mlx_opt.AdamW(1e-2), sharded(mlx_opt.AdamW(1e-2), bucket_size=64)
    for step in range(2):
        divided.update(model, own(model.parameters(), step))
        one.update(other, averages(other.parameters(), step))
    assert distance(model.parameters(), other.parameters()) < 2e-6


def keys_may_be_in_any_order():
    def shuffled(parameters, step):
        keys = sorted(parameters, reverse=RANK % 2 == 1)
        found = own(parameters, step)
        return {key: found[key] for key in keys}

    one, divided = mlx_opt.AdamW(1e-2), sharded(mlx_opt.AdamW(1e-2), bucket_size=64)
    expected = trained(one, tree(), averages)
    assert distance(trained(divided, tree(), shuffled), expected) < 2e-6


def some_parameters_have_no_gradient():
    one, divided = mlx_opt.AdamW(1e-2), sharded(mlx_opt.AdamW(1e-2), bucket_size=64)
    model, other = tree(), tree()
    one.init(other)
    divided.init(model)
    subsets = [["scale"], ["layers"], ["scale", "layers"], ["layers"]]
    for number, keys in enumerate(subsets):
        part = {key: model[key] for key in keys}
        model |= divided.apply_gradients(own(part, number), model)
        other |= one.apply_gradients(averages(part, number), other)
    assert distance(model, other) < 2e-6


def a_state_that_is_there_is_divided():
    for make in (lambda: mlx_opt.AdamW(1e-2), lambda: mlx_opt.Adafactor(1e-2)):
        one = make()
        middle = trained(one, tree(), averages)
        divided = sharded(copy.deepcopy(one))
        expected = trained(one, middle, averages, first=3)
        assert distance(trained(divided, middle, own, first=3), expected) < 2e-6
        twin = copy.deepcopy(divided)
        a, b = trained(divided, expected, own, 1), trained(twin, expected, own, 1)
        assert distance(a, b) == 0


def a_gradient_of_another_dtype_is_refused_with_state_dtype():
    divided = sharded(mlx_opt.AdamW(1e-2, state_dtype=mx.float32))
    w, g = {"w": mx.ones(8, mx.bfloat16)}, {"w": mx.ones(8)}
    message = raised(ValueError, lambda: divided.apply_gradients(g, w))
    expected = "w: gradient mlx.core.float32, parameter mlx.core.bfloat16: "
    assert message == expected + "with state_dtype Sharded expects the same dtype"
    assert divided.apply_gradients({"w": g["w"].astype(mx.bfloat16)}, w)["w"].dtype == mx.bfloat16


def with_a_double_of_sum_scatter():
    """The ring has no sum_scatter: this one sums and slices."""
    asked = []

    def double(x, *, group, stream=None):
        asked.append(1)
        return mx.split(mx.distributed.all_sum(x, group=group), SIZE)[RANK]

    stock, mx.distributed.sum_scatter = mx.distributed.sum_scatter, double
    try:
        assert_same(lambda: mlx_opt.Lamb(1e-2), tree(), max_norm=0.5)
    finally:
        mx.distributed.sum_scatter = stock
    assert len(asked) > 3


def members_that_differ_are_named():
    begin = "Sharded: the members of the group differ: "
    last = SIZE - 1

    def different(make, parameters):
        optimizer = sharded(make())
        before = dict(tree_flatten(optimizer.state))
        message = raised(RuntimeError, lambda: trained(optimizer, parameters, own))
        assert dict(tree_flatten(optimizer.state)).keys() == before.keys()
        return message

    def adam():
        return mlx_opt.AdamW(1e-2)

    shape = (2, 3) if RANK == last else (3, 2)
    message = different(adam, {"w": mx.ones(shape)})
    assert message == (
        f"{begin}w is float32 [3, 2], updated by optimizer 0, with a gradient of float32 on "
        f"member 0, float32 [2, 3], updated by optimizer 0, with a gradient of float32 on "
        f"member {last}"
    ), message
    message = different(adam, {"w": mx.ones(2)} | ({"v": mx.ones(1)} if RANK == 0 else {}))
    assert message.startswith(f"{begin}v is float32 [1], updated by optimizer 0, "), message
    assert message.endswith(" on member 0, missing on member 1"), message
    lion = RANK == last
    message = different(lambda: mlx_opt.Lion(1e-2) if lion else adam(), {"w": mx.ones(2)})
    assert message.startswith(f"{begin}AdamW is "), message
    assert message.endswith(f", missing on member {last}"), message

    def stepped():
        optimizer = adam()
        optimizer.state["step"] = mx.array(RANK // last, mx.uint64)
        return optimizer

    message = different(stepped, {"w": mx.ones(2)})
    assert message == f"{begin}the step of AdamW is 0 on member 0, 1 on member {last}", message


CASES = [
    every_rule_equals_one_process,
    states_are_divided,
    few_elements_and_odd_trees,
    all_members_skip_the_same_steps,
    members_that_differ_are_named,
]
FOR_TWO_MEMBERS = [
    dtypes_are_kept,
    muon_has_a_fallback_and_groups,
    schedules_groups_and_clipping_are_those_of_one_process,
    a_step_can_be_compiled,
    arrays_may_be_in_lists,
    keys_may_be_in_any_order,
    some_parameters_have_no_gradient,
    a_state_that_is_there_is_divided,
    a_gradient_of_another_dtype_is_refused_with_state_dtype,
    with_a_double_of_sum_scatter,
]
