#include "mlx_opt/backend/cuda/memory.h"

#include "mlx/allocator.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx_opt/backend/gpu/per_stream.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt::cuda {
namespace {

std::shared_ptr<mx::Primitive> cast_on(mx::Stream stream) {
  static auto* casts = new gpu::PerStream<std::shared_ptr<mx::Primitive>>;
  return casts->with(stream, [&](auto& cast) {
    if (!cast) {
      cast = mx::astype(mx::array(0.0f), mx::uint8, stream).primitive_ptr();
    }
    return cast;
  });
}

} // namespace

// MLX does not export its allocator of device memory, but its ops use it. A cast allocates its
// result with the size of the input's buffer and copies as many elements as the array has: none
// here.
Data device_memory(size_t bytes, mx::Stream stream) {
  if (bytes == 0) {
    return new_data(0);
  }
  mx::array nothing(mx::Shape{0}, mx::uint8, nullptr, {});
  set_data(
      nothing,
      Data(mx::allocator::Buffer(nullptr), [](mx::allocator::Buffer) {}),
      bytes,
      {1},
      {true, true, true});
  std::vector<mx::array> results = {mx::array(mx::Shape{0}, mx::uint8, cast_on(stream), {})};
  results[0].primitive().eval_gpu({nothing}, results);
  if (results[0].buffer_size() < bytes) {
    return new_data(bytes);
  }
  return std::move(*results[0].data_shared_ptr());
}

} // namespace mlx_opt::cuda
