#include "mlx_opt/graph/donation.h"

#include "mlx/device.h"
#include "mlx/stream.h"
#include "mlx_opt/types/mlx_data.h"

namespace mlx_opt {
namespace {

// MLX's own limit: a buffer much larger than its array is not worth keeping.
constexpr size_t max_waste = 16384;

// Waiting for fewer held bytes than this does not pay.
constexpr size_t min_bytes_to_wait = 1 << 20;

bool can_take(const mx::array& in, mx::Dtype dtype) {
  return in.is_donatable() && in.itemsize() == mx::size_of(dtype) && in.flags().row_contiguous &&
         in.offset() == 0 && in.size() > 0 && in.buffer_size() <= in.nbytes() + max_waste;
}

Data take(const mx::array& in) {
  return std::move(*in.data_shared_ptr());
}

} // namespace

Buffers OutputBuffers::written() const {
  Buffers written;
  written.reserve(buffers.size());
  for (const auto& data : buffers) {
    written.push_back(buffer_of(data));
  }
  return written;
}

void wait_for_donatable_buffers(
    mx::Stream stream, const std::vector<mx::array>& inputs, const std::vector<TensorRun>& runs) {
  if (mx::is_available(mx::Device::gpu)) {
    return;
  }
  size_t held = 0;
  auto in = inputs.begin();
  for (const auto& [tensors, operands, masters, scales] : runs) {
    for (size_t t = 0; t < tensors; ++t, in += operands) {
      for (int k = 0; k < operands - 1; ++k) {
        held += in[k].data_shared_ptr().use_count() > 1 ? in[k].nbytes() : 0;
      }
    }
  }
  if (held >= min_bytes_to_wait) {
    mx::synchronize(stream);
  }
}

OutputBuffers assign_output_buffers(
    const std::vector<mx::array>& inputs,
    const std::vector<TensorRun>& runs,
    const std::vector<mx::Dtype>& dtypes,
    const std::function<Data(size_t)>& allocate) {
  OutputBuffers result;
  result.buffers.reserve(dtypes.size());
  auto dtype = dtypes.begin();
  auto in = inputs.begin();
  const auto place = [&](int operands) {
    const mx::array& gradient = in[operands - 1];
    for (int k = 0; k < operands - 1; ++k, ++dtype) {
      const mx::array& own = in[k];
      // A skipped step leaves a shared buffer as it is, so it must be of the same dtype.
      if (own.dtype() == *dtype && can_take(own, *dtype)) {
        result.buffers.push_back(take(own));
      } else if (k == 0 && can_take(gradient, *dtype)) {
        result.buffers.push_back(take(gradient));
      } else {
        result.buffers.push_back(allocate(own.size() * mx::size_of(*dtype)));
      }
    }
  };
  for (const auto& [tensors, operands, masters, scales] : runs) {
    for (size_t t = 0; t < tensors; ++t, in += operands) {
      place(operands);
    }
  }
  return result;
}

} // namespace mlx_opt
