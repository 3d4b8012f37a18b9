// The definitions that a kernel's program for NVRTC needs when it is compiled for the CPU.
#pragma once

#include <math.h>
#include <string.h>

#include "grid.h"

#define __CUDACC_RTC__ 1
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One block at a time: blocks run one after another.
#define __shared__ static

#define blockIdx grid::block
#define threadIdx grid::thread
#define gridDim grid::blocks

inline void __syncthreads() {
  grid::barrier();
}

template <typename T>
T __shfl_sync(unsigned mask, T x, int lane) {
  if (mask != 0xffffffffu) {
    grid::complain("a shuffle of a part of a warp, which this cannot run");
  }
  unsigned long long bits = 0;
  memcpy(&bits, &x, sizeof x);
  bits = grid::exchange(bits, static_cast<unsigned>(lane));
  memcpy(&x, &bits, sizeof x);
  return x;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int bits) {
  return __shfl_sync(mask, x, static_cast<int>(threadIdx.x % 32) ^ bits);
}

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

// A GPU's vector must be aligned to its size.
template <typename T>
void check_alignment(const T* p) {
  if (reinterpret_cast<unsigned long long>(p) % sizeof(T) != 0) {
    grid::complain("a vector that is not aligned");
  }
}

template <typename T>
T __ldcs(const T* from) {
  check_alignment(from);
  T x;
  memcpy(&x, from, sizeof x);
  return x;
}

template <typename T>
void __stcs(T* to, T x) {
  check_alignment(to);
  memcpy(to, &x, sizeof x);
}

template <typename To, typename From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

inline float __uint_as_float(unsigned x) {
  return same_bits<float>(x);
}
inline unsigned __float_as_uint(float x) {
  return same_bits<unsigned>(x);
}
inline float __int_as_float(int x) {
  return same_bits<float>(x);
}
inline int __float_as_int(float x) {
  return same_bits<int>(x);
}

// The instructions that programs write in assembly. The first of two halves goes to the high bits.
inline float cvt_f32_f16(unsigned short x) {
  return static_cast<float>(same_bits<_Float16>(x));
}
inline unsigned short cvt_f16_f32(float x) {
  return same_bits<unsigned short>(static_cast<_Float16>(x));
}
inline unsigned cvt_f16x2_f32(float high, float low) {
  return static_cast<unsigned>(cvt_f16_f32(high)) << 16 | cvt_f16_f32(low);
}
inline unsigned cvt_bf16_f32(float x) {
  const unsigned bits = __float_as_uint(x);
  return x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
inline unsigned cvt_bf16x2_f32(float high, float low) {
  return cvt_bf16_f32(high) << 16 | cvt_bf16_f32(low);
}
