#include "mlx_opt/backend/cuda/adafactor_tensors.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "mlx_opt/backend/cuda/operand.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt::cuda {
namespace {

constexpr int warp_size = 32;

int64_t divided_up(int64_t x, int64_t unit) {
  return (x + unit - 1) / unit;
}

// How many threads add up `parts` partial sums, so that each has few and all of them fit a block.
short split_of(int64_t parts) {
  short split = 1;
  while (split < 32 && parts > 8 * split) {
    split *= 2;
  }
  return split;
}

// The division of a tensor into tiles, in the orientation of its gradient in memory.
struct Tiling {
  int64_t lines, columns, down, across;

  Tiling(const AdafactorTensor& t, int vector_width)
      : lines(t.transposed ? t.columns : t.rows),
        columns(t.transposed ? t.rows : t.columns),
        down(divided_up(lines, adafactor_rows)),
        across(divided_up(columns, warp_size * vector_width)) {}
};

int64_t row_blocks(const AdafactorTensor& t) {
  return divided_up(t.rows, adafactor_threads / t.row_split);
}

int64_t column_blocks(const AdafactorTensor& t) {
  return divided_up(t.columns, adafactor_threads / t.column_split);
}

// Assigns the parts of a tensor's scratch memory from `at` on; if `at` is null, counts the bytes.
class Allotment {
 public:
  explicit Allotment(char* begin) : begin_(begin) {}

  template <typename T>
  T* take(int64_t count) {
    T* part = begin_ ? reinterpret_cast<T*>(begin_ + bytes_) : nullptr;
    bytes_ += divided_up(count * static_cast<int64_t>(sizeof(T)), 16) * 16;
    return part;
  }

  int64_t bytes() const {
    return bytes_;
  }

 private:
  char* begin_;
  int64_t bytes_ = 0;
};

AdafactorScratch scratch_of(const AdafactorTensor& t, int vector_width, Allotment& allotment) {
  AdafactorScratch scratch{};
  scratch.squares = allotment.take<double>(2 * static_cast<int64_t>(t.tiles));
  scratch.rates = allotment.take<float>(2);
  if (t.factored) {
    const Tiling tiling(t, vector_width);
    scratch.totals = allotment.take<double>(t.matrices * row_blocks(t));
    scratch.line_sums = allotment.take<float>(tiling.across * t.matrices * tiling.lines);
    scratch.column_sums = allotment.take<float>(t.matrices * tiling.down * tiling.columns);
    scratch.row_means = allotment.take<float>(t.matrices * t.rows);
    scratch.column_factors = allotment.take<float>(t.matrices * t.columns);
  }
  return scratch;
}

// The operands of an AdafactorTensor. A missing operand is replaced by another, so that it does not
// lead to another kernel.
struct Operands {
  const mx::array* in[5];
  AdafactorKey key;

  Operands(
      const mx::array* const* arrays, const mx::Dtype* dtypes, bool factored, bool first_moment) {
    const int m = first_moment ? 2 + factored : 0;
    const int g = 2 + factored + first_moment;
    const int places[] = {0, 1, 1 + factored, m, g};
    for (int k = 0; k < 5; ++k) {
      in[k] = arrays[places[k]];
      key.from[k] = storage_of(in[k]->dtype());
    }
    for (int k = 0; k < 4; ++k) {
      key.to[k] = storage_of(dtypes[places[k]]);
    }
  }

  bool all_are_contiguous(int count) const {
    return std::all_of(in, in + count, [](const mx::array* x) { return is_contiguous(*x); });
  }

  // True for the operands of elements; those of columns have passes of their own.
  bool all_are_halves() const {
    for (int k : {0, 1, 3}) {
      if (key.from[k] == Storage::float32 || key.to[k] == Storage::float32) {
        return false;
      }
    }
    return key.from[4] != Storage::float32;
  }
};

std::array<AdafactorKernel, adafactor_passes> kernels_of(
    const AdafactorKey& key, bool first_moment, bool clips) {
  const auto& [w, rows, columns, m, g] = key.from;
  const auto& [new_w, new_rows, new_columns, new_m] = key.to;
  const int vector_width = key.vector_width;
  return {{
      {AdafactorPass::squares, false, vector_width, 0, {w, g}, {}, clips},
      {AdafactorPass::means, false, vector_width, 0, {rows, columns}, {new_rows, new_columns}},
      {AdafactorPass::update_squares, false, vector_width, 0, {rows, g}, {}, clips},
      {AdafactorPass::rates, false, 0, 0, {}, {}},
      {AdafactorPass::update,
       first_moment,
       vector_width,
       0,
       {w, rows, m, g},
       {new_w, new_rows, new_m},
       clips},
  }};
}

AdafactorStrided layouts_of(const Operands& x, bool factored) {
  AdafactorStrided args{};
  const mx::array* const elements[] = {x.in[0], x.in[factored ? 0 : 1], x.in[3], x.in[4]};
  args.elements = common_layout<Layout<4>>(elements, 4);
  args.row_means = layout_of<Layout<1>>(*x.in[1]);
  args.column_means = layout_of<Layout<1>>(*x.in[2]);
  return args;
}

// Sets the shape of the tensor's matrices, or of the rows into which a tensor that is not factored
// is divided.
void set_shape(AdafactorTensor& tensor, const mx::array& w, int vector_width) {
  tensor.size = static_cast<int64_t>(w.size());
  if (tensor.factored) {
    tensor.rows = w.shape(-2);
    tensor.columns = w.shape(-1);
    tensor.matrices =
        std::accumulate(w.shape().begin(), w.shape().end() - 2, int64_t{1}, std::multiplies<>());
  } else {
    tensor.columns = warp_size * vector_width;
    tensor.rows = divided_up(tensor.size, tensor.columns);
    tensor.matrices = 1;
  }
  const Tiling tiling(tensor, vector_width);
  tensor.tiles = static_cast<unsigned>(tensor.matrices * tiling.down * tiling.across);
  tensor.row_split = split_of(tensor.transposed ? tiling.down : tiling.across);
  tensor.column_split = split_of(tensor.transposed ? tiling.across : tiling.down);
}

} // namespace

