"""The formulas of the rules that look at whole tensors."""

from .factors import blocks_of, divided, equalized, matrix_of, normalized, rate_factor, with_norm_of
from .registry import (
    decayed,
    finish,
    one_minus_power,
    reference,
    value_or,
    with_decay,
    with_decay_of,
)


@reference("Adafactor", {}, {"beta_1": 0.9, "weight_decay": 0.1, "relative_step": False})
def adafactor(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate=None,
    eps=(1e-30, 1e-3),
    clip_threshold=1.0,
    decay_rate=-0.8,
    beta_1=None,
    weight_decay=0.0,
    scale_parameter=True,
    relative_step=True,
    warmup_init=False,
):
    """Shazeer and Stern 2018, "Adafactor", arXiv:1804.04235, as mlx.optimizers has it."""

    def rms(x):
        return xp.sqrt(xp.mean(x**2))

    if relative_step:
        learning_rate = xp.minimum(1e-6 * step if warmup_init else 1e-2, step**-0.5)
    if scale_parameter:
        learning_rate = learning_rate * xp.maximum(eps[1], rms(w))
    beta_2 = 1 - step**decay_rate
    squares = g**2 + eps[0]
    if w.ndim >= 2:
        row = beta_2 * state["exp_avg_sq_row"] + (1 - beta_2) * squares.mean(axis=-1)
        column = beta_2 * state["exp_avg_sq_col"] + (1 - beta_2) * squares.mean(axis=-2)
        after = {"exp_avg_sq_row": row, "exp_avg_sq_col": column}
        rows = 1 / xp.sqrt(row / row.mean(axis=-1, keepdims=True))
        u = rows[..., :, None] / xp.sqrt(column)[..., None, :] * g
    else:
        v = beta_2 * state["exp_avg_sq"] + (1 - beta_2) * squares
        after = {"exp_avg_sq": v}
        u = g / xp.sqrt(v)
    u = learning_rate * u / xp.maximum(1.0, rms(u) / clip_threshold)
    if beta_1 is not None:
        u = beta_1 * state["exp_avg"] + (1 - beta_1) * u
        after["exp_avg"] = u
    return w - weight_decay * learning_rate * w - u, after


@reference("Lamb", {"weight_decay": 0.1})
def lamb(xp, w, g, state, step, *, learning_rate, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01):
    """LAMB: Adam's direction, scaled so that each tensor moves by a fraction of its norm.

    You et al. 2020, "Large Batch Optimization for Deep Learning", arXiv:1904.00962.
    """
    beta1, beta2 = betas

    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    after = {"m": m, "v": v}
    w = lamb_from_state(
        xp,
        w,
        g,
        after,
        step,
        learning_rate=learning_rate,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
    )
    return w, after


@finish("Lamb")
def lamb_from_state(
    xp, w, g, state, step, *, learning_rate, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01
):
    c1, c2 = (one_minus_power(xp, beta, step) for beta in betas)
    u = (state["m"] / c1) / (xp.sqrt(state["v"] / c2) + eps) + weight_decay * w
    norm_w, norm_u = norm(xp, w), norm(xp, u)
    both = (norm_w > 0) & (norm_u > 0)
    trust = xp.where(both, norm_w / xp.where(both, norm_u, 1), 1)
    return w - learning_rate * trust * u


def norm(xp, x):
    """The Euclidean norm over all elements."""
    return xp.sqrt(xp.sum(xp.abs(x) ** 2))


@reference("AdamH")
def adamh(xp, w, g, state, step, *, learning_rate, betas=(0.9, 0.95), eps=1e-8):
    """AdamH: Adam's direction along the sphere on which each tensor began, in place of decay.

    Wen, Dang, Lyu, Ma and Liang 2025, "Fantastic Pretraining Optimizers and Where to Find Them 2.1:
    Hyperball Optimization".
    """
    beta1, beta2 = betas
    m = beta1 * state["m"] + (1 - beta1) * g
    v = beta2 * state["v"] + (1 - beta2) * g**2
    after = {"m": m, "v": v}
    w = adamh_from_state(xp, w, g, after, step, learning_rate=learning_rate, betas=betas, eps=eps)
    return w, after


@finish("AdamH")
def adamh_from_state(xp, w, g, state, step, *, learning_rate, betas=(0.9, 0.95), eps=1e-8):
    c1, c2 = (one_minus_power(xp, beta, step) for beta in betas)
    u = (state["m"] / c1) / (xp.sqrt(state["v"] / c2) + eps)
    radius, size = norm(xp, w), norm(xp, u)
    both = (radius > 0) & (size > 0)
    moved = w - learning_rate * xp.where(both, radius / xp.where(both, size, 1), 0) * u
    size = norm(xp, moved)
    return moved * xp.where(both, radius / xp.where(size > 0, size, 1), 1)


@reference("LARS", {"weight_decay": 0.1, "nesterov": True})
def lars(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    momentum=0.9,
    weight_decay=0.0,
    trust_coefficient=0.001,
    eps=1e-8,
    nesterov=False,
):
    """LARS: gradient descent whose steps are a fraction of each tensor's norm.

    You, Gitman and Ginsburg 2017, "Large Batch Training of Convolutional Networks",
    arXiv:1708.03888.
    """
    norm_w = norm(xp, w)
    whole = norm(xp, g) + weight_decay * norm_w + eps
    both = (norm_w > 0) & (whole > 0)
    trust = xp.where(both, trust_coefficient * norm_w / xp.where(both, whole, 1), 1)

    d = trust * with_decay(xp, g, weight_decay, w)
    v = momentum * state["v"] + d
    return w - learning_rate * (d + momentum * v if nesterov else v), {"v": v}


