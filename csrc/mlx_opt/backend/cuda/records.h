// The tensors of a launch, with the record width chosen at run time. Depends on neither CUDA nor
// MLX.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "mlx_opt/backend/cuda/tables.h"

namespace mlx_opt::cuda {

/// The maximum size of a kernel's parameter in bytes: for any kernel, and, since CUDA 12.1, on GPUs
/// of compute capability 7.0 and up.
inline constexpr size_t small_parameter = 4096;
inline constexpr size_t large_parameter = 32764;

/// How many records of `record` bytes fit into a parameter after its first `before` bytes.
constexpr int capacity_of(size_t parameter, size_t before, size_t record) {
  return static_cast<int>((parameter - before) / record);
}

/// Number of bytes before the tensors of a table.
inline constexpr size_t table_head = sizeof(Table<1, 1, 1>) - sizeof(Tensor<1, 1>);

/// Tensors with `inputs` inputs and `outputs` outputs, each laid out as Tensor<inputs, outputs>.
class Records {
 public:
  Records(int inputs, int outputs)
      : inputs_(inputs), words_(sizeof(Extent) / sizeof(uint64_t) + inputs + outputs) {}

  size_t count() const {
    return count_;
  }

  /// Number of bytes of a record.
  size_t bytes() const {
    return words_ * sizeof(uint64_t);
  }

  void add(const Extent& extent) {
    data_.resize(data_.size() + words_);
    set(count_++, extent);
  }

  Extent operator[](size_t index) const {
    Extent extent;
    std::memcpy(&extent, at(index), sizeof extent);
    return extent;
  }

  void set(size_t index, const Extent& extent) {
    std::memcpy(&data_[index * words_], &extent, sizeof extent);
  }

  void set_input(size_t index, int k, const void* address) {
    pointers(index)[k] = reinterpret_cast<uint64_t>(address);
  }

  void set_output(size_t index, int k, void* address) {
    pointers(index)[inputs_ + k] = reinterpret_cast<uint64_t>(address);
  }

  /// The records from `index` on.
  const void* at(size_t index) const {
    return &data_[index * words_];
  }

 private:
  uint64_t* pointers(size_t index) {
    return &data_[index * words_ + sizeof(Extent) / sizeof(uint64_t)];
  }

  int inputs_;
  size_t words_; // of each
  size_t count_ = 0;
  std::vector<uint64_t> data_;
};

static_assert(sizeof(void*) == sizeof(uint64_t));
static_assert(sizeof(Tensor<1, 1>) == sizeof(Extent) + 2 * sizeof(uint64_t), "without gaps");

/// A kernel's parameter, assembled from parts of whole words in the layout of its type.
class Parameter {
 public:
  template <typename T>
  void add(const T& part) {
    static_assert(sizeof part % sizeof(uint64_t) == 0);
    add(&part, sizeof part);
  }

  void add(const void* part, size_t bytes) {
    std::memcpy(words_ + size_, part, bytes);
    size_ += bytes / sizeof(uint64_t);
  }

  void* data() {
    return words_;
  }

 private:
  size_t size_ = 0;
  uint64_t words_[large_parameter / sizeof(uint64_t) + 1];
};

} // namespace mlx_opt::cuda
