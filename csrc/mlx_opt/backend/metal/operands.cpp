#include "mlx_opt/backend/metal/operands.h"

#include <algorithm>
#include <stdexcept>

#include "mlx_opt/backend/metal/kernel_program.h"

namespace mlx_opt::metal {
namespace {

std::string output_of(const Operands& operands, int tensor, int k) {
  return operands.written[k] == apart ? "out" + std::to_string(tensor) + "_" + std::to_string(k)
                                      : input_of(tensor, operands.written[k]);
}

} // namespace

int Operands::slots() const {
  const auto own = std::count(written.begin(), written.end(), apart);
  return static_cast<int>(in.size()) + static_cast<int>(own);
}

bool Operands::overwrites(int input) const {
  return std::find(written.begin(), written.end(), input) != written.end();
}

int max_per_pack(const Operands& operands, int first) {
  const int room = slots - first;
  if (operands.slots() > room) {
    throw std::runtime_error(
        "mlx_opt: a step reads " + std::to_string(operands.in.size()) +
        " arrays of a tensor and writes " + std::to_string(operands.out.size()) + ", which are " +
        std::to_string(operands.slots()) + " buffers where results do not replace them, and a " +
        "kernel of Metal has room for " + std::to_string(room));
  }
  return room / operands.slots();
}

std::string parameters_of(const Operands& operands, int tensors, int first) {
  const auto inputs = static_cast<int>(operands.in.size());
  const auto outputs = static_cast<int>(operands.out.size());
  std::string text;
  int index = first;
  for (int t = 0; t < tensors; ++t) {
    for (int k = 0; k < inputs; ++k) {
      const char* access = operands.overwrites(k) ? "" : "const ";
      text += std::string("    device ") + access + "uchar* " + input_of(t, k) + slot(index++);
    }
    for (int k = 0; k < outputs; ++k) {
      if (operands.written[k] == apart) {
        text += "    device uchar* " + output_of(operands, t, k) + slot(index++);
      }
    }
  }
  return text;
}

std::string input_of(int tensor, int k) {
  return "in" + std::to_string(tensor) + "_" + std::to_string(k);
}

std::string inputs_of(int tensor, int count) {
  return inputs_of(tensor, 0, count);
}

std::string outputs_of(const Operands& operands, int tensor) {
  return outputs_of(operands, tensor, 0, static_cast<int>(operands.out.size()));
}

std::string inputs_of(int tensor, int first, int end) {
  std::string text;
  for (int k = first; k < end; ++k) {
    text += (k > first ? ", " : "") + input_of(tensor, k);
  }
  return text;
}

std::string outputs_of(const Operands& operands, int tensor, int first, int end) {
  std::string text;
  for (int k = first; k < end; ++k) {
    text += (k > first ? ", " : "") + output_of(operands, tensor, k);
  }
  return text;
}

} // namespace mlx_opt::metal
