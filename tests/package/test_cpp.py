"""C++ programs that use an installed mlx_opt, built outside the tree."""

import shutil
import sys

import pytest

from conftest import EXAMPLE, output, run

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


def test_pkg_config_knows_how_to_build_it(package, source, mlx_root, data, tmp_path):
    flags = output(
        "pkg-config", "--cflags", "--libs", f"--define-variable=mlx={mlx_root}", "mlx_opt",
        env={"PATH": "/usr/bin:/bin", "PKG_CONFIG_PATH": str(package / "share/pkgconfig")},
    ).split()  # fmt: skip
    program = tmp_path / "digits"
    output("c++", source / "digits.cpp", "-o", program, *flags)
    assert len(train([program], data, "--epochs", 1)) == 1


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
    assert "but MLX 0.0.1 was found" in message
    assert "pip install mlx==" in message


def test_a_program_refuses_to_run_with_an_mlx_of_another_version(digits, data, tmp_path):
    source, shim = tmp_path / "shim.cpp", tmp_path / "shim.so"
    source.write_text('namespace mlx::core { const char* version() { return "0.0.1"; } }')
    output("c++", "-shared", "-fPIC", "-std=c++17", source, "-o", shim)
    done = run(digits, data, env={"LD_PRELOAD": str(shim)})
    assert done.returncode == 1
    assert "but MLX 0.0.1 is running: install mlx==" in done.stderr
