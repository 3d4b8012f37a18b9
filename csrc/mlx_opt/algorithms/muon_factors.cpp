#include "mlx_opt/algorithms/muon_factors.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "mlx/ops.h"
#include "mlx_opt/types/text.h"

namespace mlx_opt {
namespace {

constexpr int rows_axis = -1,
              columns_axis = -2; // over which the squares of a row or column are summed

mx::array number(double x) {
  return mx::array(static_cast<float>(x));
}

// The first dimension by all others.
mx::array matrix_of(const mx::array& x, mx::Stream s) {
  return x.ndim() == 2 ? x : mx::reshape(x, {x.shape(0), -1}, s);
}

// The factor of the learning rate.
double adjustment(AdjustLr adjust_lr, const mx::array& x) {
  if (adjust_lr == AdjustLr::original) {
    return std::sqrt(std::max(1.0, double(x.shape(-2)) / x.shape(-1)));
  }
  const double rows = x.shape(0), columns = double(x.size()) / rows;
  return 0.2 * std::sqrt(std::max(rows, columns));
}

// Where the blocks of a matrix begin, without the first.
mx::Shape starts_of(const std::vector<int>& split, int rows) {
  const bool equal = split.size() == 1;
  const int count = equal ? split[0] : static_cast<int>(split.size());
  mx::Shape starts;
  for (int i = 1, row = 0; i < count; ++i) {
    row += equal ? rows / count : split[i - 1];
    starts.push_back(row);
  }
  return starts;
}

// The blocks of a direction or of its slot.
Arrays blocks_of(const mx::array& x, const std::vector<int>& split, mx::Stream s) {
  return split.empty() ? Arrays{x} : mx::split(x, starts_of(split, x.shape(0)), 0, s);
}

mx::array joined(Arrays blocks, mx::Stream s) {
  return blocks.size() == 1 ? blocks[0] : mx::concatenate(std::move(blocks), 0, s);
}

mx::array sum_of_squares(const mx::array& x, const std::vector<int>& axes, mx::Stream s) {
  return mx::sum(mx::square(x, s), axes, true, s);
}

mx::array equalized(const mx::array& x, Equalize equalize, mx::Stream s) {
  if (equalize == Equalize::sign) {
    return mx::sign(x, s);
  }
  const auto factor = [&](int axis) {
    return mx::rsqrt(mx::add(sum_of_squares(x, {axis}, s), number(1e-8), s), s);
  };
  mx::array y = x;
  if (equalize == Equalize::rows || equalize == Equalize::both) {
    y = mx::multiply(y, factor(rows_axis), s);
  }
  if (equalize == Equalize::columns || equalize == Equalize::both) {
    y = mx::multiply(y, factor(columns_axis), s);
  }
  return y;
}

// The Frobenius norm of each matrix of a stack; the epsilon is added to it.
mx::array norm(const mx::array& stack, double eps, mx::Stream s) {
  return mx::add(mx::sqrt(sum_of_squares(stack, {-2, -1}, s), s), number(eps), s);
}

mx::array norm_of_factor(const mx::array& stack) {
  return number(std::sqrt(std::min(stack.shape(1), stack.shape(2))));
}

mx::array normalized(const mx::array& x, Normalize normalize, mx::Stream s) {
  const auto along = [&](const mx::array& x, int axis) {
    return mx::multiply(x, mx::rsqrt(mx::add(sum_of_squares(x, {axis}, s), number(1e-7), s), s), s);
  };
  switch (normalize) {
    case Normalize::none:
      return x;
    case Normalize::rows:
      return along(x, rows_axis);
    case Normalize::columns:
      return along(x, columns_axis);
    case Normalize::rows_columns:
      return along(along(x, rows_axis), columns_axis);
    case Normalize::columns_rows:
      return along(along(x, columns_axis), rows_axis);
    case Normalize::frobenius:
      return mx::multiply(x, mx::divide(norm_of_factor(x), norm(x, 1e-7, s), s), s);
  }
  return x;
}

// One matrix that is orthogonalized: a direction or one of its blocks.
struct Block {
  mx::array x;
  std::optional<mx::array> second;
  const Scalar* beta2;
};

class MuonStages : public Stages {
 public:
  MuonStages(std::vector<Block>& blocks, const Muon& options, mx::Stream stream)
      : blocks_(blocks), options_(options), stream_(stream) {}

  size_t kind_of(size_t i) const override {
    return blocks_[i].second ? blocks_[i].second->size() : 0;
  }

  mx::array before(const mx::array& stack) override {
    return options_.equalize == Equalize::none ? stack
                                               : equalized(stack, options_.equalize, stream_);
  }

  mx::array after(const mx::array& stack, const std::vector<size_t>& members) override {
    const mx::array x = normalized(stack, options_.normalize, stream_);
    return options_.normuon || options_.adamuon ? divided(x, members) : x;
  }

 private:
  // Divides by the roots of the second moments, which are updated, and restores the norm.
  mx::array divided(const mx::array& x, const std::vector<size_t>& members) {
    const mx::Stream s = stream_;
    const mx::array second = next_seconds(x, members);
    const double eps = options_.normuon ? 1e-10 : 1e-8;
    const mx::array roots = mx::add(mx::sqrt(second, s), number(eps), s);
    const mx::array y = mx::reshape(mx::divide(by_seconds(x, second), roots, s), x.shape(), s);
    const mx::array target = options_.normuon ? norm(x, 0.0, s) : norm_of_factor(x);
    return mx::multiply(y, mx::divide(target, norm(y, eps, s), s), s);
  }

