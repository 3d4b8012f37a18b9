"""Options of the optimizers that Sharded divides, against one process with the averages."""

import mlx.core as mx
import mlx.nn as nn
from members import RANK, SIZE, WORLD, averages, distance, gradients, normal, raised
from mlx.utils import tree_map

import mlx_opt


def tree():
    layers = [{"weight": normal([1, i], (5, 3)), "bias": normal([2, i], (3,))} for i in range(3)]
    return {"layers": layers, "scale": normal(3, ()), "wide": normal(4, (40,))}


def own(parameters, step):
    return gradients(parameters, step, RANK)


def sharded(optimizer):
    return mlx_opt.Sharded(optimizer, WORLD, bucket_size=64)


def one_and_divided(make, parameters, steps, limits=lambda step, member: {}, tolerance=2e-6):
    """The optimizers, and their parameters, after steps that are compared."""
    one, divided = make(), sharded(make())
    expected = result = parameters
    for step in range(steps):
        mean = {}
        if limits(step, 0):
            numbers = [limits(step, member)["normalizer"] for member in range(SIZE)]
            mean = {"normalizer": sum(numbers) / SIZE}
        expected = one.apply_gradients(averages(expected, step), expected, **mean)
        result = divided.apply_gradients(own(result, step), result, **limits(step, RANK))
        assert divided.accumulated == one.accumulated
        mx.eval(expected, result, one.state, divided.state)
        assert distance(result, expected) < tolerance, (step, distance(result, expected))
    return one, divided, expected, result


def gradients_are_accumulated():
    def make():
        return mlx_opt.AdamW(1e-2, accumulate=3, groups=[mlx_opt.Group("wide", frozen=True)])

    one, divided, *_ = one_and_divided(make, tree(), 7)
    assert divided.accumulated == 1 and divided.step.item() == 2
    message = raised(ValueError, lambda: divided.save_state("unused"))
    assert message == (
        "Sharded: gradients of 1 calls are pending, which a checkpoint does not have: save the "
        "state after a step"
    ), message


def gradients_are_divided_by_the_average_normalizer():
    one_and_divided(
        lambda: mlx_opt.SGD(1e-2, momentum=0.9, accumulate=2),
        tree(),
        4,
        lambda step, member: {"normalizer": 1.0 + step + 2 * member},
    )
    one_and_divided(
        lambda: mlx_opt.SGD(1e-2), tree(), 2, lambda step, member: {"normalizer": 1.0 + member}
    )


def calls_of_a_step_may_have_other_gradients():
    def make():
        return mlx_opt.Muon(1e-2, fallback=mlx_opt.AdamW(1e-2), accumulate=2)

    model, other = nn.Module(), nn.Module()
    for each in (model, other):
        each.a, each.b = normal(1, (6, 5)), normal(2, (9,))
    one, divided = make(), sharded(make())
    for step, names in enumerate([("a",), ("b",), ("a", "b"), ("a",)]):
        part = {name: model[name] for name in names}
        one.update(other, averages(part, step), max_norm=1.0)
        divided.update(model, own(part, step), max_norm=1.0)
    assert distance(model.parameters(), other.parameters()) < 1e-5
    assert abs(divided.grad_norm.item() / one.grad_norm.item() - 1) < 1e-5


def master_weights_are_divided():
    brain = tree_map(lambda x: x.astype(mx.bfloat16), tree())
    for kind in ("float32", "remainder"):
        one, divided, expected, result = one_and_divided(
            lambda kind=kind: mlx_opt.AdamW(2e-3, master_weights=kind), brain, 4, tolerance=2e-2
        )
        masters = divided.master_parameters(result)
        # The averages are rounded to bfloat16, in another order.
        assert distance(masters, one.master_parameters(expected)) < 2e-3
        assert masters["wide"].dtype == mx.float32
        rounded = tree_map(lambda x: x.astype(mx.bfloat16), masters)
        assert distance(rounded, result) == 0
    wrong = tree_map(lambda x: x.astype(mx.float32), brain)
    message = raised(ValueError, lambda: divided.apply_gradients(wrong, result))
    assert message.endswith("with master_weights Sharded expects the same dtype"), message


def averages_of_parameters_are_exchanged():
    model, other = nn.Linear(5, 3), nn.Linear(5, 3)
    start = {"weight": normal(1, (3, 5)), "bias": normal(2, (3,))}
    model.update(start)
    other.update(start)
    one, divided = mlx_opt.AdamWScheduleFree(1e-1), sharded(mlx_opt.AdamWScheduleFree(1e-1))
    for step in range(3):
        one.update(other, averages(start, step))
        divided.update(model, own(start, step))
    assert distance(divided.eval_parameters(model), one.eval_parameters(other)) < 2e-6
    with divided.evaluating(model), one.evaluating(other):
        assert distance(model.parameters(), other.parameters()) < 2e-6
        message = raised(RuntimeError, lambda: divided.update(model, start))
        assert message.startswith("AdamWScheduleFree: the model has the average"), message
    divided.eval(model)
    divided.train(model)
    divided.update(model, own(start, 3))
    one.update(other, averages(start, 3))
    assert distance(model.parameters(), other.parameters()) < 5e-6
    message = raised(TypeError, lambda: sharded(mlx_opt.AdamW(1e-2)).eval(model))
    assert message == "Sharded: AdamW does not average the parameters", message


CASES = []
FOR_TWO_MEMBERS = [
    gradients_are_accumulated,
    gradients_are_divided_by_the_average_normalizer,
    calls_of_a_step_may_have_other_gradients,
    master_weights_are_divided,
    averages_of_parameters_are_exchanged,
]
