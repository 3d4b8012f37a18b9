"""Sharded with parameters that mlx.nn.fully_shard has divided, against one process.

fully_shard needs a backend with sum_scatter. The ring has none, so there a double sums and slices.
"""

import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from members import RANK, SIZE, WORLD, distance, normal, raised
from mlx.utils import tree_flatten, tree_unflatten

import mlx_opt
from mlx_opt.sharding.exchange import Members

FOLDER = Path(sys.argv[1])
WIDTH = 12  # for 2, 3 and 4 members


def double_of_sum_scatter(x, *, group=None, stream=None):
    return mx.split(mx.distributed.all_sum(x, group=group), SIZE)[RANK]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)]
        self.last = nn.Linear(2 * WIDTH, 3)

    def __call__(self, x):
        for layer in self.layers:
            x = mx.tanh(layer(x))
        return self.last(x)


def net(divided, all_of_it=False):
    model = Net()
    flat = sorted(tree_flatten(model.parameters()))
    model.update(tree_unflatten([(path, normal(i, x.shape)) for i, (path, x) in enumerate(flat)]))
    if divided:
        model.layers = [nn.fully_shard(layer, group=WORLD) for layer in model.layers]
    if all_of_it:
        model.last = nn.Identity()
    return model


def loss(model, x, y):
    return (model(x) - y).square().mean()


def whole(model):
    """The parameters of a model of which each member has rows, whole, by plain paths."""
    found = {}
    for path, x in tree_flatten(model.parameters()):
        if ".module." in path:
            x = mx.distributed.all_gather(x, group=WORLD)
        found[path.replace(".module", "")] = x
    return found


def with_the_double(case):
    def run():
        stock = mx.distributed.sum_scatter
        if not Members(WORLD).scatters:
            mx.distributed.sum_scatter = double_of_sum_scatter
        try:
            case()
        finally:
            mx.distributed.sum_scatter = stock

    run.__name__ = case.__name__
    return run


def steps(model, optimizer, members, count=3, **arguments):
    for step in range(count):
        x = mx.concatenate([normal([step, i], (2, WIDTH)) for i in members])
        y = mx.concatenate([normal([step, i, 1], (2, 3)) for i in members])
        gradients = nn.value_and_grad(model, loss)(model, x, y)[1]
        optimizer.update(model, gradients, **arguments)
        mx.eval(model.parameters(), optimizer.state)


RULES = {
    "AdamW": lambda: mlx_opt.AdamW(
        1e-2, groups=[mlx_opt.Group("layers.0.weight", weight_decay=0.5), mlx_opt.no_decay()]
    ),
    "Muon": lambda: mlx_opt.Muon(1e-2, fallback=mlx_opt.AdamW(1e-2)),
    "Adafactor": lambda: mlx_opt.Adafactor(1e-2),
    "Lamb": lambda: mlx_opt.Lamb(1e-2),
}


@with_the_double
def rules_equal_one_process():
    for rule, make in RULES.items():
        one, divided = net(False), net(True)
        plain, optimizer = make(), mlx_opt.Sharded(make(), WORLD, bucket_size=2000)
        arguments = {"max_norm": 0.2, "skip_nonfinite": True}
        steps(one, plain, range(SIZE), **arguments)
        steps(divided, optimizer, [RANK], **arguments)
        found = distance(whole(divided), dict(tree_flatten(one.parameters())))
        assert found < 1e-5, (rule, found)
        assert abs(optimizer.grad_norm.item() / plain.grad_norm.item() - 1) < 1e-5, rule
        paths = [path for path, _ in tree_flatten(optimizer.state)]
        assert not any("module" in path for path in paths), paths


@with_the_double
def rows_are_accumulated_and_averaged():
    makes = [
        lambda: mlx_opt.AdamWScheduleFree(1e-2, accumulate=2),
        lambda: mlx_opt.Muon(1e-2, fallback=mlx_opt.AdamW(1e-2), accumulate=2),
    ]
    for make in makes:
        one, divided = net(False), net(True)
        plain, optimizer = make(), mlx_opt.Sharded(make(), WORLD, bucket_size=500)
        steps(one, plain, range(SIZE), 4, normalizer=2.0)
        steps(divided, optimizer, [RANK], 4, normalizer=2.0)
        assert optimizer.step.item() == 2
        if hasattr(plain, "eval"):
            plain.eval(one)
            optimizer.eval(divided)
        found = distance(whole(divided), dict(tree_flatten(one.parameters())))
        assert found < 1e-5, found


