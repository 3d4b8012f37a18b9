#include "mlx_opt/backend/cuda/source.h"

#include "mlx_opt/backend/gpu/formats.h"

namespace mlx_opt::cuda {

/// Made by the build from the rules, tables.h and driver.cu.h.
extern const char* const driver_text;

namespace {

using gpu::format_of;
using gpu::list_of;

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

std::string parameter_of(const Kernel& kernel) {
  switch (kernel.kind) {
    case Kind::prepare:
      return "ScalarSources";
    case Kind::strided:
    case Kind::strided_squares:
      return "Strided";
    case Kind::norm:
      return "Sums";
    case Kind::clip:
      return "Clip";
    case Kind::flat:
    case Kind::transposed:
    case Kind::squares:
      return "Table<" + std::to_string(kernel.capacity) + ">";
    case Kind::factor_prepare:
      return "ScalarSources";
    default:
      return kernel.capacity ? "FactorTable<" + std::to_string(kernel.capacity) + ">"
                             : "FactorStrided";
  }
}

const char* bounds_of(Kind kind) {
  switch (kind) {
    case Kind::prepare:
    case Kind::clip:
    case Kind::factor_prepare:
      return "";
    case Kind::factor_means:
    case Kind::factor_rates:
      return "__launch_bounds__(mlx_opt::cuda::factor_threads) ";
    case Kind::norm:
      return "__launch_bounds__(mlx_opt::cuda::norm_threads) ";
    // Left to itself the compiler goes for the most blocks, and spills registers for them.
    case Kind::transposed:
      return "__launch_bounds__(mlx_opt::cuda::threads, 4) ";
    case Kind::factor_squares:
    case Kind::factor_update_squares:
      return "__launch_bounds__(mlx_opt::cuda::threads, 4) ";
    case Kind::factor_update:
      return "__launch_bounds__(mlx_opt::cuda::threads, 2) ";
    default:
      return "__launch_bounds__(mlx_opt::cuda::threads) ";
  }
}

std::string update_of(const Kernel& kernel) {
  const int fields = info(kernel.rule).moments + 1;
  return "Update<" + std::string(info(kernel.rule).name) + ", " + list_of(kernel.in, fields) +
         ", " + format_of(kernel.in[fields]) + ", " + list_of(kernel.out, fields) + ", " +
         name_of(kernel.scaling) + ">";
}

// The pass, of as many of the storages in `in` and `out`.
std::string pass_of(const Kernel& kernel, const char* pass, int in, int out) {
  std::string text = std::string(pass) + "<";
  for (int k = 0; k < in; ++k) {
    text += std::string(format_of(kernel.in[k])) + ", ";
  }
  for (int k = 0; k < out; ++k) {
    text += std::string(format_of(kernel.out[k])) + ", ";
  }
  if (kernel.kind == Kind::factor_update) {
    text += kernel.first_moment ? "true, " : "false, ";
  }
  return text + std::to_string(kernel.lanes) + ">::run";
}

std::string call_of(const Kernel& kernel) {
  const std::string squares = std::string("Squares<") + format_of(kernel.in[0]) + ">";
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
    case Kind::clip:
      return "clip";
    case Kind::factor_prepare:
      return "prepare<Adafactor>";
    case Kind::factor_squares:
      return pass_of(kernel, "FactorSquares", 2, 0);
    case Kind::factor_means:
      return pass_of(kernel, "FactorMeans", 2, 2);
    case Kind::factor_update_squares:
      return pass_of(kernel, "FactorUpdateSquares", 2, 0);
    case Kind::factor_rates:
      return "factor_rates";
    case Kind::factor_update:
      return pass_of(kernel, "FactorUpdate", 4, 3);
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
  id = id << 4 | static_cast<uint64_t>(lanes);
  id = id << 1 | static_cast<uint64_t>(first_moment);
  return id;
}

std::string source(const Kernel& kernel) {
  return std::string(driver_text) + "\nextern \"C\" __global__ void " + bounds_of(kernel.kind) +
         kernel_name + "(const __grid_constant__ mlx_opt::cuda::" + parameter_of(kernel) +
         " parameter) {\n  using namespace mlx_opt::MLX_OPT_LEVEL;\n  " + call_of(kernel) +
         "(parameter);\n}\n";
}

} // namespace mlx_opt::cuda
