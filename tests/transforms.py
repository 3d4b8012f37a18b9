"""A step as a function of its arrays, for what transforms functions."""

import mlx.core as mx

from cases import assert_close, normal

LR = 0.1


def step(optimizer, g, w, learning_rate=None, number=None):
    """The parameter and the slots after one step from a state that is not zero."""
    optimizer.init({"w": w})
    if learning_rate is not None:
        optimizer.state["learning_rate"] = learning_rate
    if number is not None:
        optimizer.state["step"] = number
    for name in optimizer.state["w"]:
        optimizer.state["w"][name] = mx.full(w.shape, 0.25, w.dtype)
    new = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
    return new, optimizer.state["w"]


def total(build):
    """A scalar that depends on the new parameter and on every new slot."""

    def loss(*arguments):
        new, slots = step(build(LR), *arguments)
        return mx.sum(mx.sin(new)) + sum(mx.sum(m * m) for m in slots.values())

    return loss


def alike(function, case, *arguments, tolerance=2e-5):
    """`function` of our loss and of stock's give the same."""
    got, expected = function(total(case.ours))(*arguments), function(total(case.stock))(*arguments)
    mx.eval(got, expected)
    assert_close(got, expected, tolerance)


def pair(*shape):
    return normal(*shape, seed=1), normal(*shape, seed=2)
