// The leaves of a step of the C++ optimizer, by program.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "mlx_opt/api/assignment.h"
#include "mlx_opt/api/run_step.h"

namespace mlx_opt {

/// What a step has besides its leaves.
struct StepNumbers {
  mx::array learning_rate;
  mx::array step; // its number, from 1
  mx::StreamOrDevice stream;
};

class StepLeaves {
 public:
  explicit StepLeaves(const Assignment& assignment);

  /// `name`: what errors call the leaf; it must outlive the object.
  void add(size_t combination, const std::string& name, Leaf leaf);

  /// Throws what `check_leaves` throws.
  void check(mx::StreamOrDevice s) const;

  Arrays gradients() const;

  /// The sums over all leaves that the rule needs, by the keys of combinations; zeros for those
  /// without leaves. `kept`: as before the step.
  std::map<std::string, Arrays> sums(
      const StepNumbers& numbers,
      const std::map<std::string, Arrays>& kept,
      const std::optional<GradientScale>& scale,
      mx::StreamOrDevice s) const;

  /// The leaves with the scalars of their groups. `kept`: the numbers that the rule
  /// keeps, by the keys of combinations.
  std::vector<ProgramLeaves> with_scalars(
      const StepNumbers& numbers, const std::map<std::string, Arrays>& kept) &&;

 private:
  void add_scalars(
      std::vector<ProgramLeaves>& programs,
      const StepNumbers& numbers,
      const std::map<std::string, Arrays>& kept) const;

  struct Place {
    size_t program;
    uint16_t group;
  };

  const Assignment& assignment_;
  std::vector<ProgramLeaves> programs_;
  std::vector<std::vector<const std::string*>> names_; // of the leaves of each program
  std::vector<uint16_t> groups_;                       // their number in each program
  std::vector<Place> places_;                          // of each combination
};

} // namespace mlx_opt
