// Adafactor's reductions of the tiles' sums: the means of rows and columns, and each tensor's
// rates.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// The sums of the squares of the rows, or of the columns, of one of a tensor's matrices.
struct Sums {
  const float* first;
  unsigned parts; // number of partial sums of each sum
  Index stride;   // between partial sums

  MLX_OPT_FN Sums of(const AdafactorTensor& t, bool rows, unsigned matrix, int vector_width) {
    const Index lines = t.transposed ? t.columns : t.rows;
    const Index columns = t.transposed ? t.rows : t.columns;
    if (rows != static_cast<bool>(t.transposed)) {
      const Index width = warp * vector_width;
      const auto across = static_cast<unsigned>((columns + width - 1) / width);
      return {t.scratch.line_sums + matrix * lines, across, t.matrices * lines};
    }
    const auto down =
        static_cast<unsigned>((lines + cuda::adafactor_rows - 1) / cuda::adafactor_rows);
    return {t.scratch.column_sums + static_cast<Index>(matrix) * down * columns, down, columns};
  }
};

// A block processes some rows or columns of a matrix, with `split` threads for each, and writes the
// rows' new means or the columns' factors.
template <typename Row, typename Column, typename NewRow, typename NewColumn, int vector_width>
struct AdafactorMeans {
  template <typename Table>
  MLX_OPT_FN void run(const Table& table) {
    const AdafactorTensor& t = find<&AdafactorTensor::first_means>(table, blockIdx.x);
    const Index row_blocks = blocks_of(t.rows, t.row_split);
    const Index all_blocks = row_blocks + blocks_of(t.columns, t.column_split);
    const Index index = blockIdx.x - t.first_means;
    const auto matrix = static_cast<unsigned>(index / all_blocks);
    const Index block = index % all_blocks;
    if (block < row_blocks) {
      const double total = average<Row, NewRow, true>(table, t, matrix, block, t.row_split);
      if (threadIdx.x == 0) {
        t.scratch.totals[matrix * row_blocks + block] = total;
      }
    } else {
      average<Column, NewColumn, false>(table, t, matrix, block - row_blocks, t.column_split);
    }
  }

 private:
  MLX_OPT_FN Index blocks_of(Index count, int split) {
    const int each = cuda::adafactor_threads / split;
    return (count + each - 1) / each;
  }

  // Thread 0 returns the sum of the new means.
  template <typename Format, typename New, bool rows, typename Table>
  MLX_OPT_FN double average(
      const Table& table, const AdafactorTensor& t, unsigned matrix, Index block, int split) {
    const int each = cuda::adafactor_threads / split;
    const Index count = rows ? t.rows : t.columns;
    const Index own = block * each + threadIdx.x % each;
    const int part = threadIdx.x / each;
    const bool mine = part == 0 && own < count;
    const Index place = matrix * count + own;
    const void* from = t.in[rows ? 1 : 2];
    void* to = t.out[rows ? 1 : 2];
    if (!is_applied(table) || t.size == 0) {
      if (mine) {
        copy<Format, New>(from, place_of_mean<rows>(table, place), to, place);
      }
      return 0.0;
    }
    const double sum =
        sum_parts(Sums::of(t, rows, matrix, vector_width), own, count, part, split, each);
    float value[1] = {0.0f};
    if (mine) {
      const Uniforms<Adafactor>& uniforms = uniforms_of(table, t);
      const auto square = static_cast<float>(sum / (rows ? t.columns : t.rows));
      load<Format>(from, place_of_mean<rows>(table, place), value);
      value[0] = Adafactor::average(value[0], square, uniforms.hypers, uniforms.scalars);
      store<New>(to, place, value);
      if (rows) {
        t.scratch.row_means[place] = value[0];
      } else {
        t.scratch.column_factors[place] = Adafactor::factor(value[0]);
      }
    }
    return rows ? sum_over_block<cuda::adafactor_threads>(value[0]) : 0.0;
  }

  // The thread of part 0 returns the sum.
  MLX_OPT_FN double sum_parts(
      const Sums& sums, Index own, Index count, int part, int split, int each) {
    __shared__ double partial[cuda::adafactor_threads];
    double sum = 0.0;
    if (own < count) {
#pragma unroll 8
      for (unsigned k = part; k < sums.parts; k += split) {
        sum += sums.first[k * sums.stride + own];
      }
    }
    partial[threadIdx.x] = sum;
    for (int half = split / 2; half > 0; half /= 2) {
      __syncthreads();
      if (part < half) {
        partial[threadIdx.x] += partial[threadIdx.x + half * each];
      }
    }
    return partial[threadIdx.x];
  }

  template <bool rows, int capacity>
  MLX_OPT_FN Index place_of_mean(const AdafactorTable<capacity>&, Index i) {
    return i;
  }

  template <bool rows>
  MLX_OPT_FN Index place_of_mean(const AdafactorStrided& args, Index i) {
    Index at[1];
    locate(rows ? args.row_means : args.column_means, i, at);
    return at[0];
  }
};

// One block for each tensor.
template <typename Table>
MLX_OPT_FN void adafactor_rates(const Table& table) {
  const AdafactorTensor& t = table.tensors[blockIdx.x];
  if (!is_applied(table)) {
    return;
  }
  double sums[2] = {};
  for (unsigned i = threadIdx.x; i < t.tiles; i += cuda::adafactor_threads) {
    sums[0] += t.scratch.squares[i];
    sums[1] += t.scratch.squares[t.tiles + i];
  }
  const double parameter = sum_over_block<cuda::adafactor_threads>(sums[0]);
  __syncthreads();
  const double update = sum_over_block<cuda::adafactor_threads>(sums[1]);
  if (threadIdx.x == 0) {
    const Uniforms<Adafactor>& uniforms = uniforms_of(table, t);
    const auto rates = Adafactor::rates(
        static_cast<float>(sqrt(parameter / t.size)),
        static_cast<float>(sqrt(update / t.size)),
        uniforms.hypers,
        uniforms.scalars);
    t.scratch.rates[0] = rates.update;
    t.scratch.rates[1] = rates.decay;
  }
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