@reference("StableAdamW", {"weight_decay": 0.1})
def stable_adamw(
    xp, w, g, state, step, *, learning_rate, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.01
):
    """StableAdamW: AdamW whose steps are smaller where a tensor's gradients surprise it.

    Wortsman et al. 2023, "Stable and low-precision training for large-scale vision-language
    models", arXiv:2304.13013.
    """
    fresh_m, fresh_v = ((1 - beta) / one_minus_power(xp, beta, step) for beta in betas)

    m = (1 - fresh_m) * state["m"] + fresh_m * g
    v = (1 - fresh_v) * state["v"] + fresh_v * g**2
    after = {"m": m, "v": v}
    w = stable_adamw_from_state(
        xp,
        w,
        g,
        after,
        step,
        learning_rate=learning_rate,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
    )
    return w, after


@finish("StableAdamW")
def stable_adamw_from_state(
    xp, w, g, state, step, *, learning_rate, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.01
):
    root = xp.sqrt(state["v"])
    rms = norm(xp, g / xp.maximum(root, eps)) / max(w.size, 1) ** 0.5
    rate = learning_rate / xp.maximum(rms, 1)
    return (1 - rate * weight_decay) * w - rate * state["m"] / (root + eps)


@reference("MARS", {"weight_decay": 0.1})
def mars(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    betas=(0.95, 0.99),
    eps=1e-8,
    weight_decay=0.0,
    gamma=0.025,
):
    """MARS: AdamW of gradients that are corrected by their change since the last step.

    Yuan, Liu, Wu, Zhou and Gu 2024, "MARS: Unleashing the Power of Variance Reduction for Training
    Large Models", arXiv:2411.10438.
    """
    beta1, beta2 = betas
    c = mars_gradient(xp, g, state["previous"], gamma * beta1 / (1 - beta1))

    m = beta1 * state["m"] + (1 - beta1) * c
    v = beta2 * state["v"] + (1 - beta2) * c**2
    c1, c2 = (one_minus_power(xp, beta, step) for beta in betas)
    u = learning_rate * (m / c1) / (xp.sqrt(v / c2) + eps)
    w = (1 - learning_rate * weight_decay) * w - u
    return w, {"m": m, "v": v, "previous": g}


@reference("MARSLion", {"weight_decay": 0.1})
def mars_lion(xp, w, g, state, step, *, learning_rate, beta=0.95, weight_decay=0.0, gamma=0.025):
    """MARSLion: the sign of the average of gradients that are corrected by their change.

    Yuan, Liu, Wu, Zhou and Gu 2024, "MARS: Unleashing the Power of Variance Reduction for Training
    Large Models", arXiv:2411.10438.
    """
    c = mars_gradient(xp, g, state["previous"], gamma * beta / (1 - beta))

    m = beta * state["m"] + (1 - beta) * c
    w = (1 - learning_rate * weight_decay) * w - learning_rate * xp.sign(m)
    return w, {"m": m, "previous": g}


def mars_gradient(xp, g, previous, correction):
    """The gradient with its change since the last step, of a norm of at most 1."""
    c = g + correction * (g - value_or(xp, previous, g))
    size = norm(xp, c)
    return c / xp.where(size > 1, size, 1)


def newton_schulz(xp, x, coefficients, steps):
    """Jordan et al. 2024; in exact arithmetic the singular vectors stay as they are."""
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    x = x / (xp.linalg.norm(x) + 1e-7)
    for step in range(steps):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if transposed else x


def muon(
    xp,
    w,
    g,
    state,
    step,
    *,
    learning_rate,
    momentum=0.95,
    weight_decay=0.01,
    nesterov=True,
    ns_steps=5,
    coefficients=((3.4445, -4.7750, 2.0315),),
    adjust_lr="original",
    decoupled_weight_decay=False,
    weight_decay_kind="coupled",
    max_learning_rate=0.0,
    cautious_weight_decay=False,
    split=(),
    equalize=None,
    normalize=None,
    normuon=False,
    adamuon=False,
    beta2=0.95,
    hyperball=False,
):
    """Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"."""
    after = dict(state)
    v = state["v"]

    kind = "decoupled" if decoupled_weight_decay else weight_decay_kind
    d = with_decay_of(xp, kind, g, weight_decay, w)
    v = momentum * v + (1 - momentum) * d
    u = (1 - momentum) * d + momentum * v if nesterov else v
    after["v"] = v
    if w.ndim >= 2:
        seconds = blocks_of(state["s"], split) if normuon or adamuon else []
        updates = []
        for i, block in enumerate(blocks_of(u, split)):
            x = equalized(xp, matrix_of(block, bool(split)), equalize)
            x = normalized(xp, newton_schulz(xp, x, coefficients, ns_steps), normalize)
            if seconds:
                x, seconds[i] = divided(xp, x, seconds[i], beta2, normuon)
            scale = rate_factor(adjust_lr, block.shape, bool(split))
            updates.append(scale * x.reshape(block.shape))
        u = xp.concatenate(updates)
        if seconds:
            after["s"] = xp.concatenate(seconds)
    if hyperball and w.ndim >= 2:
        u = with_norm_of(xp, u, w)
        return with_norm_of(xp, w - learning_rate * u, w), after
    w = decayed(
        xp,
        w,
        u,
        kind,
        weight_decay,
        learning_rate,
        max_learning_rate,
        cautious_weight_decay,
    )
    return w - learning_rate * u, after
