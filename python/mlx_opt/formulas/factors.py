"""What Muon does besides the iterations, over one matrix."""


def blocks_of(x, split):
    """The blocks of an array along its first dimension.

    `split`: their numbers of rows; one number is that of blocks of equal size; empty for one block.
    """
    rows = x.shape[0]
    sizes = [rows // split[0]] * split[0] if len(split) == 1 else split or (rows,)
    blocks, first = [], 0
    for size in sizes:
        blocks.append(x[first : first + size])
        first += size
    return blocks


def equalized(xp, x, equalize):
    """Chang et al. 2026, "MuonEq", arXiv:2603.28254; or the signs, as Si et al. 2025 take them."""
    if equalize is None:
        return x
    if equalize == "sign":
        return xp.sign(x)

    def factor(axis):
        return (squares(xp, x).sum(axis=axis, keepdims=True) + 1e-8) ** -0.5

    y = x
    if equalize in ("rows", "both"):
        y = y * factor(-1)
    if equalize in ("columns", "both"):
        y = y * factor(-2)
    return y


def normalized(xp, x, normalize):
    """Zhang et al. 2026, "Muon+", arXiv:2602.21545; "frobenius" is as nanochat has it."""
    if normalize is None:
        return x
    if normalize == "frobenius":
        return x * (norm_of_factor(x) / (norm(xp, x) + 1e-7))
    for name in normalize.split("_"):
        axis = -1 if name == "rows" else -2
        x = x / xp.sqrt(squares(xp, x).sum(axis=axis, keepdims=True) + 1e-7)
    return x


def divided(xp, x, second, beta2, normuon):
    """A factor divided by the root of its second moment, and the moment's successor.

    Li et al. 2025, "NorMuon", arXiv:2510.05491, which keeps the norm; or Si, Zhang and Shen 2025,
    "AdaMuon", arXiv:2507.11005, whose norm is that of an exact factor.
    """
    eps = 1e-10 if normuon else 1e-8
    shape = second.shape
    parts = x.reshape(second.size, -1)
    fresh = squares(xp, parts).mean(axis=-1)
    second = beta2 * second.reshape(-1) + (1 - beta2) * fresh
    y = (parts / (xp.sqrt(second)[:, None] + eps)).reshape(x.shape)
    target = norm(xp, x) if normuon else norm_of_factor(x)
    return y * (target / (norm(xp, y) + eps)), second.reshape(shape)


def with_norm_of(xp, x, other):
    """An array with the Frobenius norm of another."""
    return x * (norm(xp, other) / xp.maximum(norm(xp, x), 1e-10))


def squares(xp, x):
    return xp.abs(x) ** 2


def norm(xp, x):
    return xp.sqrt(squares(xp, x).sum())


def norm_of_factor(x):
    return min(x.shape) ** 0.5


def matrix_of(x, is_split):
    """A parameter or a block as a matrix: its first dimension by all others.

    A block that is one row of more than two dimensions is a matrix of the others.
    """
    if is_split and x.ndim > 2 and x.shape[0] == 1:
        x = x[0]
    return x.reshape(x.shape[0], -1)


def rate_factor(adjust_lr, shape, is_split=False):
    """The factor of the learning rate for a parameter or a block."""
    if is_split and len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    if adjust_lr == "original":
        return max(1, shape[-2] / shape[-1]) ** 0.5
    columns = 1
    for n in shape[1:]:
        columns *= n
    return 0.2 * max(shape[0], columns) ** 0.5
