#include "mlx_opt/step/program.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <stdexcept>

#include "mlx/ops.h"
#include "mlx_opt/types/layout.h"

namespace mlx_opt {
namespace {

bool owns(Owner owner, bool is_matrix) {
  return owner == Owner::all || (owner == Owner::matrices) == is_matrix;
}

using SharedSlots = std::shared_ptr<const std::vector<SlotInfo>>;

// The rule's slots with other formats; null if there are none.
SharedSlots with_formats(Rule rule, const std::optional<Formats>& formats) {
  if (!formats) {
    return nullptr;
  }
  const auto described = slots_of(rule);
  std::vector<SlotInfo> slots(described.begin(), described.end());
  for (SlotInfo& slot : slots) {
    if (const auto format = formats->find(slot.name); format != formats->end()) {
      slot.format = format->second;
    }
  }
  return std::make_shared<const std::vector<SlotInfo>>(std::move(slots));
}

Slots slots_for(
    Rule rule, const SharedSlots& own, bool with_options, bool is_matrix, bool with_idle) {
  Slots slots;
  for (const SlotInfo& slot : own ? std::span<const SlotInfo>(*own) : slots_of(rule)) {
    const bool there = (with_options || !slot.option) && (with_idle || !slot.idle);
    if (there && owns(slot.owner, is_matrix)) {
      slots.push_back(&slot);
    }
  }
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
      keeps_parameter_(formats.has_value()),
      own_slots_(with_formats(rule, formats)),
      state_slots_{
          slots_for(rule, own_slots_, with_options, false, true),
          slots_for(rule, own_slots_, with_options, true, true)} {
  slots_.push_back(slots_for(rule, own_slots_, with_options, false, false));
  if (tells_matrices_apart(rule)) {
    slots_.push_back(slots_for(rule, own_slots_, with_options, true, false));
  }
  kinds_of_rule_ = slots_.size();
}

// Called for programs without an average, which comes behind the master weights.
Program Program::without_masters() const {
  Program program = *this;
  program.masters_ = MasterWeights::none;
  program.slots_.resize(kinds_of_rule_);
  return program;
}

Program Program::with(MasterWeights masters) const {
  Program program = without_masters();
  program.masters_ = masters;
  if (masters != MasterWeights::none) {
    for (size_t kind = 0; kind < kinds_of_rule_; ++kind) {
      program.slots_.push_back(slots_[kind]);
      program.slots_.back().push_back(&master_slot(masters));
    }
  }
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
uint32_t rounding_key(uint64_t seed, std::string_view path) {
  uint64_t hash = 0xcbf29ce484222325;
  const auto add = [&](unsigned char byte) { hash = (hash ^ byte) * 0x100000001b3; };
  for (int shift = 0; shift < 64; shift += 8) {
    add(static_cast<unsigned char>(seed >> shift));
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
  Program program = *this;
  if (!has_ema_) {
    program.has_ema_ = true;
    for (Slots& slots : program.slots_) {
      slots.push_back(&ema_slot());
    }
  }
  return program;
}

Program Program::without_ema() const {
  Program program = *this;
  if (has_ema_) {
    program.has_ema_ = false;
    for (Slots& slots : program.slots_) {
      slots.pop_back();
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

bool Program::stores_like(const Program& other) const {
  const auto alike = [](const SlotInfo* a, const SlotInfo* b) { return a->format == b->format; };
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
  // Only formulas take float64 and complex numbers, whose slots need more than float32.
  const mx::Dtype stored = dtype_of(slot.format);
  return is_storage(parameter) ? stored : mx::promote_types(stored, parameter);
}

std::vector<mx::array> initial_state(const Program& program, const mx::array& parameter) {
  std::vector<mx::array> state;
  for (const SlotInfo* slot : program.state_slots(parameter.ndim())) {
    const float value = slot->begin == Begin::unset ? std::numeric_limits<float>::quiet_NaN() : 0;
    state.push_back(mx::full(
        slot_shape(*slot, parameter.shape()), value, slot_dtype(*slot, parameter.dtype())));
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
