// The descriptions of all rules, by rule and by name.
#pragma once

#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "mlx_opt/rules/describe.h"
#include "mlx_opt/rules/list.h"
#include "mlx_opt/types/export.h"

namespace mlx_opt {

MLX_OPT_API const Description& description_of(Rule rule);
MLX_OPT_API std::string_view name_of(Rule rule);
MLX_OPT_API std::optional<Rule> find_rule(std::string_view name);

/// The names of all optimizers that the rules serve.
MLX_OPT_API std::vector<std::string_view> all_optimizers();

/// The rules that serve an optimizer, in the order in which their conditions are checked.
MLX_OPT_API std::span<const Rule> rules_of(std::string_view optimizer);

MLX_OPT_API std::span<const HyperInfo> hypers_of(Rule rule);
MLX_OPT_API std::span<const SlotInfo> slots_of(Rule rule);
MLX_OPT_API std::span<const Condition> conditions_of(Rule rule);

/// Index of a hyperparameter among the rule's. Throws std::logic_error if the rule has no such one.
MLX_OPT_API size_t position_of(Rule rule, std::string_view hyper);

} // namespace mlx_opt
