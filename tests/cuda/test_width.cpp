// The kernels of a rule of six slots, which no shipped rule has, with the fake of CUDA.
#include <cuda.h>

#include <cmath>
#include <cstring>

#include "checks.h"
#include "cuda_kernels.h"
#include "mlx/backend/cuda/device.h"
#include "mlx_opt/backend/cuda/kernel_source.h"
#include "mlx_opt/backend/cuda/nvrtc.h"
#include "mlx_opt/backend/cuda/records.h"

using namespace cuda_kernels;

namespace {

constexpr int fields = 7;

CUfunction six_states_function(const UpdateKernel& kernel) {
  const auto code = compile(source(kernel, six_states_header), target_option(90), nullptr);
  CUmodule module = nullptr;
  REQUIRE(cuModuleLoadData(&module, code.c_str()) == CUDA_SUCCESS);
  CUfunction function = nullptr;
  REQUIRE(cuModuleGetFunction(&function, module, kernel_name) == CUDA_SUCCESS);
  return function;
}

void run(CUfunction function, unsigned blocks, Parameter& parameter) {
  auto& encoder = mx::cu::get_command_encoder(fake::gpu_stream);
  void* argument = parameter.data();
  encoder.add_kernel_node_raw(function, dim3(blocks), dim3(threads), dim3(1), 0, &argument);
  encoder.commit();
  fake::finish(fake::gpu_stream);
}

// The rule's hyperparameter, as value, 1 - value and logarithm; its scalar; the Scale; the step.
struct Uniforms {
  float value, one_minus, log, learning_rate, factor, bound, step;
};

constexpr Uniforms group_uniforms[] = {
    {0.5f, 0.5f, 0.0f, 0.1f, 1.0f, INFINITY, 1.0f},
    {0.25f, 0.75f, 0.0f, 0.2f, 1.0f, INFINITY, 1.0f}};

// Operand k of a tensor begins as k + 1 everywhere, and the gradient is `fields + 1`.
struct Operands {
  std::vector<std::vector<float>> arrays;

  explicit Operands(size_t size) {
    for (int k = 0; k <= fields; ++k) {
      arrays.emplace_back(size, static_cast<float>(k + 1));
    }
  }

  void check(const Uniforms& uniforms) const {
    const auto g = static_cast<float>(fields + 1);
    for (int k = 0; k < fields; ++k) {
      const auto before = static_cast<float>(k + 1);
      const float expected = k == 0            ? before - uniforms.learning_rate * g
                             : k == fields - 1 ? uniforms.value * before + 6 * g
                                               : before + static_cast<float>(k) * g;
      CAPTURE(k);
      for (float x : arrays[k]) {
        REQUIRE(x == doctest::Approx(expected));
      }
    }
  }
};

void add(Records& records, Operands& operands, uint16_t group, unsigned first_chunk) {
  Extent extent{};
  extent.size = operands.arrays[0].size();
  extent.group = group;
  extent.first_chunk = first_chunk;
  records.add(extent);
  for (int k = 0; k <= fields; ++k) {
    records.set_input(records.count() - 1, k, operands.arrays[k].data());
  }
  for (int k = 0; k < fields; ++k) {
    records.set_output(records.count() - 1, k, operands.arrays[k].data());
  }
}

} // namespace

TEST_CASE("six states in tables, of two groups") {
  const CUfunction function = six_states_function(six_states(Walk::flat));
  std::vector<Operands> tensors = {Operands(5), Operands(4100), Operands(64)};
  Records records(fields + 1, fields);
  add(records, tensors[0], 0, 0);
  add(records, tensors[1], 1, 1);
  add(records, tensors[2], 0, 3);
  Parameter parameter;
  parameter.add(&group_uniforms[0]);
  parameter.add(int64_t{3});
  parameter.add(records.at(0), 3 * records.bytes());
  run(function, 4, parameter);
  tensors[0].check(group_uniforms[0]);
  tensors[1].check(group_uniforms[1]);
  tensors[2].check(group_uniforms[0]);
  check_clean();
}

TEST_CASE("six states of any layout") {
  const CUfunction function = six_states_function(six_states(Walk::strided));
  Operands tensor(70);
  Records records(fields + 1, fields);
  add(records, tensor, 1, 0);
  Layout<fields + 1> layout{};
  layout.dims = 1;
  layout.shape[0] = 70;
  for (auto& strides : layout.strides) {
    strides[0] = 1;
  }
  Parameter parameter;
  parameter.add(&group_uniforms[0]);
  parameter.add(records.at(0), records.bytes());
  parameter.add(layout);
  run(function, 1, parameter);
  tensor.check(group_uniforms[1]);
  check_clean();
}
