#include "mlx_opt/backend/cuda/adafactor.h"

#include <algorithm>

#include "mlx/backend/cuda/device.h"
#include "mlx_opt/backend/cuda/adafactor_tensors.h"
#include "mlx_opt/backend/cuda/in_flight.h"
#include "mlx_opt/backend/cuda/memory.h"
#include "mlx_opt/backend/cuda/module.h"
#include "mlx_opt/backend/cuda/operand.h"
#include "mlx_opt/backend/cuda/records.h"
#include "mlx_opt/backend/cuda/uniforms.h"
#include "mlx_opt/rules/adafactor.h"

namespace mlx_opt::cuda {
namespace {

namespace cu = mx::cu;

const UniformsShape uniforms_shape = {
    "Adafactor",
    sizeof(MLX_OPT_LEVEL::Adafactor::Hypers) / sizeof(MLX_OPT_LEVEL::Hyper),
    sizeof(MLX_OPT_LEVEL::Adafactor::Scalars) / sizeof(float)};

constexpr int largest_table = capacity_of(large_parameter, table_head, sizeof(AdafactorTensor));

mx::array scratch_array(int64_t bytes, mx::Stream stream) {
  return mx::array(device_memory(std::max<int64_t>(bytes, 1), stream), {1}, mx::uint8);
}

class AdafactorStep : public Prepared {
 public:
  AdafactorStep(
      const StepSpec& spec,
      const ArrayRefs& inputs,
      const std::vector<mx::Dtype>& dtypes,
      mx::Stream stream);

  void enqueue(const Buffers& outputs, std::shared_ptr<void> keep_alive) override;

 private:
  void find_functions();
  void launch_tables(const AdafactorShare& share, const CUfunction* functions);
  void launch_strided(const AdafactorShare& share, const CUfunction* functions);

  template <typename Args>
  void launch_passes(const AdafactorShare& share, const CUfunction* functions, Args& args);

  mx::Stream stream_;
  cu::CommandEncoder& encoder_;
  mx::array group_uniforms_;
  AdafactorShares shares_;
  std::vector<std::array<CUfunction, adafactor_passes>> functions_;
  mx::array scratch_;
  bool skip_nonfinite_;
};

AdafactorStep::AdafactorStep(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream)
    : stream_(stream),
      encoder_(cu::get_command_encoder(stream)),
      group_uniforms_(new_group_uniforms(uniforms_shape, spec, stream)),
      shares_(spec, inputs, dtypes),
      scratch_(scratch_array(shares_.scratch_bytes(), stream)),
      skip_nonfinite_(spec.scaling == Scaling::if_finite) {
  find_functions();
  wait_for_last_but_one(stream);
  const size_t operands = spec.operand_count();
  launch_prepare(encoder_, uniforms_shape, spec, &inputs[operands], group_uniforms_);
  // Outputs need not be declared: the step is committed, so later work of the stream runs after it.
  for (size_t i = 0; i < operands; ++i) {
    encoder_.set_input_array(*inputs[i]);
  }
}

void AdafactorStep::find_functions() {
  for (AdafactorShare& share : shares_.all()) {
    const bool table = share.layouts.empty();
    auto& functions = functions_.emplace_back();
    for (int pass = 0; pass < adafactor_passes; ++pass) {
      if (table) {
        share.kernels[pass].capacity =
            table_capacity(sizeof(AdafactorTensor), share.tensors.size(), encoder_.device());
      }
      functions[pass] = function(share.kernels[pass], encoder_.device());
    }
  }
}

// Launches run one after another, because each depends on the scratch memory.
template <typename Args>
void AdafactorStep::launch_passes(
    const AdafactorShare& share, const CUfunction* functions, Args& args) {
  args.group_uniforms = address<float>(group_uniforms_);
  args.skip_nonfinite = skip_nonfinite_;
  for (int pass = 0; pass < adafactor_passes; ++pass) {
    const AdafactorPass kind = share.kernels[pass].pass;
    const bool means = kind == AdafactorPass::means;
    unsigned blocks = 0;
    for (int i = 0; i < args.count; ++i) {
      AdafactorTensor& tensor = args.tensors[i];
      (means ? tensor.first_means : tensor.first_tile) = blocks;
      blocks += share.blocks(pass, tensor);
    }
    if (blocks > 0) {
      encoder_.set_input_array(group_uniforms_);
      encoder_.set_output_array(scratch_);
      const bool many = means || kind == AdafactorPass::rates;
      launch(encoder_, functions[pass], blocks, many ? adafactor_threads : threads, &args);
    }
  }
}

void AdafactorStep::launch_tables(const AdafactorShare& share, const CUfunction* functions) {
  AdafactorTable<largest_table> table;
  const size_t capacity = share.kernels[0].capacity;
  for (size_t begin = 0; begin < share.tensors.size(); begin += capacity) {
    const size_t count = std::min(capacity, share.tensors.size() - begin);
    table.count = static_cast<int>(count);
    std::copy_n(share.tensors.begin() + begin, count, table.tensors);
    launch_passes(share, functions, table);
  }
}

void AdafactorStep::launch_strided(const AdafactorShare& share, const CUfunction* functions) {
  for (size_t i = 0; i < share.tensors.size(); ++i) {
    AdafactorStrided args = share.layouts[i];
    args.count = 1;
    args.tensors[0] = share.tensors[i];
    launch_passes(share, functions, args);
  }
}

void AdafactorStep::enqueue(const Buffers& outputs, std::shared_ptr<void> keep_alive) {
  shares_.place(address<char>(scratch_), outputs);
  for (size_t i = 0; i < functions_.size(); ++i) {
    const AdafactorShare& share = shares_.all()[i];
    share.layouts.empty() ? launch_tables(share, functions_[i].data())
                          : launch_strided(share, functions_[i].data());
  }
  encoder_.add_temporary(group_uniforms_);
  encoder_.add_temporary(scratch_);
  encoder_.add_completed_handler([keep_alive = std::move(keep_alive)] {});
  // Commits now, so that the GPU works while the host walks over the results.
  encoder_.commit();
  note_step(stream_, encoder_);
}

} // namespace

std::unique_ptr<Prepared> prepare_adafactor_step(
    const StepSpec& spec,
    const ArrayRefs& inputs,
    const std::vector<mx::Dtype>& dtypes,
    mx::Stream stream) {
  return std::make_unique<AdafactorStep>(spec, inputs, dtypes, stream);
}

} // namespace mlx_opt::cuda
