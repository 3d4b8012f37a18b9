#include "mlx_opt/backend/cuda/source.h"

namespace mlx_opt::cuda {

/// Made by the build from the rules, tables.h and driver.cu.h.
extern const char* const driver_text;

namespace {

const char* name_of(Storage storage) {
  switch (storage) {
    case Storage::float32:
      return "Float32";
    case Storage::float16:
      return "Float16";
    case Storage::bfloat16:
      return "BFloat16";
  }
  return "";
}

const char* name_of(Scaling scaling) {
  switch (scaling) {
    case Scaling::none:
      return "Scaling::none";
    case Scaling::always:
      return "Scaling::always";
    case Scaling::if_finite:
      return "Scaling::if_finite";
  }
  return "";
}

std::string list_of(const Storage* storages, int count) {
  std::string text = "List<";
  for (int k = 0; k < count; ++k) {
    text += std::string(k ? ", " : "") + name_of(storages[k]);
  }
  return text + ">";
}

std::string parameter_of(const Kernel& kernel) {
  switch (kernel.kind) {
    case Kind::prepare:
      return "ScalarSources";
    case Kind::strided:
    case Kind::strided_squares:
      return "Strided";
    case Kind::norm:
      return "Sums";
    case Kind::flat:
    case Kind::transposed:
    case Kind::squares:
      return "Table<" + std::to_string(kernel.capacity) + ">";
  }
  return "";
}

const char* bounds_of(Kind kind) {
  switch (kind) {
    case Kind::prepare:
      return "";
    case Kind::norm:
      return "__launch_bounds__(mlx_opt::cuda::norm_threads) ";
    // Left to itself the compiler goes for the most blocks, and spills registers for them.
    case Kind::transposed:
      return "__launch_bounds__(mlx_opt::cuda::threads, 4) ";
    default:
      return "__launch_bounds__(mlx_opt::cuda::threads) ";
  }
}

std::string update_of(const Kernel& kernel) {
  const int fields = info(kernel.rule).moments + 1;
  return "Update<" + std::string(info(kernel.rule).name) + ", " + list_of(kernel.in, fields) +
         ", " + name_of(kernel.in[fields]) + ", " + list_of(kernel.out, fields) + ", " +
         name_of(kernel.scaling) + ">";
}

std::string call_of(const Kernel& kernel) {
  const std::string squares = std::string("Squares<") + name_of(kernel.in[0]) + ">";
  switch (kernel.kind) {
    case Kind::prepare:
      return "prepare<" + std::string(info(kernel.rule).name) + ">";
    case Kind::flat:
      return update_of(kernel) + "::flat";
    case Kind::transposed:
      return update_of(kernel) + "::transposed";
    case Kind::strided:
      return update_of(kernel) + "::strided";
    case Kind::squares:
      return squares + "::flat";
    case Kind::strided_squares:
      return squares + "::strided";
    case Kind::norm:
      return "norm";
  }
  return "";
}

} // namespace

uint64_t Kernel::id() const {
  uint64_t id = static_cast<uint64_t>(rule) << 8 | static_cast<uint64_t>(scaling) << 4 |
                static_cast<uint64_t>(kind);
  id = id << 16 | static_cast<uint64_t>(capacity);
  for (Storage storage : in) {
    id = id << 2 | static_cast<uint64_t>(storage);
  }
  for (Storage storage : out) {
    id = id << 2 | static_cast<uint64_t>(storage);
  }
  return id;
}

std::string source(const Kernel& kernel) {
  return std::string(driver_text) + "\nextern \"C\" __global__ void " + bounds_of(kernel.kind) +
         kernel_name + "(const __grid_constant__ mlx_opt::cuda::" + parameter_of(kernel) +
         " parameter) {\n  using namespace mlx_opt::MLX_OPT_LEVEL;\n  " + call_of(kernel) +
         "(parameter);\n}\n";
}

} // namespace mlx_opt::cuda
