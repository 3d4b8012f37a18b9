#include "mlx_opt/backend/metal/program.h"

namespace mlx_opt::metal {

/// Made by the build from the rules, tables.h and the files that end in .metal.h.
extern const char* const driver_text;

const char* format_of(Storage storage) {
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

const char* short_name_of(Storage storage) {
  switch (storage) {
    case Storage::float32:
      return "f32";
    case Storage::float16:
      return "f16";
    case Storage::bfloat16:
      return "bf16";
  }
  return "";
}

std::string slot(int index) {
  return " [[buffer(" + std::to_string(index) + ")]],\n";
}

std::string versioned(const std::string& name) {
  std::string text = "mlx_opt_" MLX_OPT_VERSION "_" + name;
  for (char& c : text) {
    c = c == '.' || c == '+' ? '_' : c;
  }
  return text;
}

std::string program_of(const std::string& kernel) {
  // Which product is fused with a sum is for the rules to say. Metal has its own word for it since
  // version 3.2, and clang's.
  return "#include <metal_stdlib>\n"
         "#pragma METAL fp contract(off)\n"
         "#pragma STDC FP_CONTRACT OFF\n"
         "using namespace metal;\n" +
         std::string(driver_text) + kernel;
}

} // namespace mlx_opt::metal
