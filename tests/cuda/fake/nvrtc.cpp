// A stand-in for NVRTC that compiles for the CPU, with the C++ compiler of this build and under
// AddressSanitizer. Its machine code is a shared library.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace {

namespace fs = std::filesystem;

const std::string kernel_name = "mlx_opt_kernel";
constexpr int architectures[] = {75, 80, 90, 100};

struct Program {
  std::string source;
  std::string log;
  std::string code;
};

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void replace(std::string& text, const std::string& from, const std::string& to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
}

// Empty if there is none.
std::string between(const std::string& text, const std::string& begin, const std::string& end) {
  const size_t found = text.find(begin);
  if (found == std::string::npos) {
    return "";
  }
  const size_t first = found + begin.size();
  return text.substr(first, text.find(end, first) - first);
}

// Applies the mutant that mutants.py requests, if the program has the text to change.
void mutate(std::string& text) {
  if (const char* from = std::getenv("CUDA_MUTANT")) {
    replace(text, from, std::getenv("CUDA_MUTANT_INSTEAD"));
  }
}

// C++ for kernel.h. Assembly that is none of these does not compile.
std::string as_cpp(std::string text) {
  mutate(text);
  replace(text, R"(asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));)", "x = cvt_f32_f16(bits);");
  replace(
      text, R"(asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));)", "bits = cvt_f16_f32(x);");
  for (const std::string type : {"f16x2", "bf16x2"}) {
    replace(
        text,
        "asm(\"cvt.rn." + type + R"(.f32 %0, %1, %2;" : "=r"(word) : "f"(from[1]), "f"(from[0]));)",
        "word = cvt_" + type + "_f32(from[1], from[0]);");
  }
  const std::string kernel = text.substr(text.rfind("extern \"C\" __global__"));
  const std::string parameter = between(kernel, "const __grid_constant__ ", " parameter)");
  const std::string bounds = between(kernel, "__launch_bounds__(", ")");
  const std::string max_threads = bounds.empty() ? "1024" : bounds.substr(0, bounds.find(','));
  replace(text, "const __grid_constant__ " + parameter, "const " + parameter + "&");
  // What the driver queries: the entry point of a kernel, the size of its parameter and its maximum
  // number of threads.
  return "#include \"kernel.h\"\n" + text + "extern \"C\" {\nextern const unsigned long " +
         kernel_name + "_bytes = sizeof(" + parameter + ");\nextern const unsigned long " +
         kernel_name + "_threads = " + max_threads + ";\nvoid " + kernel_name +
         "_run(const void* parameter) {\n  " + kernel_name + "(*static_cast<const " + parameter +
         "*>(parameter));\n}\n}\n";
}

// In a temporary folder.
int compile(Program& program, const std::string& architecture) {
  const fs::path folder =
      fs::path(std::getenv("CUDA_SCRATCH")) / ("compiling" + std::to_string(getpid()));
  fs::create_directories(folder);
  std::ofstream(folder / "program.cpp") << as_cpp(program.source);
  const std::string command =
      std::string(FAKE_COMPILER) + " -std=c++17 -O1 -g1 -fPIC -shared -w" +
      " -fsanitize=address,alignment -fno-sanitize-recover -ffp-contract=off -D__CUDA_ARCH__=" +
      architecture + "0 -I" + FAKE_FOLDER + " " + (folder / "program.cpp").string() + " -o " +
      (folder / "program.so").string() + " 2>" + (folder / "log").string();
  const int status = std::system(command.c_str());
  program.log = text_of(folder / "log");
  program.code = text_of(folder / "program.so");
  fs::remove_all(folder);
  return status;
}

int give(const std::string& text, char* to) {
  text.copy(to, text.size());
  return 0;
}

} // namespace

extern "C" {

const char* nvrtcGetErrorString(int) {
  return "NVRTC_ERROR_COMPILATION";
}

int nvrtcVersion(int* major, int* minor) {
  *major = 13;
  *minor = 0;
  return 0;
}

int nvrtcGetNumSupportedArchs(int* count) {
  *count = std::size(architectures);
  return 0;
}

int nvrtcGetSupportedArchs(int* known) {
  std::copy(std::begin(architectures), std::end(architectures), known);
  return 0;
}

int nvrtcCreateProgram(
    Program** program,
    const char* source,
    const char*,
    int,
    const char* const*,
    const char* const*) {
  *program = new Program{source, "", ""};
  return 0;
}

int nvrtcDestroyProgram(Program** program) {
  delete *program;
  return 0;
}

int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
  std::string architecture;
  for (int i = 0; i < count; ++i) {
    const std::string option = options[i];
    if (const auto at = option.find("=sm_"); at != std::string::npos) {
      architecture = option.substr(at + 4);
    }
  }
  // NVRTC_ERROR_COMPILATION
  return compile(*program, architecture) == 0 ? 0 : 6;
}

int nvrtcGetProgramLogSize(Program* program, size_t* size) {
  *size = program->log.size();
  return 0;
}

int nvrtcGetProgramLog(Program* program, char* log) {
  return give(program->log, log);
}

int nvrtcGetCUBINSize(Program* program, size_t* size) {
  *size = program->code.size();
  return 0;
}

int nvrtcGetCUBIN(Program* program, char* code) {
  return give(program->code, code);
}

// Intermediate code is for GPUs newer than the compiler; there is none here.
int nvrtcGetPTXSize(Program*, size_t*) {
  return 1;
}

int nvrtcGetPTX(Program*, char*) {
  return 1;
}
}