  // The stack with as many rows as there are second moments, and these of shape (n, rows, 1).
  mx::array by_seconds(const mx::array& x, const mx::array& second) const {
    return mx::reshape(x, {x.shape(0), second.shape(1), -1}, stream_);
  }

  mx::array next_seconds(const mx::array& x, const std::vector<size_t>& members) {
    const mx::Stream s = stream_;
    Arrays before, betas, complements;
    for (size_t i : members) {
      before.push_back(mx::reshape(mx::astype(*blocks_[i].second, mx::float32, s), {-1, 1}, s));
      betas.push_back(beta(*blocks_[i].beta2));
      complements.push_back(complement(*blocks_[i].beta2));
    }
    const mx::array old = mx::stack(before, 0, s);
    const mx::array squares = mx::square(x, s);
    const mx::array fresh = mx::mean(by_seconds(squares, old), -1, true, s);
    const auto each = [&](const Arrays& numbers) {
      return mx::reshape(mx::stack(numbers, 0, s), {-1, 1, 1}, s);
    };
    const mx::array next =
        mx::add(mx::multiply(each(betas), old, s), mx::multiply(each(complements), fresh, s), s);
    for (size_t k = 0; k < members.size(); ++k) {
      mx::array& slot = *blocks_[members[k]].second;
      const int at = static_cast<int>(k);
      const mx::array own = mx::slice(next, {at, 0, 0}, {at + 1, old.shape(1), 1}, s);
      slot = mx::reshape(own, slot.shape(), s);
    }
    return next;
  }

  mx::array beta(const Scalar& beta2) const {
    const auto* x = std::get_if<mx::array>(&beta2);
    return x ? mx::reshape(mx::astype(*x, mx::float32, stream_), {}, stream_)
             : number(std::get<double>(beta2));
  }

  mx::array complement(const Scalar& beta2) const {
    const auto* x = std::get_if<double>(&beta2);
    return x ? number(1.0 - *x) : mx::subtract(number(1.0), beta(beta2), stream_);
  }

  std::vector<Block>& blocks_;
  const Muon& options_;
  mx::Stream stream_;
};

bool has_stages(const Muon& options) {
  return options.equalize != Equalize::none || options.normalize != Normalize::none ||
         options.normuon || options.adamuon;
}

// A block that is one row of more than two dimensions is a matrix of the others.
mx::array without_single_row(const mx::array& x, mx::Stream s) {
  return x.ndim() > 2 && x.shape(0) == 1 ? mx::squeeze(x, 0, s) : x;
}

} // namespace

bool is_matrix(const mx::array& x) {
  return x.ndim() >= 2 && x.size() > 0;
}

mx::array with_norm_of(const mx::array& x, const mx::array& other, mx::Stream s) {
  const auto norm_of = [&](const mx::array& y) {
    return mx::sqrt(mx::sum(mx::square(y, s), s), s);
  };
  const mx::array wide = mx::astype(x, mx::float32, s);
  const mx::array own = mx::maximum(norm_of(wide), number(1e-10), s);
  return mx::multiply(wide, mx::divide(norm_of(mx::astype(other, mx::float32, s)), own, s), s);
}

std::string split_problem(const std::vector<int>& split, const mx::Shape& shape) {
  if (split.empty() || shape.size() < 2) {
    return "";
  }
  const bool positive = std::all_of(split.begin(), split.end(), [](int n) { return n > 0; });
  const int sum = std::accumulate(split.begin(), split.end(), 0);
  if (positive && (split.size() == 1 ? shape[0] % split[0] : shape[0] - sum) == 0) {
    return "";
  }
  std::string text;
  for (int n : split) {
    text += (text.empty() ? "" : ", ") + std::to_string(n);
  }
  return "split [" + text + "], parameter " + shape_text(shape);
}

void orthogonalize(
    std::vector<Direction>& directions, const Muon& options, size_t stack, mx::Stream s) {
  std::vector<Block> blocks;
  Arrays matrices;
  std::vector<double> scales;
  for (const Direction& direction : directions) {
    if (!is_matrix(direction.x)) {
      continue;
    }
    const std::string problem = split_problem(direction.split, direction.x.shape());
    if (!problem.empty()) {
      throw std::invalid_argument("mlx_opt Muon: " + problem);
    }
    const Arrays parts = blocks_of(direction.x, direction.split, s);
    Arrays seconds;
    if (direction.second) {
      seconds = blocks_of(*direction.second, direction.split, s);
    }
    for (size_t i = 0; i < parts.size(); ++i) {
      const mx::array x = direction.split.empty() ? parts[i] : without_single_row(parts[i], s);
      scales.push_back(adjustment(options.adjust_lr, x));
      matrices.push_back(matrix_of(x, s));
      const auto second = direction.second ? std::optional(seconds[i]) : std::nullopt;
      blocks.push_back({parts[i], second, &direction.beta2});
    }
  }
  MuonStages stages(blocks, options, s);
  const Arrays factors = orthogonalized(
      matrices,
      scales,
      options.ns_coefficients,
      options.ns_steps,
      options.ns_dtype,
      stack,
      s,
      has_stages(options) ? &stages : nullptr);
  size_t next = 0;
  for (Direction& direction : directions) {
    if (!is_matrix(direction.x)) {
      continue;
    }
    Arrays updates, seconds;
    for (int rows = 0; rows < direction.x.shape(0); ++next) {
      rows += blocks[next].x.shape(0);
      updates.push_back(mx::reshape(factors[next], blocks[next].x.shape(), s));
      if (direction.second) {
        seconds.push_back(*blocks[next].second);
      }
    }
    direction.x = joined(std::move(updates), s);
    if (direction.second) {
      direction.second = joined(std::move(seconds), s);
    }
  }
}

} // namespace mlx_opt
