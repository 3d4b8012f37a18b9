#include "mlx_opt/backend/cuda/adafactor.h"

#include <algorithm>

#include "mlx/backend/cuda/device.h"
#include "mlx_opt/backend/cuda/adafactor_tensors.h"
#include "mlx_opt/backend/cuda/frame.h"
#include "mlx_opt/backend/cuda/in_flight.h"
#include "mlx_opt/backend/cuda/memory.h"
#include "mlx_opt/backend/cuda/module.h"
#include "mlx_opt/backend/cuda/operand.h"

namespace mlx_opt::cuda {
namespace {

namespace cu = mx::cu;

mx::array scratch_array(int64_t bytes, mx::Stream stream) {
  return mx::array(device_memory(std::max<int64_t>(bytes, 1), stream), {1}, mx::uint8);
}

class AdafactorStep : public Prepared {
 public:
  AdafactorStep(
      const mlx_opt::ScalarSources& sources,
      const Factoring& factoring,
      const Pointers& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream);

  void enqueue(const Buffers& outputs, std::shared_ptr<void> keep) override;

 private:
  void find_functions();
  void launch_tables(const FactorGroup& group, const CUfunction* functions);
  void launch_strided(const FactorGroup& group, const CUfunction* functions);

  template <typename Args>
  void launch_passes(const FactorGroup& group, const CUfunction* functions, Args& args);

  mx::Stream stream_;
  cu::CommandEncoder& encoder_;
  FactorGroups groups_;
  std::vector<std::array<CUfunction, factor_passes>> functions_;
  mx::array frame_;
  mx::array scratch_;
  bool skips_;
};

AdafactorStep::AdafactorStep(
    const mlx_opt::ScalarSources& sources,
    const Factoring& factoring,
    const Pointers& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream)
    : stream_(stream),
      encoder_(cu::get_command_encoder(stream)),
      groups_(factoring, inputs, dtypes),
      frame_(new_frame(stream)),
      scratch_(scratch_array(groups_.scratch_bytes(), stream)),
      skips_(sources.scaling == Scaling::if_finite) {
  find_functions();
  wait_for_last_but_one(stream);
  const size_t operands = dtypes.size() + factoring.unfactored + factoring.factored;
  launch_prepare(
      encoder_,
      function({Rule{}, Kind::factor_prepare}, encoder_.device()),
      sources,
      &inputs[operands],
      frame_);
  // What is written needs no mention: the step is committed, so what follows is behind it.
  for (size_t i = 0; i < operands; ++i) {
    encoder_.set_input_array(*inputs[i]);
  }
}

void AdafactorStep::find_functions() {
  for (FactorGroup& group : groups_.all()) {
    const bool table = group.layouts.empty();
    auto& functions = functions_.emplace_back();
    for (int pass = 0; pass < factor_passes; ++pass) {
      if (table) {
        group.kernels[pass].capacity =
            table_capacity(factor_capacities, group.tensors.size(), encoder_.device());
      }
      functions[pass] = function(group.kernels[pass], encoder_.device());
    }
  }
}

// One after the other: they depend on the scratch memory.
template <typename Args>
void AdafactorStep::launch_passes(
    const FactorGroup& group, const CUfunction* functions, Args& args) {
  args.frame = address<float>(frame_);
  args.skips = skips_;
  for (int pass = 0; pass < factor_passes; ++pass) {
    const Kind kind = group.kernels[pass].kind;
    const bool means = kind == Kind::factor_means;
    unsigned blocks = 0;
    for (int i = 0; i < args.count; ++i) {
      FactorTensor& tensor = args.tensors[i];
      (means ? tensor.first_means : tensor.first_tile) = blocks;
      blocks += group.blocks(pass, tensor);
    }
    if (blocks > 0) {
      encoder_.set_input_array(frame_);
      encoder_.set_output_array(scratch_);
      const bool many = means || kind == Kind::factor_rates;
      launch(encoder_, functions[pass], blocks, many ? factor_threads : threads, &args);
    }
  }
}

void AdafactorStep::launch_tables(const FactorGroup& group, const CUfunction* functions) {
  FactorTable<factor_capacities.large> table;
  const size_t capacity = group.kernels[0].capacity;
  for (size_t begin = 0; begin < group.tensors.size(); begin += capacity) {
    const size_t count = std::min(capacity, group.tensors.size() - begin);
    table.count = static_cast<int>(count);
    std::copy_n(group.tensors.begin() + begin, count, table.tensors);
    launch_passes(group, functions, table);
  }
}

void AdafactorStep::launch_strided(const FactorGroup& group, const CUfunction* functions) {
  for (size_t i = 0; i < group.tensors.size(); ++i) {
    FactorStrided args = group.layouts[i];
    args.count = 1;
    args.tensors[0] = group.tensors[i];
    launch_passes(group, functions, args);
  }
}

void AdafactorStep::enqueue(const Buffers& outputs, std::shared_ptr<void> keep) {
  groups_.place(address<char>(scratch_), outputs);
  for (size_t i = 0; i < functions_.size(); ++i) {
    const FactorGroup& group = groups_.all()[i];
    group.layouts.empty() ? launch_tables(group, functions_[i].data())
                          : launch_strided(group, functions_[i].data());
  }
  encoder_.add_temporary(frame_);
  encoder_.add_temporary(scratch_);
  encoder_.add_completed_handler([keep = std::move(keep)] {});
  // Now, so that the GPU is at work while the host goes through the results.
  encoder_.commit();
  note_step(stream_, encoder_);
}

} // namespace

std::unique_ptr<Prepared> prepare_adafactor_step(
    const mlx_opt::ScalarSources& sources,
    const Factoring& factoring,
    const Pointers& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream) {
  return std::make_unique<AdafactorStep>(sources, factoring, inputs, dtypes, stream);
}

} // namespace mlx_opt::cuda
