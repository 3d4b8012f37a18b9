#include "mlx_opt/algorithms/newton_schulz.h"

#include <algorithm>
#include <cmath>
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

const Coefficients& quintic() {
  static const Coefficients quintic = {{3.4445, -4.7750, 2.0315}};
  return quintic;
}

const Coefficients& polar_express() {
  static const Coefficients polar_express = [] {
    Coefficients coefficients = {
        {8.28721201814563, -23.595886519098837, 17.300387312530933},
        {4.107059111542203, -2.9478499167379106, 0.5448431082926601},
        {3.9486908534822946, -2.908902115962949, 0.5518191394370137},
        {3.3184196573706015, -2.488488024314874, 0.51004894012372},
        {2.300652019954817, -1.6689039845747493, 0.4188073119525673},
        {1.891301407787398, -1.2679958271945868, 0.37680408948524835},
        {1.8750014808534479, -1.2500016453999487, 0.3750001645474248}};
    // A safety margin, so that rounding does not carry a singular value out of the valid range.
    for (auto& [a, b, c] : coefficients) {
      a /= 1.01;
      b /= std::pow(1.01, 3);
      c /= std::pow(1.01, 5);
    }
    coefficients.push_back({1.875, -1.25, 0.375});
    return coefficients;
  }();
  return polar_express;
}

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
