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
      return "Strided";
    case Kind::flat:
    case Kind::transposed:
      return "Table<" + std::to_string(kernel.capacity) + ">";
  }
  return "";
}

const char* bounds_of(Kind kind) {
  switch (kind) {
    case Kind::prepare:
      return "";
    // Left to itself the compiler goes for the most blocks, and spills registers for them.
    case Kind::transposed:
      return "__launch_bounds__(mlx_opt::cuda::threads, 4) ";
    default:
      return "__launch_bounds__(mlx_opt::cuda::threads) ";
  }
}

std::string call_of(const Kernel& kernel) {
  const std::string rule(info(kernel.rule).name);
  if (kernel.kind == Kind::prepare) {
    return "prepare<" + rule + ">";
  }
  const int fields = info(kernel.rule).moments + 1;
  const std::string update = "Update<" + rule + ", " + list_of(kernel.in, fields) + ", " +
                             name_of(kernel.in[fields]) + ", " + list_of(kernel.out, fields) +
                             ", " + name_of(kernel.scaling) + ">";
  const char* way = kernel.kind == Kind::flat         ? "flat"
                    : kernel.kind == Kind::transposed ? "transposed"
                                                      : "strided";
  return update + "::" + way;
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
