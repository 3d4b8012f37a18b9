"""C++ programs that use an installed mlx_opt, built outside the tree."""

import os
import shutil
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import mlx_opt
from conftest import EXAMPLE, output, run

HERE = Path(__file__).parent

EPOCHS = 5
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "digits.safetensors"
    output(sys.executable, EXAMPLE / "data.py", path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("example") / "source")


@pytest.fixture(scope="module")
def digits(package, source, mlx_root, tmp_path_factory):
    """The program, built with CMake."""
    build = tmp_path_factory.mktemp("build")
    folders = f"-DCMAKE_PREFIX_PATH={package};{mlx_root}"
    output("cmake", "-G", "Ninja", "-S", source, "-B", build, folders)
    output("cmake", "--build", build)
    return build / "digits"


def losses(text):
    return [float(line.split()[3]) for line in text.splitlines()]


def train(program, data, *options):
    return losses(output(*program, data, *options))


def twin():
    return [sys.executable, EXAMPLE / "digits.py"]


@pytest.fixture(scope="module")
def losses_of_twin(data):
    return train(twin(), data, "--epochs", EPOCHS)


def test_the_loss_falls_to_the_value_of_pythons(digits, data, losses_of_twin):
    found = train([digits], data, "--epochs", EPOCHS)
    assert len(found) == EPOCHS
    assert found == pytest.approx(losses_of_twin, rel=TOLERANCE)
    assert found[-1] < found[0] / 5


@pytest.mark.parametrize("cpp_first", [True, False])
def test_each_goes_on_from_the_checkpoint_of_the_other(
    digits, data, losses_of_twin, cpp_first, tmp_path
):
    first, second = ([digits], twin()) if cpp_first else (twin(), [digits])
    found = train(first, data, "--epochs", 2, "--save", tmp_path)
    found += train(second, data, "--epochs", EPOCHS, "--load", tmp_path)
    assert found == pytest.approx(losses_of_twin, rel=TOLERANCE)


def test_a_checkpoint_of_another_model_is_refused(digits, data, tmp_path):
    output(digits, data, "--epochs", 1, "--save", tmp_path)
    shutil.copy(tmp_path / "parameters.safetensors", tmp_path / "optimizer.safetensors")
    done = run(digits, data, "--load", tmp_path)
    assert done.returncode == 1
    assert 'the state has no "step"' in done.stderr


def build_with_pkg_config(source, program, package, mlx_root, *options):
    flags = output(
        "pkg-config", "--cflags", "--libs", "mlx_opt",
        f"--define-variable=mlx={mlx_root}", *options,
        env={"PATH": "/usr/bin:/bin", "PKG_CONFIG_PATH": str(package / "share/pkgconfig")},
    ).split()  # fmt: skip
    output("c++", source, "-o", program, *flags)
    return program


def test_pkg_config_knows_how_to_build_it(package, source, mlx_root, data, tmp_path):
    program = build_with_pkg_config(source / "digits.cpp", tmp_path / "digits", package, mlx_root)
    assert len(train([program], data, "--epochs", 1)) == 1


@pytest.fixture(scope="module")
def steps(package, mlx_root, tmp_path_factory):
    """The program, which does what `steps_of_python` does."""
    program = tmp_path_factory.mktemp("steps") / "steps"
    return build_with_pkg_config(HERE / "steps.cpp", program, package, mlx_root)


def with_loss_scale(optimizer, value):
    optimizer.loss_scale = value
    return optimizer


