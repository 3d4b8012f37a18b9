"""`Sharded`: the division among members, a group of one, what is refused; and, in processes that
MLX's launcher starts, all that takes several."""

import copy
import os
import pickle
import signal
import socket
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import pytest
from mlx.utils import tree_flatten

import mlx_opt
from cases import assert_close, normal
from mlx_opt import descriptions
from mlx_opt.sharding.plan import Leaf, Plan

PROGRAMS = Path(__file__).with_name("distributed")
LAUNCH = "from mlx._distributed_utils.launch import main; main()"


def free_ports(count):
    """The first of consecutive ports that are free now."""
    for first in range(20000 + os.getpid() % 10000, 60000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as server:
                    server.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise OSError("no free ports")


def launch(members, program, *arguments, timeout):
    """Run a program in several processes; one that hangs is an error. Returns output and status."""
    command = [sys.executable, "-c", LAUNCH, "--backend", "ring", "-n", str(members)]
    command += ["--starting-port", str(free_ports(members)), "--"]
    command += [sys.executable, str(PROGRAMS / program), *map(str, arguments)]
    reader, writer = os.pipe()  # the launcher spins if its input is at its end
    process = subprocess.Popen(
        command,
        stdin=reader,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"it hangs: {process.communicate()[0]}") from None
    finally:
        os.close(reader)
        os.close(writer)
    return output


needs_ring = pytest.mark.skipif(
    not mx.distributed.is_available("ring") or not PROGRAMS.is_dir(),
    reason="MLX has no ring backend, or the programs are not beside the tests",
)


@needs_ring
def test_members_train_as_one_process_does_and_take_up_each_others_checkpoints(tmp_path):
    for members in (4, 3, 2):
        output = launch(members, "run.py", tmp_path, timeout=240)
        for member in range(members):
            assert f"member {member} of {members}: all cases passed" in output, output
    state = mlx_opt.Sharded.whole_state(tmp_path / "left")
    assert state["states"][0]["step"].item() == 6


@needs_ring
def test_a_member_that_ends_ends_the_others():
    output = launch(3, "lost.py", timeout=60)
    assert "Node with rank 2 exited with code 3" in output, output
    assert "went on" not in output, output


def gpt2():
    shapes = [("wte", (50257, 768)), ("wpe", (1024, 768))]
    for i in range(12):
        shapes += [
            (f"h.{i}.attn", (2304, 768)),
            (f"h.{i}.bias", (2304,)),
            (f"h.{i}.proj", (768, 768)),
            (f"h.{i}.up", (3072, 768)),
            (f"h.{i}.down", (768, 3072)),
        ]
    return shapes


def planned(members, shapes, whole=False, dtype=mx.float32):
    plan = Plan(members)
    plan.extend([Leaf(path, shape, dtype, 0, whole, False) for path, shape in shapes])
    return plan


def loads(plan):
    return [
        sum(plan.range_of(path, member).size for path in plan.leaves)
        for member in range(plan.members)
    ]


@pytest.mark.parametrize("members", [2, 3, 4, 512])
def test_elements_are_balanced(members):
    plan = planned(members, gpt2())
    assert max(loads(plan)) <= 1.02 * sum(loads(plan)) / members


def test_tensors_are_given_to_the_least_loaded_the_largest_first():
    plan = planned(4, gpt2(), whole=True)
    embedding, total = 50257 * 768, sum(loads(plan))
    assert loads(plan)[0] == embedding > total / 4  # alone
    assert max(loads(plan)[1:]) < 1.1 * (total - embedding) / 3


@pytest.mark.parametrize("members", [2, 3, 4, 8])
def test_the_work_of_muon_is_balanced(members):
    width, layers = 2048, 16  # of a model with grouped queries
    rows = {"q": width, "k": 512, "v": 512, "o": width, "gate": 4 * width, "up": 4 * width}
    shapes = [(f"{i}.{name}", (r, width)) for i in range(layers) for name, r in rows.items()]
    shapes += [(f"{i}.down", (width, 4 * width)) for i in range(layers)]
    plan = planned(members, shapes, whole=True)
    work = [0] * members
    for path, (r, c) in shapes:
        owner = next(i for i in range(members) if plan.range_of(path, i).size)
        work[owner] += 2 * r * c * min(r, c) + min(r, c) ** 3  # an iteration of Newton-Schulz
    assert max(work) <= 1.01 * sum(work) / members
    assert max(loads(plan)) <= 1.01 * sum(loads(plan)) / members


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("members", [1, 2, 5])
@pytest.mark.parametrize("bytes_of_a_round", [1, 40, 1000])
def test_rounds_exchange_each_element_once(members, whole, bytes_of_a_round):
    shapes = [("a", (3, 4)), ("b", ()), ("c", (0, 2)), ("d", (17,)), ("e", (2,))]
    plan = planned(members, shapes, whole)
    seen = {path: [] for path, _ in shapes}
    for round in plan.rounds(seen, bytes_of_a_round):
        assert len(round.segments) == members
        assert 0 < round.length <= max(1, bytes_of_a_round // (4 * members))
        for member, segments in enumerate(round.segments):
            assert sum(each.stop - each.start for each in segments) <= round.length
            for path, start, stop in segments:
                own = plan.range_of(path, member)
                assert own.start <= start < stop <= own.stop
                seen[path] += range(start, stop)
    for path, leaf in plan.leaves.items():
        assert sorted(seen[path]) == list(range(leaf.size))


@pytest.mark.parametrize("name", descriptions.OPTIMIZERS)
def test_every_optimizer_can_be_divided(name):
    if name in ("DAdaptAdam", "Prodigy"):
        with pytest.raises(TypeError, match=f"^Sharded: {name} sums over all tensors, which can"):
            mlx_opt.Sharded(getattr(mlx_opt, name)())
        return
    assert "member 0 of 1" in repr(mlx_opt.Sharded(getattr(mlx_opt, name)(learning_rate=0.1)))


def test_a_group_of_one_does_what_the_optimizer_does():
    models = nn.Linear(4, 3), nn.Linear(4, 3)
    g = {"weight": normal(3, 4, seed=1), "bias": normal(3, seed=2)}
    models[1].update(models[0].parameters())
    plain, divided = mlx_opt.AdamW(0.1), mlx_opt.Sharded(mlx_opt.AdamW(0.1))
    divided.init(models[1])
    weight = models[1].weight
    mx.eval(g, weight)
    del weight
    for _ in range(3):
        plain.update(models[0], g, max_norm=0.5)
        divided.update(models[1], g, max_norm=0.5)
    assert_close(models[0].parameters(), models[1].parameters(), 0)
    assert divided.grad_norm.item() == plain.grad_norm.item()
    w = divided.apply_gradients(g, models[1].parameters(), skip_nonfinite=True)
    assert w["bias"].shape == (3,) and divided.skipped.item() == 0
    divided.learning_rate = 0.5
    assert divided.optimizer.learning_rate.item() == 0.5
    assert divided.state is divided.optimizer.state
    assert dict(tree_flatten(divided.state)).keys() == dict(tree_flatten(plain.state)).keys() | {
        "mlx_opt.skipped"
    }


class Hooked(mlx_opt.SGD):
    def apply_single(self, gradient, parameter, state):
        return parameter


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: mlx_opt.Sharded(object()),
            TypeError,
            "Sharded: expected an optimizer of mlx_opt, got object",
        ),
        (
            lambda: mlx_opt.Sharded(mlx_opt.Sharded(mlx_opt.SGD(0.1))),
            TypeError,
            "Sharded: expected an optimizer of mlx_opt, got Sharded",
        ),
        (
            lambda: mlx_opt.Sharded(Hooked(0.1)),
            TypeError,
            "Sharded: Hooked has its own step, which cannot be divided",
        ),
        (
            lambda: mlx_opt.Sharded(mlx_opt.SGD(0.1, stochastic_rounding=True)),
            TypeError,
            "Sharded: an optimizer with stochastic_rounding is not supported",
        ),
        (
            lambda: mlx_opt.Sharded(mlx_opt.SGD(0.1), bucket_size=0),
            ValueError,
            "Sharded: bucket_size: expected more than 0, got 0",
        ),
        (
            lambda: mlx_opt.MultiOptimizer([mlx_opt.Sharded(mlx_opt.SGD(0.1))]),
            TypeError,
            "Sharded cannot be a part of another optimizer: divide that instead",
        ),
        (
            lambda: mlx_opt.Muon(0.1, fallback=mlx_opt.Sharded(mlx_opt.SGD(0.1))),
            TypeError,
            "Sharded cannot be a part of another optimizer: divide that instead",
        ),
        (
            lambda: pickle.dumps(mlx_opt.Sharded(mlx_opt.SGD(0.1))),
            TypeError,
            "Sharded cannot be pickled, because a group of processes cannot",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("gradients", "error", "message"),
    [
        ({"a": {"w": mx.ones(2)}}, ValueError, "a.w: gradient (2,), parameter (3,)"),
        ({"b": mx.ones(2)}, KeyError, "b: there is a gradient but no parameter"),
        ({"a": {"w": 1.0}}, TypeError, "a.w: gradient must be an mlx.core.array, got float"),
    ],
)
def test_a_gradient_that_does_not_fit_changes_nothing(gradients, error, message):
    optimizer = mlx_opt.Sharded(mlx_opt.AdamW(0.1))
    before = dict(optimizer.state)
    for call in (optimizer.apply_gradients, optimizer.check):
        with pytest.raises(error) as caught:
            call(gradients, {"a": {"w": mx.ones(3)}})
        assert caught.value.args[0] == message
    assert optimizer.state == before


@pytest.fixture
def saved(tmp_path):
    """A checkpoint in a folder, the optimizer that wrote it and its parameters."""
    optimizer = mlx_opt.Sharded(mlx_opt.AdamW(0.1))
    w = {"a": normal(4, 3, seed=1), "b": [normal(2, seed=2)]}
    w = optimizer.apply_gradients(w, w, max_norm=1.0)
    optimizer.save_state(tmp_path / "it")
    return tmp_path / "it", optimizer, w


def test_a_checkpoint_is_read_back_to_the_bit(saved):
    folder, optimizer, w = saved
    written = dict(tree_flatten(optimizer.state))
    again = mlx_opt.Sharded(mlx_opt.AdamW(0.5))
    again.load_state(folder, w)
    for state in (again.state, mlx_opt.Sharded.whole_state(folder)):
        read = dict(tree_flatten(state))
        assert read.keys() == written.keys()
        assert all(mx.array_equal(read[path], x) for path, x in written.items())
    plain = stock.AdamW(0.5)
    plain.state = mlx_opt.Sharded.whole_state(folder)
    expected = optimizer.apply_gradients(w, w)
    assert_close(again.apply_gradients(w, w), expected, 0)
    assert_close(plain.apply_gradients(w, w), expected, 1e-6)


def test_saving_again_replaces_the_files(saved):
    folder, optimizer, w = saved
    (folder / "notes.safetensors").write_text("not ours")
    optimizer.apply_gradients(w, w)
    optimizer.save_state(folder)
    assert len(list(folder.iterdir())) == 3
    assert mlx_opt.Sharded.whole_state(folder)["step"].item() == 2


def test_an_interrupted_write_leaves_the_checkpoint_that_was_there(saved, monkeypatch):
    folder, optimizer, w = saved
    optimizer.apply_gradients(w, w)

    def interrupted(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.save_state(folder)
    monkeypatch.undo()
    assert mlx_opt.Sharded.whole_state(folder)["step"].item() == 1
    assert len(list(folder.iterdir())) == 4  # the next write removes the two that are not used
    optimizer.save_state(folder)
    assert mlx_opt.Sharded.whole_state(folder)["step"].item() == 2
    assert len(list(folder.iterdir())) == 2


def cut_off(folder):
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])


