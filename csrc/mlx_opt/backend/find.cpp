#include "mlx_opt/backend/find.h"

#if defined(MLX_OPT_METAL)
#include "mlx/backend/metal/metal.h"
#include "mlx_opt/backend/metal/backend.h"
#elif defined(__linux__) && !defined(MLX_OPT_NO_CUDA)
#include <dlfcn.h>

#include "mlx/device.h"
#endif

namespace mlx_opt::gpu {
namespace {

#if defined(MLX_OPT_METAL)

Found load() {
  if (!mx::metal::is_available()) {
    return {nullptr, "this MLX finds no GPU that Metal can use"};
  }
  return {&metal::backend(), ""};
}

#elif defined(MLX_OPT_NO_CUDA)

Found load() {
  return {nullptr, MLX_OPT_NO_CUDA};
}

#elif defined(__linux__)

constexpr const char* library = "libmlx_opt_cuda.so";

std::string own_folder() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&find_backend), &info) || !info.dli_fname) {
    return {};
  }
  const std::string path = info.dli_fname;
  return path.substr(0, path.rfind('/') + 1);
}

std::string last_error() {
  const char* error = dlerror();
  return error ? error : "unknown error";
}

Found load() {
  if (!mx::is_available(mx::Device::gpu)) {
    return {nullptr, "this MLX has no GPU here: it is the CPU build, or finds no NVIDIA driver"};
  }
  void* handle = dlopen((own_folder() + library).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    return {nullptr, std::string(library) + " cannot be loaded: " + last_error()};
  }
  auto entry = reinterpret_cast<EntryPoint>(dlsym(handle, entry_point));
  if (!entry) {
    return {nullptr, std::string(library) + " is not of this build: " + last_error()};
  }
  return {entry(), ""};
}

#else

Found load() {
  return {nullptr, "this build of mlx_opt was made without one (MLX_OPT_METAL=OFF)"};
}

#endif

} // namespace

const Found& find_backend() {
  static const Found found = load();
  return found;
}

} // namespace mlx_opt::gpu

namespace mlx_opt {

bool available(mx::Device device) {
  return device == mx::Device::cpu || gpu::find_backend().backend;
}

} // namespace mlx_opt
