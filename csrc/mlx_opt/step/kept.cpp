#include "mlx_opt/step/kept.h"
#include "mlx_opt/rules/registry.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "mlx/ops.h"

namespace mlx_opt {
namespace {

template <typename R>
concept Keeps = requires { typename R::template Kept<float>; };

// True for a rule that sums over all tensors; those of one tensor are no template.
template <typename R>
concept SumsOverAll = requires { typename R::template Sums<float>; };

template <typename R>
constexpr size_t count_of_kept() {
  if constexpr (Keeps<R>) {
    return sizeof(typename R::template Kept<float>) / sizeof(float);
  } else {
    return 0;
  }
}

// True if the description and the rule agree on the numbers that it keeps.
template <typename R>
constexpr bool keeps_the_last() {
  size_t hypers = 0, kept = 0, last = 0; // last: of those at the end that are kept
  for (const HyperInfo& hyper : R::description.hypers) {
    hypers += hyper.name != nullptr;
    kept += hyper.kept;
    last = hyper.kept ? last + 1 : hyper.name ? 0 : last;
  }
  return kept == count_of_kept<R>() && last == kept;
}

#define MLX_OPT_CHECK_KEPT(name) static_assert(keeps_the_last<MLX_OPT_LEVEL::name>());
MLX_OPT_FOR_EACH_RULE(MLX_OPT_CHECK_KEPT)
MLX_OPT_FOR_EACH_TWO_PASS_RULE(MLX_OPT_CHECK_KEPT)
MLX_OPT_FOR_EACH_TENSOR_RULE(MLX_OPT_CHECK_KEPT)
#undef MLX_OPT_CHECK_KEPT

// A struct of numbers.
template <typename Struct, typename Number>
Struct made_of(const std::vector<Number>& numbers) {
  return [&]<size_t... i>(std::index_sequence<i...>) {
    return Struct{numbers.at(i)...};
  }(std::make_index_sequence<sizeof(Struct) / sizeof(Number)>());
}

// The numbers in a step. `hypers`: in the rule's order, as numbers or as nodes of a graph.
template <typename R, typename Number>
std::vector<Number> next_of(
    const std::vector<Number>& hypers,
    const Number& learning_rate,
    const Number& step,
    const std::vector<Number>& sums) {
  using Kept = typename R::template Kept<Number>;
  const auto numbers = made_of<typename R::template Numbers<Number>>(hypers);
  const Kept kept = [&] {
    if constexpr (SumsOverAll<R>) {
      return R::next(
          numbers, made_of<typename R::template Sums<Number>>(sums), learning_rate, step);
    } else {
      return R::next(numbers, learning_rate, step);
    }
  }();
  static_assert(sizeof kept == count_of_kept<R>() * sizeof(Number));
  const auto* first = reinterpret_cast<const Number*>(&kept);
  return {first, first + count_of_kept<R>()};
}

template <typename Number>
std::vector<Number> next_of(
    Rule rule,
    const std::vector<Number>& hypers,
    const Number& learning_rate,
    const Number& step,
    const std::vector<Number>& sums) {
#define MLX_OPT_NEXT(name)                                                    \
  if constexpr (Keeps<MLX_OPT_LEVEL::name>) {                                 \
    if (rule == Rule::name) {                                                 \
      return next_of<MLX_OPT_LEVEL::name>(hypers, learning_rate, step, sums); \
    }                                                                         \
  }
  MLX_OPT_FOR_EACH_RULE(MLX_OPT_NEXT)
  MLX_OPT_FOR_EACH_TWO_PASS_RULE(MLX_OPT_NEXT)
#undef MLX_OPT_NEXT
  return {};
}

template <typename T>
std::optional<float> value_of(const mx::array& x, mx::Dtype dtype) {
  if (x.dtype() != dtype || x.size() != 1 || !is_evaluated(x)) {
    return std::nullopt;
  }
  return static_cast<float>(*x.data<T>());
}

std::optional<float> value_of(const Scalar& x) {
  const auto* number = std::get_if<double>(&x);
  return number ? static_cast<float>(*number)
                : value_of<float>(std::get<mx::array>(x), mx::float32);
}

// An array that is not a scalar is passed on; `check` refuses it by name.
mx::array node_of(const Scalar& x) {
  if (const auto* number = std::get_if<double>(&x)) {
    return mx::array(static_cast<float>(*number));
  }
  const mx::array node = mx::astype(std::get<mx::array>(x), mx::float32);
  return node.size() == 1 ? mx::reshape(node, {}) : node;
}

} // namespace

std::span<const HyperInfo> kept_by(Rule rule) {
  const auto hypers = hypers_of(rule);
  const auto first =
      std::find_if(hypers.begin(), hypers.end(), [](const HyperInfo& x) { return x.kept; });
  return hypers.subspan(first - hypers.begin());
}

std::vector<std::string_view> kept_inputs(Rule rule) {
  const auto infos = hypers_of(rule);
  const std::vector<float> usual(infos.size(), 3.0f);
  const std::vector<float> sums = {70.0f, 7.0f};
  const auto next = [&](const std::vector<float>& hypers) {
    return next_of(rule, hypers, 8.0f, 2.0f, sums);
  };
  std::vector<std::string_view> names;
  for (size_t i = 0; i < infos.size() - kept_by(rule).size(); ++i) {
    auto more = usual, less = usual;
    more[i] = 5.0f;
    less[i] = 0.25f;
    if (next(more) != next(usual) || next(less) != next(usual)) {
      names.emplace_back(infos[i].name);
    }
  }
  return names;
}

Arrays next_kept(
    Rule rule,
    const std::vector<Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    const Arrays& sums,
    mx::StreamOrDevice s) {
  if (kept_by(rule).empty()) {
    return {};
  }
  const mx::Stream stream = mx::to_stream(s);
  if (stream.device == mx::Device::cpu) {
    std::vector<float> values, totals;
    for (const Scalar& hyper : hypers) {
      if (const auto value = value_of(hyper)) {
        values.push_back(*value);
      }
    }
    for (const mx::array& sum : sums) {
      if (const auto value = value_of<float>(sum, mx::float32)) {
        totals.push_back(*value);
      }
    }
    const auto rate = value_of<float>(learning_rate, mx::float32);
    const auto number = value_of<uint64_t>(step, mx::uint64);
    if (rate && number && values.size() == hypers.size() && totals.size() == sums.size()) {
      const std::vector<float> next = next_of<float>(rule, values, *rate, *number, totals);
      return {next.begin(), next.end()};
    }
  }
  const mx::StreamContext context(stream);
  std::vector<mx::array> nodes;
  std::transform(hypers.begin(), hypers.end(), std::back_inserter(nodes), node_of);
  return next_of(rule, nodes, node_of(learning_rate), node_of(step), sums);
}

} // namespace mlx_opt
