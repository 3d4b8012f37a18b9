// A stand-in for CUDA's driver: modules that are shared libraries, events, and the launches of
// graphs.
#include "driver.h"

#include <dlfcn.h>
#include <elf.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <memory>

#include "device.h"
#include "grid.h"

struct CUmod_st {
  void* handle;
};

struct CUfunc_st {
  grid::Kernel run;
  size_t bytes;
  size_t threads;
};

struct CUevent_st {
  fake::Queue* queue = nullptr;
  size_t position = 0;
};

namespace fake {
namespace {

Log events;

// The driver's version: 13000 for CUDA 13.0.
int version() {
  const char* version = std::getenv("CUDA_FAKE_VERSION");
  return version ? std::atoi(version) : 13000;
}

size_t max_parameter_bytes() {
  return version() < 12010 ? 4096 : 32764;
}

void run(const Node& node) {
  const int before = grid::complaints();
  grid::run(node.function->run, node.parameter.data(), node.blocks, node.threads);
  if (grid::complaints() != before) {
    complain("a kernel went wrong, see above");
  }
  events.launches.push_back({node.blocks, node.threads});
}

// In reverse order as far as dependencies permit, so that a missing dependency is noticed.
void run(const Graph& graph) {
  std::vector<bool> done(graph.size());
  for (size_t left = graph.size(); left > 0; --left) {
    size_t next = graph.size();
    const auto is_ready = [&](size_t i) {
      const auto& behind = graph[i].behind;
      return !done[i] &&
             std::all_of(behind.begin(), behind.end(), [&](size_t k) { return done[k]; });
    };
    while (!is_ready(--next)) {
    }
    run(graph[next]);
    done[next] = true;
  }
}

// The section headers are at the end of a library.
size_t size_of_library(const void* image) {
  const auto* header = static_cast<const Elf64_Ehdr*>(image);
  return header->e_shoff + static_cast<size_t>(header->e_shnum) * header->e_shentsize;
}

template <typename T>
T symbol(CUmodule module, const std::string& name) {
  return reinterpret_cast<T>(dlsym(module->handle, name.c_str()));
}

} // namespace

Log& log() {
  return events;
}

void complain(std::string what) {
  events.errors.push_back(std::move(what));
}

Node node(CUfunction function, unsigned blocks, unsigned threads, const void* parameter) {
  if (blocks == 0 || threads == 0) {
    complain("a launch of nothing");
  }
  if (threads > function->threads) {
    complain("a launch of more threads than the kernel is compiled for");
  }
  if (function->bytes > max_parameter_bytes()) {
    complain("a parameter of " + std::to_string(function->bytes) + " bytes");
  }
  const auto* bytes = static_cast<const char*>(parameter);
  return {function, blocks, threads, {bytes, bytes + function->bytes}, {}};
}

void Queue::run_to(size_t count) {
  while (done < count && !work.empty()) {
    const Work next = std::move(work.front());
    work.pop_front();
    run(next.graph);
    std::for_each(next.handlers.begin(), next.handlers.end(), [](const auto& f) { f(); });
    ++done;
  }
}

void Queue::run_all() {
  run_to(done + work.size());
}

} // namespace fake

extern "C" {

CUresult cuDriverGetVersion(int* version) {
  *version = fake::version();
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult, const char** text) {
  *text = "an error of the fake driver";
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  static int count = 0;
  const std::string path = std::string(std::getenv("CUDA_SCRATCH")) + "/module" +
                           std::to_string(getpid()) + "." + std::to_string(count++) + ".so";
  std::ofstream(path, std::ios::binary)
      .write(static_cast<const char*>(image), static_cast<long>(fake::size_of_library(image)));
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    fake::complain(dlerror());
    return CUDA_ERROR_INVALID_IMAGE;
  }
  *module = new CUmod_st{handle};
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  const std::string kernel = name;
  auto run = fake::symbol<grid::Kernel>(module, kernel + "_run");
  if (!run) {
    return CUDA_ERROR_NOT_FOUND;
  }
  *function = new CUfunc_st{
      run,
      *fake::symbol<const unsigned long*>(module, kernel + "_bytes"),
      *fake::symbol<const unsigned long*>(module, kernel + "_threads")};
  return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent* event, unsigned) {
  *event = new CUevent_st;
  return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
  event->queue = reinterpret_cast<fake::Queue*>(stream);
  event->position = event->queue->done + event->queue->work.size();
  return CUDA_SUCCESS;
}

CUresult cuEventSynchronize(CUevent event) {
  event->queue->run_to(event->position);
  return CUDA_SUCCESS;
}
}
