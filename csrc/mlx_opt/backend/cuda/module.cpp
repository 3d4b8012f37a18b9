#include "mlx_opt/backend/cuda/module.h"

#include <map>
#include <mutex>

#include "mlx_opt/backend/cuda/adafactor_tables.h"
#include "mlx_opt/backend/cuda/cache.h"
#include "mlx_opt/backend/cuda/cuda_errors.h"
#include "mlx_opt/backend/cuda/kernel_source.h"
#include "mlx_opt/backend/cuda/nvrtc.h"
#include "mlx_opt/backend/cuda/records.h"

namespace mlx_opt::cuda {
namespace {

namespace cu = mlx::core::cu;

static_assert(sizeof(Strided<max_operands, max_operands>) <= small_parameter);
static_assert(sizeof(AdafactorStrided) <= small_parameter);
constexpr int large_parameters_since = 12010;

std::string load_error(CUresult result, const cu::Device& device) {
  const char* reason = nullptr;
  cuGetErrorString(result, &reason);
  int driver = 0;
  cuDriverGetVersion(&driver);
  return "mlx_opt: CUDA's driver, which is of CUDA " + std::to_string(driver / 1000) + "." +
         std::to_string(driver % 1000 / 10) + ", cannot load a kernel for compute capability " +
         std::to_string(device.compute_capability_major()) + "." +
         std::to_string(device.compute_capability_minor()) + " that NVRTC " + compiler_version() +
         " has compiled: " + (reason ? reason : "unknown error") +
         ": a newer driver, or an MLX of an older CUDA (pip install 'mlx[cuda12]'), may mend it";
}

struct Loaded {
  CUmodule module;
  CUresult result;
};

Loaded load(const std::string& code) {
  Loaded loaded{};
  loaded.result = cuModuleLoadData(&loaded.module, code.c_str());
  return loaded;
}

CUfunction build(const Kernel& kernel, const cu::Device& device) {
  const std::string text = source(kernel);
  const auto target =
      target_option(device.compute_capability_major() * 10 + device.compute_capability_minor());
  const std::string key = compiler_version() + " " + target + "\n" + text;
  const Cache cache = Cache::of_user();

  Loaded loaded{nullptr, CUDA_ERROR_NOT_FOUND};
  if (const auto kept = cache.find(key)) {
    loaded = load(*kept);
  }
  if (loaded.result != CUDA_SUCCESS) {
    const std::string code = compile(text, target, nullptr);
    loaded = load(code);
    if (loaded.result != CUDA_SUCCESS) {
      throw std::runtime_error(load_error(loaded.result, device));
    }
    cache.store(key, code);
  }
  CUfunction function = nullptr;
  check(cuModuleGetFunction(&function, loaded.module, kernel_name), "looking up a kernel");
  return function;
}

} // namespace

CUfunction function(const Kernel& kernel, const cu::Device& device) {
  static std::mutex mutex;
  static auto* functions = new std::map<std::pair<int, Kernel>, CUfunction>;
  const std::lock_guard lock(mutex);
  CUfunction& function = (*functions)[{device.cuda_device(), kernel}];
  if (!function) {
    function = build(kernel, device);
  }
  return function;
}

int table_capacity(size_t record, size_t tensors, const cu::Device& device) {
  static const int driver = [] {
    int version = 0;
    check(cuDriverGetVersion(&version), "its version");
    return version;
  }();
  const int small = capacity_of(small_parameter, table_head, record);
  const bool large = tensors > static_cast<size_t>(small) && driver >= large_parameters_since &&
                     device.compute_capability_major() >= 7;
  return large ? capacity_of(large_parameter, table_head, record) : small;
}

} // namespace mlx_opt::cuda
