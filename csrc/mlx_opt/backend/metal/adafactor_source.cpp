#include "mlx_opt/backend/metal/adafactor_source.h"

#include "mlx_opt/backend/metal/adafactor_tables.h"
#include "mlx_opt/backend/metal/kernel_program.h"

namespace mlx_opt::metal {
namespace {

const char* name_of(AdafactorKind kind) {
  switch (kind) {
    case AdafactorKind::squares:
      return "squares";
    case AdafactorKind::means:
      return "means";
    case AdafactorKind::update_squares:
      return "update_squares";
    case AdafactorKind::rates:
      return "rates";
    case AdafactorKind::update:
      return "update";
    case AdafactorKind::transposed_update:
      return "transposed_update";
    case AdafactorKind::element_squares:
      return "element_squares";
    case AdafactorKind::element_update:
      return "element_update";
    case AdafactorKind::element_step:
      return "element_step";
  }
  return "";
}

// The formats, one after another.
std::string formats_of(const std::vector<Storage>& storages) {
  std::string text;
  for (Storage storage : storages) {
    text += (text.empty() ? "" : ", ") + std::string(format_of(storage));
  }
  return text;
}

// The gradient's format, then lists of the formats of the other operands and the results.
std::string update_of(const AdafactorKernel& kernel) {
  return std::string("<") + format_of(kernel.in[0]) + ", " +
         list_of(&kernel.in[1], static_cast<int>(kernel.in.size()) - 1) + ", " +
         list_of(kernel.out.data(), static_cast<int>(kernel.out.size())) + ">";
}

std::string pass_of(const AdafactorKernel& kernel) {
  const std::string in = "<" + formats_of(kernel.in);
  switch (kernel.kind) {
    case AdafactorKind::squares:
      return "AdafactorSquares" + in + ">::run";
    case AdafactorKind::means:
      return "AdafactorMeans" + in + ", " + formats_of(kernel.out) + ">::run";
    case AdafactorKind::update_squares:
      return "AdafactorUpdateSquares" + in + ">::run";
    case AdafactorKind::rates:
      return "AdafactorRates::run";
    case AdafactorKind::update:
      return "AdafactorUpdate" + update_of(kernel) + "::run";
    case AdafactorKind::transposed_update:
      return "AdafactorUpdate" + update_of(kernel) + "::transposed";
    case AdafactorKind::element_squares:
      return "ElementSquares" + in + ">::run";
    case AdafactorKind::element_update:
      return "ElementUpdate" + update_of(kernel) + "::run";
    case AdafactorKind::element_step:
      return "ElementUpdate" + update_of(kernel) + "::alone<ElementSquares<" +
             formats_of({kernel.in.begin(), kernel.in.begin() + 3}) + ">>";
  }
  return "";
}

// Number of floats that the threads of a group share.
unsigned staged_by(AdafactorKind kind) {
  switch (kind) {
    case AdafactorKind::update:
    case AdafactorKind::element_update:
      return 0;
    case AdafactorKind::squares:
      return adafactor_staged;
    case AdafactorKind::transposed_update:
      return tile * (tile + 1);
    default:
      return threads;
  }
}

// The parameters of operands, and the initialisers of the struct that holds them.
struct Parameters {
  std::string text;
  std::string names;
};

Parameters parameters_of(const char* type, const char* kind, size_t count, int first_slot) {
  Parameters operands;
  for (size_t k = 0; k < count; ++k) {
    const std::string one = kind + std::to_string(k);
    operands.text +=
        std::string("    ") + type + " " + one + slot(first_slot + static_cast<int>(k));
    operands.names += (k ? ", " : "") + one;
  }
  operands.names = "{" + operands.names + "}";
  return operands;
}

std::string kernel_of(const AdafactorKernel& kernel) {
  const int first = scratch_slot + 1;
  const auto in = parameters_of("device const uchar*", "in", kernel.in.size(), first);
  const int second = first + static_cast<int>(kernel.in.size());
  const auto out = parameters_of("device uchar*", "out", kernel.out.size(), second);
  const unsigned staged = staged_by(kernel.kind);
  return beginning_of(
             name(kernel),
             "constant",
             kernel.strided ? "AdafactorStrided&" : "AdafactorArguments&",
             threads) +
         "    device float* scratch" + slot(scratch_slot) + in.text + out.text +
         "    uint group [[threadgroup_position_in_grid]],\n"
         "    uint index [[thread_index_in_threadgroup]]) {\n"
         "  using namespace mlx_opt::MLX_OPT_LEVEL;\n" +
         (staged ? "  threadgroup float staged[" + std::to_string(staged) + "];\n" : "") +
         "  const AdafactorOperands at = {" + in.names + ", " + out.names + "};\n  " +
         pass_of(kernel) + "(arguments, group_uniforms, scratch, at, group, index" +
         (staged ? ", staged" : "") + ");\n}\n";
}

} // namespace

std::string name(const AdafactorKernel& kernel) {
  std::string text = versioned(std::string("Adafactor_") + name_of(kernel.kind));
  text += kernel.strided ? "_strided" : "";
  for (Storage storage : kernel.in) {
    text += std::string("_") + short_name_of(storage);
  }
  text += kernel.out.empty() ? "" : "_to";
  for (Storage storage : kernel.out) {
    text += std::string("_") + short_name_of(storage);
  }
  return text;
}

std::string source(const AdafactorKernel& kernel) {
  return program_of(
      files_of(texts().at("adafactor.h")) + gpu::joined(
                                                texts(),
                                                {"adafactor_tables.h",
                                                 "sums.metal.h",
                                                 "adafactor.metal.h",
                                                 "adafactor_squares.metal.h",
                                                 "adafactor_means.metal.h",
                                                 "adafactor_update.metal.h"}),
      kernel_of(kernel));
}

} // namespace mlx_opt::metal
