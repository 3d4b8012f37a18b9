#include "mlx_opt/backend/cpu/step.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "mlx/backend/cpu/encoder.h"
#include "mlx_opt/backend/cpu/adafactor.h"
#include "mlx_opt/backend/cpu/operands.h"
#include "mlx_opt/backend/cpu/pieces.h"
#include "mlx_opt/backend/cpu/pool.h"
#include "mlx_opt/backend/cpu/scalars.h"
#include "mlx_opt/rules/registry.h"
#include "mlx_opt/step/plan.h"

namespace mlx_opt::cpu {
namespace {

// A chunk is long enough to be worth handing to a thread, and short enough that all threads finish
// together.
constexpr int64_t shortest_chunk = 8192;
constexpr int64_t longest_chunk = 65536;
constexpr int64_t chunks_a_thread = 8;

// The maximum number of chunks of a step of two passes, unless a chunk would be longer than
// longest_chunk.
constexpr int64_t max_chunks = 256;

// The number of elements that are updated before their averages are, or before their norms are
// taken, so that the weights are still in the first caches.
constexpr int64_t ema_block = 4096;
constexpr int64_t norms_block = 1024;

// About `elements`, in multiples of what a tensor is divided by.
int64_t length_of_blocks(int64_t elements, int64_t grain) {
  return (elements + grain - 1) / grain * grain;
}

// The scalars that the tensors of a group share.
struct Group {
  std::vector<MLX_OPT_LEVEL::Hyper> hypers; // the last is the rate of the average if there is one
  float step;
  float scalars[max_scalars];

  const float* values() const {
    return reinterpret_cast<const float*>(hypers.data());
  }
};

using Rates = std::array<float, max_sums>;

// Everything that the task reads, collected while the arrays exist. MLX keeps their buffers.
struct StepTask {
  const Kernel* kernel;
  int slots; // of the rule
  bool has_ema;
  int threads;
  StepScalars scalars;
  std::vector<Operand> in = {};  // of all tensors, which point here
  std::vector<Operand> out = {}; // likewise, and one for each array of scales; their addresses are
                                 // set last
  std::vector<std::pair<size_t, size_t>> scales = {}; // of codes in `out`, that of their scales
  std::vector<Tensor> tensors = {};
  std::vector<Plan::Extent> extents = {};
  std::vector<uint16_t> groups = {}; // of each tensor; empty: all are in group 0
  Operands operands = {};
  std::shared_ptr<void> keep_alive = {};
  float* norms = nullptr; // where those of the groups go; null if they are not taken

  // `rounding_keys`: of the run's tensors; null if they are not rounded stochastically.
  void add_run(
      const TensorRun& run,
      const mx::array* const* arrays,
      const mx::Dtype* dtypes,
      const uint32_t* rounding_keys);
  void run() const;

 private:
  uint16_t group_of(size_t tensor) const {
    return groups.empty() ? 0 : groups[tensor];
  }

