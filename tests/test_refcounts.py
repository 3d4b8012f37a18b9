"""Python's own objects: a step keeps none of them, and lets go of none that is not its own."""

import gc
import sys
import weakref

import mlx.core as mx

import mlx_opt
from cases import each_rule


def tree(value):
    a, b, c = (mx.full(shape, value) for shape in [(3,), (2,), ()])
    return {"a": a, "layers": [{"b": b}, (c,)]}


def objects(*roots):
    """All containers, keys and leaves under the roots."""
    found, stack = {}, list(roots)
    while stack:
        x = stack.pop()
        if id(x) not in found:
            found[id(x)] = x
            stack += [*x, *x.values()] if isinstance(x, dict) else []
            stack += x if isinstance(x, list | tuple) else []
    return list(found.values())


@each_rule
def test_a_steps_arguments_have_the_references_they_had(case):
    optimizer = case.ours(0.1)
    w, g = tree(1.0), tree(2.0)
    optimizer.init(w)
    # The state's arrays are new in each step; all else stays.
    old = objects(w, g) + [x for x in objects(optimizer.state) if not isinstance(x, mx.array)]
    new = optimizer.apply_gradients(g, w)  # whatever is made once is made here
    del new
    mx.eval(optimizer.state)
    before = [sys.getrefcount(x) for x in old]
    steps = 10
    for _ in range(steps):
        new = optimizer.apply_gradients(g, w)
        mx.eval(new, optimizer.state)
        del new
    # pytest's own threads use strings such as "m" too, whose counts may be off by a few.
    changes = [sys.getrefcount(x) - count for x, count in zip(old, before, strict=True)]
    assert all(abs(change) < steps for change in changes)


def test_refused_steps_leave_no_references():
    optimizer = mlx_opt.AdamW(0.1)
    w = tree(1.0)
    optimizer.init(w)
    wrong = tree(2.0)
    wrong["layers"][1] = (mx.ones(5),)
    missing = tree(2.0) | {"other": mx.ones(1)}
    containers = objects(w, wrong, missing)

    def refused(g):
        try:
            optimizer.apply_gradients(g, w)
        except (KeyError, ValueError):
            return True

    assert refused(wrong) and refused(missing)
    before = [sys.getrefcount(x) for x in containers]
    for _ in range(10):
        assert refused(wrong) and refused(missing)
    assert [sys.getrefcount(x) for x in containers] == before


def test_many_steps_leave_no_objects():
    optimizer, w = mlx_opt.AdamW(0.1), tree(1.0)

    def steps(count):
        nonlocal w
        for _ in range(count):
            w = optimizer.apply_gradients(tree(0.5), w)
            mx.eval(w, optimizer.state)
        gc.collect()
        return len(gc.get_objects())

    steps(5)
    before = steps(5)
    assert steps(200) <= before  # other tests' objects may go meanwhile


def test_an_optimizer_is_freed_with_its_last_reference():
    optimizer = mlx_opt.AdamW(lambda step: mx.array(0.1))
    optimizer.apply_gradients(tree(0.5), tree(1.0))
    ghost = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert ghost() is None
