// mlx_opt._ext: what Python sees of libmlx_opt.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "bindings/batch.h"
#include "bindings/tree.h"
#include "mlx_opt/algorithms/newton_schulz.h"
#include "mlx_opt/backend/cpu/kernels/kernel.h"
#include "mlx_opt/backend/cpu/pool.h"
#include "mlx_opt/backend/find.h"
#include "mlx_opt/graph/clip_scale.h"
#include "mlx_opt/graph/norm.h"
#include "mlx_opt/rules/registry.h"
#include "mlx_opt/types/layout.h"

namespace nb = nanobind;
using namespace nb::literals;
using mlx_opt::python::Batch;

namespace {

std::vector<std::string> rules() {
  std::vector<std::string> names;
  for (const auto& rule : mlx_opt::rule_infos) {
    names.emplace_back(rule.name);
  }
  return names;
}

std::optional<mlx_opt::GradientScale> gradient_scale(
    const std::optional<mlx_opt::mx::array>& scale, bool skip_nonfinite) {
  if (!scale) {
    return std::nullopt;
  }
  return mlx_opt::GradientScale{*scale, skip_nonfinite};
}

// A method of Batch as Python calls it.
template <auto Method>
constexpr auto with_formula = [](Batch& self,
                                 const std::string& rule,
                                 const std::vector<mlx_opt::Scalar>& hypers,
                                 const mlx_opt::mx::array& learning_rate,
                                 mlx_opt::mx::array& step,
                                 nb::handle formula,
                                 const std::optional<mlx_opt::mx::array>& scale,
                                 bool skip_nonfinite) {
  return (self.*Method)(
      rule, {hypers, learning_rate, step, gradient_scale(scale, skip_nonfinite)}, formula);
};

// Whether all leaves are arrays of a storage dtype; puts them into `leaves`.
bool collect(nb::handle tree, std::vector<mlx_opt::mx::array>& leaves) {
  using namespace mlx_opt::python;
  if (!is_container(tree)) {
    if (!is_array(tree) || !mlx_opt::is_storage(array_of(tree).dtype())) {
      return false;
    }
    leaves.push_back(array_of(tree));
    return true;
  }
  const Recursion recursion;
  bool all = true;
  for_each_item(tree, [&](nb::object, nb::handle child) { all = all && collect(child, leaves); });
  return all;
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

  nb::class_<Batch>(
      m,
      "Batch",
      R"(The leaves of a tree of gradients with their parameters and states.

Building one checks the trees and changes nothing.

Args:
    gradients: A tree of arrays.
    parameters: A tree that has a leaf of the same shape for each gradient.
    state: A tree that has a dict of arrays of that shape for each gradient.
    moments: The names of those arrays, in the rule's order.
    initialized: Whether every leaf must have state.
    factored: Where it is not empty, the names of the two arrays that stand for the first of
        ``moments`` where a parameter has two dimensions or more: of its shape without the last
        dimension, and of its shape without the last but one.

Raises:
    KeyError: A gradient has no parameter or no state.
    TypeError: A gradient or a parameter is not an array.
    ValueError: The shapes of a leaf differ.)")
      .def(
          nb::init<
              nb::object,
              nb::handle,
              nb::handle,
              std::vector<nb::str>,
              bool,
              std::vector<nb::str>>(),
          "gradients"_a,
          "parameters"_a,
          "state"_a.none(),
          "moments"_a,
          "initialized"_a = true,
          "factored"_a = std::vector<nb::str>{})
      .def(
          "update_in_place",
          [](Batch& self,
             const std::string& rule,
             const std::vector<mlx_opt::Scalar>& hypers,
             const mlx_opt::mx::array& learning_rate,
             mlx_opt::mx::array& step,
             const std::optional<mlx_opt::mx::array>& scale,
             bool skip_nonfinite) {
            return self.update_in_place(
                rule, {hypers, learning_rate, step, gradient_scale(scale, skip_nonfinite)});
          },
          "rule"_a,
          "hypers"_a,
          "learning_rate"_a,
          "step"_a,
          "scale"_a = nb::none(),
          "skip_nonfinite"_a = false,
          R"(Runs one step of a rule at once, if nobody can tell.

Overwrites the parameters and moments if all operands are evaluated and nothing but their trees
refers to a parameter, a moment or its buffer. The Python objects remain the same.

Args:
    rule: A name from :func:`rules`; not looked at where there are ``factored`` names, whose rule is
        Adafactor.
    hypers: Its hyperparameters in order, each a number or a 0-d array.
    learning_rate: A 0-d array.
    step: The number of this step, from 1, a 0-d array. May be left an equal, lazy one.
    scale: As for :meth:`update`.
    skip_nonfinite: As for :meth:`update`.

Returns:
    Whether it ran. If not, nothing has changed and :meth:`update` serves.)")
      .def(
          "update",
          with_formula<&Batch::update>,
          "rule"_a,
          "hypers"_a,
          "learning_rate"_a,
          "step"_a,
          "formula"_a,
          "scale"_a = nb::none(),
          "skip_nonfinite"_a = false,
          R"(Runs one step of a rule, lazily.

Puts the new moments into the state given to the constructor.

Args:
    rule: As for :meth:`update_in_place`.
    hypers: Its hyperparameters in order, each a number or a 0-d array.
    learning_rate: A 0-d array.
    step: The number of this step, from 1, a 0-d array.
    formula: Called as ``formula(gradient, parameter, state)`` for leaves that the primitives do
        not serve: other dtypes, other devices, and under a gradient transformation. It has to
        see to ``scale`` itself.
    scale: A 0-d array that each gradient is multiplied with in float32 before the rule sees it.
    skip_nonfinite: Whether the step is not taken where ``scale`` is not finite.

Returns:
    The tree of new parameters, with the structure of the gradients.)")
      .def(
          "assign",
          with_formula<&Batch::assign>,
          "rule"_a,
          "hypers"_a,
          "learning_rate"_a,
          "step"_a,
          "formula"_a,
          "scale"_a = nb::none(),
          "skip_nonfinite"_a = false,
          "As :meth:`update`, but puts the new parameters into the tree of the old ones.");

  m.def(
      "global_norm",
      global_norm,
      "tree"_a,
      R"(The square root of the sum of the squares of all elements of a tree's arrays, in float32.

Returns:
    A 0-d array, or ``None`` where a leaf is not an array of float32, float16 or bfloat16.)");
  m.def(
      "gradient_scale",
      gradient_scale_of,
      "norm"_a,
      "max_norm"_a.none(),
      "skip_nonfinite"_a = false,
      R"(What gradients of a global norm are multiplied with.

Args:
    norm: A 0-d array.
    max_norm: The greatest norm they may have, a number or a 0-d array; ``None`` for any.
    skip_nonfinite: Whether the scale is NaN where the norm is not finite.

Returns:
    min(max_norm / (norm + 1e-6), 1), 0-d, of the dtype of ``norm``.

Raises:
    ValueError: ``max_norm`` is a negative number.)");
  m.def(
      "begin_scale",
      mlx_opt::begin_scale,
      "scale"_a,
      "Queues a scale on its GPU where the gradients that it is made of are evaluated or queued.");
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
      R"(U V^T of each matrix U S V^T, roughly, times its scale.

Those of one shape, or of one shape transposed, and of one scale go through together.

Args:
    matrices: Of any shapes, float32, float16 or bfloat16.
    scales: One a matrix.
    coefficients: (a, b, c) of each iteration, of which the last stays.
    steps: Their number.
    dtype: Of the products; ``None`` for bfloat16 where the matrix is that, else float32.
    stack: The most elements that go through together, but for one matrix.

Returns:
    Arrays of the matrices' shapes and dtypes.)");
  m.attr("STACK_ELEMENTS") = mlx_opt::stack_elements;
  m.def(
      "coefficients",
      [] {
        return std::vector<std::pair<std::string, mlx_opt::Coefficients>>{
            {"quintic", mlx_opt::quintic()}, {"polar_express", mlx_opt::polar_express()}};
      },
      "The sets of coefficients of :func:`orthogonalized`, each with its name.");
  m.def("rules", rules, "The names of all rules.");
  m.def(
      "available",
      [] { return mlx_opt::available(mlx_opt::mx::default_device()); },
      "Whether this build runs the rules on MLX's default device.");
  m.def(
      "gpu_problem",
      [] {
        const auto& [backend, reason] = mlx_opt::gpu::find_backend();
        return backend ? backend->problem() : reason;
      },
      "What keeps the rules from running on MLX's GPU; empty if nothing does.");
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
