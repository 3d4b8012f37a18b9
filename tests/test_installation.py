"""mlx_opt.install and mlx_opt.installed: mlx_opt in the place of mlx.optimizers."""

import pickle
import subprocess
import sys
import textwrap

import mlx.core as mx
import mlx.optimizers as optim
import mlx.optimizers.optimizers as stock
import pytest

import mlx_opt
from cases import assert_same, normal

CLASSES = ["SGD", "RMSprop", "Adagrad", "AdaDelta", "Adam", "AdamW", "Adamax", "Lion"]
CLASSES += ["Adafactor", "Muon", "MultiOptimizer", "Optimizer"]
OURS = [*CLASSES, "clip_grad_norm"]
SUBMODULES = ["optimizers", "schedulers"]


def test_the_oracle_of_these_tests_is_mlx():
    for name in CLASSES:
        assert getattr(optim, name) is getattr(stock, name)
        assert not issubclass(getattr(optim, name), mlx_opt.Optimizer)


@pytest.mark.parametrize("name", OURS)
def test_a_block_has_mlx_opts_names_and_ends_with_mlxs(name):
    with mlx_opt.installed():
        assert getattr(optim, name) is getattr(mlx_opt, name)
        assert getattr(stock, name) is not getattr(mlx_opt, name)
    assert getattr(optim, name) is getattr(stock, name)


def test_what_is_mlxs_own_stays_mlxs_own():
    replaced = {*OURS, *SUBMODULES}
    before = {name: value for name, value in vars(optim).items() if name not in replaced}
    with mlx_opt.installed():
        assert all(vars(optim)[name] is value for name, value in before.items())
        assert vars(optim).keys() == before.keys() | replaced


@pytest.mark.parametrize("name", SUBMODULES)
def test_a_block_has_mlx_opts_submodules_and_ends_with_mlxs(name):
    before = getattr(optim, name)
    with mlx_opt.installed():
        assert getattr(optim, name) is getattr(mlx_opt, name)
        assert sys.modules[f"mlx.optimizers.{name}"] is before
    assert getattr(optim, name) is before


def test_submodules_give_mlx_opts_classes_and_the_same_schedules():
    code = """
        import mlx.optimizers as optim
        before = dict(vars(optim.schedulers))
        import mlx_opt
        mlx_opt.install()
        import mlx.optimizers.optimizers
        import mlx.optimizers.optimizers as named
        import mlx.optimizers.schedulers
        from mlx.optimizers import optimizers, schedulers
        from mlx.optimizers.schedulers import linear_schedule
        assert optim.optimizers is mlx.optimizers.optimizers is named is optimizers
        assert named.AdamW is optim.AdamW is mlx_opt.AdamW
        assert optim.schedulers is mlx.optimizers.schedulers is schedulers
        assert schedulers.linear_schedule is linear_schedule is before["linear_schedule"]
        assert optim.schedulers.linear_schedule(0.0, 1.0, 10)(5).item() == 0.5
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_installing_is_for_good_and_twice_is_once():
    for _ in range(2):
        mlx_opt.install()
        assert optim.AdamW is mlx_opt.AdamW


def test_blocks_may_be_nested_and_repeated():
    for _ in range(2):
        with mlx_opt.installed():
            with mlx_opt.installed():
                assert optim.Lion is mlx_opt.Lion
            assert optim.Lion is mlx_opt.Lion
        assert optim.Lion is stock.Lion


def test_a_block_ends_with_what_was_there_at_its_start():
    class Own(stock.AdamW):
        pass

    optim.AdamW = Own
    with mlx_opt.installed():
        assert optim.AdamW is mlx_opt.AdamW
    assert optim.AdamW is Own


def test_an_error_ends_a_block_too():
    with pytest.raises(RuntimeError, match="mine"), mlx_opt.installed():
        raise RuntimeError("mine")
    assert optim.AdamW is stock.AdamW


def test_an_optimizer_outlives_its_block():
    with mlx_opt.installed():
        optimizer = optim.AdamW(0.1)
    again = mlx_opt.AdamW(0.1)
    w, g = {"w": normal(5, seed=1)}, {"w": normal(5, seed=2)}
    assert_same(optimizer.apply_gradients(g, w), again.apply_gradients(g, w))


def test_pickles_of_both_are_read_in_a_block_and_outside():
    ours, theirs = mlx_opt.AdamW(0.1), stock.AdamW(0.1)
    for optimizer in (ours, theirs):
        optimizer.init({"w": mx.zeros(2)})
    pickles = [pickle.dumps(optimizer) for optimizer in (ours, theirs)]
    with mlx_opt.installed():
        pickles += [pickle.dumps(optimizer) for optimizer in (ours, theirs)]
        inside = [type(pickle.loads(data)) for data in pickles]
    outside = [type(pickle.loads(data)) for data in pickles]
    assert inside == outside == [mlx_opt.AdamW, stock.AdamW] * 2


def test_a_from_import_after_installing_gives_mlx_opts():
    code = """
        import mlx.optimizers as early
        import mlx_opt
        mlx_opt.install()
        from mlx.optimizers import AdamW
        import mlx.optimizers as late
        assert AdamW is early.AdamW is late.AdamW is mlx_opt.AdamW
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
