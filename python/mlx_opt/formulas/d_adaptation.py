"""The formulas of D-Adaptation and Prodigy, which find the size of their steps while they train.

The numbers that these rules keep depend on sums over all tensors. A formula that is not given the
numbers makes a first step of its tensor alone.
"""

from .registry import keep, one_minus_power, reference, sums, value_or, with_decay


@reference(
    "Prodigy",
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decouple": False, "beta3": 0.9},
    {"use_bias_correction": True, "safeguard_warmup": True},
)
def prodigy(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    betas=(0.9, 0.999),
    beta3=0.0,
    eps=1e-8,
    weight_decay=0.0,
    decouple=True,
    use_bias_correction=False,
    safeguard_warmup=False,
    d0=1e-6,
    d_coef=1.0,
    growth_rate=float("inf"),
    d=None,
    d_max=None,
    d_numerator=None,
    d_step=None,
):
    """Prodigy: AdamW that estimates its learning rate, which multiplies ``learning_rate``.

    Mishchenko and Defazio 2023, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner",
    arXiv:2306.06101.
    """
    own = {
        "betas": betas,
        "beta3": beta3,
        "weight_decay": weight_decay,
        "decouple": decouple,
        "use_bias_correction": use_bias_correction,
        "safeguard_warmup": safeguard_warmup,
        "d0": d0,
    }
    if d is None:
        first = prodigy_sums(xp, w, g, state, step, learning_rate=learning_rate, d=0.0, **own)
        hypers = {"betas[1]": betas[1], "beta3": beta3, "d0": d0, "d_coef": d_coef}
        hypers |= {"growth_rate": growth_rate, "d": 0.0, "d_max": 0.0, "d_numerator": 0.0}
        numbers = next_prodigy(xp, hypers, learning_rate, step, first)
        d, d_step = numbers["d"], numbers["d_step"]
    beta1, beta2 = betas
    change = with_decay(xp, g, 0 if decouple else weight_decay, w)
    rate = d_step * step_rate(xp, learning_rate, betas, use_bias_correction, step)
    m = beta1 * state["m"] + (1 - beta1) * d_step * change
    v = beta2 * state["v"] + (1 - beta2) * (d_step * change) ** 2
    new = w - rate * m / (xp.sqrt(v) + d * eps)
    if decouple:
        new = with_decay(xp, new, -rate * weight_decay, w)
    s = next_s(xp, state["s"], change, learning_rate, step, d_step, own)
    after = {"m": m, "v": v, "s": s, "p0": value_or(xp, state["p0"], w)}
    return unless_still(xp, d_step, learning_rate, w, new, state, after)


@sums("Prodigy")
def prodigy_sums(xp, w, g, state, step, *, learning_rate, d, d0=1e-6, **options):
    """Of the gradient along the way from the first parameters, and of the sizes of s."""
    d = xp.maximum(d, d0)
    own = {**options, "d0": d0}
    g = with_decay(xp, g, 0 if own["decouple"] else own["weight_decay"], w)
    first = value_or(xp, state["p0"], w)
    way = xp.where(first == w, 0, first - w)
    rate = d * step_rate(xp, learning_rate, own["betas"], own["use_bias_correction"], step)
    s = next_s(xp, state["s"], g, learning_rate, step, d, own)
    return {
        "numerator": d / d0 * rate * product(xp, g, way),
        "denominator": xp.where(learning_rate > 0, xp.sum(xp.abs(s)), 0),
    }


@keep("Prodigy")
def next_prodigy(xp, hypers, learning_rate, step, sums):
    """The estimate d, the largest so far, the average of the sum, and the d that the step uses."""
    d0 = hypers["d0"]
    d = xp.maximum(hypers["d"], d0)
    beta3 = decay_of_sums(xp, hypers["betas[1]"], hypers["beta3"])
    numerator = beta3 * hypers["d_numerator"] + sums["numerator"]
    stays = sums["denominator"] == 0
    estimate = hypers["d_coef"] * numerator / xp.where(stays, 1, sums["denominator"])
    largest = xp.maximum(xp.maximum(hypers["d_max"], d0), estimate)
    growth_rate = xp.minimum(hypers["growth_rate"], 1e30)  # infinity has no derivative
    grown = xp.where(d == d0, xp.maximum(d, estimate), d) * growth_rate
    return {
        "d": xp.where(stays, hypers["d"], xp.minimum(largest, grown)),
        "d_max": xp.where(stays, hypers["d_max"], largest),
        "d_numerator": xp.where(stays, hypers["d_numerator"], numerator),
        "d_step": xp.where(stays, 0, d),
    }


