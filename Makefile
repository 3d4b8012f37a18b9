# make demo    builds, installs and trains on handwritten digits with stock AdamW and with ours
# make test    builds and runs all tests
# make lint    formatting, style, types, and what includes what
# make asan    the tests under AddressSanitizer and UndefinedBehaviorSanitizer
# make tsan    the tests under ThreadSanitizer
# make wheel   the sdist and the wheel of the last commit, checked, in dist/
# make wheels  a wheel for each Python of PYTHONS
# make macos-wheel  a wheel for macOS, cross-built under Linux
# make cuda    what proves the CUDA backend without a GPU
# make package builds the wheel twice and proves it, the C++ package and its example
# make metal   what proves the Metal backend under Linux (Debian 12, as root)
# make docs    the site, in build/site, and its tests
# make bench   the benchmark of the README
# make clean   removes what these made

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SOURCES = $(shell find csrc cmake python benchmarks -type f -not -name '*.pyc') CMakeLists.txt pyproject.toml

# The MLX build that fits the machine.
ifeq ($(shell uname -s),Darwin)
MLX = mlx
else ifneq ($(wildcard /dev/nvidiactl),)
MLX = mlx[cuda13]
else
MLX = mlx[cpu]
endif
MLX_VERSION = $(shell tail -n 1 packaging/mlx_releases)

PYTHONS ?= python3.10 python3.11 python3.12 python3.13 python3.14

.PHONY: demo test unit lint asan tsan metal cuda wheel macos-wheel wheels package docs bench clean

demo: $(VENV)/installed
	$(BIN)/python examples/digits.py

test: unit $(VENV)/installed
	$(BIN)/python -m pytest -n 2

unit: $(VENV)/tools
	PATH="$(abspath $(BIN)):$$PATH" tests/cpp/run build/unit

# Checks Python's sources beside what the last build made, so that it compiles nothing but the first time.
lint: $(VENV)/tools
	[ -e $(VENV)/installed ] || $(MAKE) $(VENV)/installed
	package=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/mlx_opt && \
	    cp -R python/mlx_opt/. "$$package" && cp -R benchmarks/. "$$package/benchmarks"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(find csrc examples/cpp tests/cpp tests/cuda tests/fake tests/metal tests/package -name '*.h' -o -name '*.cpp')
	$(BIN)/mypy
	$(BIN)/python tests/layers.py

asan tsan: $(VENV)/tools
	PATH="$(abspath $(BIN)):$$PATH" tests/sanitizers/run $@

metal: $(VENV)/installed
	PATH="$(abspath $(BIN)):$$PATH" tests/metal/run build/metal

cuda: $(VENV)/tools
	PATH="$(abspath $(BIN)):$$PATH" tests/cuda/run build/unit

wheel: $(VENV)/tools
	packaging/wheel $(BIN)/python dist

macos-wheel: $(VENV)/tools
	packaging/wheel $(BIN)/python dist macos

wheels:
	for python in $(PYTHONS); do \
	    $(MAKE) wheel PYTHON=$$python VENV=build/wheels/$${python##*/} || exit 1; \
	done

package: $(VENV)/tools
	tests/package/run $(BIN)/python

docs: $(VENV)/installed $(VENV)/docs
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/site
	$(BIN)/python -m pytest tests/site

bench: $(VENV)/installed
	$(BIN)/python -m mlx_opt bench

$(VENV)/tools: pyproject.toml packaging/mlx_releases Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "mlx_opt needs Python 3.10 or later: make PYTHON=/path/to/python3" >&2; exit 1; }
	@[ -n "$$CXX" ] || command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
	    { echo "mlx_opt needs a C++20 compiler: apt install g++, or xcode-select --install" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q "$(MLX)==$(MLX_VERSION)" --group build --group test --group lint --group wheel
	touch $@

$(VENV)/docs: $(VENV)/tools
	$(BIN)/python -m pip install -q --group docs
	touch $@

$(VENV)/installed: $(VENV)/tools $(SOURCES)
	$(BIN)/python -m pip install -q --no-build-isolation --no-deps --force-reinstall .
	$(BIN)/python -m pip install -q "mlx-opt[demo]"
	touch $@

clean:
	rm -rf build $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis digits.png
