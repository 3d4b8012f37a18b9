"""Optimizers of a user's own whose states are no dicts of arrays made by `init_single`."""

import mlx.core as mx
import mlx.optimizers as stock
import numpy as np
import pytest
from mlx.utils import tree_map

import mlx_opt

from .photo import differences, photo


def packed(package):
    class Packed(package.SGD):
        def init_single(self, parameter, state):
            state["m"] = [mx.zeros_like(parameter), mx.zeros_like(parameter)]

        def apply_single(self, gradient, parameter, state):
            state["m"] = [0.9 * state["m"][0] + gradient, state["m"][1] + 1]
            return parameter - self.learning_rate * state["m"][0]

    return Packed(0.1)


def paired(package):
    class Paired(package.SGD):
        def init_single(self, parameter, state):
            state["m"] = (mx.zeros_like(parameter), {"inner": mx.zeros_like(parameter)})

        def apply_single(self, gradient, parameter, state):
            first, second = state["m"]
            first = 0.9 * first + gradient
            state["m"] = (first, {"inner": second["inner"] + mx.abs(gradient)})
            return parameter - self.learning_rate * first

    return Paired(0.1)


def made_late(package):
    class MadeLate(package.SGD):
        def init_single(self, parameter, state):
            state["c"] = mx.array(0)

        def apply_single(self, gradient, parameter, state):
            square = gradient**2
            state["v"] = 0.9 * state["v"] + 0.1 * square if "v" in state else square
            return parameter - self.learning_rate * gradient / (mx.sqrt(state["v"]) + 1e-3)

    return MadeLate(0.1)


def growing(package):
    class Growing(package.SGD):
        def init_single(self, parameter, state):
            state["h"] = mx.zeros((1, parameter.size))

        def apply_single(self, gradient, parameter, state):
            state["h"] = mx.concatenate([state["h"], gradient.reshape(1, -1)])
            return parameter - self.learning_rate * state["h"].mean(0).reshape(parameter.shape)

    return Growing(0.1)


def counting(package):
    class Counting(package.SGD):
        def init_single(self, parameter, state):
            state["calls"], state["scale"] = 0, 1.0

        def apply_single(self, gradient, parameter, state):
            state["calls"] += 1
            state["scale"] *= 0.5
            return parameter - self.learning_rate * state["scale"] * gradient

    return Counting(0.1)


def removing(package):
    class Removing(package.SGD):
        def init_single(self, parameter, state):
            state["first"] = mx.zeros_like(parameter)

        def apply_single(self, gradient, parameter, state):
            first = state.pop("first", None)
            state["v"] = gradient if first is None else first + 2 * gradient
            return parameter - self.learning_rate * state["v"]

    return Removing(0.1)


def of_numpy(package):
    class OfNumpy(package.SGD):
        def init_single(self, parameter, state):
            state["decay"] = np.float32(0.9)
            state["v"] = mx.zeros_like(parameter)

        def apply_single(self, gradient, parameter, state):
            state["v"] = state["decay"].item() * state["v"] + gradient
            return parameter - self.learning_rate * state["v"]

    return OfNumpy(0.1)


