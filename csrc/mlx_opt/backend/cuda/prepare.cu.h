// The kernel that computes the uniforms of a step, once for each group.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// One block of one thread for each group.
template <typename Rule, int count, int capacity>
MLX_OPT_FN void prepare(const cuda::ScalarTable<count, capacity>& table) {
  // The host allocates this size.
  static_assert(
      sizeof(Uniforms<Rule>) ==
          count * sizeof(Hyper) + sizeof(typename Rule::Scalars) + sizeof(Scale) + sizeof(float),
      "uniforms are hyperparameters, scalars, the scale and the step");
  const auto& group = table.groups[blockIdx.x];
  Hyper hypers[count];
#pragma unroll
  for (int k = 0; k < count; ++k) {
    const cuda::HyperSource& from = group.hypers[k];
    hypers[k] = {from.value, from.one_minus, from.log};
    if (from.traced) {
      const double x = *from.traced;
      hypers[k] = {*from.traced, static_cast<float>(1.0 - x), static_cast<float>(log(x))};
    }
  }
  Uniforms<Rule> uniforms;
  memcpy(&uniforms.hypers, hypers, sizeof hypers);
  const float rate =
      group.learning_rate ? static_cast<float>(group.rate_scale) * *group.learning_rate : 0.0f;
  const float step = group.step ? static_cast<float>(*group.step) : 0.0f;
  uniforms.scalars = Rule::prepare(uniforms.hypers, rate, step);
  uniforms.step = step;
  uniforms.scale = {
      table.scale ? *table.scale : 1.0f, table.max_value ? *table.max_value : infinity()};
  reinterpret_cast<Uniforms<Rule>*>(table.group_uniforms)[blockIdx.x] = uniforms;
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
