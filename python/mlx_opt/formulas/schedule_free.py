"""The formulas of Schedule-Free rules."""

from .registry import keep, one_minus_power, progress, reference, value_or, with_decay

# Of steps that all have the same hyperparameters, a formula that is not given the numbers which the
# rule keeps computes them.


@reference("SGDScheduleFree", {"weight_decay": 0.1, "warmup_steps": 5})
def sgd_schedule_free(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    momentum=0.9,
    weight_decay=0.0,
    warmup_steps=0,
    r=0.0,
    weight_lr_power=2.0,
    lr_max=None,
    averaged_steps=None,
):
    """Schedule-Free SGD: SGD whose steps are averaged, so that it needs no decaying learning rate.

    Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky 2024, "The Road Less Scheduled",
    arXiv:2405.15682.
    """
    if averaged_steps is None:
        averaged_steps = steps_averaged(step, warmup_steps, r, weight_lr_power)
    u = with_decay(xp, g, weight_decay, w)
    rate = learning_rate * progress(xp, step, warmup_steps)
    return next_iterates(xp, w, state["z"], u, rate, momentum, averaged_steps)


@reference(
    "AdamWScheduleFree",
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "warmup_steps": 5, "r": 1.0},
)
def adamw_schedule_free(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    warmup_steps=0,
    r=0.0,
    weight_lr_power=2.0,
    lr_max=None,
    averaged_steps=None,
):
    """Schedule-Free AdamW: AdamW whose steps are averaged, so that it needs no decaying learning
    rate.

    Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky 2024, "The Road Less Scheduled",
    arXiv:2405.15682.
    """
    if averaged_steps is None:
        averaged_steps = steps_averaged(step, warmup_steps, r, weight_lr_power)
    beta1, beta2 = betas
    v = beta2 * state["v"] + (1 - beta2) * g**2
    u = g / (xp.sqrt(v / one_minus_power(xp, beta2, step)) + eps)
    u = with_decay(xp, u, weight_decay, w)
    rate = learning_rate * progress(xp, step, warmup_steps)
    w, new = next_iterates(xp, w, state["z"], u, rate, beta1, averaged_steps)
    return w, {**new, "v": v}


def next_iterates(xp, y, z, u, rate, beta, averaged_steps):
    """The parameter y, which is between z and the average of all z, and z after a step along u."""
    z = value_or(xp, z, y)
    weight = xp.where(averaged_steps > 0, 1 / xp.maximum(averaged_steps, 1), 0)
    y = y + weight * (z - y) + rate * (beta * (1 - weight) - 1) * u
    return y, {"z": z - rate * u}


@keep("SGDScheduleFree")
@keep("AdamWScheduleFree")
def next_weights(xp, hypers, learning_rate, step):
    """The largest learning rate, and the weights of all steps divided by the last one's."""
    before = hypers["lr_max"]
    lr_max = xp.maximum(before, learning_rate * progress(xp, step, hypers["warmup_steps"]))
    divisor = xp.maximum(lr_max, 1e-38)
    ratio = ((step - 1) / step) ** hypers["r"] * (before / divisor) ** hypers["weight_lr_power"]
    averaged_steps = hypers["averaged_steps"] * ratio + lr_max / divisor
    return {"lr_max": lr_max, "averaged_steps": averaged_steps}


def steps_averaged(step, warmup_steps, r, weight_lr_power):
    """The weights of all steps up to this one, divided by its own."""

    def weight(i):
        return i**r * min(i / max(warmup_steps, 1), 1) ** weight_lr_power

    return sum(weight(i) for i in range(1, step + 1)) / weight(step)