MAKERS = [packed, paired, made_late, growing, counting, removing, of_numpy]
each_maker = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
OPTIONS = {
    "plain": {},
    "max_norm": {"max_norm": 1.0},
    "skip": {"skip_nonfinite": True},
    "both": {"max_norm": 1.0, "skip_nonfinite": True},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
PLACES = ["alone", "part", "fallback"]
each_place = pytest.mark.parametrize("place", PLACES)


def placed(make, package, place):
    part = make(package)
    if place == "alone":
        return part, part
    if place == "part":
        filters = [lambda path, _: path == "matrix"]
        return package.MultiOptimizer([package.AdamW(0.1), part], filters), part
    if package is stock:
        filters = [lambda _, x: x.ndim > 1]
        return stock.MultiOptimizer([stock.Muon(0.1), part], filters), part
    return mlx_opt.Muon(0.1, fallback=part), part


def tree(seed):
    matrix = mx.sin(mx.arange(6.0) + seed).reshape(2, 3)
    return {"matrix": matrix, "w": mx.cos(mx.arange(4.0) + seed), "v": mx.sin(mx.arange(3.0))}


def not_finite(seed):
    return tree(seed) | {"w": mx.array([mx.nan, 1.0, mx.inf, 2.0])}


def own(state):
    return {key: value for key, value in state.items() if key != "mlx_opt"}


def step_of_stock(optimizer, gradients, parameters, options):
    if options:
        gradients, norm = stock.clip_grad_norm(gradients, options.get("max_norm", mx.inf))
        if options.get("skip_nonfinite") and not mx.isfinite(norm).item():
            return parameters
    return optimizer.apply_gradients(gradients, parameters)


def walked(optimizer, gradients, options, package):
    parameters = tree(0)
    for each in gradients:
        if package is stock:
            parameters = step_of_stock(optimizer, each, parameters, options)
        else:
            parameters = optimizer.apply_gradients(each, parameters, **options)
        mx.eval(parameters)
    return parameters


@each_place
@each_option
@each_maker
def test_finite_steps_are_those_of_mlx(make, options, place):
    gradients = [tree(1), tree(2), tree(3)]
    results = []
    for package in (stock, mlx_opt):
        optimizer, part = placed(make, package, place)
        parameters = walked(optimizer, gradients, options, package)
        results.append(photo([parameters, own(part.state)]))
    assert not differences(results[1], results[0], 1e-3 if place == "fallback" else 1e-5)


@each_place
@pytest.mark.parametrize("first", [False, True], ids=["later", "first"])
@each_maker
def test_a_skipped_step_leaves_no_trace(make, first, place):
    """Where a step is skipped, the next ones are as if it had not been asked for."""
    options = {"skip_nonfinite": True}
    bad = not_finite(5)
    with_bad = [bad, tree(1), tree(2)] if first else [tree(1), bad, tree(2)]
    results = []
    for gradients in (with_bad, [tree(1), tree(2)]):
        optimizer, part = placed(make, mlx_opt, place)
        parameters = walked(optimizer, gradients, options, mlx_opt)
        results.append(photo([parameters, own(part.state)]))
    assert not differences(results[0], results[1], 1e-5)


@each_place
@each_maker
def test_an_error_in_a_hook_leaves_the_other_parts_alone(make, place):
    optimizer, part = placed(make, mlx_opt, place)
    parameters = optimizer.apply_gradients(tree(1), tree(0))
    mx.eval(parameters)

    def fails(gradient, parameter, state):
        raise RuntimeError("hook")

    part.apply_single = fails
    others = [each for each in getattr(optimizer, "optimizers", [optimizer]) if each is not part]
    before = photo([parameters, [own(each.state) for each in others]])
    with pytest.raises(RuntimeError, match="hook"):
        optimizer.apply_gradients(tree(2), parameters)
    assert not differences(photo([parameters, [own(each.state) for each in others]]), before, 0)


@each_option
def test_numpy_arrays_in_a_loaded_state_are_taken_or_refused_by_name(options):
    optimizer = mlx_opt.AdamW(0.1)
    parameters = optimizer.apply_gradients(tree(1), tree(0))
    straight = walked(mlx_opt.AdamW(0.1), [tree(1), tree(2)], {}, mlx_opt)
    optimizer.state["w"] = {key: np.array(x) for key, x in optimizer.state["w"].items()}
    before = photo([parameters, optimizer.state])
    try:
        new = optimizer.apply_gradients(tree(2), parameters, **options)
    except (TypeError, KeyError) as error:
        assert "w:" in str(error) and "numpy" in str(error).lower()
        assert not differences(photo([parameters, optimizer.state]), before, 0)
        return
    if not options.get("max_norm"):
        assert not differences(photo(new), photo(straight), 1e-6)


def test_the_gradients_of_a_hook_are_its_own():
    """A state that keeps a gradient, as MARS does, is not overwritten by a later step."""

    class Keeping(mlx_opt.AdamW):
        def apply_single(self, gradient, parameter, state):
            state["last"] = gradient
            return super().apply_single(gradient, parameter, state)

    optimizer, parameters = Keeping(0.1), tree(0)
    for step in range(3):
        gradients = tree_map(lambda x: 1 * x, tree(step))
        mx.eval(gradients, parameters)
        parameters = optimizer.apply_gradients(gradients, parameters)
        expected = photo(tree(step))
        kept = {key: optimizer.state[key]["last"] for key in parameters}
        mx.eval(parameters)
        assert not differences(photo(kept), expected, 0)


@pytest.mark.parametrize("value", [np.arange(3.0), {"a"}, 1.0, mx.ones(3)], ids=repr)
def test_an_entry_of_any_kind_that_changes_waits_for_the_norm(value):
    class Noting(mlx_opt.SGD):
        def apply_single(self, gradient, parameter, state):
            state["note"] = value
            return parameter - 0.1 * gradient

        def init_single(self, parameter, state):
            state["note"] = np.zeros(3)

    optimizer, parameters = Noting(0.1), {"w": mx.ones(4)}
    skipped = optimizer.apply_gradients({"w": mx.full((4,), mx.nan)}, parameters, 1.0, True)
    assert not differences(photo(skipped), photo(parameters), 0)
    assert not np.any(optimizer.state["w"]["note"]) and optimizer.step.item() == 0
    optimizer.apply_gradients({"w": mx.ones(4)}, parameters, skip_nonfinite=True)
    assert optimizer.state["w"]["note"] is value


def test_one_dict_at_two_places_of_a_skipped_step_is_as_before():
    class Joining(mlx_opt.SGD):
        def apply_single(self, gradient, parameter, state):
            self.state["b"] = self.state["a"]
            return super().apply_single(gradient, parameter, state)

    optimizer = Joining(0.1, momentum=0.9)
    parameters = {"a": mx.ones(3), "b": mx.ones(3)}
    mlx_opt.SGD.apply_gradients(optimizer, parameters, parameters)
    optimizer.state["b"] = {"v": mx.full((3,), 9.0)}
    before = photo(own(optimizer.state))
    optimizer.apply_gradients({"a": mx.ones(3), "b": mx.full((3,), mx.inf)}, parameters, 1.0, True)
    assert not differences(photo(own(optimizer.state)), before, 0)


def test_a_skipped_step_keeps_the_parameters_that_it_was_given():
    class Replacing(mlx_opt.SGD):
        def apply_single(self, gradient, parameter, state):
            model["w"] = parameter.astype(mx.complex64)
            return super().apply_single(gradient, parameter, state)

    model = {"w": mx.ones(3)}
    Replacing(0.1).update(model, {"w": mx.ones(3)}, skip_nonfinite=True)
    assert model["w"].dtype == mx.float32
