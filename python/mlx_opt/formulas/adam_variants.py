"""The formulas of elementwise rules that change Adam's in one place."""

import math

from .registry import log, log_between, one_minus_power, progress, reference, value_or, with_decay


@reference("RAdam", {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True})
def radam(
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
    decoupled_weight_decay=False,
):
    """RAdam: Adam whose steps are smaller as long as its second moment is of few gradients.

    Liu, Jiang, He, Chen, Liu, Gao and Han 2020, "On the Variance of the Adaptive Learning Rate and
    Beyond", arXiv:1908.03265.
    """
    beta1, beta2 = betas
    coupled = 0 if decoupled_weight_decay else weight_decay
    g = with_decay(xp, g, coupled, w)

    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    c1, c2 = (one_minus_power(xp, beta, step) for beta in betas)
    length = radam_length(xp, beta2, step)
    adaptive = length > 5
    length, limit = xp.maximum(length, 5), xp.maximum(2 / (1 - beta2) - 1, 5)
    variance = (length - 4) / (limit - 4) * (length - 2) / (limit - 2) * limit / length
    rate = learning_rate / c1 * xp.where(adaptive, xp.sqrt(variance * c2), 1)
    if decoupled_weight_decay:
        w = (1 - learning_rate * weight_decay) * w
    return w - rate * m / xp.where(adaptive, xp.sqrt(v) + eps, 1), {"m": m, "v": v}


def radam_length(xp, beta2, step):
    """How many gradients v averages: 2 / (1 - beta2) - 1 - 2 t beta2^t / (1 - beta2^t).

    It is small in the first steps, where the terms are large, so it comes from a series there.
    """
    rate = -log(xp, beta2)
    x = rate * step
    y = xp.minimum(x, 1)
    series = 1 - y / 6 + y**3 / 360 - y**5 / 15120 + y**7 / 604800 - y**9 / 23950080
    rest = xp.where(x < 1, series, 2 / x - 2 / xp.expm1(xp.minimum(x, 80)))
    return 2 / (1 - beta2) - 1 - 2 / rate + step * rest


@reference("ADOPT", {"weight_decay": 0.1}, {"weight_decay": 0.1, "decouple": True})
def adopt(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    betas=(0.9, 0.9999),
    eps=1e-6,
    weight_decay=0.0,
    decouple=False,
    clip=True,
    clip_exponent=0.25,
):
    """ADOPT: Adam that divides a gradient by the second moment of those before it.

    Taniguchi et al. 2024, "ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate",
    arXiv:2411.02853.
    """
    beta1, beta2 = betas
    coupled = 0 if decouple else weight_decay
    g = with_decay(xp, g, coupled, w)

    root = xp.sqrt(value_or(xp, state["v"], math.inf))  # the first step divides by infinity
    n = g / xp.maximum(root, eps)
    if clip:
        bound = (step - 1) ** clip_exponent
        n = xp.clip(n, -bound, bound)
    m = beta1 * state["m"] + (1 - beta1) * n
    before = value_or(xp, state["v"], g**2)
    v = beta2 * before + (1 - beta2) * g**2
    if decouple:
        w = (1 - xp.where(xp.isinf(root), 0, learning_rate * weight_decay)) * w
    return w - learning_rate * m, {"m": m, "v": v}


@reference("AdamAtan2", {"weight_decay": 0.1})
def adam_atan2(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    betas=(0.9, 0.99),
    weight_decay=0.0,
    a=1.27,
    b=1.0,
):
    """AdamAtan2: Adam with an arc tangent for the quotient, which needs no eps.

    Everett et al. 2024, "Scaling Exponents Across Parameterizations and Optimizers",
    arXiv:2407.05872.
    """
    beta1, beta2 = betas

    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    c1, c2 = (one_minus_power(xp, beta, step) for beta in betas)
    d = learning_rate * a * xp.arctan2(m / c1, b * xp.sqrt(v / c2))
    return (1 - learning_rate * weight_decay) * w - d, {"m": m, "v": v}


@reference("LaProp", {"weight_decay": 0.1})
def laprop(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    betas=(0.9, 0.999),
    eps=1e-15,
    weight_decay=0.0,
):
    """LaProp: Adam that averages the quotients of gradient and second moment.

    Ziyin, Wang and Ueda 2020, "LaProp: Separating Momentum and Adaptivity in Adam",
    arXiv:2002.04839.
    """
    beta1, beta2 = betas

    v = beta2 * state["v"] + (1 - beta2) * g**2
    c1, c2 = (one_minus_power(xp, beta, step) for beta in betas)
    m = beta1 * state["m"] + (1 - beta1) * g / (xp.sqrt(v / c2) + eps)
    w = (1 - learning_rate * weight_decay) * (w - learning_rate * m / c1)
    return w, {"m": m, "v": v}


