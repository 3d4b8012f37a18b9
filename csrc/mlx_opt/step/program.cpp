#include "mlx_opt/step/program.h"

#include <algorithm>
#include <cstdio>
#include <deque>
#include <limits>
#include <stdexcept>

#include "mlx/ops.h"

namespace mlx_opt {

// A slot of each list for every slot of the rule.
struct OwnSlots {
  std::vector<SlotInfo> wide, coded;
  std::vector<SlotInfo> scales; // without a name for slots that have none
  std::deque<std::string> names = {};
};

namespace {

// Throws std::invalid_argument if codes cannot hold the slot.
void refuse_codes(Rule rule, const SlotInfo& slot) {
  if (!is_elementwise(rule) || rule == Rule::Muon) {
    refuse(rule, "a state in int8 is for rules that update each element by itself");
  }
  if (slot.codes == Codes::none || slot.format == Format::float32) {
    refuse(rule, std::string("the state \"") + slot.name + "\" needs more than the 8 bits of int8");
  }
}

bool owns(Owner owner, bool is_matrix) {
  return owner == Owner::all || (owner == Owner::matrices) == is_matrix;
}

// The rule's slots with other formats; null if there are none.
std::shared_ptr<const OwnSlots> with_formats(Rule rule, const std::optional<Formats>& formats) {
  if (!formats) {
    return nullptr;
  }
  auto own = std::make_shared<OwnSlots>();
  for (const SlotInfo& described : slots_of(rule)) {
    const auto found = formats->find(described.name);
    SlotInfo coded = described, wide = described, scale;
    if (found != formats->end()) {
      coded.format = wide.format = found->second;
    }
    if (coded.format == Format::int8) {
      refuse_codes(rule, described);
      wide.format = Format::float32;
      scale = described;
      scale.name = own->names.emplace_back(std::string(described.name) + "_scale").c_str();
      scale.extent = Extent::blocks;
      scale.format = Format::float32;
    }
    own->wide.push_back(wide);
    own->coded.push_back(coded);
    own->scales.push_back(scale);
  }
  return own;
}

struct Selection {
  bool coded, with_options, is_matrix, with_idle;
};

// The chosen slots, without a master weight; of codes the scales are last.
Slots slots_for(Rule rule, const OwnSlots* own, Selection chosen) {
  const auto described = slots_of(rule);
  Slots slots, scales;
  for (size_t i = 0; i < described.size(); ++i) {
    const SlotInfo& slot = !own ? described[i] : chosen.coded ? own->coded[i] : own->wide[i];
    const bool there = (chosen.with_options || !slot.option) && (chosen.with_idle || !slot.idle);
    if (there && owns(slot.owner, chosen.is_matrix)) {
      slots.push_back(&slot);
      if (slot.format == Format::int8) {
        scales.push_back(&own->scales[i]);
      }
    }
  }
  slots.insert(slots.end(), scales.begin(), scales.end());
  return slots;
}

bool tells_matrices_apart(Rule rule) {
  const auto slots = slots_of(rule);
  return std::any_of(
      slots.begin(), slots.end(), [](const SlotInfo& slot) { return slot.owner != Owner::all; });
}

struct Requirement {
  bool (*holds)(double);
  const char* text;
};

Requirement requirement(Range range) {
  switch (range) {
    case Range::any:
      return {[](double) { return true; }, ""};
    case Range::not_negative:
      return {[](double x) { return x >= 0.0; }, "0 or more"};
    case Range::positive:
      return {[](double x) { return x > 0.0; }, "more than 0"};
    case Range::not_positive:
      return {[](double x) { return x <= 0.0; }, "0 or less"};
    case Range::below_one:
      return {[](double x) { return 0.0 <= x && x < 1.0; }, "a number in [0, 1)"};
    case Range::fraction:
      return {[](double x) { return 0.0 < x && x < 1.0; }, "a number in (0, 1)"};
    case Range::flag:
      return {[](double x) { return x == 0.0 || x == 1.0; }, "true or false"};
    case Range::decay_kind:
      return {
          [](double x) { return x == 0.0 || x == 1.0 || x == 2.0 || x == 3.0; },
          "coupled, decoupled, independent or corrected, or its number from 0"};
  }
  return {};
}

mx::Dtype dtype_of(Format format) {
  switch (format) {
    case Format::float16:
      return mx::float16;
    case Format::bfloat16:
      return mx::bfloat16;
    default:
      return mx::float32;
  }
}

} // namespace

Program::Program(
    Rule rule,
    bool with_options,
    std::shared_ptr<const Composition> composition,
    const std::optional<Formats>& formats)
    : rule_(rule),
      composition_(std::move(composition)),
      with_options_(with_options),
      keeps_parameter_(formats.has_value()),
      own_slots_(with_formats(rule, formats)),
      kinds_of_rule_(tells_matrices_apart(rule) ? 2 : 1) {
  const auto count = [&](bool coded) {
    return slots_for(rule, own_slots_.get(), {coded, with_options, false, true}).size();
  };
  scales_ = static_cast<int>(count(true) - count(false));
  set_kinds();
}

void Program::set_kinds() {
  slots_.clear();
  state_slots_.clear();
  scales_of_kinds_.clear();
  for (bool coded : {false, true}) {
    for (bool has_master : {false, true}) {
      for (size_t kind = 0; kind < kinds_of_rule_; ++kind) {
        if ((coded && scales_ == 0) || (has_master && masters_ == MasterWeights::none)) {
          continue;
        }
        for (bool with_idle : {false, true}) {
          Slots& slots =
              (with_idle ? state_slots_ : slots_)
                  .emplace_back(slots_for(
                      rule_, own_slots_.get(), {coded, with_options_, kind == 1, with_idle}));
          const auto scales = std::find_if(slots.begin(), slots.end(), [](const SlotInfo* slot) {
            return slot->extent == Extent::blocks;
          });
          if (!with_idle) {
            scales_of_kinds_.push_back(static_cast<int>(slots.end() - scales));
          }
          if (has_master) {
            slots.insert(scales, &master_slot(masters_));
          }
        }
      }
    }
  }
}

// Called for programs without an average, which comes behind the master weights.
Program Program::without_masters() const {
  return with(MasterWeights::none);
}

Program Program::with(MasterWeights masters) const {
  Program program = *this;
  program.masters_ = masters;
  program.set_kinds();
  return program;
}

Program Program::with_rounding(uint64_t seed) const {
  if (masters_ != MasterWeights::none) {
    refuse(rule_, "stochastic rounding does not go with master weights, which lose nothing");
  }
  Program program = *this;
  program.rounding_seed_ = seed;
  program.keeps_parameter_ = true;
  return program;
}

Program Program::without_rounding() const {
  Program program = *this;
  program.rounding_seed_.reset();
  return program;
}

// The 64-bit hash FNV-1a of the seed's bytes and the path's, with both halves combined.
uint32_t Program::rounding_key(std::string_view path) const {
  if (!rounding_seed_) {
    return 0;
  }
  uint64_t hash = 0xcbf29ce484222325;
  const auto add = [&](unsigned char byte) { hash = (hash ^ byte) * 0x100000001b3; };
  for (int shift = 0; shift < 64; shift += 8) {
    add(static_cast<unsigned char>(*rounding_seed_ >> shift));
  }
  std::for_each(path.begin(), path.end(), add);
  return static_cast<uint32_t>(hash ^ hash >> 32);
}

const SlotInfo& master_slot(MasterWeights masters) {
  static const SlotInfo master{.name = "master", .format = Format::float32, .begin = Begin::unset};
  static const SlotInfo remainder{.name = "remainder", .format = Format::bits16};
  return masters == MasterWeights::float32 ? master : remainder;
}

Program Program::with_ema() const {
  if (scales_ > 0) {
    refuse(rule_, "an average of the weights does not go with a state in int8");
  }
  Program program = *this;
  if (!has_ema_) {
    program.has_ema_ = true;
    for (auto* of_kinds : {&program.slots_, &program.state_slots_}) {
      for (Slots& slots : *of_kinds) {
        slots.push_back(&ema_slot());
      }
    }
  }
  return program;
}

Program Program::without_ema() const {
  Program program = *this;
  if (has_ema_) {
    program.has_ema_ = false;
    for (auto* of_kinds : {&program.slots_, &program.state_slots_}) {
      for (Slots& slots : *of_kinds) {
        slots.pop_back();
      }
    }
  }
  return program;
}

const SlotInfo& ema_slot() {
  static const SlotInfo ema{.name = "ema", .format = Format::float32, .begin = Begin::unset};
  return ema;
}

bool has_master(const Slots& slots) {
  return std::any_of(slots.begin(), slots.end(), [](const SlotInfo* slot) {
    return slot == &master_slot(MasterWeights::float32) ||
           slot == &master_slot(MasterWeights::remainder);
  });
}

bool Program::is_like(const Program& other) const {
  const auto alike = [](const SlotInfo* a, const SlotInfo* b) { return a->format == b->format; };
  if (rule_ != other.rule_ || masters_ != other.masters_ || has_ema_ != other.has_ema_ ||
      rounding_seed_ != other.rounding_seed_ || kinds() != other.kinds()) {
    return false;
  }
  for (size_t kind = 0; kind < slots_.size(); ++kind) {
    const Slots& theirs = other.slots_[kind];
    if (!std::equal(
            slots_[kind].begin(), slots_[kind].end(), theirs.begin(), theirs.end(), alike)) {
      return false;
    }
  }
  return keeps_parameter_ == other.keeps_parameter_;
}

void refuse(Rule rule, const std::string& what) {
  throw std::invalid_argument("mlx_opt " + std::string(name_of(rule)) + ": " + what);
}

mx::Shape slot_shape(const SlotInfo& slot, const mx::Shape& parameter) {
  mx::Shape shape = parameter;
  if (slot.extent == Extent::blocks) {
    int64_t size = 1;
    for (auto dimension : parameter) {
      size *= dimension;
    }
    return {static_cast<mx::ShapeElem>((size + coded_block - 1) / coded_block)};
  }
  if (slot.extent != Extent::elements) {
    shape.erase(shape.end() - (slot.extent == Extent::rows ? 1 : 2));
  }
  return shape;
}

mx::Dtype slot_dtype(const SlotInfo& slot, mx::Dtype parameter) {
  if (slot.format == Format::promoted) {
    return parameter;
  }
  if (slot.format == Format::bits16) {
    return mx::uint16;
  }
  if (slot.format == Format::int8) {
    return slot.codes == Codes::not_negative ? mx::uint8 : mx::int8;
  }
  // Only formulas take float64 and complex numbers, whose slots need more than float32.
  const mx::Dtype stored = dtype_of(slot.format);
  return is_storage(parameter) ? stored : mx::promote_types(stored, parameter);
}

std::vector<mx::array> initial_state(const Program& program, const mx::array& parameter) {
  std::vector<mx::array> state;
  // The rule updates a master weight, which is float32.
  const bool has_master = program.has_master(program.kind_of(parameter));
  const mx::Dtype dtype = has_master ? mx::float32 : parameter.dtype();
  for (const SlotInfo* slot : program.state_slots(parameter)) {
    // Of unset codes the scales are NaN.
    const bool is_nan = slot->begin == Begin::unset && slot->format != Format::int8;
    const float value = is_nan ? std::numeric_limits<float>::quiet_NaN() : 0;
    state.push_back(
        mx::full(slot_shape(*slot, parameter.shape()), value, slot_dtype(*slot, dtype)));
  }
  return state;
}

std::string range_problem(const HyperInfo& hyper, double value) {
  const auto [holds, expected] = requirement(hyper.range);
  if (holds(value)) {
    return "";
  }
  // snprintf, because C++ streams crash in MLX's CUDA build when they are used from here.
  char given[32];
  std::snprintf(given, sizeof given, "%g", value);
  return std::string("expected ") + expected + ", got " + given;
}

} // namespace mlx_opt