@with_the_double
def the_norm_is_that_of_clip_grad_norm_sharded():
    model = net(True)
    x = normal([0, RANK], (2, WIDTH))
    del model["last"]

    def loss(model):
        return model.layers[1](model.layers[0](x)).square().mean()

    gradients = nn.value_and_grad(model, loss)(model)[1]
    oracle = nn.utils.clip_grad_norm_sharded(gradients, 1.0, group=WORLD)[1].item()
    optimizer = mlx_opt.Sharded(mlx_opt.SGD(1e-2), WORLD)
    optimizer.update(model, gradients, max_norm=1.0)
    mx.eval(model.parameters())
    assert abs(optimizer.grad_norm.item() / oracle - 1) < 1e-5


@with_the_double
def states_of_rows_are_those_of_the_rows():
    model, optimizer = net(True), mlx_opt.Sharded(mlx_opt.AdamW(1e-2), WORLD)
    optimizer.init(model)
    assert optimizer.state["layers"][1]["weight"]["m"].shape == (2 * WIDTH // SIZE, WIDTH)


@with_the_double
def a_description_shows_whole_parameters():
    optimizer = mlx_opt.Sharded(RULES["AdamW"](), WORLD)
    rows = {row.path: row for row in optimizer.describe(net(True), show=False)}
    assert rows["layers.0.weight"].shape == (WIDTH, WIDTH), rows
    assert rows["layers.0.weight"].values["weight_decay"] == 0.5
    assert rows["layers.1.bias"].values["weight_decay"] == 0.0


@with_the_double
def rows_are_saved_and_loaded():
    model, optimizer = net(True), mlx_opt.Sharded(mlx_opt.AdamW(1e-2), WORLD)
    steps(model, optimizer, [RANK])
    folder = FOLDER / f"rows-{SIZE}"
    optimizer.save_state(folder)
    before = dict(tree_flatten(optimizer.state))
    optimizer = mlx_opt.Sharded(mlx_opt.AdamW(1e-2), WORLD)
    optimizer.load_state(folder, model)
    assert distance(optimizer.state, before) == 0
    state = dict(tree_flatten(mlx_opt.Sharded.whole_state(folder)))
    assert state["layers.1.weight.m"].shape == (2 * WIDTH, WIDTH)
    whole = mx.distributed.all_gather(before["layers.1.weight.m"], group=WORLD)
    assert mx.array_equal(whole, state["layers.1.weight.m"])


@with_the_double
def what_cannot_be_right_is_refused():
    model, optimizer = net(True), mlx_opt.Sharded(mlx_opt.AdamW(1e-2), WORLD)
    gradients = model.trainable_parameters()
    message = raised(ValueError, lambda: optimizer.apply_gradients(gradients, gradients))
    assert message == (
        "Sharded: layers.0.module: a tree does not tell whether fully_shard has divided it; pass "
        "the model instead of its parameters"
    ), message
    gradients["layers"][0]["module"]["bias"] = mx.ones(5)
    message = raised(ValueError, lambda: optimizer.update(model, gradients))
    assert message == f"layers.0.bias: gradient (5,), parameter ({WIDTH // SIZE},)", message
    model = nn.Sequential(nn.layers.distributed.shard_linear(nn.Linear(12, 12), "all-to-sharded"))
    message = raised(TypeError, lambda: optimizer.init(model))
    assert message == (
        "Sharded: layers.0: AllToShardedLinear has a part of its weight on each member, which is "
        "not supported; use the optimizer without Sharded"
    ), message


CASES = [
    rules_equal_one_process,
]
FOR_TWO_MEMBERS = [
    rows_are_accumulated_and_averaged,
    the_norm_is_that_of_clip_grad_norm_sharded,
    states_of_rows_are_those_of_the_rows,
    a_description_shows_whole_parameters,
    rows_are_saved_and_loaded,
    what_cannot_be_right_is_refused,
]