  std::vector<Group> prepare_groups() const;
  template <typename Visit>
  void visit(int64_t chunk, Visit&& visit) const;
  void update(
      const Tensor& tensor, int64_t begin, int64_t end, int64_t grain, const Group& group) const;
  void update_with_norms(const std::vector<Group>& prepared, int64_t total) const;
  template <typename Step>
  void add_squares(Piece& piece, Step&& step) const;
  int64_t chunk_of_pieces(int64_t total) const;
  void write_norms(const Pieces& pieces, bool is_applied) const;
  void update_in_two_passes(const std::vector<Group>& prepared, int64_t total) const;
};

void StepTask::add_run(
    const TensorRun& run,
    const mx::array* const* arrays,
    const mx::Dtype* dtypes,
    const uint32_t* rounding_keys) {
  const int results = run.operands - 1;
  // The place of the gradient; a master and an average come behind it. Scales are with their codes.
  const int gradient = slots + 1;
  for (size_t t = 0; t < run.tensors; ++t, arrays += run.operands, dtypes += results) {
    Tensor& tensor = tensors.emplace_back();
    tensor = {in.data() + in.size(), out.data() + out.size(), run.masters, has_ema};
    tensor.has_codes = run.scales > 0;
    if (rounding_keys) {
      tensor.rounds = has_bfloat16(dtypes, results);
      tensor.rounding_key = rounding_keys[t];
    }
    int scale = results - run.scales;
    for (int k = 0; k < gradient; ++k) {
      Operand& operand = in.emplace_back(operands.of(*arrays[k]));
      if (is_coded(operand.storage)) {
        operand.scales = const_cast<float*>(arrays[scale]->data<float>());
        scales.emplace_back(out.size() + k, out.size() + scale++);
      }
    }
    in.push_back(operands.of(*arrays[results]));
    for (int k = gradient; k < results - run.scales; ++k) {
      in.push_back(operands.of(*arrays[k]));
    }
    for (int k = 0; k < results; ++k) {
      out.push_back({nullptr, storage_of(dtypes[k]), nullptr});
    }
    const Operand& g = tensor.in[gradient];
    const bool panels = has_panels(tensor, g);
    const int64_t grain = panels ? transposed_rows * g.layout->shape[1] : Plan::alignment;
    static_assert(Plan::alignment % coded_block == 0);
    extents.push_back({static_cast<int64_t>(arrays[0]->size()), grain});
  }
}

std::vector<Group> StepTask::prepare_groups() const {
  std::vector<Group> prepared;
  for (const GroupScalars& group : scalars.groups()) {
    Group& added = prepared.emplace_back(Group{group.hypers(), group.step(), {}});
    kernel->prepare(added.values(), group.learning_rate(), added.step, added.scalars);
  }
  return prepared;
}

void StepTask::run() const {
  int64_t total = 0;
  for (const auto& extent : extents) {
    total += extent.size;
  }
  if (!scalars.is_applied()) {
    if (norms) {
      Pieces pieces(Plan(extents, chunk_of_pieces(total)));
      pieces.for_each([&](Piece& piece) {
        add_squares(piece, [&](const Tensor& tensor, int64_t begin, int64_t end) {
          kernel->copy_through(tensor, begin, end);
        });
      });
      write_norms(pieces, false);
      return;
    }
    visit(total / (chunks_a_thread * threads), [&](size_t tensor, int64_t begin, int64_t end) {
      kernel->copy_through(tensors[tensor], begin, end);
    });
    return;
  }
  const std::vector<Group> prepared = prepare_groups();
  if (!kernel->run) {
    update_in_two_passes(prepared, total);
  } else if (norms) {
    update_with_norms(prepared, total);
  } else {
    visit(total / (chunks_a_thread * threads), [&](size_t tensor, int64_t begin, int64_t end) {
      update(tensors[tensor], begin, end, extents[tensor].grain, prepared[group_of(tensor)]);
    });
  }
}

template <typename Visit>
void StepTask::visit(int64_t chunk, Visit&& visit) const {
  const Plan plan(extents, std::clamp(chunk, shortest_chunk, longest_chunk));
  parallel_for(plan.chunks(), [&](int64_t index) { plan.visit(index, visit); });
}

// The length of a chunk where sums are taken. It does not depend on the number of threads, and so
// neither do the sums.
int64_t StepTask::chunk_of_pieces(int64_t total) const {
  return std::clamp(total / max_chunks, shortest_chunk, longest_chunk);
}

void StepTask::update(
    const Tensor& tensor, int64_t begin, int64_t end, int64_t grain, const Group& group) const {
  const Scale scale = scalars.scale();
  if (!has_ema) {
    kernel->run(tensor, begin, end, group.values(), group.scalars, scale, group.step);
    return;
  }
  const int64_t length = length_of_blocks(ema_block, grain);
  for (; begin < end; begin += length) {
    const int64_t stop = std::min(begin + length, end);
    kernel->run(tensor, begin, stop, group.values(), group.scalars, scale, group.step);
    update_ema()(tensor, slots, begin, stop, group.hypers.back().value);
  }
}

void StepTask::update_with_norms(const std::vector<Group>& prepared, int64_t total) const {
  Pieces pieces(Plan(extents, chunk_of_pieces(total)));
  pieces.for_each([&](Piece& piece) {
    const Group& group = prepared[group_of(piece.tensor)];
    const int64_t grain = extents[piece.tensor].grain;
    piece.sums = {};
    if (!has_ema && kernel->run_with_squares) {
      piece.begin = kernel->run_with_squares(
          tensors[piece.tensor],
          piece.begin,
          piece.end,
          group.values(),
          group.scalars,
          scalars.scale(),
          piece.sums.data());
    }
    add_squares(piece, [&](const Tensor& tensor, int64_t begin, int64_t end) {
      update(tensor, begin, end, grain, group);
    });
  });
  write_norms(pieces, true);
}

// Makes the step of a piece in blocks, and takes the squares of each while it is in the caches.
template <typename Step>
void StepTask::add_squares(Piece& piece, Step&& step) const {
  const WeightSquares& squares = weight_squares();
  const Tensor& tensor = tensors[piece.tensor];
  const bool has_masters = tensor.masters != MasterWeights::none;
  const int64_t length = length_of_blocks(norms_block, extents[piece.tensor].grain);
  const auto longest = static_cast<size_t>(std::min(length, piece.end - piece.begin));
  struct alignas(64) Line {
    float values[16];
  };
  static thread_local std::vector<Line> lines;
  lines.resize(std::max(lines.size(), longest / 16 + 1));
  float* buffer = lines.data()->values;
  // The same tensor, whose new parameters go to the buffer.
  std::vector<Operand> results(tensor.out, tensor.out + slots + 1 + has_masters + has_ema);
  Tensor redirected = tensor;
  redirected.out = results.data();
  const auto data = reinterpret_cast<uintptr_t>(buffer);
  const uintptr_t size = results[0].storage == Storage::float32 ? sizeof(float) : sizeof(uint16_t);
  for (int64_t begin = piece.begin; begin < piece.end; begin += length) {
    const int64_t stop = std::min(begin + length, piece.end);
    if (has_masters) {
      squares.load_before(tensor, slots, begin, stop, buffer);
      step(tensor, begin, stop);
      squares.add(tensor, slots, begin, stop, buffer, piece.sums.data());
    } else {
      // Kernels address elements by their index in the tensor.
      results[0].data = reinterpret_cast<void*>(data - static_cast<uintptr_t>(begin) * size);
      step(redirected, begin, stop);
      squares.put(tensor, results[0], begin, stop, piece.sums.data());
    }
  }
}

void StepTask::write_norms(const Pieces& pieces, bool is_applied) const {
  std::vector<std::array<double, 2>> totals(scalars.groups().size());
  const std::vector<Sums> sums = pieces.sums(tensors.size());
  for (size_t t = 0; t < sums.size(); ++t) {
    auto& [update, weight] = totals[group_of(t)];
    update += is_applied ? sums[t][0] : 0.0; // also where weights are not finite
    weight += sums[t][1];
  }
  float* next = norms;
  for (const auto& [update, weight] : totals) {
    *next++ = static_cast<float>(std::sqrt(update));
    *next++ = static_cast<float>(std::sqrt(weight));
  }
}

void StepTask::update_in_two_passes(const std::vector<Group>& prepared, int64_t total) const {
  Pieces pieces(Plan(extents, chunk_of_pieces(total)));
  const Scale scale = scalars.scale();
  pieces.for_each([&](Piece& piece) {
    auto& [t, begin, end, sums] = piece;
    const Group& group = prepared[group_of(t)];
    kernel->sum(tensors[t], begin, end, group.values(), group.scalars, scale, sums.data());
  });
  std::vector<Rates> rates(tensors.size());
  const std::vector<Sums> sums = pieces.sums(tensors.size());
  for (size_t t = 0; t < tensors.size(); ++t) {
    const Group& group = prepared[group_of(t)];
    kernel->rates(sums[t].data(), group.values(), group.scalars, rates[t].data());
  }
  pieces.for_each([&](Piece& piece) {
    const size_t t = piece.tensor;
    piece.sums = {};
    const Group& group = prepared[group_of(t)];
    const auto finish = [&](const Tensor& tensor, int64_t begin, int64_t end) {
      kernel->finish(tensor, begin, end, group.values(), group.scalars, scale, rates[t].data());
    };
    if (norms) {
      add_squares(piece, finish);
    } else {
      finish(tensors[t], piece.begin, piece.end);
    }
  });
  if (norms) {
    write_norms(pieces, true);
  }
}

class Step : public Prepared {
 public:
  Step(
      const StepSpec& spec,
      const ArrayRefs& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream,
      LaunchMode mode)
      : stream_(stream), on_calling_thread_(mode == LaunchMode::on_calling_thread) {
    const size_t operands = spec.operand_count();
    // Finding the kernel and starting the threads may throw, so both happen here and not in the
    // task.
    task_ = std::make_shared<StepTask>(StepTask{
        &kernel(spec.rule),
        info(spec.rule).slots,
        spec.has_ema,
        num_threads(),
        StepScalars(spec, inputs.data() + operands)});
    task_->groups = spec.groups;
    // The tensors point into these.
    task_->in.reserve(operands);
    task_->out.reserve(dtypes.size());
    task_->tensors.reserve(operands - dtypes.size());
    task_->extents.reserve(operands - dtypes.size());
    auto arrays = inputs.data();
    auto results = dtypes.data();
    const uint32_t* keys = spec.rounds() ? spec.rounding_keys.data() : nullptr;
    for (const TensorRun& run : spec.runs) {
      task_->add_run(run, arrays, results, keys);
      keys += keys ? run.tensors : 0;
      arrays += run.tensors * run.operands;
      results += run.tensors * (run.operands - 1);
    }
  }

