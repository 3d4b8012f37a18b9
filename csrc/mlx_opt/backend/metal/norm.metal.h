// The kernels of the global norm: the sum of squares of each chunk, then the root of all of them.
// The order of the sums depends on the shapes alone.
//
// Squares are exact, each in two floats: Ogita, Rump and Oishi, "Accurate sum and dot product",
// SIAM J. Sci. Comput. 26, 2005.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

using metal::norm_chunk;
using metal::Strided;
using metal::Sum;
using metal::Tensor;

// Number of elements that a thread holds at once, with a common scale.
enum : uint { batch = 4 * vector_width };

// A struct, because its unused functions cause no warnings.
struct Sums {
  // 2^n, a float that is not denormal: n from -126 to 127.
  MLX_OPT_FN float two_to(int n) {
    return as_type<float>(static_cast<uint>(n + 127) << 23);
  }

  // Reads and writes sums field by field, because not every compiler copies a struct from another
  // address space.
  template <typename Pointer>
  MLX_OPT_FN Sum read(Pointer from) {
    return {from->high, from->low, from->exponent};
  }
  template <typename Pointer>
  MLX_OPT_FN void write(Pointer to, Sum sum) {
    to->high = sum.high;
    to->low = sum.low;
    to->exponent = sum.exponent;
  }

  MLX_OPT_FN Sum nothing() {
    return {0.0f, 0.0f, -126};
  }

  // Raises the exponent of a sum. What a float cannot hold then is negligible beside the other sum.
  MLX_OPT_FN Sum with_exponent(Sum sum, int exponent) {
    const float factor = two_to(::metal::max(2 * (sum.exponent - exponent), -126));
    return {sum.high * factor, sum.low * factor, exponent};
  }

  // Adds a number in units of 4^exponent.
  MLX_OPT_FN Sum plus(Sum sum, float x) {
    const float high = sum.high + x;
    const float added = high - sum.high;
    const float lost = (sum.high - (high - added)) + (x - added);
    return {high, sum.low + lost, sum.exponent};
  }

  MLX_OPT_FN Sum plus(Sum a, Sum b) {
    const int exponent = ::metal::max(a.exponent, b.exponent);
    b = with_exponent(b, exponent);
    const Sum sum = plus(with_exponent(a, exponent), b.high);
    if (!(sum.high <= 3.402823466e38f)) {
      return {sum.high, 0.0f, exponent};
    }
    const float low = sum.low + b.low;
    const float high = sum.high + low;
    return {high, low - (high - sum.high), exponent};
  }

  MLX_OPT_FN Sum of_squares(thread const float* x) {
    uint largest = 0; // as integers, an infinity's bits exceed a number's, a NaN's exceed both
    for (uint k = 0; k < batch; ++k) {
      largest = ::metal::max(largest, as_type<uint>(absolute(x[k])));
    }
    const int exponent = ::metal::clamp(static_cast<int>(largest >> 23) - 127, -126, 126);
    const float scale = two_to(-exponent);
    Sum sum = {0.0f, 0.0f, exponent};
    for (uint k = 0; k < batch; ++k) {
      const float y = scale * x[k];
      const float square = y * y;
      sum = plus(sum, square);
      sum.low += fma(y, y, -square);
    }
    return sum;
  }

  // The sum over all threads of a threadgroup, returned by the first.
  MLX_OPT_FN Sum of_all(Sum own, uint index, threadgroup Sum* staged) {
    write(staged + index, own);
    for (uint width = threads / 2; width > 0; width /= 2) {
      wait_for_group();
      if (index < width) {
        own = plus(own, read(staged + index + width));
        write(staged + index, own);
      }
    }
    return own;
  }
};

template <typename Format>
struct Squares {
  // The elements have no gaps and any order: a threadgroup sums one chunk.
  MLX_OPT_FN void flat(
      device Sum* sums,
      device const uchar* operand,
      constant Tensor& tensor,
      uint group,
      uint index,
      threadgroup Sum* staged) {
    const ulong begin = static_cast<ulong>(group - tensor.first_chunk) * norm_chunk;
    const uint count = chunk_at(begin, tensor.size);
    Sum sum = Sums::nothing();
    for (uint from = index * vector_width; from < count; from += batch * threads) {
      float x[batch] = {};
      for (uint k = 0; k < batch; k += vector_width) {
        const uint i = from + k * threads;
        load(operand, begin + i, i < count ? count - i : 0, tensor.vectors != 0, x + k);
      }
      sum = Sums::plus(sum, Sums::of_squares(x));
    }
    put(sums + group, sum, index, staged);
  }

  // A tensor of any layout. Index: the type of element indices.
  template <typename Index>
  MLX_OPT_FN void strided(
      device Sum* sums,
      device const uchar* operand,
      constant Strided<1>& tensor,
      uint group,
      uint index,
      threadgroup Sum* staged) {
    const ulong begin = static_cast<ulong>(group) * norm_chunk;
    const uint count = chunk_at(begin, tensor.size);
    Sum sum = Sums::nothing();
    for (uint from = index; from < count; from += batch * threads) {
      float x[batch] = {};
      for (uint k = 0; k < batch && from + k * threads < count; ++k) {
        long place[1];
        locate(tensor.layout, static_cast<Index>(begin + from + k * threads), place);
        Access<Format, 1>::load(operand, static_cast<ulong>(place[0]), x + k);
      }
      sum = Sums::plus(sum, Sums::of_squares(x));
    }
    put(sums + group, sum, index, staged);
  }

 private:
  // The number of elements of a chunk.
  MLX_OPT_FN uint chunk_at(ulong begin, ulong size) {
    const ulong remaining = size - begin;
    return remaining < norm_chunk ? static_cast<uint>(remaining) : static_cast<uint>(norm_chunk);
  }

  // Loads at most `remaining` elements from i on.
  MLX_OPT_FN void load(
      device const uchar* operand, ulong i, uint remaining, bool vectors, thread float* x) {
    if (vectors && remaining >= vector_width) {
      Access<Format, vector_width>::load(operand, i, x);
      return;
    }
    for (uint lane = 0; lane < vector_width && lane < remaining; ++lane) {
      Access<Format, 1>::load(operand, i + lane, x + lane);
    }
  }

  MLX_OPT_FN void put(device Sum* to, Sum own, uint index, threadgroup Sum* staged) {
    const Sum sum = Sums::of_all(own, index, staged);
    if (index == 0) {
      Sums::write(to, sum);
    }
  }
};

struct Norm {
  // Run by one threadgroup.
  MLX_OPT_FN void root(
      device float* to,
      constant ulong& count,
      device const Sum* sums,
      uint index,
      threadgroup Sum* staged) {
    Sum sum = Sums::nothing();
    for (ulong i = index; i < count; i += threads) {
      sum = Sums::plus(sum, Sums::read(sums + i));
    }
    sum = Sums::of_all(sum, index, staged);
    if (index == 0) {
      *to = square_root(sum.high) * Sums::two_to(sum.exponent);
    }
  }

  // Run by one thread.
  MLX_OPT_FN void scale(
      device float* to,
      constant metal::Clip& from,
      device const float* norm,
      device const float* traced_max_norm) {
    *to = Clipping::scale(
        *norm, from.traced != 0 ? *traced_max_norm : from.max_norm, from.skip_nonfinite != 0);
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
