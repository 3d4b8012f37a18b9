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

/// The type of a rule with the stage for master weights around it; see rules/master.h.
inline std::string rule_of(std::string_view rule, MasterWeights masters, Storage parameter) {
  const std::string name(rule);
  switch (masters) {
    case MasterWeights::none:
      return name;
    case MasterWeights::float32:
      return "WithMaster<" + name + ", " + format_of(parameter) + ">";
    case MasterWeights::remainder:
      return "WithRemainder<" + name + ">";
  }
  return "";
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

/// The files that kernels need for master weights. `bits16`: that of the format of remainders.
inline std::string files_of(const Texts& texts, MasterWeights masters, const char* bits16) {
  return (masters == MasterWeights::none ? "" : joined(texts, {"master.h"})) +
         (masters == MasterWeights::remainder ? joined(texts, {bits16}) : "");
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
