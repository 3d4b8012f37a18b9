"""Actions that are no exchange of one thing for another."""

import copy
import gc

import mlx.core as mx
import numpy as np

import mlx_opt

from .photo import flat
from .puts import Action
from .trees import SHAPES, entry, fresh, grown

CALLS = {}


class Hostile(Exception):
    """What a program raises in the middle of a step."""


def action(**marks):
    """Put a function into the table."""

    def add(function):
        CALLS[function.__name__.replace("_", "-")] = Action(function, **marks)
        return function

    return add


def arrays(tree):
    return {path: x for path, x in flat(tree).items() if isinstance(x, mx.array)}


@action()
def gradients_cleared(world):
    world.gradients.clear()


@action()
def gradient_added(world):
    world.gradients["z"] = fresh((4,), 3)


@action()
def parameter_added(world):
    world.model["z"] = fresh((4,), 3)


@action(of_containers=True)
def model_cleared(world):
    world.model.clear()


@action(in_state=True)
def entry_added(world):
    entry(world.part.state, world.target)["more"] = fresh((4,), 3)


@action()
def root_entry_added(world):
    world.part.state["more"] = fresh((4,), 3)


@action(of_containers=True, of_root=True)
def state_cleared(world):
    world.part.state.clear()


@action(of_containers=True, of_root=True)
def state_set(world):
    world.part.state = copy.copy(world.part.state)


@action(of_containers=True, of_root=True)
def state_set_anew(world):
    world.part.state = {"step": mx.array(5, mx.uint64), "learning_rate": mx.array(0.2)}


@action(evaluates=True)
def everything_kept(world):
    world.keep_all([world.model, world.gradients, [part.state for part in world.parts()]])


@action(evaluates=True)
def views_kept(world):
    world.keep_all([x[1:] for x in arrays([world.model, world.part.state]).values() if x.ndim])


@action(evaluates=True)
def buffers_lent(world):
    """NumPy reads the buffers of arrays, without a copy."""
    for path, x in arrays([world.model, world.part.state]).items():
        world.keep(np.array(x, copy=False), ".".join(path))


@action()
def hyperparameters_changed(world):
    for name, value in world.rule.changed.items():
        setattr(world.part, name, value)


@action()
def rule_changed(world):
    for name, value in world.rule.other.items():
        setattr(world.part, name, value)


@action()
def hook_put_in(world):
    original = world.part.apply_single
    world.part.apply_single = lambda g, w, state: original(0.5 * g, w, state)


@action()
def schedule_put_in(world):
    world.part._schedulers["learning_rate"] = lambda step: mx.array(0.3)


@action()
def schedule_added(world):
    world.part._maybe_schedule("late", lambda step: mx.array(0.3))


@action()
def schedules_cleared(world):
    world.part._schedulers.clear()


@action()
def learning_rate_set(world):
    world.part.learning_rate = 0.4


@action()
def init_called(world):
    world.top.init(world.model)


@action(nested=True)
def update_called(world):
    world.top.update(world.model, grown(SHAPES, 300))


@action(nested=True)
def apply_gradients_called(world):
    world.top.apply_gradients(grown(SHAPES, 300), world.model)


@action()
def apply_single_called(world):
    state = {}
    world.part.init_single(fresh((4,)), state)
    world.part.apply_single(fresh((4,)), fresh((4,), 2), state)


@action()
def another_optimizer_steps(world):
    world.package.SGD(0.5).update(world.model, grown(SHAPES, 300))


@action()
def raised(world):
    raise Hostile("in the middle of a step")


@action()
def interrupted(world):
    raise KeyboardInterrupt


@action(evaluates=True)
def evaluated(world):
    world.evaluate()


@action(evaluates=True)
def evaluation_begun(world):
    mx.async_eval(list(arrays(world.trees()).values()))


@action()
def synchronized(world):
    mx.synchronize()


@action()
def stream_changed(world):
    mx.set_default_stream(mx.new_stream(mx.cpu))


@action()
def device_set(world):
    mx.set_default_device(mx.cpu)


@action()
def garbage_collected(world):
    gc.collect()


@action()
def cache_cleared(world):
    mx.clear_cache()


@action(evaluates=True)
def optimizer_copied(world):
    world.keep_all(copy.deepcopy(world.top.state))


@action(evaluates=True, nested=True)
def optimizer_copied_whole(world):
    copy.deepcopy(world.top).update(world.model, grown(SHAPES, 300))


@action()
def threads_set(world):
    mlx_opt.set_num_threads(3)
