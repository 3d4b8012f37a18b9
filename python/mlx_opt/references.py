"""The rules in float64 NumPy: slow, plain, and what every backend is held to.

For the tests and ``python -m mlx_opt selftest``; nothing else of the package needs NumPy.

Each rule takes the parameter `w`, its gradient `g`, the state (a dict of arrays), the
1-based `step` and the hyperparameters under the names the optimizer's constructor gives
them. It returns the new parameter and the new state, and leaves its arguments as they were.
"""

from typing import Any

import numpy as np


def sgd(
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
):
    """Polyak 1964 (momentum); Sutskever et al. 2013, ICML 28 (Nesterov's form of it)."""
    v = state["v"]

    g = g + weight_decay * w
    if momentum <= 0:
        return w - learning_rate * g, {"v": v}

    v = momentum * v + (1 - max(dampening, 0)) * g
    d = g + momentum * v if nesterov else v
    w = w - learning_rate * d
    return w, {"v": v}


def rmsprop(w, g, state, step, *, learning_rate, alpha=0.99, eps=1e-8):
    """Tieleman and Hinton 2012, "Lecture 6.5-rmsprop", Neural Networks for Machine Learning."""
    v = state["v"]

    v = alpha * v + (1 - alpha) * g**2
    w = w - learning_rate * g / (np.sqrt(v) + eps)
    return w, {"v": v}


def adagrad(w, g, state, step, *, learning_rate, eps=1e-8):
    """Duchi, Hazan and Singer 2011, "Adaptive Subgradient Methods", JMLR 12."""
    v = state["v"]

    v = v + g**2
    w = w - learning_rate * g / (np.sqrt(v) + eps)
    return w, {"v": v}


def adadelta(w, g, state, step, *, learning_rate, rho=0.9, eps=1e-6):
    """Zeiler 2012, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701."""
    v, u = state["v"], state["u"]

    v = rho * v + (1 - rho) * g**2
    d = np.sqrt(u + eps) / np.sqrt(v + eps) * g
    u = rho * u + (1 - rho) * d**2
    w = w - learning_rate * d
    return w, {"v": v, "u": u}


def adam(w, g, state, step, *, learning_rate, betas=(0.9, 0.999), eps=1e-8, bias_correction=False):
    """Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980."""
    m, v = state["m"], state["v"]
    beta1, beta2 = betas

    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    c1 = 1 - beta1**step if bias_correction else 1.0
    c2 = 1 - beta2**step if bias_correction else 1.0
    w = w - learning_rate * (m / c1) / (np.sqrt(v / c2) + eps)
    return w, {"m": m, "v": v}


def adamw(
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
):
    """Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", arXiv:1711.05101."""
    w = w - learning_rate * weight_decay * w
    return adam(
        w,
        g,
        state,
        step,
        learning_rate=learning_rate,
        betas=betas,
        eps=eps,
        bias_correction=bias_correction,
    )


def adamax(w, g, state, step, *, learning_rate, betas=(0.9, 0.999), eps=1e-8):
    """Kingma and Ba 2015, section 7.1, arXiv:1412.6980; without bias correction."""
    m, v = state["m"], state["v"]
    beta1, beta2 = betas

    m = beta1 * m + (1 - beta1) * g
    v = np.maximum(beta2 * v, np.abs(g))
    w = w - learning_rate * m / (v + eps)
    return w, {"m": m, "v": v}


def lion(w, g, state, step, *, learning_rate, betas=(0.9, 0.99), weight_decay=0.0):
    """Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675."""
    m = state["m"]
    beta1, beta2 = betas

    c = beta1 * m + (1 - beta1) * g
    m = beta2 * m + (1 - beta2) * g
    w = w - learning_rate * (np.sign(c) + max(weight_decay, 0) * w)
    return w, {"m": m}


