#include "mlx_opt/backend/metal/adafactor_tensor.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "mlx_opt/types/layout.h"

namespace mlx_opt::metal {
namespace {

uint64_t divided_up(uint64_t x, uint64_t unit) {
  return (x + unit - 1) / unit;
}

// How many threads add up `parts` partial sums, so that each has few.
unsigned split_of(uint64_t parts) {
  unsigned split = 1;
  while (split < 32 && parts > 8 * split) {
    split *= 2;
  }
  return split;
}

// The division of a tensor into tiles, in the orientation of its gradient in memory.
struct Tiling {
  uint64_t lines, columns, down, across;

  explicit Tiling(const AdafactorTensor& t)
      : lines(t.transposed ? t.columns : t.rows),
        columns(t.transposed ? t.rows : t.columns),
        down(divided_up(lines, adafactor_lines)),
        across(divided_up(columns, adafactor_columns)) {}
};

uint64_t row_groups(const AdafactorTensor& t) {
  return divided_up(t.rows, threads / t.row_split);
}

uint64_t column_groups(const AdafactorTensor& t) {
  return divided_up(t.columns, threads / t.column_split);
}

} // namespace

int AdafactorFields::place_of(AdafactorOperand operand) const {
  const int places[] = {0, 1, 2, 2 + factored, 2 + factored + has_moment};
  return places[operand];
}

AdafactorPlan::AdafactorPlan(
    AdafactorFields own_fields,
    const mx::array* const* arrays,
    const mx::Dtype* dtypes,
    size_t position,
    bool skip_nonfinite,
    unsigned group)
    : fields(own_fields), first_output(position) {
  arguments.tensor.group = group;
  arguments.tensor.skip_nonfinite = skip_nonfinite;
  const int g = fields.place_of(gradient);
  in.reserve(g + 1);
  std::for_each(arrays, arrays + g + 1, [&](auto* x) { in.emplace_back(*x); });
  const bool contiguous = all_contiguous(arrays, g);
  const bool flat = contiguous && is_contiguous(*arrays[g]);
  const bool transposed =
      fields.factored && contiguous && !flat && has_transposed_matrices(*arrays[g]);
  strided = !flat && !transposed;
  set_shape(arrays, transposed);
  if (strided) {
    set_layouts(arrays);
  }
  set_scratch();
  set_passes(arrays, dtypes);
}

void AdafactorPlan::set_shape(const mx::array* const* arrays, bool transposed) {
  AdafactorTensor& t = arguments.tensor;
  const mx::array& w = *arrays[0];
  t.size = w.size();
  t.transposed = transposed;
  if (fields.factored) {
    t.rows = w.shape(-2);
    t.columns = w.shape(-1);
    t.matrices =
        std::accumulate(w.shape().begin(), w.shape().end() - 2, 1u, std::multiplies<unsigned>());
  }
  const Tiling tiling(t);
  const uint64_t tiles = t.matrices * tiling.down * tiling.across;
  t.parts = static_cast<unsigned>(fields.factored ? tiles : divided_up(t.size, chunk));
  t.row_split = split_of(transposed ? tiling.down : tiling.across);
  t.column_split = split_of(transposed ? tiling.across : tiling.down);
  const bool fit = !strided && vectors_fit(arrays, fields.place_of(gradient) + 1);
  t.vectors = fit && tiling.columns % vector_width == 0;
  t.row_vectors = fit && t.columns % vector_width == 0;
}

void AdafactorPlan::set_layouts(const mx::array* const* arrays) {
  const auto array = [&](AdafactorOperand operand) { return arrays[fields.place_of(operand)]; };
  ArrayRefs elements{array(gradient), array(parameter)};
  if (fields.factored) {
    arguments.row_means = layout_of<Layout<1>>(*array(means));
    arguments.column_means = layout_of<Layout<1>>(*array(column_means));
  } else {
    elements.push_back(array(means));
  }
  if (fields.has_moment) {
    elements.push_back(array(first_moment));
  }
  arguments.elements = common_layout<Layout<4>>(elements.data(), static_cast<int>(elements.size()));
}

void AdafactorPlan::set_scratch() {
  const AdafactorTensor& t = arguments.tensor;
  const Tiling tiling(t);
  const auto take = [&](uint64_t count) {
    const uint64_t place = scratch_floats;
    scratch_floats += count;
    return place;
  };
  AdafactorScratch& scratch = arguments.tensor.scratch;
  scratch.parameter_squares = take(t.parts);
  scratch.update_squares = take(t.parts);
  scratch.rates = take(2);
  scratch.means = take(t.matrices);
  scratch.totals = take(t.matrices * row_groups(t));
  scratch.line_sums = take(tiling.across * t.matrices * tiling.lines);
  scratch.column_sums = take(t.matrices * tiling.down * tiling.columns);
  scratch.row_means = take(static_cast<uint64_t>(t.matrices) * t.rows);
  scratch.column_factors = take(static_cast<uint64_t>(t.matrices) * t.columns);
}

void AdafactorPlan::set_passes(const mx::array* const* arrays, const mx::Dtype* dtypes) {
  using Operands = std::vector<AdafactorOperand>;
  const AdafactorTensor& t = arguments.tensor;
  const auto pass = [&](AdafactorKind kind, Operands from, Operands to, uint64_t groups) {
    AdafactorKernel kernel{kind, {}, {}, strided && kind != AdafactorKind::rates};
    for (AdafactorOperand operand : from) {
      kernel.in.push_back(storage_of(arrays[fields.place_of(operand)]->dtype()));
    }
    for (AdafactorOperand operand : to) {
      kernel.out.push_back(storage_of(dtypes[fields.place_of(operand)]));
    }
    return AdafactorPass{std::move(kernel), std::move(from), std::move(to), groups};
  };
  const auto with_moment = [&](Operands operands) {
    if (fields.has_moment) {
      operands.push_back(first_moment);
    }
    return operands;
  };
  const Operands squared = {gradient, parameter, means};
  const Operands read = with_moment(squared);
  const Operands written = with_moment({parameter, means});
  if (!fields.factored && t.parts == 1) {
    passes[0] = pass(AdafactorKind::element_step, read, written, 1);
    return;
  }
  passes[3] = pass(AdafactorKind::rates, {}, {}, t.size ? 1 : 0);
  if (!fields.factored) {
    passes[0] = pass(AdafactorKind::element_squares, squared, {}, t.parts);
    passes[4] = pass(AdafactorKind::element_update, read, written, t.parts);
    return;
  }
  const Operands both = {means, column_means};
  const uint64_t tiles = divided_up(t.rows, tile) * divided_up(t.columns, tile);
  passes[0] = pass(AdafactorKind::squares, {gradient, parameter}, {}, t.parts);
  passes[1] =
      pass(AdafactorKind::means, both, both, t.matrices * (row_groups(t) + column_groups(t)));
  passes[2] = pass(AdafactorKind::update_squares, {gradient}, {}, t.parts);
  passes[4] = pass(
      t.transposed ? AdafactorKind::transposed_update : AdafactorKind::update,
      with_moment({gradient, parameter}),
      with_moment({parameter}),
      t.transposed ? t.matrices * tiles : t.parts);
}

} // namespace mlx_opt::metal