@reference(
    "DAdaptAdam",
    {"weight_decay": 0.1, "use_bias_correction": True},
    {"weight_decay": 0.1, "decouple": True},
)
def dadapt_adam(
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
    decouple=False,
    use_bias_correction=False,
    d0=1e-6,
    growth_rate=float("inf"),
    d=None,
    d_numerator=None,
    d_step=None,
):
    """D-Adaptation of Adam: an estimate of its learning rate multiplies ``learning_rate``.

    Defazio and Mishchenko 2023, "Learning-Rate-Free Learning by D-Adaptation", arXiv:2301.07733.
    """
    beta1, beta2 = betas
    if d_step is None:
        own = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "decouple": decouple}
        own |= {"use_bias_correction": use_bias_correction, "d0": d0}
        first = dadapt_adam_sums(xp, w, g, state, step, learning_rate=learning_rate, d=0.0, **own)
        hypers = {"betas[1]": beta2, "d0": d0, "growth_rate": growth_rate}
        hypers |= {"d": 0.0, "d_numerator": 0.0}
        d_step = next_dadapt_adam(xp, hypers, learning_rate, step, first)["d_step"]
    change = with_decay(xp, g, 0 if decouple else weight_decay, w)
    rate = d_step * step_rate(xp, learning_rate, betas, use_bias_correction, step)
    m = beta1 * state["m"] + (1 - beta1) * rate * change
    v = beta2 * state["v"] + (1 - beta2) * change**2
    new = w - m / (xp.sqrt(v) + eps)
    if decouple:
        new = with_decay(xp, new, -rate * weight_decay, w)
    s = averaged(state["s"], rate * change, beta2)
    return unless_still(xp, d_step, learning_rate, w, new, state, {"m": m, "v": v, "s": s})


@sums("DAdaptAdam")
def dadapt_adam_sums(xp, w, g, state, step, *, learning_rate, d, d0=1e-6, **options):
    """Of the gradient along s, each element over its size, and of the sizes of s."""
    beta2 = options["betas"][1]
    g = with_decay(xp, g, 0 if options["decouple"] else options["weight_decay"], w)
    corrects = options["use_bias_correction"]
    rate = xp.maximum(d, d0) * step_rate(xp, learning_rate, options["betas"], corrects, step)
    s, size = state["s"], xp.sqrt(state["v"]) + options["eps"]
    way = xp.where(s == 0, 0, s / xp.where(s == 0, 1, size))
    denominator = xp.sum(xp.abs(averaged(s, rate * g, beta2)))
    return {
        "numerator": rate * product(xp, g, way),
        "denominator": xp.where(learning_rate > 0, denominator, 0),
    }


@keep("DAdaptAdam")
def next_dadapt_adam(xp, hypers, learning_rate, step, sums):
    """The estimate d, the average of the sum, and the d that the step uses."""
    d = xp.maximum(hypers["d"], hypers["d0"])
    numerator = hypers["betas[1]"] ** 0.5 * hypers["d_numerator"] + sums["numerator"]
    stays = sums["denominator"] == 0
    estimate = numerator / xp.where(stays, 1, sums["denominator"])
    growth_rate = xp.minimum(hypers["growth_rate"], 1e30)  # infinity has no derivative
    grown = xp.maximum(d, xp.minimum(estimate, d * growth_rate))
    return {
        "d": xp.where(stays, hypers["d"], grown),
        "d_numerator": xp.where(stays, hypers["d_numerator"], numerator),
        "d_step": xp.where(stays, 0, d),
    }


def step_rate(xp, learning_rate, betas, corrects, step):
    """The learning rate, with Adam's bias correction if that is asked for."""
    if not corrects:
        return learning_rate
    first, second = (one_minus_power(xp, beta, step) for beta in betas)
    return learning_rate * xp.sqrt(second) / first


def product(xp, a, b):
    """The real part of the inner product."""
    return xp.sum(xp.real(a * xp.conj(b)))


def decay_of_sums(xp, beta2, beta3):
    return xp.where(beta3 == 0, beta2**0.5, beta3)


def next_s(xp, s, g, learning_rate, step, d, own):
    """Prodigy's s, the weighted sum of the gradients."""
    weight = d
    if not own["safeguard_warmup"]:
        corrects = own["use_bias_correction"]
        weight = d * step_rate(xp, learning_rate, own["betas"], corrects, step)
    return decay_of_sums(xp, own["betas"][1], own["beta3"]) * s + d / own["d0"] * weight * g


def averaged(s, g, beta2):
    """D-Adaptation's s, an average of the gradients with the square root of beta2."""
    root = beta2**0.5
    return root * s + (1 - root) * g


def unless_still(xp, d_step, learning_rate, w, new, state, after):
    """The step's results, or what they were before it where the step does nothing."""
    moves = (d_step > 0) & (learning_rate > 0)
    after = {name: xp.where(moves, x, state[name]) for name, x in after.items()}
    return xp.where(moves, new, w), after
