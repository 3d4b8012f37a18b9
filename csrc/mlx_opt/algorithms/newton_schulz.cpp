#include "mlx_opt/algorithms/newton_schulz.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "mlx/ops.h"

namespace mlx_opt {
namespace {

// From this number of rows on, the CPU computes a symmetric product by blocks.
constexpr int symmetric = 128;

mx::array transposed(const mx::array& x, mx::Stream s) {
  return mx::swapaxes(x, -1, -2, s);
}

mx::array rows(const mx::array& x, int first, int last, mx::Stream s) {
  return mx::slice(x, {0, first, 0}, {x.shape(0), last, x.shape(2)}, s);
}

mx::array times(double factor, const mx::array& x, mx::Stream s) {
  return mx::multiply(mx::array(factor, x.dtype()), x, s);
}

// x x^T of each matrix.
mx::array gram(const mx::array& x, mx::Stream s) {
  if (s.device != mx::Device::cpu) {
    return mx::matmul(x, transposed(x, s), s);
  }
  const int count = x.shape(1);
  // Products with a transposed view may be slow in MLX's CPU build.
  if (count < symmetric) {
    return mx::matmul(x, mx::contiguous(transposed(x, s), false, s), s);
  }
  const mx::array top = rows(x, 0, count / 2, s), bottom = rows(x, count / 2, count, s);
  const mx::array corner = mx::matmul(bottom, mx::contiguous(transposed(top, s), false, s), s);
  const mx::array upper = mx::concatenate({gram(top, s), transposed(corner, s)}, -1, s);
  const mx::array lower = mx::concatenate({corner, gram(bottom, s)}, -1, s);
  return mx::concatenate({upper, lower}, -2, s);
}

// b x + c x^2 of each symmetric matrix.
mx::array quadratic(const mx::array& x, double b, double c, mx::Stream s) {
  if (s.device == mx::Device::cpu) {
    return mx::add(times(b, x, s), times(c, gram(x, s), s), s);
  }
  return mx::addmm(x, x, transposed(x, s), static_cast<float>(c), static_cast<float>(b), s);
}

// Sums rows first, which gives a GPU more parallel work than one sum over the matrix.
mx::array frobenius_norm(const mx::array& x, mx::Stream s) {
  const mx::array rows = mx::sum(mx::square(x, s), -1, true, s);
  return mx::sqrt(mx::sum(rows, -2, true, s), s);
}

mx::array iterated(
    const mx::array& stack,
    double scale,
    const Coefficients& coefficients,
    int steps,
    mx::Dtype dtype,
    mx::Stream s) {
  const mx::array wide = mx::astype(stack, mx::float32, s);
  const mx::array divisor = mx::add(frobenius_norm(wide, s), mx::array(1e-7f), s);
  mx::array x = mx::astype(mx::divide(wide, divisor, s), dtype, s);
  if (steps == 0) {
    return times(scale, x, s);
  }
  for (int step = 0; step < steps; ++step) {
    const auto [a, b, c] = coefficients[std::min<size_t>(step, coefficients.size() - 1)];
    const double last = step == steps - 1 ? scale : 1.0;
    const mx::array factor = quadratic(gram(x, s), b, c, s);
    x = mx::addmm(x, factor, x, static_cast<float>(last), static_cast<float>(a * last), s);
  }
  return x;
}

} // namespace

std::vector<mx::array> orthogonalized(
    const std::vector<mx::array>& matrices,
    const std::vector<double>& scales,
    const Coefficients& coefficients,
    int steps,
    const std::optional<mx::Dtype>& dtype,
    size_t stack,
    mx::StreamOrDevice s) {
  const mx::Stream stream = mx::to_stream(s);
  using Kind = std::tuple<int, int, mx::Dtype::Val, double>;
  std::map<Kind, std::vector<size_t>> kinds;
  for (size_t i = 0; i < matrices.size(); ++i) {
    const auto [fewer, more] = std::minmax({matrices[i].shape(0), matrices[i].shape(1)});
    kinds[{fewer, more, matrices[i].dtype().val(), scales[i]}].push_back(i);
  }
  std::vector<mx::array> results = matrices;
  for (const auto& [kind, members] : kinds) {
    const auto [height, width, of, scale] = kind;
    const auto upright = [&, height = height](const mx::array& x, size_t i) {
      return matrices[i].shape(0) == height ? x : mx::transpose(x, stream);
    };
    const mx::Dtype own = matrices[members[0]].dtype();
    const mx::Dtype inner = dtype.value_or(own == mx::bfloat16 ? own : mx::float32);
    const size_t together =
        std::max<size_t>(1, stack / std::max<size_t>(1, size_t(height) * width));
    for (size_t first = 0; first < members.size(); first += together) {
      const size_t last = std::min(first + together, members.size());
      std::vector<mx::array> wide;
      for (size_t k = first; k < last; ++k) {
        wide.push_back(upright(matrices[members[k]], members[k]));
      }
      const mx::array stacked = mx::stack(wide, 0, stream);
      const mx::array done =
          mx::astype(iterated(stacked, scale, coefficients, steps, inner, stream), own, stream);
      for (size_t k = first; k < last; ++k) {
        const int at = static_cast<int>(k - first);
        const mx::array x = mx::slice(done, {at, 0, 0}, {at + 1, height, width}, stream);
        results[members[k]] = upright(mx::squeeze(x, 0, stream), members[k]);
      }
    }
  }
  return results;
}

} // namespace mlx_opt
