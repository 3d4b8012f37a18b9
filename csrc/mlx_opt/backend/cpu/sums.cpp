#include "mlx_opt/backend/cpu/sums.h"

#include <utility>

#include "mlx/backend/cpu/encoder.h"
#include "mlx_opt/backend/cpu/operands.h"
#include "mlx_opt/backend/cpu/pieces.h"
#include "mlx_opt/backend/cpu/pool.h"
#include "mlx_opt/backend/cpu/scalars.h"
#include "mlx_opt/rules/registry.h"
#include "mlx_opt/step/plan.h"

namespace mlx_opt::cpu {

// Number of elements that are summed as one chunk, independent of the number of threads.
constexpr int64_t chunk = 65536;

struct SumsTask::Data {
  const SumKernel& kernel;
  int sums;
  StepScalars scalars;
  std::vector<uint16_t> groups; // of each tensor; empty: all are in group 0
  std::vector<Operand> in = {}; // of all tensors, which point here
  std::vector<Tensor> tensors = {};
  std::vector<Plan::Extent> extents = {};
  Operands operands = {};

  size_t group_of(size_t tensor) const {
    return groups.empty() ? 0 : groups[tensor];
  }
};

SumsTask::SumsTask(const StepSpec& spec, const ArrayRefs& inputs) {
  num_threads(); // not in the task, because it may throw
  const SumInfo& info = sum_info(spec.rule);
  const size_t fields = mlx_opt::info(spec.rule).slots + 1;
  const size_t tensors = spec.runs.empty() ? 0 : spec.runs[0].tensors;
  const size_t width = spec.runs.empty() ? 0 : spec.runs[0].operands;
  auto data = std::make_shared<Data>(Data{
      sum_kernel(spec.rule),
      info.sums,
      StepScalars(spec, inputs.data() + tensors * width),
      spec.groups});
  data->in.reserve(tensors * (fields + 1)); // the tensors point into it
  auto next = inputs.begin();
  for (size_t t = 0; t < tensors; ++t) {
    Tensor& tensor = data->tensors.emplace_back();
    tensor.in = data->in.data() + data->in.size();
    for (size_t k = 0; k < fields; ++k) {
      data->in.push_back(info.reads >> k & 1 ? data->operands.of(**next++) : Operand{});
    }
    const Operand g = data->operands.of(**next);
    data->in.push_back(g);
    const int64_t grain = is_transposed(g) ? transposed_rows * g.layout->shape[1] : Plan::alignment;
    data->extents.push_back({static_cast<int64_t>((*next++)->size()), grain});
  }
  data_ = std::move(data);
}

void SumsTask::run(float* results) const {
  struct Group {
    std::vector<MLX_OPT_LEVEL::Hyper> hypers;
    float scalars[max_sum_scalars];
    Sums totals;
  };
  std::vector<Group> groups;
  for (const GroupScalars& group : data_->scalars.groups()) {
    Group& added = groups.emplace_back(Group{group.hypers(), {}, {}});
    const auto* hypers = reinterpret_cast<const float*>(added.hypers.data());
    data_->kernel.prepare(hypers, group.learning_rate(), group.step(), added.scalars);
  }
  Pieces pieces(Plan(data_->extents, chunk));
  const Scale scale = data_->scalars.scale();
  pieces.for_each([&](Piece& piece) {
    auto& [t, begin, end, sums] = piece;
    const Group& group = groups[data_->group_of(t)];
    const auto* hypers = reinterpret_cast<const float*>(group.hypers.data());
    data_->kernel.sum(data_->tensors[t], begin, end, hypers, group.scalars, scale, sums.data());
  });
  const std::vector<Sums> of_tensors = pieces.sums(data_->tensors.size());
  for (size_t t = 0; t < of_tensors.size(); ++t) {
    for (int k = 0; k < data_->sums; ++k) {
      groups[data_->group_of(t)].totals[k] += of_tensors[t][k];
    }
  }
  for (const Group& group : groups) {
    for (int k = 0; k < data_->sums; ++k) {
      *results++ = static_cast<float>(group.totals[k]);
    }
  }
}

void enqueue_sums(mx::Stream stream, SumsTask task, float* results) {
  mx::cpu::get_command_encoder(stream).dispatch(
      [task = std::move(task), results] { task.run(results); });
}

} // namespace mlx_opt::cpu
