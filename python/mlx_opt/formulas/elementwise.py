"""The formulas of the elementwise rules."""

import math

from .registry import (
    agree,
    decayed,
    finish,
    keep,
    log_between,
    one_minus_power,
    progress,
    reference,
    value_or,
    with_decay,
    with_decay_of,
)


@reference(
    "SGD",
    {"weight_decay": 0.1},
    {"momentum": 0.9, "weight_decay": 0.1, "dampening": 0.3},
    {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    {"momentum": 0.9, "weight_decay": 0.1, "weight_decay_kind": "decoupled"},
)
def sgd(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    momentum=0.0,
    weight_decay=0.0,
    dampening=0.0,
    nesterov=False,
    weight_decay_kind="coupled",
    max_learning_rate=0.0,
    cautious_weight_decay=False,
):
    """Polyak 1964 (momentum); Sutskever et al. 2013, ICML 28 (Nesterov's form of it)."""
    v = state["v"]

    g = d = with_decay_of(xp, weight_decay_kind, g, weight_decay, w)
    if momentum > 0:
        v = momentum * v + (1 - xp.maximum(dampening, 0)) * g
        d = g + momentum * v if nesterov else v
    w = decayed(
        xp,
        w,
        d,
        weight_decay_kind,
        weight_decay,
        learning_rate,
        max_learning_rate,
        cautious_weight_decay,
    )
    return w - learning_rate * d, {"v": v}


@reference("RMSprop")
def rmsprop(xp, w, g, state, step, *, learning_rate, alpha=0.99, eps=1e-8):
    """Tieleman and Hinton 2012, "Lecture 6.5-rmsprop", Neural Networks for Machine Learning."""
    v = state["v"]

    v = alpha * v + (1 - alpha) * g**2
    w = w - learning_rate * g / (xp.sqrt(v) + eps)
    return w, {"v": v}


@reference("Adagrad")
def adagrad(xp, w, g, state, step, *, learning_rate, eps=1e-8):
    """Duchi, Hazan and Singer 2011, "Adaptive Subgradient Methods", JMLR 12."""
    v = state["v"]

    v = v + g**2
    w = w - learning_rate * g / (xp.sqrt(v) + eps)
    return w, {"v": v}


@reference("AdaDelta")
def adadelta(xp, w, g, state, step, *, learning_rate, rho=0.9, eps=1e-6):
    """Zeiler 2012, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701."""
    v, u = state["v"], state["u"]

    v = rho * v + (1 - rho) * g**2
    d = xp.sqrt(u + eps) / xp.sqrt(v + eps) * g
    u = rho * u + (1 - rho) * d**2
    w = w - learning_rate * d
    return w, {"v": v, "u": u}


@reference(
    "AdamW",
    {"weight_decay": 0.1, "bias_correction": True},
    {"nesterov": True, "cautious_weight_decay": True},
    {"weight_decay": 0.1, "cautious": True, "bias_correction": True},
    {"weight_decay": 0.1, "amsgrad": True},
)
def adamw(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.01,
    bias_correction=False,
    nesterov=False,
    amsgrad=False,
    cautious=False,
    weight_decay_kind="decoupled",
    max_learning_rate=0.0,
    cautious_weight_decay=False,
):
    """Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", arXiv:1711.05101."""
    beta1, beta2 = betas

    g = with_decay_of(xp, weight_decay_kind, g, weight_decay, w)
    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    after = {"m": m, "v": v}
    if amsgrad:
        after["v_max"] = xp.maximum(state["v_max"], v)
    w = adamw_from_state(
        xp,
        w,
        g,
        after,
        step,
        learning_rate=learning_rate,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        bias_correction=bias_correction,
        nesterov=nesterov,
        cautious=cautious,
        weight_decay_kind=weight_decay_kind,
        max_learning_rate=max_learning_rate,
        cautious_weight_decay=cautious_weight_decay,
    )
    return w, after


@finish("AdamW")
def adamw_from_state(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.01,
    bias_correction=False,
    nesterov=False,
    cautious=False,
    weight_decay_kind="decoupled",
    max_learning_rate=0.0,
    cautious_weight_decay=False,
):
    m, v = state["m"], state.get("v_max", state["v"])
    beta1, beta2 = betas
    c1 = 1 - beta1**step if bias_correction else 1.0
    c2 = 1 - beta2**step if bias_correction else 1.0
    average = beta1 * m + (1 - beta1) * g if nesterov else m
    if cautious:
        v = xp.maximum(v, (1 - beta2) * g * g)  # where float16 has stored 0
    update = learning_rate * (average / c1) / (xp.sqrt(v / c2) + eps)
    if cautious:
        mask = agree(xp, average, g)
        mean = xp.sum(mask) / max(w.size, 1)
        update = xp.where(mask, 1 / xp.maximum(mean, 1e-3), 0) * update
    w = decayed(
        xp,
        w,
        update,
        weight_decay_kind,
        weight_decay,
        learning_rate,
        max_learning_rate,
        cautious_weight_decay,
    )
    return w - update


@reference("Adam", {"bias_correction": True})
def adam(
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
    bias_correction=False,
    nesterov=False,
    amsgrad=False,
    cautious=False,
    weight_decay_kind="coupled",
    max_learning_rate=0.0,
    cautious_weight_decay=False,
):
    """Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980."""
    return adamw(
        xp,
        w,
        g,
        state,
        step,
        learning_rate=learning_rate,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        bias_correction=bias_correction,
        nesterov=nesterov,
        amsgrad=amsgrad,
        cautious=cautious,
        weight_decay_kind=weight_decay_kind,
        max_learning_rate=max_learning_rate,
        cautious_weight_decay=cautious_weight_decay,
    )


@reference("Adamax")
def adamax(xp, w, g, state, step, *, learning_rate, betas=(0.9, 0.999), eps=1e-8):
    """Kingma and Ba 2015, section 7.1, arXiv:1412.6980; without bias correction."""
    m, v = state["m"], state["v"]
    beta1, beta2 = betas

    m = beta1 * m + (1 - beta1) * g
    v = xp.maximum(beta2 * v, xp.abs(g))
    w = w - learning_rate * m / (v + eps)
    return w, {"m": m, "v": v}


@reference("Lion", {"weight_decay": 0.1, "cautious": True}, {"weight_decay": 0.1})
def lion(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    betas=(0.9, 0.99),
    weight_decay=0.0,
    cautious=False,
    weight_decay_kind="decoupled",
    max_learning_rate=0.0,
    cautious_weight_decay=False,
):
    """Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675."""
    m = state["m"]
    beta1, beta2 = betas
    weight_decay = xp.maximum(weight_decay, 0)

    g = with_decay_of(xp, weight_decay_kind, g, weight_decay, w)
    c = beta1 * m + (1 - beta1) * g
    m = beta2 * m + (1 - beta2) * g
    update = learning_rate * xp.sign(c)
    if cautious:
        mask = agree(xp, c, g)
        update = xp.where(mask, w.size / (xp.sum(mask) + 1), 0) * update
    w = decayed(
        xp,
        w,
        update,
        weight_decay_kind,
        weight_decay,
        learning_rate,
        max_learning_rate,
        cautious_weight_decay,
    )
    return w - update, {"m": m}


@reference("Signum", {"weight_decay": 0.1})
def signum(xp, w, g, state, step, *, learning_rate, beta=0.9, weight_decay=0.0):
    """Signum: the sign of the averaged gradient, with decoupled weight decay.

    Bernstein et al. 2018, "signSGD: Compressed Optimisation for Non-Convex Problems",
    arXiv:1802.04434.
    """
    m = beta * state["m"] + (1 - beta) * g
    w = (1 - learning_rate * weight_decay) * w - learning_rate * xp.sign(m)
    return w, {"m": m}


@reference("SignSGD", {"weight_decay": 0.1})
def signsgd(xp, w, g, state, step, *, learning_rate, weight_decay=0.0):
    """SignSGD: the sign of the gradient, with decoupled weight decay.

    Bernstein et al. 2018, "signSGD: Compressed Optimisation for Non-Convex Problems",
    arXiv:1802.04434.
    """
    return (1 - learning_rate * weight_decay) * w - learning_rate * xp.sign(g), {}


@reference("AdEMAMix", {"weight_decay": 0.1, "alpha_warmup": 5, "beta3_warmup": 7})
def ademamix(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    betas=(0.9, 0.999, 0.9999),
    alpha=2.0,
    eps=1e-8,
    weight_decay=0.0,
    alpha_warmup=0,
    beta3_warmup=0,
):
    """AdEMAMix: AdamW with a second, slow average of the gradients.

    Pagliardini, Ablin and Grangier 2024, "The AdEMAMix Optimizer: Better, Faster, Older",
    arXiv:2409.03137.
    """
    beta1, beta2, beta3 = betas
    alpha = alpha * progress(xp, step, alpha_warmup)
    done = progress(xp, step, beta3_warmup)
    log_beta3 = log_between(xp, beta1, beta3, done)

    m1 = beta1 * state["m1"] + (1 - beta1) * g
    m2 = xp.exp(log_beta3) * state["m2"] - xp.expm1(log_beta3) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    c1 = one_minus_power(xp, beta1, step)
    c2 = one_minus_power(xp, beta2, step)
    d = learning_rate * (m1 / c1 + alpha * m2) / (xp.sqrt(v / c2) + eps)
    w = (1 - learning_rate * weight_decay) * w - d
    return w, {"m1": m1, "m2": m2, "v": v}


@reference("Adan", {"weight_decay": 0.1}, {"weight_decay": 0.1, "no_prox": True})
def adan(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    betas=(0.98, 0.92, 0.99),
    eps=1e-8,
    weight_decay=0.0,
    no_prox=False,
):
    """Adan: Adam with Nesterov's momentum, from the differences of successive gradients.

    Xie, Zhou, Li, Lin and Yan 2022, "Adan: Adaptive Nesterov Momentum Algorithm for Faster
    Optimizing Deep Models", arXiv:2208.06677.
    """
    beta1, beta2, beta3 = betas
    difference = g - value_or(xp, state["previous"], g)

    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * difference
    n = beta3 * state["n"] + (1 - beta3) * (g + beta2 * difference) ** 2
    c1, c2, c3 = (one_minus_power(xp, beta, step) for beta in betas)
    d = learning_rate * (m / c1 + beta2 * v / c2) / (xp.sqrt(n / c3) + eps)
    decay = learning_rate * weight_decay
    w = (1 - decay) * w - d if no_prox else (w - d) / (1 + decay)
    return w, {"m": m, "v": v, "n": n, "previous": g}


@reference("NAdam", {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True})
def nadam(
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
    momentum_decay=4e-3,
    decoupled_weight_decay=False,
    mu_product=None,
):
    """NAdam: Adam with Nesterov's momentum, which grows over the first steps.

    Dozat 2016, "Incorporating Nesterov Momentum into Adam", ICLR workshop.
    """
    beta1, beta2 = betas

    def momentum(step):
        return nadam_momentum(beta1, momentum_decay, step)

    if mu_product is None:  # that of steps that all had these hyperparameters
        mu_product = math.prod(momentum(i) for i in range(1, step + 1))
    coupled = 0 if decoupled_weight_decay else weight_decay
    g = with_decay(xp, g, coupled, w)

    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    now, following = momentum(step), momentum(step + 1)
    u = (1 - now) * g / (1 - mu_product) + following * m / (1 - mu_product * following)
    d = learning_rate * u / (xp.sqrt(v / one_minus_power(xp, beta2, step)) + eps)
    if decoupled_weight_decay:
        w = (1 - learning_rate * weight_decay) * w
    return w - d, {"m": m, "v": v}


@keep("NAdam")
def next_nadam_product(xp, hypers, learning_rate, step):
    """The product of the momenta of all steps so far."""
    momentum = nadam_momentum(hypers["betas[0]"], hypers["momentum_decay"], step)
    return {"mu_product": hypers["mu_product"] * momentum}


def nadam_momentum(beta1, decay, step):
    """The momentum of a step of NAdam."""
    return beta1 * (1 - 0.5 * 0.96 ** (step * decay))


@reference("MADGRAD", {"weight_decay": 0.1})
def madgrad(xp, w, g, state, step, *, learning_rate, momentum=0.9, weight_decay=0.0, eps=1e-6):
    """MADGRAD: the sum of all gradients, from where the parameter began, over a cube root.

    Defazio and Jelassi 2022, "A Momentumized, Adaptive, Dual Averaged Gradient Method", JMLR 23,
    arXiv:2101.11075.
    """
    x0 = value_or(xp, state["x0"], w)
    weight = learning_rate * xp.sqrt(step)

    g = with_decay(xp, g, weight_decay, w)
    s = state["s"] + weight * g
    v = state["v"] + weight * g**2
    root = v ** (1 / 3) + eps
    z = x0 - xp.where(root == 0, 0, s / xp.where(root == 0, 1, root))
    w = momentum * w + (1 - momentum) * z
    return w, {"s": s, "v": v, "x0": x0}
