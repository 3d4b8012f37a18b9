# For the scripts of this folder, which read it: installs what they need, if run as root on Debian,
# and has the functions that several use. Sets $tests and $build.
tests=$(cd "$(dirname "$0")/.." && pwd)
root=$(cd "$tests/../.." && pwd)
mkdir -p "${1:-$root/build/metal}"
build=$(cd "${1:-$root/build/metal}" && pwd)

need() { # need COMMAND-OR-FILE PACKAGE ...
    if [ ! -e "$1" ] && ! command -v "$1" >/dev/null; then
        shift
        [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
            { echo "missing: $* (packages of Debian 12)" >&2; exit 1; }
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    fi
}
need clang++-19 clang-19 libclang-rt-19-dev
need llvm-nm-19 llvm-19 lld-19
need /usr/include/doctest/doctest.h doctest-dev

macos_tools() { "$root/cmake/toolchains/macos/prepare" "$build/macos-tools"; }

built() { # built TARGET: configures for clang and builds it
    if [ ! -e "$build/linux/build.ninja" ]; then
        cmake -S "$root" -B "$build/linux" -G Ninja -DCMAKE_CXX_COMPILER=clang++-19 \
            -DCMAKE_CXX_FLAGS_RELEASE=-O1 \
            -DMLX_OPT_METAL=ON -DMLX_OPT_TESTS=ON -DMLX_OPT_CUDA=OFF -DMLX_OPT_PYTHON=OFF \
            -DMETAL_CPP="$build/macos-tools/mlx/include/metal_cpp" >"$build/configure.log" 2>&1 ||
            { cat "$build/configure.log" >&2; exit 1; }
    fi
    cmake --build "$build/linux" --target "$1" >"$build/build.log" 2>&1 ||
        { grep -E -A5 'error|FAILED' "$build/build.log" >&2; exit 1; }
}

programs() { # writes the program of every kernel into $build/kernels/programs
    built kernel_programs
    rm -rf "$build/kernels/programs"
    "$build/linux/tests/metal/kernel_programs" "$build/kernels/programs"
}
