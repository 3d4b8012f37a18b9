#include "mlx_opt/backend/metal/leaf.h"

#include <algorithm>
#include <limits>

#include "mlx_opt/rules/codes.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt::metal {
namespace {

// The layout of the widest kernel; a narrower one reads its beginning.
constexpr int max_operands = slots - operands_slot;
using AnyLayout = Layout<max_operands>;
using AnyStrided = Strided<max_operands>;

constexpr size_t strided_bytes(int operands) {
  return sizeof(AnyStrided) - (max_operands - operands) * sizeof(AnyLayout::strides[0]);
}
static_assert(strided_bytes(2) == sizeof(Strided<2>));

template <typename T>
std::vector<char> bytes_of(const T& x, size_t count = sizeof(T)) {
  const char* begin = reinterpret_cast<const char*>(&x);
  return {begin, begin + count};
}

uint64_t tiles_of(uint64_t size) {
  return (size + tile - 1) / tile;
}

// True if a result may overwrite the array.
bool may_overwrite(const mx::array& x, mx::Dtype dtype) {
  return x.itemsize() == mx::size_of(dtype) && x.flags().row_contiguous && x.offset() == 0;
}

// The number of scales of codes.
size_t blocks_of(size_t size) {
  return (size + MLX_OPT_LEVEL::elements_of_block - 1) / MLX_OPT_LEVEL::elements_of_block;
}

} // namespace

bool place_all(std::vector<Leaf>& leaves, const Buffers& outputs) {
  bool as_expected = true;
  for (Leaf& leaf : leaves) {
    as_expected &= leaf.place(outputs);
  }
  return as_expected;
}

uint64_t chunks_of(uint64_t size) {
  return (size + chunk - 1) / chunk;
}

Leaf::Leaf(
    UpdateKernel of_rule,
    const mx::array* const* arrays,
    const mx::Dtype* dtypes,
    size_t first_output,
    unsigned short group,
    unsigned rounding_key)
    : kernel(std::move(of_rule)),
      first_output(first_output),
      size(arrays[0]->size()),
      group(group),
      rounding_key(rounding_key) {
  Operands& operands = kernel.operands;
  const auto outputs = static_cast<int>(operands.out.size());
  in.reserve(outputs + 1);
  for (int k = 0; k <= outputs; ++k) {
    operands.in[k] = storage_of(arrays[k]->dtype());
    in.emplace_back(*arrays[k]);
  }
  for (int k = 0; k < outputs; ++k) {
    operands.out[k] = storage_of(dtypes[k]);
    operands.written[k] = may_overwrite(*arrays[k], dtypes[k]) ? static_cast<int8_t>(k) : apart;
  }
  vectors = vectors_fit(arrays, outputs + 1);
  set_walk(arrays);
}

void Leaf::set_walk(const mx::array* const* arrays) {
  const int fields = kernel.fields();
  kernel.walk = Walk::flat;
  threadgroups = chunks_of(size);
  std::vector<const mx::array*> without_scales(arrays, arrays + fields);
  without_scales.push_back(arrays[fields + kernel.scales]);
  arrays = without_scales.data();
  if (all_contiguous(arrays, fields + 1)) {
    return;
  }
  const mx::array& gradient = *arrays[fields];
  const bool rows = kernel.scales == 0 && all_contiguous(arrays, fields);
  if (const unsigned columns = rows ? columns_if_transposed(gradient, tile) : 0) {
    kernel.walk = Walk::transposed;
    const uint64_t height = size / columns;
    threadgroups = tiles_of(height) * tiles_of(columns);
    arguments = bytes_of(Matrix{
        height,
        columns,
        group,
        columns % vector_width == 0 && vectors_fit(arrays, fields),
        height % vector_width == 0 && vectors_fit(gradient),
        rounding_key});
  } else {
    const bool small = size <= std::numeric_limits<uint32_t>::max();
    kernel.walk = small ? Walk::strided : Walk::strided_long;
    const AnyStrided strided{
        size, group, rounding_key, common_layout<AnyLayout>(arrays, fields + 1)};
    arguments = bytes_of(strided, strided_bytes(fields + 1));
    if (!is_contiguous(*arrays[0])) {
      parameter = Strided<1>{size, group, rounding_key, layout_of<Layout<1>>(*arrays[0])};
    }
  }
}

bool Leaf::place(const Buffers& outputs) {
  std::vector<int8_t>& written = kernel.operands.written;
  bool as_before = true;
  for (size_t k = 0; k < written.size(); ++k) {
    const void* buffer = outputs[first_output + k].ptr();
    const auto lies_there = [&](const Place& x) { return x.buffer == buffer && x.offset == 0; };
    int8_t input = static_cast<int8_t>(k);
    if (!lies_there(in[k])) {
      const auto other = std::find_if(in.begin(), in.end(), lies_there);
      input = other == in.end() ? apart : static_cast<int8_t>(other - in.begin());
    }
    as_before &= written[k] == input;
    written[k] = input;
  }
  return as_before;
}

std::vector<char> Leaf::arguments_with_new_slots() const {
  AnyStrided strided{};
  std::copy(arguments.begin(), arguments.end(), reinterpret_cast<char*>(&strided));
  int64_t stride = 1;
  for (int dim = strided.layout.dims - 1; dim >= 0; --dim) {
    for (size_t k = 1; k < kernel.operands.out.size(); ++k) {
      strided.layout.strides[k][dim] = stride;
    }
    stride *= strided.layout.shape[dim];
  }
  return bytes_of(strided, arguments.size());
}

std::vector<Place> Leaf::out(const Buffers& outputs) const {
  std::vector<Place> places;
  places.reserve(kernel.operands.out.size());
  for (size_t k = 0; k < kernel.operands.out.size(); ++k) {
    const bool is_scale = static_cast<int>(k) >= kernel.fields();
    places.emplace_back(outputs[first_output + k], is_scale ? blocks_of(size) : size);
  }
  return places;
}

} // namespace mlx_opt::metal
