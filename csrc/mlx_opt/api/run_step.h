// The step behind the C++ interface.
#pragma once

#include <functional>

#include "mlx/utils.h"
#include "mlx_opt/api/definition.h"

namespace mlx_opt {

/// A parameter, its gradient and the first array of its state, behind which are the others.
struct Leaf {
  mx::array* parameter;
  mx::array* gradient;
  mx::array* state;
  uint16_t group = 0;
  uint32_t rounding_key = 0; // see Program
};

/// The leaves that one program updates, and the scalars of their groups.
struct ProgramLeaves {
  const Program* program;
  std::vector<GroupScalars> groups;
  std::vector<Leaf> leaves;
  bool maximize = false;
};

/// What errors call leaf i.
using Name = std::function<std::string(size_t i)>;

/// Throws std::invalid_argument if the leaves do not fit, std::runtime_error if the device has no
/// backend or the running MLX is not the one that this library was built for.
void check_leaves(
    const Program& program,
    const Name& name,
    const std::vector<Leaf>& leaves,
    mx::StreamOrDevice s);

/// For each group the sums over its leaves that the rule needs; see graph/sums.h. Throws
/// std::invalid_argument if the step is to be differentiated.
std::vector<std::vector<mx::array>> sums_of(
    const ProgramLeaves& leaves, const std::optional<GradientScale>& scale, mx::StreamOrDevice s);

/// Replaces the parameters and the state of leaves that are checked by their successors: by new
/// arrays, or where everything is evaluated and nothing else holds it by new values at once.
/// `counters`: see run_in_place.
///
/// Throws std::invalid_argument if the other arguments do not fit, or the step is to be
/// differentiated; nothing has changed then.
void run_step(
    const std::vector<ProgramLeaves>& programs,
    const std::optional<GradientScale>& scale,
    const std::vector<mx::array*>& counters,
    mx::StreamOrDevice s);

/// Throws std::invalid_argument unless `x`, the `what` of parameter `name`, has this shape, which
/// is what errors say it is `of`, and a storage dtype.
void check_operand(
    const std::string& name,
    const std::string& what,
    const mx::array& x,
    const mx::Shape& shape,
    const char* of = "parameter");

/// True if the kernels read the slot in one dtype alone, as codes, scales and remainders.
bool has_one_dtype(const SlotInfo& slot);

/// Throws std::runtime_error if the running MLX is not the one that this library was built for.
void check_mlx();

} // namespace mlx_opt
