// mlx_opt._ext: what Python sees of libmlx_opt.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "bindings/batch.h"
#include "mlx_opt/backend/cpu/kernel.h"
#include "mlx_opt/backend/cpu/pool.h"
#include "mlx_opt/backend/gpu.h"

namespace nb = nanobind;
using namespace nb::literals;
using mlx_opt::python::Batch;

namespace {

mlx_opt::Rule rule_named(const std::string& name) {
  if (auto rule = mlx_opt::find_rule(name)) {
    return *rule;
  }
  throw nb::value_error(("there is no rule \"" + name + "\"").c_str());
}

std::vector<std::string> rules() {
  std::vector<std::string> names;
  for (const auto& rule : mlx_opt::rule_infos) {
    names.emplace_back(rule.name);
  }
  return names;
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

Raises:
    KeyError: A gradient has no parameter or no state.
    TypeError: A gradient or a parameter is not an array.
    ValueError: The shapes of a leaf differ.)")
      .def(
          nb::init<nb::object, nb::handle, nb::handle, std::vector<nb::str>, bool>(),
          "gradients"_a,
          "parameters"_a,
          "state"_a.none(),
          "moments"_a,
          "initialized"_a = true)
      .def(
          "update_in_place",
          [](Batch& self,
             const std::string& rule,
             const std::vector<mlx_opt::Scalar>& hypers,
             const mlx_opt::mx::array& learning_rate,
             const mlx_opt::mx::array& step) {
            return self.update_in_place(rule_named(rule), hypers, learning_rate, step);
          },
          "rule"_a,
          "hypers"_a,
          "learning_rate"_a,
          "step"_a,
          R"(Runs one step of a rule at once, if nobody can tell.

Overwrites the parameters and moments if all operands are evaluated and nothing but their trees
refers to a parameter, a moment or its buffer. The Python objects remain the same.

Args:
    rule: A name from :func:`rules`.
    hypers: Its hyperparameters in order, each a number or a 0-d array.
    learning_rate: A 0-d array.
    step: The number of this step, from 1, a 0-d array.

Returns:
    Whether it ran. If not, nothing has changed and :meth:`update` serves.)")
      .def(
          "update",
          [](Batch& self,
             const std::string& rule,
             const std::vector<mlx_opt::Scalar>& hypers,
             const mlx_opt::mx::array& learning_rate,
             const mlx_opt::mx::array& step,
             nb::handle formula) {
            return self.update(rule_named(rule), hypers, learning_rate, step, formula);
          },
          "rule"_a,
          "hypers"_a,
          "learning_rate"_a,
          "step"_a,
          "formula"_a,
          R"(Runs one step of a rule, lazily.

Puts the new moments into the state given to the constructor.

Args:
    rule: A name from :func:`rules`.
    hypers: Its hyperparameters in order, each a number or a 0-d array.
    learning_rate: A 0-d array.
    step: The number of this step, from 1, a 0-d array.
    formula: Called as ``formula(gradient, parameter, state)`` for leaves that the primitives do
        not serve: other dtypes, other devices, and under a gradient transformation.

Returns:
    The tree of new parameters, with the structure of the gradients.)");

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
