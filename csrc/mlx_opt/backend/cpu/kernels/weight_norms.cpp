// The norms of a step's updates and weights for one instruction set; compiled as elementwise.cpp
// is.
#include "mlx_opt/backend/cpu/kernels/weights.h"

namespace mlx_opt {
namespace MLX_OPT_LEVEL {
namespace {

// The squares of some elements are summed in float32, these sums in double.
constexpr int sums = 32;
constexpr int64_t longest = 1024;

MLX_OPT_FN float plus_square(float sum, float x) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(x, x, sum);
#else
  return sum + x * x;
#endif
}

struct Totals {
  alignas(64) double updates[sums] = {}, weights[sums] = {};

  void add_to(double* totals) const {
    for (int k = 0; k < sums; ++k) {
      totals[0] += updates[k];
      totals[1] += weights[k];
    }
  }
};

template <typename Format, typename Stored = typename Format::Stored>
MLX_OPT_FN void add_squares(
    const Stored* before, const Stored* after, float (&updates)[sums], float (&weights)[sums]) {
  float old[sums], updated[sums];
  for (int k = 0; k < sums; k += lanes) {
    widen_lanes<Format>(before + k, old + k);
    widen_lanes<Format>(after + k, updated + k);
  }
  for (int k = 0; k < sums; ++k) {
    const float update = updated[k] - old[k];
    updates[k] = plus_square(updates[k], update);
    weights[k] = plus_square(weights[k], updated[k]);
  }
}

// Adds at most `longest` weights. `copies`: true if those after the step are copied to `to`.
template <typename Format, bool copies, typename Stored = typename Format::Stored>
void add_block(
    const Stored* before, const Stored* after, Stored* to, int64_t count, Totals& totals) {
  float updates[sums] = {}, weights[sums] = {}; // in registers
  int64_t i = 0;
  for (; i + sums <= count; i += sums) {
    add_squares<Format>(before + i, after + i, updates, weights);
    if constexpr (copies) {
      __builtin_memcpy(to + i, after + i, sums * sizeof(Stored));
    }
  }
  if (i < count) {
    Stored old[sums] = {}, updated[sums] = {};
    __builtin_memcpy(old, before + i, (count - i) * sizeof(Stored));
    __builtin_memcpy(updated, after + i, (count - i) * sizeof(Stored));
    add_squares<Format>(old, updated, updates, weights);
    if constexpr (copies) {
      __builtin_memcpy(to + i, after + i, (count - i) * sizeof(Stored));
    }
  }
  for (int k = 0; k < sums; ++k) {
    totals.updates[k] += updates[k];
    totals.weights[k] += weights[k];
  }
}

template <typename Format>
void put_stored(
    const Tensor& tensor, const Operand& fresh, int64_t begin, int64_t end, Totals& totals) {
  using Stored = typename Format::Stored;
  for (; begin < end; begin += longest) {
    const int64_t count = end - begin < longest ? end - begin : longest;
    const auto* before = at<const Stored>(tensor.in[0], begin);
    auto* to = at<Stored>(tensor.out[0], begin);
    add_block<Format, true>(before, at<const Stored>(fresh, begin), to, count, totals);
  }
}

void put_staged(
    const Tensor& tensor, const Operand& fresh, int64_t begin, int64_t end, Totals& totals) {
  const int64_t size = fresh.storage == Storage::float32 ? sizeof(float) : sizeof(uint16_t);
  for (; begin < end; begin += block) {
    const int64_t count = end - begin < block ? end - begin : block;
    alignas(64) float old[block], updated[block];
    const float* before = load(tensor.in[0], begin, count, old);
    const float* after = load(fresh, begin, count, updated);
    add_block<Float32, false>(before, after, static_cast<float*>(nullptr), count, totals);
    __builtin_memcpy(
        at<char>(tensor.out[0], begin * size), at<const char>(fresh, begin * size), count * size);
  }
}

void put(const Tensor& tensor, const Operand& fresh, int64_t begin, int64_t end, double* sums) {
  const Operand& before = tensor.in[0];
  const bool is_plain = !before.layout && before.storage == fresh.storage;
  Totals totals;
  if (is_plain && fresh.storage == Storage::float32) {
    put_stored<Float32>(tensor, fresh, begin, end, totals);
  } else if (is_plain && fresh.storage == Storage::bfloat16) {
    put_stored<BFloat16>(tensor, fresh, begin, end, totals);
  } else {
    put_staged(tensor, fresh, begin, end, totals);
  }
  totals.add_to(sums);
}

void load_before(const Tensor& tensor, int slots, int64_t begin, int64_t end, float* to) {
  for (; begin < end; begin += block, to += block) {
    const int64_t count = end - begin < block ? end - begin : block;
    const float* weights = load_weights_before(tensor, slots, begin, count, to);
    if (weights != to) {
      __builtin_memcpy(to, weights, count * sizeof(float));
    }
  }
}

void add(
    const Tensor& tensor,
    int slots,
    int64_t begin,
    int64_t end,
    const float* before,
    double* sums) {
  Totals totals;
  for (; begin < end; begin += block, before += block) {
    const int64_t count = end - begin < block ? end - begin : block;
    alignas(64) float staged[block];
    const float* after = load_weights(tensor, slots, begin, count, staged);
    add_block<Float32, false>(before, after, static_cast<float*>(nullptr), count, totals);
  }
  totals.add_to(sums);
}

} // namespace

extern const cpu::WeightSquares weight_squares;
const cpu::WeightSquares weight_squares = {put, load_before, add};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
