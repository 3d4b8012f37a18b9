#include "mlx_opt/backend/metal/program.h"

namespace mlx_opt::metal {

/// Made by the build from the rules, tables.h and the kernels.
extern const char* const driver_text;

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

std::string beginning_of(
    const std::string& name,
    const std::string& arguments,
    const char* frame,
    int threads_of_group) {
  return "\n[[kernel, max_total_threads_per_threadgroup(" + std::to_string(threads_of_group) +
         ")]] void " + name + "(\n    " + frame + " float* frame" + slot(frame_slot) +
         "    constant mlx_opt::metal::" + arguments + "& arguments" + slot(arguments_slot);
}

std::string prepare_of(const std::string& name, const std::string& rule, int hypers) {
  std::string text = beginning_of(name, "Constants", "device", 1) + "    device const ulong* step" +
                     slot(step_slot) + "    device const float* learning_rate" +
                     slot(learning_rate_slot) + "    device const float* scale" + slot(scale_slot);
  std::string traced;
  for (int k = 0; k < hypers; ++k) {
    const std::string one = "traced" + std::to_string(k);
    text += "    device const float* " + one + slot(traced_slot + k);
    traced += (k ? ", *" : "*") + one;
  }
  return text +
         "    uint index [[thread_position_in_grid]]) {\n"
         "  using namespace mlx_opt::MLX_OPT_LEVEL;\n"
         "  const float traced[] = {" +
         traced + "};\n  if (index == 0) {\n    prepare<" + rule +
         ">(frame, arguments, *step, *learning_rate, traced, *scale);\n  }\n}\n";
}

std::string versioned(std::string what) {
  what = "mlx_opt_" MLX_OPT_VERSION "_" + what;
  for (char& c : what) {
    c = c == '.' || c == '+' ? '_' : c;
  }
  return what;
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
