// Adafactor's reductions of the sums: the means of rows and columns, and the rates.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// The sums of the squares of the rows, or of the columns, of one of a tensor's matrices.
struct AdafactorParts {
  ulong first;
  uint parts;   // number of partial sums of each sum
  ulong stride; // between partial sums

  MLX_OPT_FN AdafactorParts of(constant AdafactorTensor& t, bool rows, uint matrix) {
    const uint lines = t.transposed ? t.columns : t.rows;
    const uint columns = t.transposed ? t.rows : t.columns;
    if (rows != (t.transposed != 0)) {
      return {
          t.scratch.line_sums + static_cast<ulong>(matrix) * lines,
          parts_of(columns, adafactor_columns),
          static_cast<ulong>(t.matrices) * lines};
    }
    const uint down = parts_of(lines, adafactor_lines);
    return {t.scratch.column_sums + static_cast<ulong>(matrix) * down * columns, down, columns};
  }
};

// A threadgroup processes some rows or columns of a matrix, with `split` threads for each, and
// writes the rows' new means or the columns' factors.
template <typename Row, typename Column, typename NewRow, typename NewColumn>
struct AdafactorMeans {
  template <typename Arguments>
  MLX_OPT_FN void run(
      constant Arguments& arguments,
      constant float* group_uniforms,
      device float* scratch,
      AdafactorOperands at,
      uint group,
      uint index,
      threadgroup float* staged) {
    constant AdafactorTensor& t = arguments.tensor;
    const auto uniforms = uniforms_of<Adafactor>(group_uniforms, t.group);
    const uint row_groups = parts_of(t.rows, threads / t.row_split);
    const uint groups = row_groups + parts_of(t.columns, threads / t.column_split);
    const uint matrix = group / groups;
    const uint own = group % groups;
    if (own < row_groups) {
      const float mean =
          average<Row, NewRow, true>(arguments, uniforms, scratch, at, matrix, own, index, staged);
      const float total = sum_over_group(mean, index, staged);
      if (index == 0) {
        scratch[t.scratch.totals + static_cast<ulong>(matrix) * row_groups + own] = total;
      }
    } else {
      average<Column, NewColumn, false>(
          arguments, uniforms, scratch, at, matrix, own - row_groups, index, staged);
    }
  }

 private:
  // Returns this thread's new mean, 0 if it has none.
  template <typename Format, typename New, bool rows, typename Arguments>
  MLX_OPT_FN float average(
      constant Arguments& arguments,
      Uniforms<Adafactor> uniforms,
      device float* scratch,
      AdafactorOperands at,
      uint matrix,
      uint group,
      uint index,
      threadgroup float* staged) {
    constant AdafactorTensor& t = arguments.tensor;
    const uint count = rows ? t.rows : t.columns;
    const uint split = rows ? t.row_split : t.column_split;
    const uint each = threads / split;
    const uint own = group * each + index % each;
    const bool mine = index < each && own < count;
    const ulong place = static_cast<ulong>(matrix) * count + own;
    const device uchar* from = at.in[rows ? 0 : 1];
    device uchar* to = at.out[rows ? 0 : 1];
    if (!is_applied(t, uniforms) || t.size == 0) {
      if (mine) {
        Copy<Format, New>::run(from, place_of_mean<rows>(arguments, place), to, place);
      }
      return 0.0f;
    }
    const AdafactorParts parts = AdafactorParts::of(t, rows, matrix);
    const float sum = sum_of_parts(parts, scratch, own, own < count, split, index, staged);
    if (!mine) {
      return 0.0f;
    }
    float mean;
    Access<Format, 1>::load(from, place_of_mean<rows>(arguments, place), &mean);
    const float square = sum / static_cast<float>(rows ? t.columns : t.rows);
    mean = Adafactor::average(mean, square, uniforms.hypers, uniforms.scalars);
    Access<New, 1>::store(to, place, &mean);
    if (rows) {
      scratch[t.scratch.row_means + place] = mean;
    } else {
      scratch[t.scratch.column_factors + place] = Adafactor::factor(mean);
    }
    return mean;
  }

  // The first of the `split` threads returns the sum.
  MLX_OPT_FN float sum_of_parts(
      AdafactorParts parts,
      device const float* scratch,
      uint own,
      bool exists,
      uint split,
      uint index,
      threadgroup float* staged) {
    const uint each = threads / split;
    LongSum sum = {0.0f, 0.0f};
    if (exists) {
      for (uint k = index / each; k < parts.parts; k += split) {
        sum = plus(sum, scratch[parts.first + k * parts.stride + own]);
      }
    }
    staged[index] = value_of(sum);
    for (uint apart = split / 2; apart > 0; apart /= 2) {
      wait_for_group();
      if (index < apart * each) {
        staged[index] += staged[index + apart * each];
      }
    }
    return staged[index];
  }
};

// Computes a tensor's rates. Run by one threadgroup.
struct AdafactorRates {
  MLX_OPT_FN void run(
      constant AdafactorArguments& arguments,
      constant float* group_uniforms,
      device float* scratch,
      AdafactorOperands,
      uint,
      uint index,
      threadgroup float* staged) {
    constant AdafactorTensor& t = arguments.tensor;
    const auto uniforms = uniforms_of<Adafactor>(group_uniforms, t.group);
    if (!is_applied(t, uniforms)) {
      return;
    }
    const ulong parameter = t.scratch.parameter_squares;
    const ulong update = t.scratch.update_squares;
    const float of_w = sum_of(scratch, parameter, t.parts, index, staged);
    const float of_u = sum_of(scratch, update, t.parts, index, staged);
    if (index == 0) {
      const auto rates = of(of_w, of_u, t.size, uniforms);
      scratch[t.scratch.rates] = rates.update;
      scratch[t.scratch.rates + 1] = rates.decay;
    }
  }

  // The rates, from the sums of squares of the parameter and the update.
  MLX_OPT_FN Adafactor::Rates of(
      float of_w, float of_u, ulong count, Uniforms<Adafactor> uniforms) {
    const float size = static_cast<float>(count);
    return Adafactor::rates(
        square_root(of_w / size), square_root(of_u / size), uniforms.hypers, uniforms.scalars);
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
