#include "mlx_opt/api/assignment.h"

#include <fnmatch.h>

#include <algorithm>
#include <cctype>
#include <set>

#include "mlx_opt/api/errors.h"
#include "mlx_opt/step/kept.h"

namespace mlx_opt {
namespace {

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
  const std::string& name = group.name;
  if (!name.empty() &&
      (!std::isalpha(static_cast<unsigned char>(name[0])) || name.find('.') != std::string::npos)) {
    reject("a group's name must begin with a letter and have no dots, got \"" + name + "\"");
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

// The names of the groups that change a number which the rule keeps. If that depends on sums over
// all tensors, each group with a name has numbers of its own.
std::string kept_key(const std::vector<const Group*>& groups, Rule rule) {
  const auto inputs = kept_inputs(rule);
  std::set<std::string> seen; // of the inputs
  std::string key;
  for (const Group* group : groups) {
    bool changes = sums_over_all(rule) && !group->name.empty();
    for (const std::string_view input : inputs) {
      const std::string name(input);
      changes |= group->hypers.contains(name) && seen.insert(name).second;
    }
    if (changes && group->name.empty()) {
      reject(std::string("a group that changes ") + kept_by(rule)[0].name + " needs a name");
    }
    if (changes) {
      key += (key.empty() ? "" : "+") + group->name;
    }
  }
  return key;
}

// The greatest learning rate is scaled as the learning rate is.
void scale_greatest_rate(Definition& definition, double scale) {
  const auto hypers = hypers_of(definition.program.rule());
  for (size_t i = 0; i < hypers.size(); ++i) {
    if (std::string_view(hypers[i].name) == "max_learning_rate") {
      definition.hypers[i] = std::get<double>(definition.hypers[i]) * scale;
    }
  }
}

// The first of the groups that has a value gives it.
Combination combine(
    const std::vector<const Group*>& groups,
    const Hyperparameters& hypers,
    const Options& options) {
  std::map<std::string, double> values;
  std::optional<double> rate, scale;
  std::vector<int> split;
  std::optional<Options> own_options;
  bool frozen = false;
  for (const Group* group : groups) {
    own_options = own_options ? own_options : group->options;
    values.insert(group->hypers.begin(), group->hypers.end());
    rate = rate ? rate : group->learning_rate;
    scale = scale ? scale : group->learning_rate_scale;
    frozen |= group->frozen;
    split = split.empty() ? group->split : split;
  }
  Combination combination{definition(hypers, values, own_options.value_or(options)), std::nullopt};
  combination.kept_key = kept_key(groups, combination.definition.program.rule());
  if (scale && !combination.definition.uses_learning_rate) {
    reject("a group has a learning_rate_scale, but its step does not read the learning rate");
  }
  combination.learning_rate = rate ? std::optional(static_cast<float>(*rate)) : std::nullopt;
  combination.rate_scale = static_cast<float>(scale.value_or(1.0));
  if (!values.contains("max_learning_rate")) {
    scale_greatest_rate(combination.definition, combination.rate_scale);
  }
  combination.frozen = frozen;
  if (!split.empty() && !std::holds_alternative<Muon>(hypers)) {
    reject("a group has a split, which only Muon has");
  }
  combination.split = std::move(split);
  return combination;
}

} // namespace

Assignment assign(
    const std::vector<std::string>& names,
    const Hyperparameters& hypers,
    const std::vector<Group>& groups,
    const Options& options) {
  for (const Group& group : groups) {
    check(group, names);
  }
  Assignment assignment{{{definition(hypers, {}, options), std::nullopt}}, {}};
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
      assignment.combinations.push_back(combine(matching, hypers, options));
    }
    assignment.of_names.emplace(name, entry->second);
  }
  return assignment;
}

} // namespace mlx_opt
