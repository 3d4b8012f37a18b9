#include "mlx_opt/backend/metal/kernel_program.h"

namespace mlx_opt::metal {

const char* short_name_of(Storage storage) {
  switch (storage) {
    case Storage::float32:
      return "f32";
    case Storage::float16:
      return "f16";
    case Storage::bfloat16:
      return "bf16";
    case Storage::bits16:
      return "b16";
    case Storage::int8:
      return "i8";
    case Storage::uint8:
      return "u8";
  }
  return "";
}

std::string versioned(std::string what) {
  what = "mlx_opt_" MLX_OPT_VERSION "_" + what;
  for (char& c : what) {
    c = c == '.' || c == '+' ? '_' : c;
  }
  return what;
}

std::string slot(int index) {
  return " [[buffer(" + std::to_string(index) + ")]],\n";
}

std::string beginning_of(
    const std::string& name,
    const char* address_space,
    const std::string& arguments,
    unsigned threads_of_group) {
  return "\n[[kernel, max_total_threads_per_threadgroup(" + std::to_string(threads_of_group) +
         ")]] void " + name + "(\n    " + address_space + " float* group_uniforms" +
         slot(uniforms_slot) + "    constant mlx_opt::metal::" + arguments + " arguments" +
         slot(arguments_slot);
}

std::string files_of(std::string_view rule_header) {
  return gpu::joined(texts(), {"portable.h"}) + std::string(rule_header) +
         gpu::joined(
             texts(),
             {"tables.h",
              "scalar_tables.h",
              "storage.metal.h",
              "walks.metal.h",
              "uniforms.metal.h",
              "prepare.metal.h"});
}

std::string program_of(const std::string& files, const std::string& kernel) {
  // The rules decide which product is fused with a sum. Metal has its own pragma for this since
  // version 3.2, and accepts clang's.
  return "#include <metal_stdlib>\n"
         "#pragma METAL fp contract(off)\n"
         "#pragma STDC FP_CONTRACT OFF\n"
         "using namespace metal;\n" +
         files + kernel;
}

} // namespace mlx_opt::metal
