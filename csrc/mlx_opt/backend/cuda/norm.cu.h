// The kernels of the global norm: the sum of squares of each chunk, in double precision, then the
// root of all of them. The order of the sums depends on the shapes alone.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// The sum of `x` over the threads of a block; thread 0 has it.
template <int count>
MLX_OPT_FN double sum_over_block(double x) {
  __shared__ double sums[count];
  sums[threadIdx.x] = x;
  for (int half = count / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      sums[threadIdx.x] += sums[threadIdx.x + half];
    }
  }
  return sums[0];
}

template <typename Format>
struct Squares {
  static constexpr int lanes = 16 / sizeof(typename Format::Stored);

  template <int count>
  MLX_OPT_FN double of(const void* operand, Index i) {
    float x[count];
    load<Format>(operand, i, x);
    double sum = 0.0;
#pragma unroll
    for (int lane = 0; lane < count; ++lane) {
      sum += static_cast<double>(x[lane]) * x[lane];
    }
    return sum;
  }

  // All elements lie together, in whatever order: a block takes a chunk.
  template <typename Table>
  MLX_OPT_FN void flat(const Table& table) {
    const Tensor& tensor = find<&Tensor::first_chunk>(table, blockIdx.x);
    const unsigned index = blockIdx.x - tensor.first_chunk;
    const Index begin = static_cast<Index>(index) * cuda::norm_chunk;
    const Index left = tensor.size - begin;
    const int count = left < cuda::norm_chunk ? static_cast<int>(left) : cuda::norm_chunk;
    double sum = 0.0;
    int done = 0;
    if (List<Format>::template aligned<lanes>(tensor.in)) {
      done = count / lanes * lanes;
#pragma unroll 4
      for (int i = threadIdx.x * lanes; i < done; i += threads * lanes) {
        sum += of<lanes>(tensor.in[0], begin + i);
      }
    }
    for (int i = done + threadIdx.x; i < count; i += threads) {
      sum += of<1>(tensor.in[0], begin + i);
    }
    put(tensor, index, sum);
  }

  MLX_OPT_FN void strided(const Strided& args) {
    const Index begin = static_cast<Index>(blockIdx.x) * cuda::norm_chunk;
    const Index left = args.tensor.size - begin;
    const int count = left < cuda::norm_chunk ? static_cast<int>(left) : cuda::norm_chunk;
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += threads) {
      Index at[1];
      locate(args.layout, begin + i, at);
      sum += of<1>(args.tensor.in[0], at[0]);
    }
    put(args.tensor, blockIdx.x, sum);
  }

 private:
  MLX_OPT_FN void put(const Tensor& tensor, unsigned index, double sum) {
    const double total = sum_over_block<threads>(sum);
    if (threadIdx.x == 0) {
      static_cast<double*>(tensor.out[0])[index] = total;
    }
  }
};

// By one block.
MLX_OPT_FN void norm(const cuda::Sums& sums) {
  double sum = 0.0;
  for (Index i = threadIdx.x; i < sums.count; i += cuda::norm_threads) {
    sum += sums.of_chunks[i];
  }
  const double total = sum_over_block<cuda::norm_threads>(sum);
  if (threadIdx.x == 0) {
    *sums.norm = static_cast<float>(sqrt(total));
  }
}

// By one thread.
MLX_OPT_FN void clip(const cuda::Clip& from) {
  *from.scale = Clipping::scale(*from.norm, from.max_norm ? *from.max_norm : from.most, from.skips);
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