OPTIMIZERS = {
    "AdamW": lambda: mlx_opt.AdamW(0.01, weight_decay=0.1),
    "Lion": lambda: mlx_opt.Lion(0.01),
    "Adafactor": lambda: mlx_opt.Adafactor(weight_decay=0.1),
    "Adafactor with beta_1": lambda: mlx_opt.Adafactor(0.01, beta_1=0.9, relative_step=False),
    "Muon": lambda: mlx_opt.Muon(0.01),
    "Muon with options": lambda: mlx_opt.Muon(
        0.01,
        nesterov=False,
        ns_steps=7,
        ns_coefficients="polar_express",
        adjust_lr="match_rms_adamw",
        decoupled_weight_decay=True,
    ),
    "AdamW with master weights": lambda: mlx_opt.AdamW(
        0.01, master_weights="float32", ema_decay=0.9, ema_warmup="ratio"
    ),
    "Lion with remainders": lambda: mlx_opt.Lion(
        0.01, master_weights="remainder", ema_decay=0.9, ema_warmup=0.75, ema_update_after=1
    ),
    "AdamW with stochastic rounding": lambda: mlx_opt.AdamW(
        0.01, stochastic_rounding=True, rounding_seed=11
    ),
    "Muon with stochastic rounding": lambda: mlx_opt.Muon(
        0.01, stochastic_rounding=True, rounding_seed=11, ema_decay=0.9
    ),
    "AdamW with a loss scale": lambda: with_loss_scale(mlx_opt.AdamW(0.01), 1024.0),
    "AdamW in int8": lambda: mlx_opt.AdamW(0.01, state_dtype="int8"),
}
OF_BFLOAT16 = {
    "AdamW with master weights",
    "Lion with remainders",
    "AdamW with stochastic rounding",
    "Muon with stochastic rounding",
}


def read(path):
    return tree_unflatten(list(mx.load(str(path)).items()))


def write(path, tree):
    mx.save_safetensors(str(path), dict(tree_flatten(tree)))


def steps_of_python(name, folder, first, last):
    optimizer = OPTIMIZERS[name]()
    parameters = read(folder / "parameters.safetensors")
    if (folder / "state.safetensors").exists():
        optimizer.state = read(folder / "state.safetensors")
    for i in range(first, last):
        gradients = read(folder / f"gradients.{i}.safetensors")
        options = {"max_norm": 1.0, "skip_nonfinite": True}
        parameters = optimizer.apply_gradients(gradients, parameters, **options)
        mx.eval(parameters, optimizer.state)
    write(folder / "parameters.safetensors", parameters)
    write(folder / "state.safetensors", optimizer.state)


