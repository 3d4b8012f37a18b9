// The kernels that sum the squares of each chunk of tensors, in double precision, in an order that
// depends on the shapes alone.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

template <typename Format>
struct Squares {
  using Tensor = cuda::Tensor<1, 1>;
  static constexpr int vector_width = 16 / sizeof(typename Format::Stored);

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

  // The elements have no gaps and any order: a block sums one chunk.
  template <typename Table>
  MLX_OPT_FN void flat(const Table& table) {
    const Tensor& tensor = find<&Tensor::first_chunk>(table, blockIdx.x);
    const unsigned index = blockIdx.x - tensor.first_chunk;
    const Index begin = static_cast<Index>(index) * cuda::norm_chunk;
    const Index remaining = size_of(tensor) - begin;
    const int count = remaining < cuda::norm_chunk ? static_cast<int>(remaining) : cuda::norm_chunk;
    double sum = 0.0;
    int done = 0;
    if (List<Format>::template aligned<vector_width>(tensor.in)) {
      done = count / vector_width * vector_width;
#pragma unroll 4
      for (int i = threadIdx.x * vector_width; i < done; i += cuda::threads * vector_width) {
        sum += of<vector_width>(tensor.in[0], begin + i);
      }
    }
    for (int i = done + threadIdx.x; i < count; i += cuda::threads) {
      sum += of<1>(tensor.in[0], begin + i);
    }
    put(tensor, index, sum);
  }

  MLX_OPT_FN void strided(const cuda::Strided<1, 1>& args) {
    const Index begin = static_cast<Index>(blockIdx.x) * cuda::norm_chunk;
    const Index remaining = size_of(args.tensor) - begin;
    const int count = remaining < cuda::norm_chunk ? static_cast<int>(remaining) : cuda::norm_chunk;
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += cuda::threads) {
      Index at[1];
      locate(args.layout, begin + i, at);
      sum += of<1>(args.tensor.in[0], at[0]);
    }
    put(args.tensor, blockIdx.x, sum);
  }

 private:
  MLX_OPT_FN void put(const Tensor& tensor, unsigned index, double sum) {
    const double total = sum_over_block<cuda::threads>(sum);
    if (threadIdx.x == 0) {
      static_cast<double*>(tensor.out[0])[index] = total;
    }
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
