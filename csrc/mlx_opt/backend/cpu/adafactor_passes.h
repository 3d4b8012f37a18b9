// Tensors of Adafactor on their way through the three passes. Included by adafactor.cpp only.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "mlx_opt/backend/cpu/adafactor_kernel.h"
#include "mlx_opt/backend/cpu/pool.h"

namespace mlx_opt::cpu {

// Of a tile, about. Its sums go to memory, a row's for each tile that it goes through and a
// column's; and they are in float, so it is not high. It is as wide as the matrix where its
// columns' sums stay in the first caches: memory is read fastest in order.
constexpr int64_t tile_size = 1 << 17;
constexpr int64_t enough_width = 4096;
constexpr int64_t least_height = 64;
constexpr int64_t most_height = 128;

inline int64_t rounded_up(int64_t x, int64_t unit) {
  return (x + unit - 1) / unit * unit;
}

// How the matrices of a tensor are cut; by their shape alone, so that the sums do not depend on the
// number of threads.
struct Tiling {
  int64_t height, width, down, across;

  explicit Tiling(const AdafactorTensor& t) {
    width = t.columns;
    if (width > enough_width) {
      const int64_t low = std::min(t.rows, least_height);
      width = std::min(width, std::max(enough_width, rounded_up(tile_size / low, 64)));
    }
    const int64_t high = rounded_up(tile_size / width, transposed_rows);
    height = std::min(t.rows, std::clamp(high, least_height, most_height));
    down = (t.rows + height - 1) / height;
    across = (t.columns + width - 1) / width;
  }
};

struct Item {
  AdafactorTensor tensor;
  Operand row, column, row_out, column_out; // running means, where it is factored
  int64_t row_size, column_size;

  int64_t size() const {
    return tensor.matrices * tensor.rows * tensor.columns;
  }
};

// A tensor on its way through the passes.
struct Job {
  const Item* item;
  AdafactorTensor tensor;
  Tiling tiling;
  std::vector<float> rows = {};    // [across][rows of all matrices]: sums of squares
  std::vector<float> columns = {}; // [down, of all matrices][columns]
  std::vector<float> row_factors = {}, column_factors = {};
  size_t first_tile = 0;
  float rates[2] = {};
};

struct TileOfJob {
  Job* job;
  Tile tile;
  float* rows;
  float* columns;
  double parameter, update; // sums of squares
};

// The jobs of tensors that go through the passes together.
class Group {
 public:
  Group(const AdafactorKernel& kernel, bool factored, const Item* begin, const Item* end)
      : kernel_(kernel), factored_(factored) {
    jobs_.reserve(end - begin);
    for (const Item* item = begin; item != end; ++item) {
      if (item->size()) {
        add(*item);
      }
    }
  }

  void run(const float* hypers, const float* scalars, float scale) {
    for_each_tile([&](TileOfJob& t) {
      t.parameter = kernel_.squares(t.job->tensor, t.tile, scale, t.rows, t.columns);
    });
    if (factored_) {
      parallel_for(jobs_.size(), [&](int64_t i) { average(jobs_[i], hypers, scalars); });
    }
    // Backwards: what was read last is still in the caches.
    for_each_tile_backwards([&](TileOfJob& t) {
      t.update = kernel_.update_squares(t.job->tensor, t.tile, scale, hypers, scalars);
    });
    find_rates(hypers, scalars);
    for_each_tile([&](TileOfJob& t) {
      kernel_.update(t.job->tensor, t.tile, scale, hypers, scalars, t.job->rates);
    });
  }

