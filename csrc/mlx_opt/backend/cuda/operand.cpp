#include "mlx_opt/backend/cuda/operand.h"

namespace mlx_opt::cuda {

Storage storage_of(mx::Dtype dtype) {
  return dtype == mx::float32   ? Storage::float32
         : dtype == mx::float16 ? Storage::float16
                                : Storage::bfloat16;
}

void launch(
    mx::cu::CommandEncoder& encoder,
    CUfunction function,
    unsigned blocks,
    int threads,
    void* parameter) {
  encoder.add_kernel_node_raw(function, dim3(blocks), dim3(threads), dim3(1), 0, &parameter);
}

} // namespace mlx_opt::cuda
