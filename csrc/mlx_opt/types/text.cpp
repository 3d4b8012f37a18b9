#include "mlx_opt/types/text.h"

#include <iterator>

namespace mlx_opt {

namespace mx = mlx::core;

std::string shape_text(const mx::Shape& shape) {
  std::string text;
  for (int size : shape) {
    text += (text.empty() ? "" : ", ") + std::to_string(size);
  }
  return "(" + text + (shape.size() == 1 ? ",)" : ")");
}

const char* dtype_text(mx::Dtype dtype) {
  constexpr const char* texts[] = {
      "bool",
      "uint8",
      "uint16",
      "uint32",
      "uint64",
      "int8",
      "int16",
      "int32",
      "int64",
      "float16",
      "float32",
      "float64",
      "bfloat16",
      "complex64"};
  static_assert(std::size(texts) == static_cast<size_t>(mx::Dtype::Val::complex64) + 1);
  return texts[static_cast<int>(dtype.val())];
}

} // namespace mlx_opt
