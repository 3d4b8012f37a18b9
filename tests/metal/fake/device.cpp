// A stand-in for MLX's metal::Device and metal::CommandEncoder, with the same headers. It compiles
// the programs for the CPU, runs each dispatch at once, inserts barriers by MLX's rules, and
// reports hazards that remain and calls that Metal would not accept.
#define NS_PRIVATE_IMPLEMENTATION
#define MTL_PRIVATE_IMPLEMENTATION
#include "device.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>

#include "mlx/backend/metal/device.h"
#include "mlx/backend/metal/metal.h"

namespace {

constexpr int slots = 31;
constexpr size_t max_argument_bytes = 4096;
constexpr unsigned long max_threads = 1024;

using Run = int (*)(void* const*, unsigned, unsigned, unsigned);

struct Pipeline {
  std::string name;
  Run run;
};

struct Range {
  const char* begin;
  const char* end;

  bool meets(const Range& other) const {
    return begin < other.end && other.begin < end;
  }
};

// The bindings of a slot, which Metal's encoder keeps from dispatch to dispatch.
struct Slot {
  void* address = nullptr;
  std::vector<char> bytes;
  Range range{};
  bool read = false;
  bool written = false;
};

struct Encoder {
  const Pipeline* pipeline = nullptr;
  std::array<Slot, slots> bound;
  std::vector<Range> read_since_barrier;
  std::vector<Range> written_since_barrier;
  bool behind_barrier = false;
};

Encoder encoder;
fake::Log events;

void complain(std::string what) {
  events.errors.push_back(std::move(what));
}

Slot& slot(long index) {
  if (index < 0 || index >= slots) {
    complain("slot " + std::to_string(index) + " is none of Metal's");
    static Slot none;
    return none;
  }
  return encoder.bound[index];
}

void set_bytes(const char* bytes, size_t length, long index) {
  if (length > max_argument_bytes) {
    complain("setBytes of " + std::to_string(length) + " bytes");
  }
  Slot& at = slot(index);
  at = Slot{};
  at.bytes.assign(bytes, bytes + length);
  at.address = at.bytes.data();
}

bool any_meets(const std::vector<Range>& ranges, const Range& range) {
  return std::any_of(
      ranges.begin(), ranges.end(), [&](const Range& other) { return other.meets(range); });
}

void note_hazards() {
  for (const Slot& at : encoder.bound) {
    const bool conflict = (at.read && any_meets(encoder.written_since_barrier, at.range)) ||
                          (at.written && (any_meets(encoder.written_since_barrier, at.range) ||
                                          any_meets(encoder.read_since_barrier, at.range)));
    if (conflict) {
      events.hazards.push_back(encoder.pipeline->name);
      break;
    }
  }
  for (const Slot& at : encoder.bound) {
    if (at.read) {
      encoder.read_since_barrier.push_back(at.range);
    }
    if (at.written) {
      encoder.written_since_barrier.push_back(at.range);
    }
  }
}

void run(MTL::Size groups, MTL::Size threads) {
  note_hazards();
  events.dispatches.push_back(
      {encoder.pipeline->name, groups.width, threads.width, encoder.behind_barrier});
  encoder.behind_barrier = false;
  if (threads.width * threads.height * threads.depth > max_threads) {
    complain("a threadgroup of more than 1024 threads");
  }
  std::array<void*, slots> buffers{};
  std::transform(encoder.bound.begin(), encoder.bound.end(), buffers.begin(), [](const Slot& at) {
    return at.address;
  });
  if (encoder.pipeline->run(buffers.data(), 0, groups.width, threads.width)) {
    complain("a barrier that not all threads reach, in " + encoder.pipeline->name);
  }
  // A dispatch must bind everything that it uses and not rely on earlier bindings.
  encoder.bound = {};
}

// The layout that clang gives a block, by which it is called.
struct Block {
  void* isa;
  int flags;
  int reserved;
  void (*invoke)(void*, void*);
};

void* send(void* self, const std::string& message, void* a, unsigned long b, unsigned long c) {
  if (message == "setComputePipelineState:") {
    encoder.pipeline = static_cast<const Pipeline*>(a);
  } else if (message == "setBytes:length:atIndex:") {
    set_bytes(static_cast<const char*>(a), b, static_cast<long>(c));
  } else if (message == "memoryBarrierWithScope:") {
    encoder.read_since_barrier.clear();
    encoder.written_since_barrier.clear();
    encoder.behind_barrier = true;
    ++events.barriers;
  } else if (message == "addCompletedHandler:") {
    static_cast<Block*>(a)->invoke(a, self);
  } else if (message == "status") {
    return reinterpret_cast<void*>(MTL::CommandBufferStatusCompleted);
  } else if (message == "retain" || message == "autorelease") {
    return self;
  } else if (message != "release" && message != "waitUntilCompleted") {
    complain("an unexpected message: " + message);
  }
  return nullptr;
}

std::string from_environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : throw std::runtime_error(std::string(name) + " is not set");
}

