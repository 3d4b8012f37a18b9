// The kernel that computes the uniforms of a step, once for each group.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

using metal::Source;

template <typename T>
MLX_OPT_FN float value_of(constant Source* source, const device uchar* const thread* scalars) {
  return source->given < 0
             ? source->value
             : static_cast<float>(*reinterpret_cast<device const T*>(scalars[source->given]));
}

// Run by one thread. `scalars`: the addresses of those that are read when the step runs.
template <typename Rule>
MLX_OPT_FN void prepare(
    device float* group_uniforms,
    constant Source* sources,
    const device uchar* const thread* scalars,
    uint group) {
  // The host allocates this size.
  static_assert(
      sizeof(Uniforms<Rule>) == Uniforms<Rule>::floats * sizeof(float), "floats and no gaps");
  const uint count = Uniforms<Rule>::hypers_count;
  constant Source* own = sources + group * (count + 4);
  float hypers[3 * count];
  for (uint k = 0; k < count; ++k) {
    constant Source* source = own + 2 + k;
    const float x = value_of<float>(source, scalars);
    const bool given = source->given >= 0;
    hypers[3 * k] = x;
    hypers[3 * k + 1] = given ? 1.0f - x : source->one_minus;
    hypers[3 * k + 2] = given ? ::metal::precise::log(x) : source->log;
  }
  const typename Rule::Hypers h = gathered<typename Rule::Hypers>(&hypers[0]);
  const float step = value_of<ulong>(own, scalars);
  const float rate = value_of<float>(own + 1, scalars);
  const Uniforms<Rule> uniforms = {
      h,
      Rule::prepare(h, own[1].given < 0 ? rate : own[1].value * rate, step),
      {value_of<float>(own + 2 + count, scalars), value_of<float>(own + 3 + count, scalars)},
      step};
  thread const float* from = reinterpret_cast<thread const float*>(&uniforms);
  device float* to = group_uniforms + group * Uniforms<Rule>::floats;
  for (uint k = 0; k < Uniforms<Rule>::floats; ++k) {
    to[k] = from[k];
  }
}

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
