// Adafactor for one instruction set; compiled as elementwise.cpp is.
#include "mlx_opt/backend/cpu/kernels/adafactor_kernel.h"
#include "mlx_opt/backend/cpu/kernels/operand.h"
#include "mlx_opt/rules/adafactor.h"

#if defined(__clang__)
#define MLX_OPT_VECTORS _Pragma("clang loop vectorize(assume_safety)")
#else
#define MLX_OPT_VECTORS _Pragma("GCC ivdep")
#endif

namespace mlx_opt {
namespace MLX_OPT_LEVEL {
namespace {

using cpu::AdafactorTensor;
using cpu::Squares;
using cpu::Tile;

// Number of independent sums: two of the widest vectors, so that no addition waits for the last.
// They are added up in double every `block` elements.
constexpr int sums = 32;

template <typename T>
T from_floats(const float* floats) {
  T x;
  __builtin_memcpy(&x, floats, sizeof x);
  return x;
}

// Adds the squares of `value(i)` for i below `count`, which is at most `block`, to `to`.
template <typename Value, typename Sum>
MLX_OPT_FN void add_squares(int64_t count, Value value, Sum (&to)[sums]) {
  float partial[sums] = {};
  int64_t i = 0;
  for (; i + sums <= count; i += sums) {
    for (int k = 0; k < sums; ++k) {
      const float x = value(i + k);
      partial[k] = fma(x, x, partial[k]);
    }
  }
  for (int k = 0; i < count; ++i, ++k) {
    const float x = value(i);
    partial[k] = fma(x, x, partial[k]);
  }
  for (int k = 0; k < sums; ++k) {
    to[k] += partial[k];
  }
}

// Recursive, so that each half is a vector.
template <int size = sums, typename Sum>
MLX_OPT_FN Sum total_of(Sum* of) {
  if constexpr (size > 1) {
    for (int k = 0; k < size / 2; ++k) {
      of[k] += of[k + size / 2];
    }
    return total_of<size / 2>(of);
  }
  return of[0];
}

// Calls `visit(row, column, count, gradient, factor)` for each part of a row, of at most `block`
// elements. The gradient is to be multiplied by `factor`.
template <typename Visit>
MLX_OPT_FN void for_each_piece(
    const AdafactorTensor& tensor, const Tile& tile, Scale scale, Visit visit_scaled) {
  alignas(64) float staged[panel * block];
  alignas(64) float clipped_piece[block];
  const bool clips = scale.bound != infinity();
  const auto visit = [&](int64_t row, int64_t column, int64_t count, const float* gradient) {
    const float* g = clips ? clipped(scale, gradient, count, clipped_piece) : gradient;
    visit_scaled(row, column, count, g, clips ? 1.0f : scale.factor);
  };
  const bool transposed = cpu::is_transposed(tensor.g) && tensor.matrices == 1;
  const int64_t height = transposed ? panel : 1;
  for (int64_t top = tile.top; top < tile.bottom; top += height) {
    const int64_t bottom = top + height < tile.bottom ? top + height : tile.bottom;
    for (int64_t left = tile.left; left < tile.right; left += block) {
      const int64_t right = left + block < tile.right ? left + block : tile.right;
      if (transposed) {
        load_panel(tensor.g, top, left, right, staged);
        for (int64_t row = top; row < bottom; ++row) {
          visit(row, left, right - left, staged + (row - top) * block);
        }
      } else {
        const int64_t at = top * tensor.columns + left;
        visit(top, left, right - left, load(tensor.g, at, right - left, staged));
      }
    }
  }
}

void prepare(const float* hypers, float lr, float step, float* scalars) {
  const auto s = Adafactor::prepare(from_floats<Adafactor::Hypers>(hypers), lr, step);
  __builtin_memcpy(scalars, &s, sizeof s);
}

void squares(
    const AdafactorTensor& tensor, const Tile& tile, Scale scale, float* rows, float* columns) {
  __builtin_memset(rows, 0, (tile.bottom - tile.top) * sizeof(float));
  __builtin_memset(columns, 0, (tile.right - tile.left) * sizeof(float));
  const auto visit = [&](int64_t row, int64_t left, int64_t count, const float* g, float factor) {
    float* column = columns + (left - tile.left);
    MLX_OPT_VECTORS
    for (int64_t i = 0; i < count; ++i) {
      const float x = factor * g[i];
      column[i] = fma(x, x, column[i]);
    }
    float of_row[sums] = {};
    add_squares(count, [=](int64_t i) { return factor * g[i]; }, of_row);
    rows[row - tile.top] += total_of(of_row);
  };
  for_each_piece(tensor, tile, scale, visit);
}

double average(
    const Operand& old,
    const Operand& now,
    int64_t begin,
    int64_t count,
    float* values,
    const float* hypers,
    const float* scalars) {
  const auto h = from_floats<Adafactor::Hypers>(hypers);
  const auto s = from_floats<Adafactor::Scalars>(scalars);
  double total = 0.0;
  for (int64_t done = 0; done < count; done += block) {
    const int64_t some = count - done < block ? count - done : block;
    alignas(64) float staged[block];
    const float* v = load(old, begin + done, some, staged);
    for (int64_t i = 0; i < some; ++i) {
      values[done + i] = Adafactor::average(v[i], values[done + i], h, s);
      total += values[done + i];
    }
    put(now, begin + done, some, values + done);
  }
  return total;
}

void row_factors(float* values, int64_t count, float mean) {
  for (int64_t i = 0; i < count; ++i) {
    values[i] = Adafactor::row_factor(values[i], mean);
  }
}

void column_factors(float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    values[i] = Adafactor::factor(values[i]);
  }
}

// The factors of a part's elements, and of its row.
struct Factors {
  const float* columns;
  float row;
};

// If the tensor is not factored, the factors come from the new running means, which are stored to
// `now` unless that is null.
MLX_OPT_FN Factors factors_of(
    const AdafactorTensor& tensor,
    int64_t row,
    int64_t left,
    int64_t count,
    const float* g,
    float factor,
    const Adafactor::Hypers& h,
    const Adafactor::Scalars& s,
    const Operand* now,
    float (&made)[block]) {
  if (!tensor.v.data) {
    const int64_t matrix = row / tensor.rows;
    return {tensor.column_factors + matrix * tensor.columns + left, tensor.row_factors[row]};
  }
  alignas(64) float staged[block];
  const float* v = load(tensor.v, left, count, staged);
  alignas(64) float means[block];
  MLX_OPT_VECTORS
  for (int64_t i = 0; i < count; ++i) {
    const float x = factor * g[i];
    means[i] = Adafactor::average(v[i], x * x, h, s);
    made[i] = Adafactor::factor(means[i]);
  }
  if (now) {
    put(*now, left, count, means);
  }
  return {made, 1.0f};
}

Squares update_squares(
    const AdafactorTensor& tensor,
    const Tile& tile,
    Scale scale,
    const float* hypers,
    const float* scalars) {
  const auto h = from_floats<Adafactor::Hypers>(hypers);
  const auto s = from_floats<Adafactor::Scalars>(scalars);
  double parameter[sums] = {}, update[sums] = {};
  const auto visit = [&](int64_t row, int64_t left, int64_t count, const float* g, float factor) {
    alignas(64) float made[block], staged[block];
    const float* w = load(tensor.w, row * tensor.columns + left, count, staged);
    add_squares(count, [=](int64_t i) { return w[i]; }, parameter);
    const auto [columns, of_row] =
        factors_of(tensor, row, left, count, g, factor, h, s, nullptr, made);
    const float* c = columns;
    const float r = of_row;
    add_squares(count, [=](int64_t i) { return r * c[i] * (factor * g[i]); }, update);
  };
  for_each_piece(tensor, tile, scale, visit);
  return {total_of(parameter), total_of(update)};
}

void rates(float parameter, float update, const float* hypers, const float* scalars, float* to) {
  const auto r = Adafactor::rates(
      parameter,
      update,
      from_floats<Adafactor::Hypers>(hypers),
      from_floats<Adafactor::Scalars>(scalars));
  __builtin_memcpy(to, &r, sizeof r);
}

void update(
    const AdafactorTensor& tensor,
    const Tile& tile,
    Scale scale,
    const float* hypers,
    const float* scalars,
    const float* step_rates) {
  const auto h = from_floats<Adafactor::Hypers>(hypers);
  const auto s = from_floats<Adafactor::Scalars>(scalars);
  const auto rates = from_floats<Adafactor::Rates>(step_rates);
  const auto visit = [&](int64_t row, int64_t left, int64_t count, const float* g, float factor) {
    alignas(64) float made[block], staged_w[block], staged_m[block];
    const auto [columns, of_row] =
        factors_of(tensor, row, left, count, g, factor, h, s, &tensor.v_out, made);
    const float* c = columns;
    const float r = of_row;
    const int64_t at = row * tensor.columns + left;
    const float* w = load(tensor.w, at, count, staged_w);
    float* w_out = place(tensor.w_out, at, staged_w);
    if (!tensor.m.data) {
      MLX_OPT_VECTORS
      for (int64_t i = 0; i < count; ++i) {
        w_out[i] = Adafactor::update({w[i], 0.0f}, r * c[i] * (factor * g[i]), h, rates).w;
      }
    } else {
      const float* m = load(tensor.m, at, count, staged_m);
      float* m_out = place(tensor.m_out, at, staged_m);
      MLX_OPT_VECTORS
      for (int64_t i = 0; i < count; ++i) {
        const auto e = Adafactor::update({w[i], m[i]}, r * c[i] * (factor * g[i]), h, rates);
        w_out[i] = e.w;
        m_out[i] = e.m;
      }
      store(tensor.m_out, at, count, staged_m);
    }
    store(tensor.w_out, at, count, staged_w);
  };
  for_each_piece(tensor, tile, scale, visit);
}

} // namespace

extern const cpu::AdafactorKernel adafactor;
const cpu::AdafactorKernel adafactor = {
    prepare, squares, average, row_factors, column_factors, update_squares, rates, update, copy};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
