#include "mlx_opt/step/kept.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "mlx/ops.h"

namespace mlx_opt {
namespace {

template <typename R>
concept Keeps = requires(typename R::template Numbers<float> numbers) { R::next(numbers, 1.0f); };

// True if the description and the rule agree on whether it keeps a number.
template <typename R>
constexpr bool keeps_the_last() {
  size_t kept = 0;
  bool last = false;
  for (const HyperInfo& hyper : R::description.hypers) {
    kept += hyper.kept;
    last = hyper.name ? hyper.kept : last;
  }
  return Keeps<R> ? kept == 1 && last : kept == 0;
}

#define MLX_OPT_CHECK_KEPT(name) static_assert(keeps_the_last<MLX_OPT_LEVEL::name>());
MLX_OPT_FOR_EACH_RULE(MLX_OPT_CHECK_KEPT)
MLX_OPT_FOR_EACH_TWO_PASS_RULE(MLX_OPT_CHECK_KEPT)
MLX_OPT_FOR_EACH_TENSOR_RULE(MLX_OPT_CHECK_KEPT)
#undef MLX_OPT_CHECK_KEPT

// The number in a step. `hypers`: in the rule's order, as numbers or as nodes of a graph.
template <typename R, typename Number>
Number next_of(const std::vector<Number>& hypers, const Number& step) {
  constexpr size_t count = sizeof(typename R::Hypers) / sizeof(MLX_OPT_LEVEL::Hyper);
  return [&]<size_t... i>(std::index_sequence<i...>) {
    return R::next(typename R::template Numbers<Number>{hypers.at(i)...}, step);
  }(std::make_index_sequence<count>());
}

template <typename Number>
Number next_of(Rule rule, const std::vector<Number>& hypers, const Number& step) {
#define MLX_OPT_NEXT(name)                               \
  if constexpr (Keeps<MLX_OPT_LEVEL::name>) {            \
    if (rule == Rule::name) {                            \
      return next_of<MLX_OPT_LEVEL::name>(hypers, step); \
    }                                                    \
  }
  MLX_OPT_FOR_EACH_RULE(MLX_OPT_NEXT)
  MLX_OPT_FOR_EACH_TWO_PASS_RULE(MLX_OPT_NEXT)
#undef MLX_OPT_NEXT
  throw std::logic_error("mlx_opt: a rule that keeps no number was asked for it");
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

const HyperInfo* kept_by(Rule rule) {
  const HyperInfo* last = hypers_of(rule).empty() ? nullptr : &hypers_of(rule).back();
  return last && last->kept ? last : nullptr;
}

std::vector<std::string_view> kept_inputs(Rule rule) {
  std::vector<std::string_view> names;
  if (!kept_by(rule)) {
    return names;
  }
  const auto infos = hypers_of(rule);
  const std::vector<float> usual(infos.size(), 0.5f);
  for (size_t i = 0; i + 1 < infos.size(); ++i) {
    auto changed = usual;
    changed[i] = 0.25f;
    if (next_of(rule, changed, 2.0f) != next_of(rule, usual, 2.0f)) {
      names.emplace_back(infos[i].name);
    }
  }
  return names;
}

std::optional<mx::array> next_kept(
    Rule rule, const std::vector<Scalar>& hypers, const mx::array& step, mx::StreamOrDevice s) {
  if (!kept_by(rule)) {
    return std::nullopt;
  }
  const mx::Stream stream = mx::to_stream(s);
  if (stream.device == mx::Device::cpu) {
    std::vector<float> values;
    for (const Scalar& hyper : hypers) {
      if (const auto value = value_of(hyper)) {
        values.push_back(*value);
      }
    }
    const auto number = value_of<uint64_t>(step, mx::uint64);
    if (number && values.size() == hypers.size()) {
      return mx::array(next_of(rule, values, *number));
    }
  }
  const mx::StreamContext context(stream);
  std::vector<mx::array> nodes;
  std::transform(hypers.begin(), hypers.end(), std::back_inserter(nodes), node_of);
  return next_of(rule, nodes, node_of(step));
}

} // namespace mlx_opt
