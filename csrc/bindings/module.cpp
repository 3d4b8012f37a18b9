// mlx_opt._ext: libmlx_opt's interface for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "bindings/bind_rules.h"
#include "bindings/bind_steps.h"
#include "bindings/part.h"
#include "bindings/tree.h"
#include "mlx_opt/algorithms/newton_schulz.h"
#include "mlx_opt/backend/cpu/kernels/kernel.h"
#include "mlx_opt/backend/cpu/pool.h"
#include "mlx_opt/backend/find.h"
#include "mlx_opt/graph/clip_scale.h"
#include "mlx_opt/graph/norm.h"
#include "mlx_opt/types/layout.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// Appends the leaves to `leaves`; returns true if all are arrays of a storage dtype.
bool collect(nb::handle tree, std::vector<mlx_opt::mx::array>& leaves) {
  using namespace mlx_opt::python;
  if (nb::isinstance<Part>(tree)) {
    for (mlx_opt::mx::array& x : nb::cast<Part&>(tree).gradients()) {
      if (!mlx_opt::is_storage(x.dtype())) {
        return false;
      }
      leaves.push_back(std::move(x));
    }
    return true;
  }
  if (!is_container(tree)) {
    if (!is_array(tree) || !mlx_opt::is_storage(array_of(tree).dtype())) {
      return false;
    }
    leaves.push_back(array_of(tree));
    return true;
  }
  const Recursion recursion;
  for (const Item& item : items_of(tree)) {
    if (!collect(item.child, leaves)) {
      return false;
    }
  }
  return true;
}

std::optional<mlx_opt::mx::array> global_norm(nb::handle tree) {
  std::vector<mlx_opt::mx::array> leaves;
  if (!collect(tree, leaves)) {
    return std::nullopt;
  }
  return mlx_opt::global_norm(leaves);
}

mlx_opt::mx::array gradient_scale_of(
    const mlx_opt::mx::array& norm,
    const std::optional<mlx_opt::Scalar>& max_norm,
    bool skip_nonfinite) {
  mlx_opt::Clip clip{.skip_nonfinite = skip_nonfinite};
  if (max_norm) {
    if (const auto* array = std::get_if<mlx_opt::mx::array>(&*max_norm)) {
      return mlx_opt::gradient_scale(norm, *array, skip_nonfinite).value;
    }
    clip.max_norm = std::get<double>(*max_norm);
  }
  return mlx_opt::gradient_scale(norm, clip).value;
}

} // namespace

NB_MODULE(_ext, m) {
  m.doc() = "Fused optimizer steps: the binding between mlx_opt's Optimizer and libmlx_opt.";
  nb::module_::import_("mlx.core");

  mlx_opt::python::bind_rules(m);
  mlx_opt::python::bind_steps(m);

  m.def(
      "global_norm",
      global_norm,
      "tree"_a,
      R"(The square root of the sum of the squares of all elements of a tree's arrays, in float32.

Args:
    tree: A tree, or a :class:`Part`, which stands for its gradients.

Returns:
    A 0-d array, or ``None`` if a leaf is not an array of float32, float16 or bfloat16.)");
  m.def(
      "gradient_scale",
      gradient_scale_of,
      "norm"_a,
      "max_norm"_a.none(),
      "skip_nonfinite"_a = false,
      R"(The factor by which gradients of a global norm are multiplied.

Args:
    norm: A 0-d array.
    max_norm: Their maximum norm, a number or a 0-d array; ``None`` for no limit.
    skip_nonfinite: If true, the scale is NaN if the norm is not finite.

Returns:
    min(max_norm / (norm + 1e-6), 1), 0-d, in the dtype of ``norm``.

Raises:
    ValueError: ``max_norm`` is a negative number.)");
  m.def(
      "begin_scale",
      mlx_opt::begin_scale,
      "scale"_a,
      "Queues a scale on its GPU if the gradients that it depends on are evaluated or queued.");
  m.def(
      "orthogonalized",
      [](const std::vector<mlx_opt::mx::array>& matrices,
         const std::vector<double>& scales,
         const mlx_opt::Coefficients& coefficients,
         int steps,
         const std::optional<mlx_opt::mx::Dtype>& dtype,
         size_t stack) {
        return mlx_opt::orthogonalized(matrices, scales, coefficients, steps, dtype, stack);
      },
      "matrices"_a,
      "scales"_a,
      "coefficients"_a,
      "steps"_a,
      "dtype"_a.none(),
      "stack"_a,
      R"(An approximation of U V^T for each matrix U S V^T, times its scale.

Matrices of the same shape (or its transpose) and scale are processed together.

Args:
    matrices: Of any shapes, float32, float16 or bfloat16.
    scales: One for each matrix.
    coefficients: (a, b, c) for each iteration; further iterations repeat the last.
    steps: The number of iterations.
    dtype: Of the products; ``None`` for bfloat16 if the matrix is bfloat16, else float32.
    stack: The maximum number of elements of a stack, unless one matrix has more.

Returns:
    Arrays of the matrices' shapes and dtypes.)");
  m.def(
      "available",
      [] { return mlx_opt::available(mlx_opt::mx::default_device()); },
      "True if this build runs the rules on MLX's default device.");
  m.def(
      "gpu_problem",
      [] {
        const auto& [backend, reason] = mlx_opt::gpu::find_backend();
        return backend ? backend->problem() : reason;
      },
      "The reason why the rules cannot run on MLX's GPU; empty if they can.");
  m.def(
      "vector_level", mlx_opt::cpu::vector_level, "The vector instruction set in use on the CPU.");
  m.def("num_threads", mlx_opt::cpu::num_threads, "Threads that work on a step on the CPU.");
  m.def(
      "set_num_threads",
      mlx_opt::cpu::set_num_threads,
      "threads"_a,
      R"(Sets the number of threads that work on a step on the CPU.

The default is the environment variable ``MLX_OPT_NUM_THREADS``, or else the number of cores this
process may use.

Raises:
    ValueError: ``threads`` is below 1 or above 1024.)");
}
