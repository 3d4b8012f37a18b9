#include "mlx_opt/api/step_leaves.h"

#include <algorithm>

#include "mlx/ops.h"
#include "mlx_opt/api/ema_rate.h"

namespace mlx_opt {
namespace {

bool is_same(const ProgramLeaves& a, const Definition& b) {
  return a.program->is_like(b.program) && a.maximize == b.maximize;
}

} // namespace

StepLeaves::StepLeaves(const Assignment& assignment) : assignment_(assignment) {
  for (const Combination& combination : assignment.combinations) {
    const Definition& definition = combination.definition;
    const auto same = std::find_if(programs_.begin(), programs_.end(), [&](const auto& other) {
      return is_same(other, definition);
    });
    const auto place = static_cast<size_t>(same - programs_.begin());
    if (same == programs_.end()) {
      programs_.push_back({&definition.program, {}, {}, definition.maximize});
      names_.emplace_back();
      groups_.push_back(0);
    }
    places_.push_back({place, groups_[place]++});
  }
}

void StepLeaves::add(size_t combination, const std::string& name, Leaf leaf) {
  const auto [place, group] = places_[combination];
  leaf.group = group;
  leaf.rounding_key = programs_[place].program->rounding_key(name);
  programs_[place].leaves.push_back(leaf);
  names_[place].push_back(&name);
}

void StepLeaves::check(mx::StreamOrDevice s) const {
  for (size_t i = 0; i < programs_.size(); ++i) {
    const auto name = [&](size_t leaf) { return *names_[i][leaf]; };
    check_leaves(*programs_[i].program, name, programs_[i].leaves, s);
  }
}

Arrays StepLeaves::gradients() const {
  Arrays gradients;
  for (const ProgramLeaves& program : programs_) {
    for (const Leaf& leaf : program.leaves) {
      gradients.push_back(*leaf.gradient);
    }
  }
  return gradients;
}

std::map<std::string, Arrays> StepLeaves::sums(
    const StepNumbers& numbers,
    const std::map<std::string, Arrays>& kept,
    const std::optional<GradientScale>& scale,
    mx::StreamOrDevice s) const {
  std::vector<ProgramLeaves> programs = programs_;
  add_scalars(programs, numbers, kept);
  std::vector<std::vector<Arrays>> all;
  for (const ProgramLeaves& program : programs) {
    all.push_back(sums_of(program, scale, s));
  }
  std::map<std::string, Arrays> totals;
  for (size_t i = 0; i < places_.size(); ++i) {
    const Arrays& own = all[places_[i].program][places_[i].group];
    auto [total, is_first] = totals.emplace(assignment_.combinations[i].kept_key, own);
    for (size_t k = 0; k < own.size() && !is_first; ++k) {
      total->second[k] = mx::add(total->second[k], own[k], s);
    }
  }
  return totals;
}

std::vector<ProgramLeaves> StepLeaves::with_scalars(
    const StepNumbers& numbers, const std::map<std::string, Arrays>& kept) && {
  add_scalars(programs_, numbers, kept);
  return std::move(programs_);
}

void StepLeaves::add_scalars(
    std::vector<ProgramLeaves>& programs,
    const StepNumbers& numbers,
    const std::map<std::string, Arrays>& kept) const {
  for (size_t i = 0; i < places_.size(); ++i) {
    const Combination& combination = assignment_.combinations[i];
    const auto& rate = combination.learning_rate;
    GroupScalars scalars{
        combination.definition.hypers,
        rate ? mx::array(*rate) : numbers.learning_rate,
        numbers.step,
        combination.rate_scale,
        combination.split};
    if (const auto found = kept.find(combination.kept_key); found != kept.end()) {
      const Arrays& own = found->second;
      std::copy(own.begin(), own.end(), scalars.hypers.end() - own.size());
    }
    const Definition& definition = combination.definition;
    if (definition.program.has_ema()) {
      scalars.hypers.push_back(ema_rate(definition.ema, numbers.step, numbers.stream));
    }
    programs[places_[i].program].groups.push_back(std::move(scalars));
  }
}

} // namespace mlx_opt
