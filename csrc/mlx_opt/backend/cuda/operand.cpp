#include "mlx_opt/backend/cuda/operand.h"

namespace mlx_opt::cuda {

void launch(
    mx::cu::CommandEncoder& encoder,
    CUfunction function,
    unsigned blocks,
    int threads,
    void* parameter) {
  encoder.add_kernel_node_raw(function, dim3(blocks), dim3(threads), dim3(1), 0, &parameter);
}

} // namespace mlx_opt::cuda
