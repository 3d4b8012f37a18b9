// Tensors as a launch takes them, where the width of their program is known when it runs. Knows
// neither CUDA nor MLX.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "mlx_opt/backend/cuda/tables.h"

namespace mlx_opt::cuda {

/// The most bytes that a kernel's parameter may have: of any kernel, and, from CUDA 12.1 on, on
/// GPUs of 7.0 and up.
inline constexpr size_t small_parameter = 4096;
inline constexpr size_t large_parameter = 32764;

/// How many records of so many bytes a parameter holds behind what stands before them.
constexpr int capacity_of(size_t parameter, size_t before, size_t record) {
  return static_cast<int>((parameter - before) / record);
}

/// What stands before the tensors of a table.
inline constexpr size_t table_head = sizeof(Table<1, 1, 1>) - sizeof(Tensor<1, 1>);

/// Tensors of so many inputs and outputs, each as Tensor<inputs, outputs> lies in memory.
class Records {
 public:
  Records(int inputs, int outputs)
      : inputs_(inputs), words_(sizeof(Extent) / sizeof(uint64_t) + inputs + outputs) {}

  size_t count() const {
    return count_;
  }

  /// Of each tensor.
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

/// A kernel's parameter, put together from parts of whole words as its type has them.
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