void require(const std::string& command, const std::string& what) {
  if (std::system(command.c_str()) != 0) {
    throw std::runtime_error("[metal::Device] Unable to build metal library from source: " + what);
  }
}

// Type-checks the program, and compiles it for the CPU.
void* compiled(const std::string& name, const std::string& source) {
  const std::string tests = from_environment("METAL_TESTS");
  const std::string folder = from_environment("METAL_SCRATCH");
  const std::string program = folder + "/" + name + ".metal";
  const std::string library = folder + "/" + name + ".so";
  std::ofstream(program) << source;
  require("python3 " + tests + "/typecheck/check.py " + program, name);
  require(
      "DEFINE=MSL_LITTLE_ALIGNMENT " + tests + "/execute/build " + library + " " + program, name);
  void* handle = dlopen(library.c_str(), RTLD_NOW);
  return handle ? handle : throw std::runtime_error(dlerror());
}

} // namespace

namespace fake {

Log& log() {
  return events;
}

void begin() {
  mlx::core::metal::get_command_encoder(mlx::core::Stream(0, mlx::core::Device::gpu))
      .end_encoding();
  encoder = {};
  events = {};
}

} // namespace fake

extern "C" {

SEL sel_registerName(const char* name) {
  static std::set<std::string> names;
  return reinterpret_cast<SEL>(const_cast<char*>(names.insert(name).first->c_str()));
}
Class objc_lookUpClass(const char* name) {
  return reinterpret_cast<Class>(sel_registerName(name));
}
Protocol* objc_getProtocol(const char* name) {
  return reinterpret_cast<Protocol*>(sel_registerName(name));
}

void* fake_msgSend(void* self, SEL selector, void* a, unsigned long b, unsigned long c) {
  return send(self, reinterpret_cast<const char*>(selector), a, b, c);
}
__asm__(
    ".globl objc_msgSend\nobjc_msgSend: jmp fake_msgSend\n"
    ".globl objc_msgSend_stret\nobjc_msgSend_stret: ud2\n"
    ".globl objc_msgSend_fpret\nobjc_msgSend_fpret: ud2\n");

// Blocks are called where they are, before their function returns: none is copied.
void* _NSConcreteStackBlock[32];
void _Block_object_assign(void*, const void*, int) {
  std::abort();
}
void _Block_object_dispose(const void*, int) {}

// Declared by metal-cpp but never called. In C, because C++ has different declarations.
__asm__(
    ".globl MTLCreateSystemDefaultDevice\nMTLCreateSystemDefaultDevice: ud2\n"
    ".globl MTLCopyAllDevices\nMTLCopyAllDevices: ud2\n"
    ".globl MTLCopyAllDevicesWithObserver\nMTLCopyAllDevicesWithObserver: ud2\n"
    ".globl MTLRemoveDeviceObserver\nMTLRemoveDeviceObserver: ud2\n");
}

