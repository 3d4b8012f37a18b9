// From Muon's directions to its updates: blocks, their orthogonal factors and their second moments.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "mlx_opt/algorithms/newton_schulz.h"
#include "mlx_opt/types/arrays.h"
#include "mlx_opt/types/hyperparameters.h"

namespace mlx_opt {

/// The direction of a leaf; it becomes its update.
struct Direction {
  mx::array x;
  std::vector<int> split;          // see Group
  std::optional<mx::array> second; // the slot of a matrix, which gets its successor
  Scalar beta2 = 0.0;              // of the slot
};

/// True for a direction that has an orthogonal factor.
bool is_matrix(const mx::array& x);

/// `x` with the Frobenius norm of another array, in float32.
mx::array with_norm_of(const mx::array& x, const mx::array& other, mx::Stream stream);

/// Describes what is wrong with a split of a parameter, without the parameter's name; empty if it
/// fits. Parameters that are no matrices are not split.
std::string split_problem(const std::vector<int>& split, const mx::Shape& shape);

/// Replaces the directions that are matrices by their orthogonal factors with what the options do
/// besides, times the factor of the learning rate.
///
/// Throws std::invalid_argument if a split does not fit its matrix.
void orthogonalize(
    std::vector<Direction>& directions, const Muon& options, size_t stack, mx::Stream stream);

} // namespace mlx_opt
