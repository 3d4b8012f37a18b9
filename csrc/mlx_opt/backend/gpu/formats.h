// The names of storages and scalings in the source of a GPU's kernels.
#pragma once

#include <string>
#include <string_view>

#include "mlx_opt/backend/gpu/texts.h"
#include "mlx_opt/step/scaling.h"
#include "mlx_opt/types/master_weights.h"
#include "mlx_opt/types/storage.h"

namespace mlx_opt::gpu {

inline const char* format_of(Storage storage) {
  switch (storage) {
    case Storage::float32:
      return "Float32";
    case Storage::float16:
      return "Float16";
    case Storage::bfloat16:
      return "BFloat16";
    case Storage::bits16:
      return "Bits16";
    case Storage::int8:
      return "Int8";
    case Storage::uint8:
      return "UInt8";
  }
  return "";
}

inline const char* name_of(Scaling scaling) {
  switch (scaling) {
    case Scaling::none:
      return "none";
    case Scaling::always:
      return "always";
    case Scaling::if_finite:
      return "if_finite";
  }
  return "";
}

/// The type of a rule with the stages around it; see rules/master.h and rules/ema.h.
inline std::string rule_of(
    std::string_view rule, MasterWeights masters, bool has_ema, Storage parameter) {
  std::string name(rule);
  const std::string format = format_of(parameter);
  if (masters == MasterWeights::float32) {
    name = "WithMaster<" + name + ", " + format + ">";
  } else if (masters == MasterWeights::remainder) {
    name = "WithRemainder<" + name + ">";
  } else if (has_ema) {
    name = "AsStored<" + name + ", " + format + ">";
  }
  return has_ema ? "WithEma<" + name + ">" : name;
}

/// The type that prepares a rule's scalars.
inline std::string preparing_rule_of(std::string_view rule, bool has_ema) {
  return has_ema ? "WithEma<" + std::string(rule) + ">" : std::string(rule);
}

/// The name of master weights; empty if there are none.
inline const char* name_of(MasterWeights masters) {
  switch (masters) {
    case MasterWeights::none:
      return "";
    case MasterWeights::float32:
      return "masters";
    case MasterWeights::remainder:
      return "remainders";
  }
  return "";
}

/// The files that kernels need for the stages around a rule. `bits16`: that of the format of
/// remainders.
inline std::string files_of(
    const Texts& texts, MasterWeights masters, bool has_ema, const char* bits16) {
  return (masters == MasterWeights::none ? "" : joined(texts, {"master.h"})) +
         (masters == MasterWeights::remainder ? joined(texts, {bits16}) : "") +
         (has_ema ? joined(texts, {"ema.h"}) : "");
}

/// The files that kernels need for stochastic rounding. `of_device`: the device's own.
inline std::string rounding_files_of(const Texts& texts, bool rounds, const char* of_device) {
  return rounds ? joined(texts, {"rounding.h", of_device}) : "";
}

/// The type of a list of formats.
inline std::string list_of(const Storage* storages, int count) {
  std::string text = "List<";
  for (int k = 0; k < count; ++k) {
    text += std::string(k ? ", " : "") + format_of(storages[k]);
  }
  return text + ">";
}

} // namespace mlx_opt::gpu
