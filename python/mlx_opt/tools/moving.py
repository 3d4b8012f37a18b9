"""The states of PyTorch's and optax's optimizers as states of ours."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .. import reserved
from ..ema import EVALUATING

# For each rule the names that others have for its slots.
TORCH = {
    "SGD": {"v": "momentum_buffer"},
    "RMSprop": {"v": "square_avg"},
    "Adagrad": {"v": "sum"},
    "AdaDelta": {"v": "square_avg", "u": "acc_delta"},
    "AdamW": {"m": "exp_avg", "v": "exp_avg_sq", "v_max": "max_exp_avg_sq"},
    "Adamax": {"m": "exp_avg", "v": "exp_inf"},
    "NAdam": {"m": "exp_avg", "v": "exp_avg_sq"},
    "RAdam": {"m": "exp_avg", "v": "exp_avg_sq"},
    "Lion": {"m": "exp_avg"},
    "AdamWScheduleFree": {"z": "z", "v": "exp_avg_sq"},
    "SGDScheduleFree": {"z": "z"},
    "Prodigy": {"m": "exp_avg", "v": "exp_avg_sq", "s": "s", "p0": "p0"},
    "DAdaptAdam": {"m": "exp_avg", "v": "exp_avg_sq", "s": "s"},
}
OPTAX = {
    "SGD": {"v": "trace"},
    "RMSprop": {"v": "nu"},
    "Adagrad": {"v": "sum_of_squares"},
    "AdamW": {"m": "mu", "v": "nu"},
    "Lion": {"m": "mu"},
    "AdamWScheduleFree": {"z": "z", "v": "nu"},
    "SGDScheduleFree": {"z": "z"},
}


def state_from_torch(
    optimizer: Any, state_dict: Mapping[str, Any], names: Sequence[str], parameters: Any
) -> dict:
    """Return a PyTorch optimizer's state as a state of the optimizer for the same rule.

    Args:
        optimizer: An optimizer with the same hyperparameters, which is not changed.
        state_dict: What the PyTorch optimizer's ``state_dict()`` gave. Its tensors may be NumPy
            arrays too. It may also be of the packages schedulefree, prodigyopt and dadaptation, or
            of one with a Lion.
        names: The paths of the parameters here in the order in which PyTorch's optimizer has them;
            for ``torch_model.parameters()`` the names in ``torch_model.named_parameters()``, if
            both models call them the same.
        parameters: The module that is to be trained, or a tree of arrays.

    Returns:
        A state, for ``optimizer.state = ...``. Parameters that PyTorch has not updated yet begin
        as here.

    Raises:
        KeyError: There is no parameter of a name, or an array is missing in PyTorch's state.
        TypeError: The optimizer's state cannot be converted.
        ValueError: Shapes, the number of parameters or their numbers of steps do not agree.

    Example:
        >>> import mlx.core as mx
        >>> import numpy as np
        >>> import mlx_opt as optim
        >>> moments = {"step": 7, "exp_avg": np.ones(2), "exp_avg_sq": np.ones(2)}
        >>> theirs = {"state": {0: moments}, "param_groups": [{"lr": 0.1, "params": [0]}]}
        >>> optimizer = optim.AdamW(0.1, bias_correction=True)
        >>> optimizer.state = optim.state_from_torch(optimizer, theirs, ["w"], {"w": mx.zeros(2)})
        >>> optimizer.step.item()
        7
    """
    keys = _names_of(TORCH, optimizer, "PyTorch")
    groups = state_dict["param_groups"]
    order = [index for group in groups for index in group["params"]]
    if len(order) != len(names):
        raise ValueError(f"names: expected {len(order)}, as PyTorch's state has, got {len(names)}")
    found = {
        name: state_dict["state"][index]
        for index, name in zip(order, names, strict=True)
        if index in state_dict["state"]
    }
    state, slots = _begun(optimizer, parameters)
    for name, entries in found.items():
        if name not in slots:
            raise KeyError(f"{name}: there is no parameter of this name")
        for slot in slots[name]:
            if entries.get(keys[slot]) is not None:
                given = entries[keys[slot]]
                if optimizer._rule == "Prodigy":
                    given = _unflattened(given, slots[name][slot])
                _fill(slots[name], slot, name, given)
            elif slot != "v_max" and optimizer._rule != "SGD":
                raise KeyError(f"{name}: PyTorch's state has no {keys[slot]}")
    counts = {int(entries["step"]) for entries in found.values() if "step" in entries}
    counts |= {int(group["k"]) for group in groups if "k" in group}
    _set_root(state, counts, groups[0].get("lr"))
    if "weight_sum" in groups[0]:
        group = groups[0]
        weight = group["k"] ** group["r"] * group["lr_max"] ** group["weight_lr_power"]
        _set_average(state, group["lr_max"], group["weight_sum"], weight)
        if not group["train_mode"]:
            state.setdefault(reserved.KEY, {})[EVALUATING] = mx.array(True)
    if "d" in groups[0]:
        _set_estimate(state, groups[0])
    for product in (entries["mu_product"] for entries in found.values() if "mu_product" in entries):
        state["mu_product"] = mx.array(float(product))
    return state


def state_from_optax(optimizer: Any, opt_state: Any, parameters: Any) -> dict:
    """Return the state of an optax optimizer as a state of the optimizer for the same rule.

    Args:
        optimizer: An optimizer with the same hyperparameters, which is not changed.
        opt_state: What ``init`` or ``update`` of the optax optimizer gave, with trees of the same
            structure as ``parameters``; arrays of JAX or NumPy.
        parameters: The module that is to be trained, or a tree of arrays.

    Returns:
        A state, for ``optimizer.state = ...``. Its step is 0 if optax did not count, as with a
        constant learning rate for SGD.

    Raises:
        KeyError: A slot is not in optax's state.
        TypeError: The optimizer's state cannot be converted.
        ValueError: A shape does not agree.

    Example:
        >>> from typing import NamedTuple
        >>> import mlx.core as mx
        >>> import numpy as np
        >>> import mlx_opt as optim
        >>> class ScaleByLionState(NamedTuple):  # optax's
        ...     count: int
        ...     mu: dict
        >>> optimizer = optim.Lion(0.1)
        >>> theirs = (ScaleByLionState(7, {"w": np.ones(2)}), ())
        >>> optimizer.state = optim.state_from_optax(optimizer, theirs, {"w": mx.zeros(2)})
        >>> optimizer.state["w"]["m"]
        array([1, 1], dtype=float32)
    """
    keys = _names_of(OPTAX, optimizer, "optax")
    fields = dict(_fields(opt_state))
    state, slots = _begun(optimizer, parameters)
    for slot, key in keys.items():
        if key not in fields and not (optimizer._rule == "SGD" and slot == "v"):
            raise KeyError(f"optax's state has no {key}")
        for name, value in _leaves(fields.get(key, {})):
            if name in slots and slot in slots[name]:
                _fill(slots[name], slot, name, value)
    counts = {int(fields["count"])} if "count" in fields else set()
    if "weight_sum" in fields:
        counts = {int(fields["step_count"]) - 1}
        greatest = float(fields["max_lr"])
        power = optimizer.weight_lr_power
        _set_average(state, greatest, float(fields["weight_sum"]), greatest**power)
    _set_root(state, counts, None)
    return state


def _names_of(table: dict[str, dict[str, str]], optimizer: Any, package: str) -> dict[str, str]:
    rule = getattr(optimizer, "_rule", None)
    if rule not in table:
        raise TypeError(f"{type(optimizer).__name__}: {package}'s state cannot be converted")
    return table[rule]


def _begun(optimizer: Any, parameters: Any) -> tuple[dict, dict[str, dict]]:
    """A state as before the first step, and the slots of each parameter in it, by path."""
    tree = parameters.trainable_parameters() if isinstance(parameters, nn.Module) else parameters
    fresh = copy.deepcopy(optimizer)
    fresh.init(tree)
    slots = {}
    for path, _ in _leaves(tree):
        entry = fresh.state
        for key in path.split("."):
            entry = entry[int(key) if isinstance(entry, (list, tuple)) else key]
        slots[path] = entry
    return fresh.state, slots


def _fill(slots: dict, slot: str, name: str, given: Any) -> None:
    value = _array(given)
    before = slots[slot]
    if value.shape != before.shape:
        raise ValueError(f"{name}: {slot} has the shape {value.shape}, expected {before.shape}")
    slots[slot] = value.astype(before.dtype)


def _array(given: Any) -> mx.array:
    """An array of a PyTorch tensor, or of what NumPy takes."""
    import numpy as np

    if hasattr(given, "detach"):
        given = given.detach().cpu().float()  # NumPy has no bfloat16
    return mx.array(np.asarray(given, np.float32))


def _set_root(state: dict, counts: set[int], rate: Any) -> None:
    if len(counts) > 1:
        raise ValueError(f"parameters have had different numbers of steps: {sorted(counts)}")
    state["step"] = mx.array(counts.pop() if counts else 0, mx.uint64)
    if rate is not None and "learning_rate" in state:
        state["learning_rate"] = mx.array(float(rate))


def _unflattened(given: Any, slot: mx.array) -> mx.array:
    """An array of prodigyopt, which flattens two of its own; a p0 of zeros has one element."""
    value = _array(given)
    if value.size == 1:
        return mx.broadcast_to(value.reshape(()), slot.shape)
    return value.reshape(slot.shape) if value.size == slot.size else value


def _set_estimate(state: dict, group: Mapping[str, Any]) -> None:
    numerator = group.get("d_numerator")
    if numerator is None:  # of dadaptation, which has a factor more
        numerator = group["numerator_weighted"] / (1 - group["betas"][1] ** 0.5)
    numbers = {"d": group["d"], "d_step": group["d"], "d_numerator": numerator}
    if "d_max" in group:
        numbers["d_max"] = group["d_max"]
    state.update({name: mx.array(float(x)) for name, x in numbers.items()})


def _set_average(state: dict, greatest_rate: float, weights: float, last_weight: float) -> None:
    state["lr_max"] = mx.array(max(float(greatest_rate), 0.0))
    steps = float(weights) / float(last_weight) if last_weight else 0.0
    state["averaged_steps"] = mx.array(steps)


def _fields(tree: Any) -> Iterator[tuple[str, Any]]:
    """The fields of all named tuples of a state, the outer ones first."""
    if hasattr(tree, "_fields"):
        yield from zip(tree._fields, tree, strict=True)
    if isinstance(tree, (tuple, list)):
        for child in tree:
            yield from _fields(child)


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves: Any = tree_flatten(tree)
    return leaves