 private:
  void add(const Item& item) {
    Job& job = jobs_.emplace_back(Job{&item, item.tensor, Tiling(item.tensor)});
    const auto& [height, width, down, across] = job.tiling;
    const AdafactorTensor& t = item.tensor;
    const int64_t all_rows = t.matrices * t.rows;
    if (factored_) {
      job.rows.resize(across * all_rows);
      job.columns.resize(t.matrices * down * t.columns);
      job.row_factors.resize(all_rows);
      job.column_factors.resize(t.matrices * t.columns);
      job.tensor.row_factors = job.row_factors.data();
      job.tensor.column_factors = job.column_factors.data();
    }
    job.first_tile = tiles_.size();
    for (int64_t y = 0; y < t.matrices * down; ++y) {
      const int64_t first = y / down * t.rows;
      const int64_t top = first + y % down * height;
      const int64_t bottom = std::min(top + height, first + t.rows);
      for (int64_t x = 0; x < across; ++x) {
        const int64_t left = x * width;
        TileOfJob& tile = tiles_.emplace_back();
        tile.job = &job;
        tile.tile = {top, bottom, left, std::min(left + width, t.columns)};
        if (factored_) {
          tile.rows = job.rows.data() + x * all_rows + top;
          tile.columns = job.columns.data() + y * t.columns + left;
        }
      }
    }
  }

  template <typename Task>
  void for_each_tile(Task task) {
    parallel_for(tiles_.size(), [&](int64_t i) { task(tiles_[i]); });
  }

  template <typename Task>
  void for_each_tile_backwards(Task task) {
    parallel_for(tiles_.size(), [&](int64_t i) { task(tiles_[tiles_.size() - 1 - i]); });
  }

  // From the sums of a tensor's squares to the factors of its rows and columns.
  void average(Job& job, const float* hypers, const float* scalars) const {
    const AdafactorTensor& t = job.tensor;
    const int64_t all_rows = t.matrices * t.rows;
    std::vector<double> totals(std::max(t.rows, t.columns));
    for (int64_t matrix = 0; matrix < t.matrices; ++matrix) {
      const int64_t first = matrix * t.rows;
      float* rows = job.row_factors.data() + first;
      add_up(job.rows.data() + first, job.tiling.across, all_rows, t.rows, t.columns, totals, rows);
      const double sum =
          kernel_.average(job.item->row, job.item->row_out, first, t.rows, rows, hypers, scalars);
      kernel_.row_factors(rows, t.rows, static_cast<float>(sum / t.rows));

      const int64_t left = matrix * t.columns;
      float* columns = job.column_factors.data() + left;
      const float* parts = job.columns.data() + left * job.tiling.down;
      add_up(parts, job.tiling.down, t.columns, t.columns, t.rows, totals, columns);
      kernel_.average(
          job.item->column, job.item->column_out, left, t.columns, columns, hypers, scalars);
      kernel_.column_factors(columns, t.columns);
    }
  }

  // `to`: the sums of `parts` rows of `count` numbers, `stride` apart, over `size`.
  static void add_up(
      const float* from,
      int64_t parts,
      int64_t stride,
      int64_t count,
      int64_t size,
      std::vector<double>& totals,
      float* to) {
    std::fill_n(totals.begin(), count, 0.0);
    for (int64_t part = 0; part < parts; ++part) {
      for (int64_t i = 0; i < count; ++i) {
        totals[i] += from[part * stride + i];
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      to[i] = static_cast<float>(totals[i] / size);
    }
  }

  void find_rates(const float* hypers, const float* scalars) {
    for (size_t i = 0; i < jobs_.size(); ++i) {
      Job& job = jobs_[i];
      const size_t end = i + 1 < jobs_.size() ? jobs_[i + 1].first_tile : tiles_.size();
      double parameter = 0.0, update = 0.0;
      for (size_t tile = job.first_tile; tile < end; ++tile) {
        parameter += tiles_[tile].parameter;
        update += tiles_[tile].update;
      }
      const auto rms = [&](double sum) {
        return static_cast<float>(std::sqrt(sum / job.item->size()));
      };
      kernel_.rates(rms(parameter), rms(update), hypers, scalars, job.rates);
    }
  }

  const AdafactorKernel& kernel_;
  bool factored_;
  std::vector<Job> jobs_; // never more than were reserved: the tiles point to them
  std::vector<TileOfJob> tiles_;
};

} // namespace mlx_opt::cpu