def other_byte(folder):
    path = next(folder.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def missing(folder):
    next(folder.glob("*.safetensors")).unlink()


def no_index(folder):
    (folder / "index.json").unlink()


def half_an_index(folder):
    path = folder / "index.json"
    path.write_text(path.read_text()[:40])


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (cut_off, ValueError, r"[0-9a-f]{16}-0-of-1\.safetensors: damaged: \d+ bytes"),
        (other_byte, ValueError, r"-0-of-1\.safetensors: damaged: .* with checksum \d+, expected"),
        (missing, FileNotFoundError, r"-0-of-1\.safetensors"),
        (no_index, FileNotFoundError, r"index\.json"),
        (half_an_index, ValueError, r"index\.json: not an index of a divided state"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(saved, damage, error, message):
    folder, optimizer, w = saved
    damage(folder)
    before = dict(tree_flatten(optimizer.state))
    with pytest.raises(error, match=message):
        optimizer.load_state(folder, w)
    with pytest.raises(error, match=message):
        mlx_opt.Sharded.whole_state(folder)
    after = dict(tree_flatten(optimizer.state))
    assert after.keys() == before.keys() and all(after[path] is before[path] for path in after)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"a": mx.zeros((4, 3))}, "b.0 is of no parameter of the model"),
        (
            {"a": mx.zeros((3, 4)), "b": [mx.zeros(2)]},
            "a has the shape (4, 3), the parameter (3, 4)",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(saved, parameters, message):
    folder, optimizer, _ = saved
    with pytest.raises(ValueError) as caught:
        optimizer.load_state(folder, parameters)
    assert str(caught.value) == f"{folder}: {message}"


def test_a_copy_shares_the_group():
    optimizer = mlx_opt.Sharded(mlx_opt.AdamW(0.1))
    w = optimizer.apply_gradients({"w": mx.ones(2)}, {"w": mx.ones(2)})
    twin = copy.deepcopy(optimizer)
    twin.apply_gradients({"w": mx.ones(2)}, w)
    assert (optimizer.step.item(), twin.step.item()) == (1, 2)


def test_one_member_accumulates_as_the_optimizer_does():
    plain, divided = mlx_opt.SGD(0.5), mlx_opt.Sharded(mlx_opt.SGD(0.5))
    a = b = {"w": mx.array([8.0])}
    plain.accumulate = divided.accumulate = 2
    divided.accumulate_dtype = mx.float32
    assert divided.accumulate == 2 and divided.accumulate_dtype == mx.float32
    for g in ({"w": mx.array([1.0])}, {"w": mx.array([3.0])}):
        a = plain.apply_gradients(g, a, normalizer=2.0)
        b = divided.apply_gradients(g, b, normalizer=2.0)
        assert a["w"].item() == b["w"].item() and plain.accumulated == divided.accumulated
    assert a["w"].item() == 7.5


def test_one_member_has_master_weights_and_averages_as_the_optimizer_has():
    optimizer = mlx_opt.Sharded(mlx_opt.SGD(2.0**-10, master_weights="float32"))
    w = {"w": mx.ones(1, mx.bfloat16)}
    w = optimizer.apply_gradients(w, w)
    assert optimizer.master_parameters(w)["w"].item() == 1 - 2.0**-10
    model, optimizer = nn.Linear(2, 1), mlx_opt.Sharded(mlx_opt.SGDScheduleFree(0.1))
    optimizer.update(model, {"bias": mx.array([1.0])})
    bias = optimizer.eval_parameters(model)["bias"].item()
    with optimizer.evaluating(model):
        assert model.bias.item() == bias


def test_the_scaling_on_paper_counts_the_operations_of_a_plan():
    scaling = pytest.importorskip("mlx_opt.benchmarks.scaling")
    plan = planned(4, gpt2())
    given = scaling.Assumed(sum(loads(plan)), 1 << 22, link=1.0, hop=1.0, memory=1.0)
    rounds = plan.rounds([*plan.leaves], 1 << 22)
    computed = scaling.sharded(4, given)
    assert computed.latency == 2 * len(rounds) * 3
    exchanged = sum(4 * each.length for each in rounds)  # by each member, of four
    assert computed.received == pytest.approx(2 * 3 * exchanged, rel=1e-3)
