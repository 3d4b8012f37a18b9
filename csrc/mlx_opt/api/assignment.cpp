#include "mlx_opt/api/assignment.h"

#include <fnmatch.h>

#include <algorithm>
#include <stdexcept>

#include "mlx_opt/step/kept.h"

namespace mlx_opt {
namespace {

[[noreturn]] void reject(const std::string& what) {
  throw std::invalid_argument("mlx_opt: " + what);
}

bool matches(const std::string& pattern, const std::string& name) {
  return fnmatch(pattern.c_str(), name.c_str(), FNM_NOESCAPE) == 0;
}

bool matches(const Group& group, const std::string& name) {
  return std::any_of(group.match.begin(), group.match.end(), [&](const std::string& pattern) {
    return matches(pattern, name);
  });
}

void check(const Group& group, const std::vector<std::string>& names) {
  if (group.match.empty()) {
    reject("a group has no pattern to match");
  }
  if (!(group.learning_rate_scale.value_or(1.0) >= 0.0)) {
    reject("a group's learning_rate_scale must be 0 or more");
  }
  for (const std::string& pattern : group.match) {
    const bool found = std::any_of(names.begin(), names.end(), [&](const std::string& name) {
      return matches(pattern, name);
    });
    if (!found && !group.may_match_nothing) {
      reject("the pattern \"" + pattern + "\" of a group matches no parameter");
    }
  }
}

// The numbers that a rule keeps are of all parameters.
void check_kept(const Definition& own, const Definition& base) {
  const auto kept = kept_by(base.program.rule());
  const mx::array rate(1.0f), step(std::uint64_t{2});
  const auto next = [&](const Definition& definition) {
    return next_kept(definition.program.rule(), definition.hypers, rate, step, mx::Device::cpu);
  };
  const Arrays of_own = next(own), of_base = next(base);
  for (size_t i = 0; i < kept.size(); ++i) {
    if (mx::array(of_own[i]).item<float>() != mx::array(of_base[i]).item<float>()) {
      reject(std::string("a group cannot change ") + kept[i].name + ", which the optimizer keeps");
    }
  }
}

// The first of the groups that has a value gives it.
Combination combine(
    const std::vector<const Group*>& groups,
    const Hyperparameters& hypers,
    const Definition& base) {
  std::map<std::string, double> values;
  std::optional<double> rate, scale;
  bool frozen = false;
  for (const Group* group : groups) {
    values.insert(group->hypers.begin(), group->hypers.end());
    rate = rate ? rate : group->learning_rate;
    scale = scale ? scale : group->learning_rate_scale;
    frozen |= group->frozen;
  }
  Combination combination{definition(hypers, values), std::nullopt};
  check_kept(combination.definition, base);
  if (scale && !combination.definition.uses_learning_rate) {
    reject("a group has a learning_rate_scale, but its step does not read the learning rate");
  }
  combination.learning_rate = rate ? std::optional(static_cast<float>(*rate)) : std::nullopt;
  combination.rate_scale = static_cast<float>(scale.value_or(1.0));
  combination.frozen = frozen;
  return combination;
}

} // namespace

Assignment assign(
    const std::vector<std::string>& names,
    const Hyperparameters& hypers,
    const std::vector<Group>& groups) {
  for (const Group& group : groups) {
    check(group, names);
  }
  const Definition base = definition(hypers);
  Assignment assignment{{{base, std::nullopt}}, {}};
  std::map<std::vector<const Group*>, size_t> known = {{{}, 0}};
  for (const std::string& name : names) {
    std::vector<const Group*> matching;
    for (const Group& group : groups) {
      if (matches(group, name)) {
        matching.push_back(&group);
      }
    }
    const auto [entry, is_new] = known.emplace(matching, assignment.combinations.size());
    if (is_new) {
      assignment.combinations.push_back(combine(matching, hypers, base));
    }
    assignment.of_names.emplace(name, entry->second);
  }
  return assignment;
}

} // namespace mlx_opt