def adafactor(
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
        return np.sqrt(np.mean(x**2))

    if relative_step:
        learning_rate = min(1e-6 * step if warmup_init else 1e-2, 1 / np.sqrt(step))
    if scale_parameter:
        learning_rate = learning_rate * max(eps[1], rms(w))
    beta_2 = 1 - step**decay_rate
    squares = g**2 + eps[0]
    if w.ndim >= 2:
        row = beta_2 * state["exp_avg_sq_row"] + (1 - beta_2) * squares.mean(axis=-1)
        column = beta_2 * state["exp_avg_sq_col"] + (1 - beta_2) * squares.mean(axis=-2)
        after = {"exp_avg_sq_row": row, "exp_avg_sq_col": column}
        rows = 1 / np.sqrt(row / row.mean(axis=-1, keepdims=True))
        u = rows[..., :, None] / np.sqrt(column)[..., None, :] * g
    else:
        v = beta_2 * state["exp_avg_sq"] + (1 - beta_2) * squares
        after = {"exp_avg_sq": v}
        u = g / np.sqrt(v)
    u = learning_rate * u / max(1.0, rms(u) / clip_threshold)
    if beta_1 is not None:
        u = beta_1 * state["exp_avg"] + (1 - beta_1) * u
        after["exp_avg"] = u
    return w - weight_decay * learning_rate * w - u, after


def newton_schulz(x, coefficients, steps):
    """Jordan et al. 2024; in exact arithmetic the singular vectors stay as they are."""
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    x = x / (np.linalg.norm(x) + 1e-7)
    for step in range(steps):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if turned else x


def muon(
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
):
    """Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"."""
    v = state["v"]

    d = g if decoupled_weight_decay else g + weight_decay * w
    v = momentum * v + (1 - momentum) * d
    u = (1 - momentum) * d + momentum * v if nesterov else v
    if w.ndim >= 2:
        matrix = u.reshape(u.shape[0], -1)
        u = newton_schulz(matrix, coefficients, ns_steps).reshape(u.shape)
        if adjust_lr == "original":
            u = u * max(1, u.shape[-2] / u.shape[-1]) ** 0.5
        else:
            u = u * 0.2 * max(matrix.shape) ** 0.5
    if decoupled_weight_decay:
        w = w - learning_rate * weight_decay * w
    return w - learning_rate * u, {"v": v}


REFERENCES = {
    "SGD": sgd,
    "RMSprop": rmsprop,
    "Adagrad": adagrad,
    "AdaDelta": adadelta,
    "Adam": adam,
    "AdamW": adamw,
    "Adamax": adamax,
    "Lion": lion,
    "Adafactor": adafactor,
}

# A case of every rule and form of it: the options of its constructor besides the learning rate.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "dampening": 0.3}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    ("RMSprop", {}),
    ("Adagrad", {}),
    ("AdaDelta", {}),
    ("Adam", {"bias_correction": True}),
    ("AdamW", {"weight_decay": 0.1, "bias_correction": True}),
    ("Adamax", {}),
    ("Lion", {"weight_decay": 0.1}),
]
STATE = {
    "SGD": ("v",),
    "RMSprop": ("v",),
    "Adagrad": ("v",),
    "AdaDelta": ("v", "u"),
    "Adam": ("m", "v"),
    "AdamW": ("m", "v"),
    "Adamax": ("m", "v"),
    "Lion": ("m",),
}


def initial_state(name, w):
    """The state before the first step: zeros of the parameter's shape, a leaf a moment."""
    return {leaf: np.zeros(np.shape(w)) for leaf in STATE[name]}


def run(name, w, gradients, options):
    """Apply one step a gradient, from the initial state; return the last `(w, state)`.

    `options` are the constructor's arguments. A callable `learning_rate` is a schedule:
    it is given the number of steps already taken.
    """
    rule = REFERENCES[name]
    w = np.array(w, np.float64)
    state = initial_state(name, w)
    for step, g in enumerate(gradients, start=1):
        now = dict(options)
        if callable(now["learning_rate"]):
            now["learning_rate"] = float(now["learning_rate"](step - 1))
        w, state = rule(w, np.array(g, np.float64), state, step, **now)
    return w, state


# Of each storage: digits of the significand, exponent of the smallest denormal, largest value.
_FORMATS = {
    "float32": (24, -149, float(np.finfo(np.float32).max)),
    "float16": (11, -24, 65504.0),
    "bfloat16": (8, -133, float.fromhex("0x1.fep127")),
}


def ulp(x, storage):
    """The spacing of a storage, by name, at float64 values."""
    digits, least, _ = _FORMATS[storage]
    _, exponent = np.frexp(x)
    return np.ldexp(1.0, np.maximum(exponent - digits, least))


def rounded(x, storage):
    """float64 values rounded once to a storage, ties to even; still float64."""
    spacing = ulp(x, storage)
    y = np.round(x / spacing) * spacing
    return np.where(np.abs(y) > _FORMATS[storage][2], np.copysign(np.inf, y), y)


# What a few float32 operations may be off by, relative to each number that goes into them.
FLOAT32 = 2.0**-22


def exact_step(name, w, g, state, step, options):
    """By name, "w" and the moments: the float64 step, and what float32 may make of it.

    That is the step from inputs that are off by `FLOAT32`, so a sum near 0, and the sign of one,
    may be off by as much as what they are made of makes them.
    """

    def run(inputs):
        moments = {moment: inputs[moment] for moment in state}
        w, moments = REFERENCES[name](inputs["w"], inputs["g"], moments, step, **options)
        return {"w": w, **moments}

    inputs = {"w": w, "g": g, **state}
    exact = run(inputs)
    with np.errstate(invalid="ignore"):  # inf - inf: what is infinite has to be so exactly
        error = {k: FLOAT32 * (np.abs(inputs[k]) + np.abs(x - inputs[k])) for k, x in exact.items()}
        for changed, x in inputs.items():
            less = run(inputs | {changed: x * (1 - FLOAT32)})
            more = run(inputs | {changed: x * (1 + FLOAT32)})
            for k in exact:
                error[k] += np.maximum(np.abs(less[k] - exact[k]), np.abs(more[k] - exact[k]))
    return {k: (x, error[k]) for k, x in exact.items()}