namespace mlx::core::metal {

bool is_available() {
  return true;
}

ResidencySets::ResidencySets(MTL::Device*) {}
ResidencySets::~ResidencySets() {}

Device::Device() : device_(nullptr), residency_sets_(nullptr) {}
Device::~Device() {}

Device& device(mlx::core::Device) {
  static auto* device = new Device;
  return *device;
}

// Cached by name only, as in MLX: another program of the same name would not be built.
MTL::Library* Device::get_library(
    const std::string& name, const CompileOptions&, const std::function<std::string()>& builder) {
  struct Library {
    void* handle;
    std::string source;
  };
  static std::map<std::string, Library> libraries;
  const std::string source = builder();
  auto known = libraries.find(name);
  if (known == libraries.end()) {
    known = libraries.emplace(name, Library{compiled(name, source), source}).first;
  } else if (known->second.source != source) {
    complain("two programs of the name " + name);
  }
  return static_cast<MTL::Library*>(known->second.handle);
}

MTL::ComputePipelineState* Device::get_kernel(
    const std::string& name,
    MTL::Library* library,
    const std::string&,
    const MTLFCList&,
    const std::vector<MTL::Function*>&) {
  static std::map<std::string, Pipeline> pipelines;
  auto run = reinterpret_cast<Run>(dlsym(library, ("run_" + name).c_str()));
  if (!run) {
    throw std::runtime_error("[metal::Device] Unable to load kernel " + name);
  }
  Pipeline& pipeline = pipelines.try_emplace(name, Pipeline{name, run}).first->second;
  return reinterpret_cast<MTL::ComputePipelineState*>(&pipeline);
}

CommandEncoder::CommandEncoder(Device& d, int, ResidencySets& r) : device_(d), residency_sets_(r) {
  static char commands;
  buffer_ = NS::RetainPtr(reinterpret_cast<MTL::CommandBuffer*>(&commands));
}
CommandEncoder::~CommandEncoder() {}

CommandEncoder& get_command_encoder(Stream stream) {
  static auto* own =
      new CommandEncoder(device(stream.device), 0, device(stream.device).residency_sets());
  return *own;
}

MTL::ComputeCommandEncoder* CommandEncoder::get_command_encoder() {
  return reinterpret_cast<MTL::ComputeCommandEncoder*>(this);
}

void CommandEncoder::end_encoding(bool) {
  needs_barrier_ = false;
  concurrent_ = false;
  prev_inputs_.clear();
  next_inputs_.clear();
  prev_outputs_.clear();
  next_outputs_.clear();
  concurrent_outputs_.clear();
  temporaries_.clear();
}

void CommandEncoder::set_input_array(const array& a, int index, int64_t offset) {
  auto* resource = static_cast<MTL::Resource*>(const_cast<void*>(a.buffer().ptr()));
  next_inputs_.insert(resource);
  needs_barrier_ |= prev_outputs_.count(resource) > 0;
  auto buffer = a.buffer();
  char* address = static_cast<char*>(buffer.raw_ptr());
  if (!address) {
    complain("nothing lies in the buffer of slot " + std::to_string(index));
  }
  Slot& at = slot(index);
  at = Slot{};
  at.address = address + a.offset() + offset;
  at.range = {address, address + a.buffer_size()};
  if (a.flags().row_contiguous && a.data_size() == a.size()) { // a part, if it is one
    at.range = {address + a.offset() + offset, address + a.offset() + offset + a.nbytes()};
  }
  at.read = true;
}

void CommandEncoder::set_output_array(array& a, int index, int64_t offset) {
  set_input_array(a, index, offset);
  register_output_array(a);
  slot(index).written = true;
}

void CommandEncoder::register_output_array(const array& a) {
  auto* resource = static_cast<MTL::Resource*>(const_cast<void*>(a.buffer().ptr()));
  if (concurrent_) {
    concurrent_outputs_.insert(resource);
  } else {
    next_outputs_.insert(resource);
    needs_barrier_ |= prev_inputs_.count(resource) > 0;
  }
}

void CommandEncoder::add_temporary(array x) {
  temporaries_.push_back(std::move(x));
}

void CommandEncoder::maybeInsertBarrier() {
  if (needs_barrier_) {
    get_command_encoder()->memoryBarrier(MTL::BarrierScopeBuffers);
    needs_barrier_ = false;
    prev_inputs_.swap(next_inputs_);
    prev_outputs_.swap(next_outputs_);
  } else {
    prev_inputs_.insert(next_inputs_.begin(), next_inputs_.end());
    prev_outputs_.insert(next_outputs_.begin(), next_outputs_.end());
  }
  next_inputs_.clear();
  next_outputs_.clear();
}

void CommandEncoder::dispatch_threadgroups(MTL::Size groups, MTL::Size threads) {
  maybeInsertBarrier();
  run(groups, threads);
}

} // namespace mlx::core::metal
