"""`import mlx_opt as optim` in place of `import mlx.optimizers as optim`."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from types import FunctionType, ModuleType

import mlx.core as mx
import mlx.optimizers as stock
import pytest

import mlx_opt

# The public names of mlx.optimizers, without names that its modules happen to import.
NAMES = [
    name
    for name, value in vars(stock).items()
    if not name.startswith("_")
    and not isinstance(value, ModuleType)
    and getattr(value, "__module__", "").startswith("mlx.optimizers")
]
CLASSES = [name for name in NAMES if isinstance(getattr(stock, name), type)]
SCHEDULES = ["cosine_decay", "exponential_decay", "join_schedules", "linear_schedule", "step_decay"]


def test_the_list_of_names_is_not_empty():
    assert {"AdamW", "Muon", "clip_grad_norm", *SCHEDULES} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_name_of_mlx_optimizers_is_there(name):
    assert hasattr(mlx_opt, name)


def defined(module):
    """The classes and functions that a module of mlx.optimizers offers, private ones included."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type | FunctionType) and value.__module__.startswith(stock.__name__)
    }


MODULES = {"": (mlx_opt, stock)} | {
    submodule.name: (
        importlib.import_module(f"mlx_opt.{submodule.name}"),
        importlib.import_module(f"mlx.optimizers.{submodule.name}"),
    )
    for submodule in pkgutil.iter_modules(stock.__path__)
}


def test_the_modules_are_not_empty():
    assert {"", "optimizers", "schedulers"} <= MODULES.keys()
    assert all(defined(theirs) for _, theirs in MODULES.values())


@pytest.mark.parametrize("module", MODULES)
def test_each_class_and_function_of_mlx_optimizers_is_at_the_same_place(module):
    ours, theirs = MODULES[module]
    for name, value in defined(theirs).items():
        own = getattr(ours, name)
        if value.__module__ == "mlx.optimizers.schedulers":
            assert own is value
        else:
            assert own is getattr(mlx_opt, name) and own is not value
            assert own.__module__.partition(".")[0] == "mlx_opt"


@pytest.mark.parametrize(
    "code",
    [
        "import mlx_opt as optim; optim.schedulers.linear_schedule(0.0, 1.0, 10)",
        "import mlx_opt.schedulers; mlx_opt.schedulers.linear_schedule(0.0, 1.0, 10)",
        "from mlx_opt.schedulers import linear_schedule",
        "from mlx_opt.optimizers import AdamW, Optimizer, MultiOptimizer, Muon, clip_grad_norm",
        "import mlx_opt.muon, mlx_opt.multi, mlx_opt.fused, mlx_opt.optimizers",
        "from mlx_opt.optimizers import *; Adafactor, Lion(0.1), clip_grad_norm",
    ],
)
def test_modules_are_imported_in_a_fresh_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_takes_the_same_arguments(name):
    ours, theirs = getattr(mlx_opt, name), getattr(stock, name)
    mine = dict(inspect.signature(ours).parameters)
    for argument in inspect.signature(theirs).parameters.values():
        same = mine.pop(argument.name)
        assert (same.kind, same.default) == (argument.kind, argument.default)
    assert all(extra.kind is extra.KEYWORD_ONLY for extra in mine.values())
    assert all(extra.default is not extra.empty for extra in mine.values())
    assert issubclass(ours, theirs)
    assert ours.__name__ == name


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_is_documented(name):
    assert inspect.getdoc(getattr(mlx_opt, name))


def test_clipping_is_stocks():
    g = {"a": mx.array([3.0, 4.0])}
    clipped, norm = mlx_opt.clip_grad_norm(g, 1.0)
    assert norm.item() == pytest.approx(5)
    assert clipped["a"].tolist() == pytest.approx([0.6, 0.8], rel=1e-5)


def test_the_module_offers_nothing_it_only_imports():
    imported = {"mx", "stock", "Any", "NamedTuple", "annotations", "tree_merge"}
    assert not imported & set(vars(mlx_opt))


def test_the_package_is_typed():
    from importlib.resources import files

    assert files(mlx_opt).joinpath("py.typed").is_file()
