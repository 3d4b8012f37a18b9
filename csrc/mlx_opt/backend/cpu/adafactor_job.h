// A tensor in Adafactor's three passes, and its division into tiles. Included by adafactor_passes.h
// only.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "mlx_opt/backend/cpu/kernels/adafactor_kernel.h"

namespace mlx_opt::cpu {

// Approximate number of elements of a tile. Each tile writes a sum for each of its rows and columns
// to memory. The sums are float32, so a tile is not high. It is as wide as the matrix if the column
// sums stay in the first caches: memory is read fastest in order.
constexpr int64_t tile_size = 1 << 17;
constexpr int64_t enough_width = 4096;
constexpr int64_t min_height = 64;
constexpr int64_t max_height = 128;

inline int64_t rounded_up(int64_t x, int64_t unit) {
  return (x + unit - 1) / unit * unit;
}

// Divides the matrices of a tensor into tiles, by their shape alone, so that the sums do not depend
// on the number of threads.
struct Tiling {
  int64_t height, width, down, across;

  explicit Tiling(const AdafactorTensor& t) {
    width = t.columns;
    if (width > enough_width) {
      const int64_t low = std::min(t.rows, min_height);
      width = std::min(width, std::max(enough_width, rounded_up(tile_size / low, 64)));
    }
    const int64_t high = rounded_up(tile_size / width, transposed_rows);
    height = std::min(t.rows, std::clamp(high, min_height, max_height));
    down = (t.rows + height - 1) / height;
    across = (t.columns + width - 1) / width;
  }
};

struct Item {
  AdafactorTensor tensor;
  bool factored;
  Operand row, column, row_out, column_out; // running means, if it is factored
  int64_t row_size, column_size;
  uint16_t group;
  const float* hypers; // of the group, and its scalars, once the step runs
  const float* scalars;

  int64_t size() const {
    return tensor.matrices * tensor.rows * tensor.columns;
  }
};

// A gate at which tiles wait for other tiles.
class Gate {
 public:
  explicit Gate(int64_t arrivals) : left_(arrivals) {}

  // The last tile to arrive runs `before` and opens the gate.
  template <typename Task>
  void arrive(Task before) {
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      before();
      left_.store(open, std::memory_order_release);
      left_.notify_all();
    }
  }

  void wait() const {
    for (int64_t seen; (seen = left_.load(std::memory_order_acquire)) != open;) {
      left_.wait(seen, std::memory_order_acquire);
    }
  }

 private:
  static constexpr int64_t open = -1;
  std::atomic<int64_t> left_;
};

using Floats = std::unique_ptr<float[]>;

// Not initialised: zeroing would be the work of one thread.
inline Floats floats(int64_t count) {
  return Floats(new float[count]);
}

// A tensor in the passes.
struct Job {
  explicit Job(const Item& item)
      : item(&item),
        tensor(item.tensor),
        tiling(tensor),
        tiles(tensor.matrices * tiling.down * tiling.across),
        averaged(tiles),
        rated(tiles) {
    if (item.factored) {
      const int64_t all_rows = tensor.matrices * tensor.rows;
      rows = floats(tiling.across * all_rows);
      columns = floats(tensor.matrices * tiling.down * tensor.columns);
      row_factors = floats(all_rows);
      column_factors = floats(tensor.matrices * tensor.columns);
      tensor.row_factors = row_factors.get();
      tensor.column_factors = column_factors.get();
    }
    squares.resize(tiles);
  }

  const Item* item;
  AdafactorTensor tensor;
  Tiling tiling;
  int64_t tiles;
  Gate averaged, rated;
  Floats rows;    // [across][rows of all matrices]: sums of squares
  Floats columns; // [down, of all matrices][columns]
  Floats row_factors, column_factors;
  std::vector<Squares> squares; // of each tile
  float rates[2] = {};

  Tile tile(int64_t index) const {
    const auto& [height, width, down, across] = tiling;
    const int64_t y = index / across;
    const int64_t first = y / down * tensor.rows;
    const int64_t top = first + y % down * height;
    const int64_t left = index % across * width;
    return {
        top,
        std::min(top + height, first + tensor.rows),
        left,
        std::min(left + width, tensor.columns)};
  }

  float* rows_of(int64_t index) const {
    const int64_t all_rows = tensor.matrices * tensor.rows;
    return rows.get() + index % tiling.across * all_rows + tile(index).top;
  }

  float* columns_of(int64_t index) const {
    return columns.get() + index / tiling.across * tensor.columns + tile(index).left;
  }
};

} // namespace mlx_opt::cpu
