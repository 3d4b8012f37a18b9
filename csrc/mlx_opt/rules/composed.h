// The rules whose steps are compositions of other rules' steps and of MLX's operations. They have
// no kernels.
#pragma once
#include "muon.h"

namespace mlx_opt {

/// That of a rule which divides an orthogonal factor by the root of its second moment, a slot.
constexpr Description with_second_moment(const char* option, SlotInfo slot) {
  Description description =
      variant_of(MLX_OPT_LEVEL::Muon::description, {{option, Setting::on}}, slot);
  description.hypers[6] = {"beta2", 0.95, Range::below_one};
  return description;
}

} // namespace mlx_opt

MLX_OPT_RULES_BEGIN

// Of each row: Li et al., arXiv:2510.05491.
struct NorMuon {
  static constexpr Description description = with_second_moment(
      "normuon",
      {.name = "s", .extent = Extent::rows, .owner = Owner::matrices, .format = Format::float32});
};

// Of each element: Si, Zhang and Shen, arXiv:2507.11005.
struct AdaMuon {
  static constexpr Description description = with_second_moment(
      "adamuon", {.name = "s", .owner = Owner::matrices, .format = Format::float32});
};

MLX_OPT_RULES_END
