#include "bindings/bind_rules.h"

#include <algorithm>

#include <nanobind/stl/array.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/scalars.h"
#include "mlx_opt/algorithms/muon.h"
#include "mlx_opt/step/kept.h"

namespace mlx_opt::python {
namespace {

using namespace nb::literals;

// Every step calls this, and most rules keep no number, so the list is read only for those that do.
nb::dict next_kept(
    const Program& program,
    nb::list hypers,
    nb::handle learning_rate,
    nb::handle step,
    const std::vector<mx::array>& sums) {
  nb::dict kept;
  const Rule rule = program.rule();
  const auto infos = kept_by(rule);
  if (!infos.empty()) {
    const auto values = nb::cast<std::vector<nb::object>>(hypers);
    const GroupScalars scalars = scalars_from(program, values, learning_rate, step_from(step));
    const Arrays next =
        mlx_opt::next_kept(rule, scalars.hypers, scalars.learning_rate, scalars.step, sums);
    for (size_t i = 0; i < infos.size(); ++i) {
      kept[infos[i].name] = next[i];
    }
  }
  return kept;
}

MasterWeights masters_from(const std::optional<std::string>& name) {
  if (!name) {
    return MasterWeights::none;
  }
  if (*name == "float32") {
    return MasterWeights::float32;
  }
  if (*name == "remainder") {
    return MasterWeights::remainder;
  }
  throw nb::value_error(("there are no master weights \"" + *name + "\"").c_str());
}

using FormatNames = std::optional<std::map<std::string, std::string>>;

std::optional<Formats> formats_from(const FormatNames& names) {
  if (!names) {
    return std::nullopt;
  }
  Formats formats;
  for (const auto& [slot, name] : *names) {
    const auto found = std::find(std::begin(format_names), std::end(format_names), name);
    if (found == std::end(format_names)) {
      throw nb::value_error(("there is no format \"" + name + "\"").c_str());
    }
    formats[slot] = static_cast<Format>(found - std::begin(format_names));
  }
  return formats;
}

Program with_storage(
    const Program& program,
    const std::optional<std::string>& masters,
    std::optional<uint64_t> rounding_seed) {
  const Program with_masters = program.with(masters_from(masters));
  return rounding_seed ? with_masters.with_rounding(*rounding_seed) : with_masters;
}

Program program(
    const std::string& rule,
    bool with_options,
    const FormatNames& formats,
    const std::optional<std::string>& masters,
    std::optional<uint64_t> rounding_seed) {
  if (const auto found = find_rule(rule)) {
    const Program program(*found, with_options, nullptr, formats_from(formats));
    return with_storage(program, masters, rounding_seed);
  }
  throw nb::value_error(("there is no rule \"" + rule + "\"").c_str());
}

Program muon(
    const std::string& rule,
    int steps,
    std::optional<mx::Dtype> dtype,
    const Coefficients& coefficients,
    const std::string& adjust_lr,
    int equalize,
    int normalize,
    bool hyperball,
    size_t stack,
    const FormatNames& formats,
    const std::optional<std::string>& masters,
    std::optional<uint64_t> rounding_seed) {
  Muon options;
  options.ns_steps = steps;
  options.ns_dtype = dtype;
  options.ns_coefficients = coefficients;
  options.adjust_lr = adjust_lr == "original" ? AdjustLr::original : AdjustLr::match_rms_adamw;
  options.equalize = static_cast<Equalize>(equalize);
  options.normalize = static_cast<Normalize>(normalize);
  options.hyperball = hyperball;
  options.normuon = rule == name_of(Rule::NorMuon);
  options.adamuon = rule == name_of(Rule::AdaMuon);
  const Program program = muon_program(options, stack, formats_from(formats));
  return with_storage(program, masters, rounding_seed);
}

} // namespace

void bind_rules(nb::module_& m) {
  nb::class_<Program>(m, "Program", "A rule with its options settled.")
      .def_prop_ro(
          "rule", [](const Program& program) { return std::string(name_of(program.rule())); })
      .def(
          "with_ema",
          &Program::with_ema,
          "The same program with an average of each parameter's weights, in the slot ``ema``; the "
          "last hyperparameter is then 1 minus its decay.");
  m.def(
      "program",
      program,
      "rule"_a,
      "with_options"_a = false,
      "formats"_a.none() = nb::none(),
      "masters"_a.none() = nb::none(),
      "rounding_seed"_a.none() = nb::none(),
      R"(The program of a rule.

Args:
    rule: Its name.
    with_options: True if optional state slots are present.
    formats: The dtypes of slots, "float32", "float16" or "bfloat16", by the slots' names. If it is
        not None, a parameter keeps its dtype.
    masters: How the weights of parameters in bfloat16 and float16 are kept: ``"float32"``,
        ``"remainder"`` (of bfloat16 only), or None.
    rounding_seed: The seed of stochastic rounding; None to round to nearest.

Raises:
    ValueError: There is no such rule or format, or no such master weights; or there are master
        weights and a seed.)");
  m.def(
      "muon_program",
      muon,
      "rule"_a,
      "steps"_a,
      "dtype"_a.none(),
      "coefficients"_a,
      "adjust_lr"_a,
      "equalize"_a,
      "normalize"_a,
      "hyperball"_a,
      "stack"_a,
      "formats"_a.none() = nb::none(),
      "masters"_a.none() = nb::none(),
      "rounding_seed"_a.none() = nb::none(),
      R"(The program of Muon or a variant with these options, which :class:`mlx_opt.Muon` explains:
``equalize`` and ``normalize`` as the numbers of their values, from 0 for None, ``stack`` as
:func:`orthogonalized` has it and ``formats``, ``masters`` and ``rounding_seed`` as :func:`program`.

Raises:
    ValueError: An option does not fit; the message names it.)");
  m.def(
      "next_kept",
      next_kept,
      "program"_a,
      "hypers"_a,
      "learning_rate"_a.none(),
      "step"_a,
      "sums"_a = std::vector<mx::array>(),
      R"(The numbers that a rule keeps from step to step, as they are in a step: 0-d arrays by name.

Args:
    program: What updates the parameters.
    hypers: Its hyperparameters in order, the last of which are these numbers as they were before.
    learning_rate: A 0-d array.
    step: The number of the step, from 1.
    sums: Of a rule that sums over all tensors, these sums, 0-d arrays.)");
}

} // namespace mlx_opt::python
