#include "mlx_opt/api/accumulation.h"

#include <algorithm>

#include "mlx/ops.h"
#include "mlx_opt/api/errors.h"
#include "mlx_opt/api/run_step.h"
#include "mlx_opt/types/text.h"

namespace mlx_opt {
namespace {

const std::string entry = "mlx_opt.accumulated.";
const std::string calls_key = entry + "calls";
const std::string normalizer_key = entry + "normalizer";
const std::string gradients_key = entry + "gradients.";

// Adds gradients to arrays of the same names, in place where nothing else holds these; a name that
// there is not yet gets the gradient itself. SGD with a learning rate of -1 adds.
void add(NamedArrays& sums, NamedArrays& gradients, mx::StreamOrDevice s) {
  const Program program(Rule::SGD, false, nullptr, Formats()); // the sums keep their dtypes
  std::vector<Leaf> leaves;
  for (auto& [name, gradient] : gradients) {
    const auto sum = sums.find(name);
    if (sum != sums.end()) {
      leaves.push_back({&sum->second, &gradient, nullptr});
    }
  }
  if (!leaves.empty()) {
    const GroupScalars scalars{definition(SGD{}).hypers, mx::array(-1.0f), mx::array(0)};
    run_step({{&program, {scalars}, std::move(leaves)}}, std::nullopt, {}, s);
  }
  sums.insert(gradients.begin(), gradients.end());
}

std::optional<mx::array> normalizer_after(
    const PendingGradients& pending, std::optional<double> normalizer, mx::StreamOrDevice s) {
  if (pending.calls > 0 && normalizer.has_value() != pending.normalizer.has_value()) {
    reject("normalizer: it must be given for all gradients that are added, or for none");
  }
  if (!normalizer) {
    return std::nullopt;
  }
  if (!(*normalizer >= 0.0)) {
    reject("normalizer: expected 0 or more");
  }
  const mx::array number(static_cast<float>(*normalizer));
  return pending.normalizer ? mx::add(*pending.normalizer, number, s) : number;
}

// The means in the dtypes of the gradients, or of parameters without one, if a sum has another: the
// dtypes of a step's results depend on these.
void narrow(
    Total& total,
    const NamedArrays& gradients,
    const NamedArrays& parameters,
    mx::StreamOrDevice s) {
  const auto dtype_for = [&](const std::string& name, const mx::array& sum) {
    for (const NamedArrays* arrays : {&gradients, &parameters}) {
      if (const auto found = arrays->find(name); found != arrays->end()) {
        return found->second.dtype();
      }
    }
    return sum.dtype();
  };
  const bool is_wider =
      std::any_of(total.gradients.begin(), total.gradients.end(), [&](const auto& sum) {
        return sum.second.dtype() != dtype_for(sum.first, sum.second);
      });
  if (!is_wider || !total.divisor) {
    return;
  }
  const mx::array scale = mx::reciprocal(*total.divisor, s);
  for (auto& [name, x] : total.gradients) {
    x = mx::astype(mx::multiply(x, scale, s), dtype_for(name, x), s);
  }
  total.divisor = std::nullopt;
}

} // namespace

void add(
    PendingGradients& pending,
    NamedArrays gradients,
    std::optional<double> normalizer,
    mx::StreamOrDevice s) {
  auto sum = normalizer_after(pending, normalizer, s);
  add(pending.gradients, gradients, s);
  pending.normalizer = std::move(sum);
  ++pending.calls;
}

Total total_of(
    const PendingGradients& pending,
    NamedArrays gradients,
    const NamedArrays& parameters,
    std::optional<double> normalizer,
    mx::StreamOrDevice s) {
  Total total{pending.gradients, normalizer_after(pending, normalizer, s)};
  if (total.divisor) {
    const mx::array& n = *total.divisor;
    total.divisor = mx::where(mx::equal(n, mx::array(0.0f), s), mx::array(1.0f), n, s);
  } else if (pending.calls > 0) {
    total.divisor = mx::array(static_cast<float>(pending.calls + 1));
  }
  // The pending arrays are held, so that the sums are new ones.
  add(total.gradients, gradients, s);
  narrow(total, gradients, parameters, s);
  return total;
}

void write_state(const PendingGradients& pending, NamedArrays& state) {
  if (pending.calls == 0) {
    return;
  }
  const auto nothing = [](int size) { return mx::zeros({size}, mx::uint8); };
  state.emplace(calls_key, nothing(static_cast<int>(pending.calls)));
  state.emplace(normalizer_key, pending.normalizer ? *pending.normalizer : nothing(0));
  for (const auto& [name, gradient] : pending.gradients) {
    state.emplace(gradients_key + name, gradient);
  }
}

PendingGradients take_pending(NamedArrays& state) {
  const auto refuse = [](const std::string& key, const mx::array& given, const char* expected) {
    reject(
        "the state's \"" + key + "\" must be " + expected + ", got " + dtype_text(given.dtype()) +
        " of shape " + shape_text(given.shape()));
  };
  PendingGradients pending;
  if (auto calls = state.extract(calls_key); !calls.empty()) {
    if (calls.mapped().ndim() != 1) {
      refuse(calls_key, calls.mapped(), "an array of as many elements as calls");
    }
    pending.calls = calls.mapped().size();
  }
  if (auto sum = state.extract(normalizer_key); !sum.empty() && sum.mapped().size() > 0) {
    if (sum.mapped().ndim() > 0 || sum.mapped().dtype() == mx::complex64) {
      refuse(normalizer_key, sum.mapped(), "one real number");
    }
    pending.normalizer = mx::astype(sum.mapped(), mx::float32, mx::Device::cpu);
  }
  for (auto it = state.lower_bound(gradients_key);
       it != state.end() && it->first.starts_with(gradients_key);) {
    // Between two rounds Python leaves arrays of size 0.
    if (it->second.size() > 0) {
      if (pending.calls == 0) {
        reject("the state has \"" + it->first + "\", but no call in \"" + calls_key + "\"");
      }
      pending.gradients.emplace(it->first.substr(gradients_key.size()), it->second);
    }
    it = state.erase(it);
  }
  return pending;
}

} // namespace mlx_opt
