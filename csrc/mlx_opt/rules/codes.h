// Codes of 8 bits for state slots. A block of elements that are adjacent in the whole tensor has a
// scale, its largest size; a code is about the root of a number's part of the scale, so that small
// numbers keep more digits than with codes at equal distances:
//   127 (|x| / scale)^(1/2) with x's sign, of a number x of any sign;
//   255 (x / scale)^(1/4), at least 1 if x is more than 0, of a number x that is not negative.
// The bits of a float, as an integer, are nearly its logarithm, so half of them give nearly the
// root. Codes are made so, without roots, and numbers from codes by the inverse of just that, so
// what is decoded is encoded as the same code. The largest number of a block is exact.
#pragma once
#include "portable.h"

MLX_OPT_RULES_BEGIN

enum : int { elements_of_block = 64 };

// The bits of |x|, whose order is that of the sizes, with infinity and then NaN as the largest.
MLX_OPT_FN int size_bits(float x) {
  return as_int(x) & 0x7fffffff;
}

// The scale of a block from the bits of its largest size. A block of denormals becomes zeros. One
// with NaN, infinity or a number of 2^126 or more, whose reciprocal is denormal, becomes NaN.
MLX_OPT_FN float scale_of_block(int largest) {
  return largest >= 0x7e800000   ? as_float(0x7fc00000)
         : largest >= 0x00800000 ? as_float(largest)
                                 : 0.0f;
}

// What `encode` multiplies by.
MLX_OPT_FN float reciprocal_of(float scale) {
  return scale > 0.0f ? 1.0f / scale : 0.0f;
}

// About the root of degree 2^shift of x's part of the scale, at most 1; of NaN it is 1. The bits of
// 1 stay as they are.
template <int shift>
MLX_OPT_FN float root_of_part(float x, float reciprocal) {
  constexpr int one = 0x3f800000;
  int bits = size_bits(x * reciprocal);
  return as_float(((bits < one ? bits : one) >> shift) + (one - (one >> shift)));
}

// The inverse; 0 of 0.
template <int shift>
MLX_OPT_FN float part_of_root(float root) {
  constexpr int one = 0x3f800000;
  int bits = as_int(root) - (one - (one >> shift));
  return as_float((bits > 0 ? bits : 0) << shift);
}

struct SignedCodes {
  MLX_OPT_FN int encode(float x, float reciprocal) {
    int code = static_cast<int>(root_of_part<1>(x, reciprocal) * 127.0f + 0.5f);
    return x < 0.0f ? -code : code;
  }
  MLX_OPT_FN float decode(int code, float scale) {
    float part = part_of_root<1>(static_cast<float>(code < 0 ? -code : code) * (1.0f / 127));
    return (code < 0 ? -part : part) * scale;
  }
};

// A small number does not become 0, because rules divide by its root.
struct UnsignedCodes {
  MLX_OPT_FN int encode(float x, float reciprocal) {
    int code = static_cast<int>(root_of_part<2>(x, reciprocal) * 255.0f + 0.5f);
    int least = size_bits(x) < 1 ? 0 : 1;
    return code > least ? code : least;
  }
  MLX_OPT_FN float decode(int code, float scale) {
    return part_of_root<2>(static_cast<float>(code) * (1.0f / 255)) * scale;
  }
};

MLX_OPT_RULES_END