@reference(
    "QHAdam",
    {"nus": (0.7, 0.9), "weight_decay": 0.1},
    {"weight_decay": 0.1, "decouple_weight_decay": True},
)
def qhadam(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    betas=(0.9, 0.999),
    nus=(1.0, 1.0),
    eps=1e-8,
    weight_decay=0.0,
    decouple_weight_decay=False,
):
    """QHAdam: Adam whose update mixes the averages with the gradient and its square.

    Ma and Yarats 2019, "Quasi-hyperbolic Momentum and Adam for Deep Learning", arXiv:1810.06801.
    """
    nu1, nu2 = nus
    coupled = 0 if decouple_weight_decay else weight_decay
    g = with_decay(xp, g, coupled, w)

    def fresh(beta):
        return xp.where(step == 1, 1, (1 - beta) / one_minus_power(xp, beta, step))

    fresh1, fresh2 = map(fresh, betas)
    m = (1 - fresh1) * state["m"] + fresh1 * g
    v = (1 - fresh2) * state["v"] + fresh2 * g**2
    average = nu1 * m + xp.where(nu1 == 1, 0, (1 - nu1) * g)
    square = nu2 * v + xp.where(nu2 == 1, 0, (1 - nu2) * g**2)
    if decouple_weight_decay:
        w = (1 - learning_rate * weight_decay) * w
    return w - learning_rate * average / (xp.sqrt(square) + eps), {"m": m, "v": v}


@reference("AdaBelief", {"weight_decay": 0.1})
def adabelief(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    betas=(0.9, 0.999),
    eps=1e-16,
    weight_decay=0.0,
):
    """AdaBelief: Adam that divides by how far gradients are from their average.

    Zhuang et al. 2020, "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed
    Gradients", arXiv:2010.07468.
    """
    beta1, beta2 = betas

    m = beta1 * state["m"] + (1 - beta1) * g
    s = beta2 * state["s"] + (1 - beta2) * (g - m) ** 2 + eps
    c1, c2 = (one_minus_power(xp, beta, step) for beta in betas)
    d = learning_rate * (m / c1) / (xp.sqrt(s / c2) + eps)
    return (1 - learning_rate * weight_decay) * w - d, {"m": m, "s": s}


@reference("Yogi", {"weight_decay": 0.1})
def yogi(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    betas=(0.9, 0.999),
    eps=1e-3,
    weight_decay=0.0,
    initial_accumulator=1e-6,
):
    """Yogi: Adam whose second moment changes by no more than a part of the gradient's square.

    Zaheer, Reddi, Sachan, Kale and Kumar 2018, "Adaptive Methods for Nonconvex Optimization",
    NeurIPS.
    """
    beta1, beta2 = betas
    before = value_or(xp, state["v"], initial_accumulator)

    m = beta1 * state["m"] + (1 - beta1) * g
    v = before - (1 - beta2) * xp.sign(before - g**2) * g**2
    c1, c2 = (one_minus_power(xp, beta, step) for beta in betas)
    d = learning_rate * (m / c1) / (xp.sqrt(v / c2) + eps)
    return (1 - learning_rate * weight_decay) * w - d, {"m": m, "v": v}


@reference("DiffGrad", {"weight_decay": 0.1})
def diffgrad(
    xp, w, g, state, step, *, learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
):
    """DiffGrad: Adam that takes smaller steps where the gradient changes little.

    Dubey et al. 2019, "diffGrad: An Optimization Method for Convolutional Neural Networks",
    arXiv:1909.11015.
    """
    beta1, beta2 = betas
    g = with_decay(xp, g, weight_decay, w)

    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    c1, c2 = (one_minus_power(xp, beta, step) for beta in betas)
    friction = 1 + xp.exp(-xp.abs(state["previous"] - g))
    d = learning_rate * xp.sqrt(c2) / c1 * m / (friction * (xp.sqrt(v) + eps))
    return w - d, {"m": m, "v": v, "previous": g}


@reference("SimplifiedAdEMAMix", {"alpha": 3.0, "weight_decay": 0.1, "beta1_warmup": 5})
def simplified_ademamix(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    betas=(0.99, 0.95),
    alpha=0.0,
    eps=1e-8,
    weight_decay=0.0,
    beta1_warmup=0,
    min_beta1=0.9,
):
    """SimplifiedAdEMAMix: AdamW with a sum of the gradients, to which the last one is added.

    Morwani, Vyas, Zhang and Kakade 2025, "Connections between Schedule-Free Optimizers, AdEMAMix,
    and Accelerated SGD Variants", arXiv:2502.02431.
    """
    beta1, beta2 = betas
    done = progress(xp, step, beta1_warmup)

    m = xp.exp(log_between(xp, min_beta1, beta1, done)) * state["m"] + g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    c2 = one_minus_power(xp, beta2, step)
    d = learning_rate * (m + alpha * g) / (xp.sqrt(v / c2) + eps)
    return (1 - learning_rate * weight_decay) * w - d, {"m": m, "v": v}
