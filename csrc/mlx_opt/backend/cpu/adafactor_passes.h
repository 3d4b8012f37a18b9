// Adafactor's three passes over tensors, and the order of their tasks. Included by adafactor.cpp
// only.
#pragma once

#include <algorithm>
#include <cmath>
#include <deque>
#include <vector>

#include "mlx_opt/backend/cpu/adafactor_job.h"
#include "mlx_opt/backend/cpu/pool.h"

namespace mlx_opt::cpu {

// Tensors go through the passes in groups of up to this many elements: enough for all threads, and
// few enough that the second and third pass find most of them in the caches.
constexpr int64_t group_size = 1 << 20;

// Runs the passes over tensors in one call of the pool. Tasks are handed out in order, so a task
// only ever waits for tasks that have been handed out.
class Passes {
 public:
  Passes(const AdafactorKernel& kernel, Scale scale) : kernel_(kernel), scale_(scale) {}

  void run(const std::vector<Item>& items) {
    for (const Item& item : items) {
      if (item.size()) {
        jobs_.emplace_back(item);
      }
    }
    std::vector<Tasks> groups; // the last pass of each group
    for (size_t begin = 0, end = 0; begin < jobs_.size(); begin = end) {
      for (int64_t size = 0; end < jobs_.size() && size < group_size; ++end) {
        size += jobs_[end].item->size();
      }
      groups.push_back(updates_of(begin, end));
    }
    const Tasks tasks = in_order(groups);
    parallel_for(tasks.size(), [&](int64_t i) {
      const auto& [pass, job, tile] = tasks[i];
      (this->*pass)(*job, tile);
    });
  }

 private:
  using Pass = void (Passes::*)(Job&, int64_t);

  struct Task {
    Pass pass;
    Job* job;
    int64_t tile;
  };

  using Tasks = std::vector<Task>;

  // The last pass of a group of jobs.
  Tasks updates_of(size_t begin, size_t end) {
    Tasks tasks;
    for (size_t i = begin; i < end; ++i) {
      for (int64_t tile = 0; tile < jobs_[i].tiles; ++tile) {
        tasks.push_back({&Passes::update, &jobs_[i], tile});
      }
    }
    return tasks;
  }

  static Tasks as_pass(Pass pass, Tasks tasks) {
    for (Task& task : tasks) {
      task.pass = pass;
    }
    return tasks;
  }

  // The second pass runs backwards, because what was read last is still in the caches. Half of the
  // next group's first pass runs before it and half before the third pass, so that no thread waits
  // for the last tiles of the previous pass: waking a thread takes longer than a tile.
  static Tasks in_order(const std::vector<Tasks>& groups) {
    Tasks tasks;
    const auto add = [&](const Tasks& some) {
      tasks.insert(tasks.end(), some.begin(), some.end());
    };
    Tasks next = groups.empty() ? Tasks() : first_pass(groups[0]);
    add(next);
    for (size_t i = 0; i < groups.size(); ++i) {
      next = i + 1 < groups.size() ? first_pass(groups[i + 1]) : Tasks();
      const auto half = next.begin() + next.size() / 2;
      add({next.begin(), half});
      add(as_pass(&Passes::square_update, {groups[i].rbegin(), groups[i].rend()}));
      add({half, next.end()});
      add(groups[i]);
    }
    return tasks;
  }

  static Tasks first_pass(Tasks tasks) {
    std::erase_if(tasks, [](const Task& task) { return !task.job->item->factored; });
    return as_pass(&Passes::average_squares, std::move(tasks));
  }

  void average_squares(Job& job, int64_t tile) {
    kernel_.squares(job.tensor, job.tile(tile), scale_, job.rows_of(tile), job.columns_of(tile));
    job.averaged.arrive([&] { average(job); });
  }

  void square_update(Job& job, int64_t tile) {
    if (job.item->factored) {
      job.averaged.wait();
    }
    job.squares[tile] = kernel_.update_squares(
        job.tensor, job.tile(tile), scale_, job.item->hypers, job.item->scalars);
    job.rated.arrive([&] { find_rates(job); });
  }

  void update(Job& job, int64_t tile) {
    job.rated.wait();
    kernel_.update(
        job.tensor, job.tile(tile), scale_, job.item->hypers, job.item->scalars, job.rates);
  }

  // Computes the factors of a tensor's rows and columns from its sums of squares.
  void average(Job& job) const {
    const AdafactorTensor& t = job.tensor;
    const int64_t all_rows = t.matrices * t.rows;
    std::vector<double> totals(std::max(t.rows, t.columns));
    for (int64_t matrix = 0; matrix < t.matrices; ++matrix) {
      const int64_t first = matrix * t.rows;
      float* rows = job.row_factors.get() + first;
      add_up(job.rows.get() + first, job.tiling.across, all_rows, t.rows, t.columns, totals, rows);
      const double sum = kernel_.average(
          job.item->row,
          job.item->row_out,
          first,
          t.rows,
          rows,
          job.item->hypers,
          job.item->scalars);
      kernel_.row_factors(rows, t.rows, static_cast<float>(sum / t.rows));

      const int64_t left = matrix * t.columns;
      float* columns = job.column_factors.get() + left;
      const float* parts = job.columns.get() + left * job.tiling.down;
      add_up(parts, job.tiling.down, t.columns, t.columns, t.rows, totals, columns);
      kernel_.average(
          job.item->column,
          job.item->column_out,
          left,
          t.columns,
          columns,
          job.item->hypers,
          job.item->scalars);
      kernel_.column_factors(columns, t.columns);
    }
  }

  // Sets `to` to the sums over `parts` rows of `count` numbers, `stride` apart, divided by `size`.
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

  void find_rates(Job& job) const {
    Squares sums = {0.0, 0.0};
    for (const Squares& tile : job.squares) {
      sums.parameter += tile.parameter;
      sums.update += tile.update;
    }
    const auto rms = [&](double sum) {
      return static_cast<float>(std::sqrt(sum / job.item->size()));
    };
    kernel_.rates(
        rms(sums.parameter), rms(sums.update), job.item->hypers, job.item->scalars, job.rates);
  }

  const AdafactorKernel& kernel_;
  Scale scale_;
  std::deque<Job> jobs_; // which do not move
};

} // namespace mlx_opt::cpu