  void enqueue(const Buffers& outputs, std::shared_ptr<void> keep_alive) override {
    for (size_t i = 0; i < task_->out.size(); ++i) {
      auto buffer = outputs[i];
      task_->out[i].data = buffer.raw_ptr();
    }
    for (const auto& [codes, scale] : task_->scales) {
      task_->out[codes].scales = static_cast<float*>(task_->out[scale].data);
    }
    if (outputs.size() > task_->out.size()) {
      auto buffer = outputs.back();
      task_->norms = static_cast<float*>(buffer.raw_ptr());
    }
    task_->keep_alive = std::move(keep_alive);
    if (on_calling_thread_) {
      task_->run();
      return;
    }
    mx::cpu::get_command_encoder(stream_).dispatch([work = std::move(task_)] { work->run(); });
  }

 private:
  mx::Stream stream_;
  bool on_calling_thread_;
  std::shared_ptr<StepTask> task_;
};

} // namespace

std::unique_ptr<Prepared> prepare(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream,
    LaunchMode mode) {
  if (spec.rule == Rule::Adafactor) {
    return prepare_adafactor(spec, inputs, dtypes, stream, mode);
  }
  return std::make_unique<Step>(spec, inputs, dtypes, stream, mode);
}

} // namespace mlx_opt::cpu
