// A stand-in for the parts of MLX that only its CUDA build has, with the same headers: the encoder,
// which builds a graph of launches ordered by their arrays, as MLX's does; the devices; and memory,
// in which every buffer is a CudaBuffer, so that results of the CPU can be operands of the GPU.
#include "device.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <unordered_map>

#include "driver.h"
#include "mlx/backend/cuda/device.h"
#include "mlx/device.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace mx = mlx::core;

const mx::Stream fake::gpu_stream(0, mx::Device(mx::Device::gpu, 0));
const mx::Stream fake::older_gpu_stream(1, mx::Device(mx::Device::gpu, 1));

namespace {

// Launches that an encoder has not committed yet. `written`: the last launch that wrote a buffer.
struct Encoding {
  fake::Graph graph;
  std::vector<std::function<void()>> handlers;
  std::vector<const void*> read;
  std::vector<const void*> written;
  std::unordered_map<const void*, size_t> writers;
};

Encoding& encoding_of(const mx::cu::CommandEncoder* encoder) {
  static std::map<const mx::cu::CommandEncoder*, Encoding> encodings;
  return encodings[encoder];
}

// Adds dependencies on the launches that wrote what this one reads or writes.
void order(Encoding& encoding, fake::Node node) {
  for (const auto* buffers : {&encoding.read, &encoding.written}) {
    for (const void* buffer : *buffers) {
      if (const auto writer = encoding.writers.find(buffer); writer != encoding.writers.end()) {
        node.behind.push_back(writer->second);
      }
    }
  }
  for (const void* buffer : encoding.written) {
    encoding.writers[buffer] = encoding.graph.size();
  }
  encoding.read.clear();
  encoding.written.clear();
  encoding.graph.push_back(std::move(node));
}

// Memory whose bytes are NaN in every storage until they are written.
class Memory : public mx::allocator::Allocator {
 public:
  mx::allocator::Buffer malloc(size_t size) override {
    void* data = size ? std::malloc(size) : nullptr;
    if (size) {
      std::memset(data, 0xff, size);
    }
    return mx::allocator::Buffer(new mx::cu::CudaBuffer{data, size, -1});
  }

  void free(mx::allocator::Buffer buffer) override {
    if (auto* own = static_cast<mx::cu::CudaBuffer*>(buffer.ptr())) {
      std::free(own->data);
      delete own;
    }
  }

  size_t size(mx::allocator::Buffer buffer) const override {
    const auto* own = static_cast<const mx::cu::CudaBuffer*>(buffer.ptr());
    return own ? own->size : 0;
  }
};

// MLX's cast on a GPU, of an array without elements: an output as large as the input's buffer.
class Cast : public mx::UnaryPrimitive {
 public:
  using mx::UnaryPrimitive::UnaryPrimitive;

  void eval_cpu(const std::vector<mx::array>&, mx::array&) override {
    throw std::logic_error("a cast for the GPU on the CPU");
  }
  void eval_gpu(const std::vector<mx::array>& inputs, mx::array& output) override {
    const mx::array& x = inputs[0];
    if (x.size() != 0) {
      throw std::logic_error("the fake GPU casts no elements");
    }
    output.set_data(
        mx::allocator::malloc(x.data_size() * output.itemsize()),
        x.data_size(),
        x.strides(),
        x.flags());
  }
  const char* name() const override {
    return "Cast";
  }
};

// The function of this name that would be called if this program had none.
template <typename Function>
Function* hidden(Function* own) {
  Dl_info info;
  dladdr(reinterpret_cast<const void*>(own), &info);
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, info.dli_sname));
}

} // namespace

namespace fake {

void hold(const mx::array& x, mx::Stream stream) {
  mx::cu::get_command_encoder(stream).add_temporary(x);
}

int commits(mx::Stream stream) {
  const cudaStream_t queue = mx::cu::get_command_encoder(stream).stream();
  const auto& [work, done] = *reinterpret_cast<fake::Queue*>(queue);
  return static_cast<int>(done + work.size());
}

void finish(mx::Stream stream) {
  mx::cu::get_command_encoder(stream).synchronize();
}

} // namespace fake

namespace mlx::core {

bool is_available(const Device&) {
  return true;
}

array astype(array a, Dtype dtype, StreamOrDevice s) {
  static const auto on_cpu = hidden(&astype);
  const auto* stream = std::get_if<Stream>(&s);
  if (stream && stream->device == Device::gpu) {
    return array(a.shape(), dtype, std::make_shared<Cast>(*stream), {a});
  }
  return on_cpu(std::move(a), dtype, s);
}

namespace allocator {

Allocator& allocator() {
  static auto* memory = new Memory;
  return *memory;
}

void* Buffer::raw_ptr() {
  return ptr_ ? static_cast<cu::CudaBuffer*>(ptr_)->data : nullptr;
}

} // namespace allocator

CudaStream::CudaStream(cu::Device&) : CudaHandle(reinterpret_cast<cudaStream_t>(new fake::Queue)) {}
CudaGraph::CudaGraph(cu::Device&) {}

namespace cu {

Device::Device(int device)
    : device_(device),
      compute_capability_major_(device == 0 ? 9 : 7),
      compute_capability_minor_(device == 0 ? 0 : 5) {}
Device::~Device() {}
void Device::make_current() {}

Device& device(int index) {
  static auto* devices = new std::map<int, Device>;
  return devices->try_emplace(index, index).first->second;
}

Device& device(mlx::core::Device d) {
  return device(d.index);
}

CommandEncoder& get_command_encoder(Stream s) {
  static auto* encoders = new std::map<int, CommandEncoder>;
  return encoders->try_emplace(s.index, device(s.device)).first->second;
}

CommandEncoder::CommandEncoder(Device& d) : device_(d), stream_(d), graph_(d), graph_cache_(1) {}
CommandEncoder::~CommandEncoder() {}

void CommandEncoder::set_input_array(const array& x) {
  encoding_of(this).read.push_back(x.buffer().ptr());
}

void CommandEncoder::set_output_array(const array& x) {
  encoding_of(this).written.push_back(x.buffer().ptr());
}

void CommandEncoder::add_kernel_node_raw(
    CUfunction function, dim3 blocks, dim3 threads, dim3, uint32_t, void** parameters) {
  order(encoding_of(this), fake::node(function, blocks.x, threads.x, parameters[0]));
}

void CommandEncoder::add_completed_handler(std::function<void()> task) {
  encoding_of(this).handlers.push_back(std::move(task));
}

void CommandEncoder::commit() {
  if (!temporaries_.empty()) {
    add_completed_handler([held = std::exchange(temporaries_, {})] {});
  }
  auto committed = std::exchange(encoding_of(this), {});
  auto* queue = reinterpret_cast<fake::Queue*>(static_cast<cudaStream_t>(stream_));
  queue->work.push_back({std::move(committed.graph), std::move(committed.handlers)});
}

void CommandEncoder::synchronize() {
  commit();
  reinterpret_cast<fake::Queue*>(static_cast<cudaStream_t>(stream_))->run_all();
}

} // namespace cu
} // namespace mlx::core

// Stubs: members of the encoders, which live as long as the program, refer to these.
extern "C" {
cudaError_t cudaStreamDestroy(cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t) {
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) {
  return cudaSuccess;
}
}
