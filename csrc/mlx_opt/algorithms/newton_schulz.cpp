#include "mlx_opt/algorithms/newton_schulz.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

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

// The results of the stages around the iterations, from a stack of matrices as they are.
mx::array staged(
    const mx::array& stack,
    const std::vector<size_t>& members,
    double scale,
    const Coefficients& coefficients,
    int steps,
    mx::Dtype dtype,
    Stages& stages,
    mx::Stream s) {
  const bool tall = stack.shape(1) > stack.shape(2);
  const auto upright = [&](const mx::array& x) {
    return tall ? mx::contiguous(transposed(x, s), false, s) : x;
  };
  const mx::array begin = upright(stages.before(mx::astype(stack, mx::float32, s)));
  const mx::array factor = upright(iterated(begin, 1.0, coefficients, steps, dtype, s));
  return times(scale, stages.after(mx::astype(factor, mx::float32, s), members), s);
}

} // namespace

std::vector<mx::array> orthogonalized(
    const std::vector<mx::array>& matrices,
    const std::vector<double>& scales,
    const Coefficients& coefficients,
    int steps,
    const std::optional<mx::Dtype>& dtype,
    size_t stack,
    mx::StreamOrDevice s,
    Stages* stages) {
  const mx::Stream stream = mx::to_stream(s);
  using Kind = std::tuple<int, int, mx::Dtype::Val, double, size_t>;
  std::map<Kind, std::vector<size_t>> kinds;
  for (size_t i = 0; i < matrices.size(); ++i) {
    int height = matrices[i].shape(0), width = matrices[i].shape(1);
    if (!stages && height > width) {
      std::swap(height, width);
    }
    const size_t kind = stages ? stages->kind_of(i) : 0;
    kinds[{height, width, matrices[i].dtype().val(), scales[i], kind}].push_back(i);
  }
  std::vector<mx::array> results = matrices;
  for (const auto& [kind, members] : kinds) {
    const auto [height, width, of, scale, _] = kind;
    const auto upright = [&, height = height](const mx::array& x, size_t i) {
      return matrices[i].shape(0) == height ? x : mx::transpose(x, stream);
    };
    const mx::Dtype own = matrices[members[0]].dtype();
    const mx::Dtype inner = dtype.value_or(own == mx::bfloat16 ? own : mx::float32);
    const size_t together =
        std::max<size_t>(1, stack / std::max<size_t>(1, size_t(height) * width));
    for (size_t first = 0; first < members.size(); first += together) {
      const size_t last = std::min(first + together, members.size());
      const std::vector<size_t> some(members.begin() + first, members.begin() + last);
      std::vector<mx::array> wide;
      for (size_t i : some) {
        wide.push_back(upright(matrices[i], i));
      }
      const mx::array stacked = mx::stack(wide, 0, stream);
      const mx::array factors =
          stages ? staged(stacked, some, scale, coefficients, steps, inner, *stages, stream)
                 : iterated(stacked, scale, coefficients, steps, inner, stream);
      const mx::array done = mx::astype(factors, own, stream);
      for (size_t k = 0; k < some.size(); ++k) {
        const int at = static_cast<int>(k);
        const mx::array x = mx::slice(done, {at, 0, 0}, {at + 1, height, width}, stream);
        results[some[k]] = upright(mx::squeeze(x, 0, stream), some[k]);
      }
    }
  }
  return results;
}

} // namespace mlx_opt