@pytest.mark.parametrize("cpp_first", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_either_goes_on_from_the_state_of_the_other(steps, name, cpp_first, tmp_path):
    def tree(seed):
        shapes = {
            "scale": (),
            "layers": [{"weight": (5, 7)}, {"weight": (2, 3, 4), "bias": (6,)}],
            "embedding": (64, 65),
        }
        key = iter(mx.random.split(mx.random.key(seed), 5))
        dtype = mx.bfloat16 if name in OF_BFLOAT16 else mx.float32
        return tree_map(
            lambda shape: mx.random.normal(shape, key=next(key)).astype(dtype),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )

    def steps_of_cpp(name, folder, first, last):
        output(steps, name, folder, first, last)

    folders = tmp_path / "both", tmp_path / "python"
    for folder in folders:
        folder.mkdir()
        write(folder / "parameters.safetensors", tree(0))
        for i in range(5):
            # The second is not finite.
            gradients = tree_map(lambda x, i=i: x * (float("nan") if i == 1 else 1.0), tree(i + 1))
            write(folder / f"gradients.{i}.safetensors", gradients)
    halves = (steps_of_cpp, steps_of_python) if cpp_first else (steps_of_python, steps_of_cpp)
    halves[0](name, folders[0], 0, 3)
    halves[1](name, folders[0], 3, 5)
    steps_of_python(name, folders[1], 0, 5)
    for file in ("parameters.safetensors", "state.safetensors"):
        got, expected = (mx.load(str(folder / file)) for folder in folders)
        assert got.keys() == expected.keys()
        for key, x in expected.items():
            assert (got[key].dtype, got[key].shape) == (x.dtype, x.shape)
            assert mx.allclose(got[key], x, rtol=1e-6, atol=1e-7), key
    assert expected["step"].item() == 4 and expected["mlx_opt.skipped"].item() == 1


def test_python_tells_where_the_package_is(source, mlx_root, tmp_path):
    folder = output(sys.executable, "-m", "mlx_opt", "--cmake-dir")
    output("cmake", "-S", source, "-B", tmp_path, f"-Dmlx_opt_ROOT={folder}")


def test_cmake_refuses_an_mlx_of_another_version(package, source, tmp_path):
    (tmp_path / "MLXConfig.cmake").write_text("add_library(mlx INTERFACE IMPORTED)\n")
    (tmp_path / "MLXConfigVersion.cmake").write_text(
        'set(PACKAGE_VERSION "0.0.1")\nset(PACKAGE_VERSION_COMPATIBLE TRUE)\n'
    )
    done = run(
        "cmake", "-S", source, "-B", tmp_path / "build",
        f"-DCMAKE_PREFIX_PATH={package}", f"-DMLX_DIR={tmp_path}",
    )  # fmt: skip
    assert done.returncode != 0
    message = " ".join(done.stderr.split())
    assert f"built for MLX {mx.__version__}" in message and "but MLX 0.0.1 was found" in message
    assert "pip install mlx==" in message


@pytest.mark.parametrize("set_in", ["cache", "environment"])
def test_cmake_refuses_an_mlx_root_without_a_package(package, source, tmp_path, set_in):
    options = [f"-DMLX_ROOT={tmp_path}"] if set_in == "cache" else []
    environment = {"MLX_ROOT": str(tmp_path)} if set_in == "environment" else {}
    done = run(
        "cmake", "-S", source, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={package}", *options,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode != 0
    assert f"MLX_ROOT is {tmp_path}" in " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def oldest():
    """The root of the oldest MLX that the wheel serves."""
    return Path(os.environ["MLX_OPT_OLDEST_MLX"])


def test_cmake_takes_the_part_for_the_mlx_that_it_finds(source, oldest, tmp_path):
    package = Path(mlx_opt.__file__).parent
    output("cmake", "-S", source, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={package};{oldest}")
    commands = (tmp_path / "CMakeFiles/digits.dir/link.txt").read_text()
    assert f"lib/mlx_opt/{oldest.parent.name}/libmlx_opt.so" in commands


def test_pkg_config_takes_the_part_for_the_mlx_that_is_named(oldest, tmp_path):
    version = oldest.parent.name.removeprefix("mlx-")
    source = tmp_path / "source.cpp"
    source.write_text(
        "#include <iostream>\n"
        "#include <mlx/mlx.h>\n"
        "#include <mlx_opt/mlx_opt.h>\n"
        "int main() {\n"
        '  mlx_opt::NamedArrays w{{"w", mlx::core::ones({2})}}, g{{"w", mlx::core::ones({2})}};\n'
        "  mlx_opt::Optimizer(w, mlx_opt::SGD{}, 0.5).update(w, std::move(g));\n"
        '  std::cout << mlx::core::version() << " " << w.at("w");\n'
        "}\n"
    )
    package = Path(mlx_opt.__file__).parent
    named = f"--define-variable=mlx_version={version}"
    program = build_with_pkg_config(source, tmp_path / "program", package, oldest, named)
    assert output(program) == f"{version} array([0.5, 0.5], dtype=float32)"


def test_a_program_refuses_to_run_with_an_mlx_of_another_version(digits, data, tmp_path):
    source, shim = tmp_path / "shim.cpp", tmp_path / "shim.so"
    source.write_text('namespace mlx::core { const char* version() { return "0.0.1"; } }')
    output("c++", "-shared", "-fPIC", "-std=c++17", source, "-o", shim)
    done = run(digits, data, env={"LD_PRELOAD": str(shim)})
    assert done.returncode == 1
    assert "but MLX 0.0.1 is running: install mlx==" in done.stderr
