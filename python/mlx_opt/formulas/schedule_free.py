"""The formulas of Schedule-Free rules and of generalized primal averaging."""

from .adam_variants import radam_length
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


@reference(
    "RAdamScheduleFree",
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "silent_sgd_phase": False, "r": 1.0},
)
def radam_schedule_free(
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
    silent_sgd_phase=True,
    r=0.0,
    weight_lr_power=2.0,
    lr_max=None,
    averaged_steps=None,
    v_weights=None,
    v_length=None,
):
    """Schedule-Free RAdam: RAdam whose steps are averaged, so that it needs neither a decaying
    learning rate nor a warm-up.

    Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky 2024, "The Road Less Scheduled",
    arXiv:2405.15682.
    """
    beta1, beta2 = betas
    if averaged_steps is None:
        v_length = radam_length(xp, beta2, step)
        averaged_steps = rectified_steps_averaged(
            xp, step, beta2, silent_sgd_phase, r, weight_lr_power
        )
    v = beta2 * state["v"] + (1 - beta2) * g**2
    root = xp.sqrt(v / one_minus_power(xp, beta2, step)) + eps
    u = with_decay(xp, g / xp.where(v_length > 4, root, 1), weight_decay, w)
    rate = learning_rate * rectified(xp, v_length, beta2, silent_sgd_phase)
    w, new = next_iterates(xp, w, state["z"], u, rate, beta1, averaged_steps)
    return w, {**new, "v": v}


def next_iterates(xp, y, z, u, rate, beta, averaged_steps):
    """The parameter y, which is between z and the average of all z, and z after a step along u."""
    weight = xp.where(averaged_steps > 0, 1 / xp.maximum(averaged_steps, 1), 0)
    return weighted_iterates(y, value_or(xp, z, y), u, rate, beta, weight)


def weighted_iterates(y, z, u, rate, beta, weight):
    """The same; `weight`: of z in its average."""
    y = y + weight * (z - y) + rate * (beta * (1 - weight) - 1) * u
    return y, {"z": z - rate * u}


@reference("GPAAdamW", {"weight_decay": 0.1}, {"weight_decay": 0.1, "use_wd_on_y": True})
def gpa_adamw(
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
    train_interp_coeff=0.7,
    eval_interp_coeff=0.9967,
    use_wd_on_y=False,
):
    """GPAAdamW: AdamW with generalized primal averaging, the smooth form of DiLoCo's steps.

    "Smoothing DiLoCo with Primal Averaging for Faster Training of LLMs", 2025, arXiv:2512.17131.
    """
    beta1, beta2 = betas
    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    c1, c2 = (one_minus_power(xp, beta, step) for beta in betas)
    u = (m / c1) / (xp.sqrt(v / c2) + eps)
    y, z = w, value_or(xp, state["z"], w)
    if use_wd_on_y:
        y = (1 - learning_rate * weight_decay) * y
    else:
        z = (1 - learning_rate * weight_decay) * z
    w, new = weighted_iterates(y, z, u, learning_rate, train_interp_coeff, 1 - eval_interp_coeff)
    return w, {**new, "m": m, "v": v}


@keep("SGDScheduleFree")
@keep("AdamWScheduleFree")
def next_weights(xp, hypers, learning_rate, step):
    """The largest learning rate, and the weights of all steps divided by the last one's."""
    before = hypers["lr_max"]
    lr_max = xp.maximum(before, learning_rate * progress(xp, step, hypers["warmup_steps"]))
    divisor = xp.maximum(lr_max, 1e-18)
    ratio = ((step - 1) / step) ** hypers["r"] * (before / divisor) ** hypers["weight_lr_power"]
    averaged_steps = hypers["averaged_steps"] * ratio + lr_max / divisor
    return {"lr_max": lr_max, "averaged_steps": averaged_steps}


def steps_averaged(step, warmup_steps, r, weight_lr_power):
    """The weights of all steps up to this one, divided by its own."""

    def weight(i):
        return i**r * min(i / max(warmup_steps, 1), 1) ** weight_lr_power

    return sum(weight(i) for i in range(1, step + 1)) / weight(step)


@keep("RAdamScheduleFree")
def next_rectified_weights(xp, hypers, learning_rate, step):
    """The same, and what is known of v: the weights of its gradients divided by the last one's, and
    how many gradients it averages."""
    beta2, r = hypers["betas[1]"], hypers["r"]
    older = beta2 * hypers["v_weights"]
    length = 1 + older / (1 + older) * (hypers["v_length"] + 1)
    rate = learning_rate * rectified(xp, length, beta2, hypers["silent_sgd_phase"])
    before = hypers["lr_max"]
    lr_max = xp.maximum(before, rate)
    divisor = xp.maximum(lr_max, 1e-18)
    ratio = ((step - 1) / step) ** r * (before / divisor) ** hypers["weight_lr_power"]
    averaged_steps = hypers["averaged_steps"] * ratio + lr_max / divisor
    return {
        "lr_max": lr_max,
        "averaged_steps": averaged_steps,
        "v_weights": 1 + older,
        "v_length": length,
    }


def rectified(xp, length, beta2, silent_sgd_phase):
    """The factor of the learning rate if v averages so many gradients."""
    limit = 2 / (1 - beta2) - 1
    excess = xp.maximum(length - 4, 0)
    variance = excess / xp.maximum(limit - 4, 1e-6) * (length - 2) / xp.maximum(limit - 2, 1e-6)
    is_first = 1 - xp.minimum(excess * 1e30, 1)
    root = xp.maximum(variance * limit / length, 0) ** 0.5
    return root + (0 if silent_sgd_phase else 1) * is_first


def rectified_steps_averaged(xp, step, beta2, silent_sgd_phase, r, weight_lr_power):
    """As `steps_averaged`, with rectification in the place of the warm-up."""
    rates = [
        rectified(xp, radam_length(xp, beta2, i), beta2, silent_sgd_phase)
        for i in range(1, step + 1)
    ]
    weights = [i**r * max(rates[:i]) ** weight_lr_power for i in range(1, step + 1)]
    return sum(weights) / weights[-1] if weights[-1] > 0 else xp.zeros(())
