#include "mlx_opt/backend/cuda/nvrtc.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

// The declarations that are used of nvrtc.h, which comes in a package of 90 MB.
extern "C" {
using nvrtcResult = int;
using nvrtcProgram = struct _nvrtcProgram*;
const char* nvrtcGetErrorString(nvrtcResult result);
nvrtcResult nvrtcVersion(int* major, int* minor);
nvrtcResult nvrtcGetNumSupportedArchs(int* count);
nvrtcResult nvrtcGetSupportedArchs(int* architectures);
nvrtcResult nvrtcCreateProgram(
    nvrtcProgram* program,
    const char* source,
    const char* name,
    int header_count,
    const char* const* headers,
    const char* const* include_names);
nvrtcResult nvrtcDestroyProgram(nvrtcProgram* program);
nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int option_count, const char* const* options);
nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram program, size_t* size);
nvrtcResult nvrtcGetProgramLog(nvrtcProgram program, char* log);
nvrtcResult nvrtcGetPTXSize(nvrtcProgram program, size_t* size);
nvrtcResult nvrtcGetPTX(nvrtcProgram program, char* code);
nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, size_t* size);
nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char* code);
}

namespace mlx_opt::cuda {
namespace {

void check(nvrtcResult result, const char* what) {
  if (result != 0) {
    throw std::runtime_error(
        std::string("mlx_opt: NVRTC: ") + what + ": " + nvrtcGetErrorString(result));
  }
}

class Program {
 public:
  explicit Program(const std::string& source) {
    check(
        nvrtcCreateProgram(&program_, source.c_str(), "mlx_opt.cu", 0, nullptr, nullptr),
        "creating a program");
  }
  ~Program() {
    nvrtcDestroyProgram(&program_);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  operator nvrtcProgram() const {
    return program_;
  }

  template <typename Size, typename Get>
  std::string text(Size size, Get get, const char* what) const {
    size_t length = 0;
    check(size(program_, &length), what);
    std::string text(length, '\0');
    check(get(program_, text.data()), what);
    return text;
  }

 private:
  nvrtcProgram program_;
};

std::vector<Architecture> supported_architectures() {
  int count = 0;
  check(nvrtcGetNumSupportedArchs(&count), "its architectures");
  std::vector<Architecture> architectures(count);
  check(nvrtcGetSupportedArchs(architectures.data()), "its architectures");
  std::sort(architectures.begin(), architectures.end());
  return architectures;
}

std::string capability(Architecture architecture) {
  return std::to_string(architecture / 10) + "." + std::to_string(architecture % 10);
}

} // namespace

std::string compiler_version() {
  int major = 0;
  int minor = 0;
  check(nvrtcVersion(&major, &minor), "its version");
  return std::to_string(major) + "." + std::to_string(minor);
}

std::string target_option(Architecture architecture) {
  const auto known = supported_architectures();
  if (std::binary_search(known.begin(), known.end(), architecture)) {
    return "--gpu-architecture=sm_" + std::to_string(architecture);
  }
  if (known.empty() || architecture < known.front()) {
    throw std::runtime_error(
        "mlx_opt: this GPU has compute capability " + capability(architecture) +
        ", and the installed CUDA compiler (NVRTC " + compiler_version() + ") begins at " +
        (known.empty() ? "none" : capability(known.front())) +
        ": an MLX of an older CUDA may serve it: pip install 'mlx[cuda12]'");
  }
  const auto newest = *std::prev(std::upper_bound(known.begin(), known.end(), architecture));
  return "--gpu-architecture=compute_" + std::to_string(newest);
}

std::string compile(const std::string& source, const std::string& target, std::string* log) {
  const Program program(source);
  // Without contraction all kernels of a rule round alike, whatever the layout. It costs nothing.
  std::vector<const char*> options = {target.c_str(), "--std=c++17", "--fmad=false"};
  if (log) {
    options.push_back("--ptxas-options=-v");
  }
  const auto result =
      nvrtcCompileProgram(program, static_cast<int>(options.size()), options.data());
  if (result != 0 || log) {
    const auto said = program.text(nvrtcGetProgramLogSize, nvrtcGetProgramLog, "its log");
    if (result != 0) {
      throw std::runtime_error(
          "mlx_opt: NVRTC " + compiler_version() + " cannot compile a kernel with " + target +
          ": " + nvrtcGetErrorString(result) + ": " + said.c_str());
    }
    *log = said.c_str();
  }
  return target.find("=sm_") != std::string::npos
             ? program.text(nvrtcGetCUBINSize, nvrtcGetCUBIN, "the machine code")
             : program.text(nvrtcGetPTXSize, nvrtcGetPTX, "the intermediate code");
}

} // namespace mlx_opt::cuda