unsigned AdafactorShare::blocks(int pass, const AdafactorTensor& tensor) const {
  switch (kernels[pass].pass) {
    case AdafactorPass::means:
      return tensor.factored ? static_cast<unsigned>(
                                   tensor.matrices * (row_blocks(tensor) + column_blocks(tensor)))
                             : 0;
    case AdafactorPass::rates:
      return 1;
    default:
      return tensor.tiles;
  }
}

AdafactorShares::AdafactorShares(
    const StepSpec& spec, const ArrayRefs& inputs, const std::vector<mx::Dtype>& dtypes)
    : first_moment_(spec.runs.at(0).operands == 4), clips_(spec.clips_values) {
  const mx::array* const* operands = inputs.data();
  size_t position = 0, tensor = 0;
  for (size_t kind = 0; kind < spec.runs.size(); ++kind) {
    const bool factored = kind == 1;
    const auto [tensors, width, masters, scales] = spec.runs[kind];
    for (const size_t end = tensor + tensors; tensor < end; ++tensor) {
      if (operands[0]->size() || factored) {
        add(operands, &dtypes[position], factored, spec.group_of(tensor), position);
      }
      operands += width;
      position += width - 1;
    }
  }
}

void AdafactorShares::add(
    const mx::array* const* arrays,
    const mx::Dtype* dtypes,
    bool factored,
    uint16_t group,
    size_t position) {
  Operands operands(arrays, dtypes, factored, first_moment_);
  const bool contiguous = operands.all_are_contiguous(4);
  const bool flat = contiguous && is_contiguous(*operands.in[4]);
  AdafactorTensor tensor{};
  tensor.group = group;
  tensor.factored = factored;
  tensor.transposed = factored && contiguous && !flat && has_transposed_matrices(*operands.in[4]);
  const bool strided = !flat && !tensor.transposed;
  operands.key.vector_width = strided ? 1 : operands.all_are_halves() ? 8 : 4;
  set_shape(tensor, *arrays[0], operands.key.vector_width);
  for (int k = 0; k < 5; ++k) {
    tensor.in[k] = address<void>(*operands.in[k]);
  }
  AdafactorShare& share = share_of(operands.key);
  share.tensors.push_back(tensor);
  share.positions.push_back(position);
  if (strided) {
    share.layouts.push_back(layouts_of(operands, factored));
  }
}

AdafactorShare& AdafactorShares::share_of(const AdafactorKey& key) {
  const auto share = std::find_if(
      shares_.begin(), shares_.end(), [&](const AdafactorShare& s) { return s.key == key; });
  return share != shares_.end()
             ? *share
             : shares_.emplace_back(AdafactorShare{key, kernels_of(key, first_moment_, clips_)});
}

int64_t AdafactorShares::scratch_bytes() const {
  Allotment allotment(nullptr);
  for (const AdafactorShare& share : shares_) {
    for (const AdafactorTensor& tensor : share.tensors) {
      scratch_of(tensor, share.key.vector_width, allotment);
    }
  }
  return allotment.bytes();
}

void AdafactorShares::place(char* scratch, const Buffers& outputs) {
  Allotment allotment(scratch);
  for (AdafactorShare& share : shares_) {
    for (size_t i = 0; i < share.tensors.size(); ++i) {
      AdafactorTensor& tensor = share.tensors[i];
      tensor.scratch = scratch_of(tensor, share.key.vector_width, allotment);
      // AdafactorTensor has a place for means of columns, which not every tensor has.
      size_t position = share.positions[i];
      for (int k = 0; k < 4; ++k) {
        if ((k == 2 && !tensor.factored) || (k == 3 && !first_moment_)) {
          continue;
        }
        tensor.out[k] = address(outputs[position++]);
      }
    }
  }
}

} // namespace mlx_opt::cuda
