// Writes the rules' descriptions as a Python module: write_rules FILE.
// python/mlx_opt/descriptions.py reads it. Includes no MLX and is built for the build machine, so
// that a cross build can run it.
#include <charconv>
#include <cstdio>
#include <string>

#include "mlx_opt/rules/registry.h"
#include "mlx_opt/step/descriptions.h"
#include "mlx_opt/types/coefficients.h"

namespace mlx_opt {
namespace {

std::string text(std::string_view x) {
  return "\"" + std::string(x) + "\"";
}

std::string text_or_none(const char* x) {
  return x ? text(x) : "None";
}

std::string flag(bool x) {
  return x ? "True" : "False";
}

// The shortest digits that give the same number, as a float in Python.
std::string number(double x) {
  if (x == unlimited) {
    return "float(\"inf\")";
  }
  char digits[32];
  std::string shortest(digits, std::to_chars(digits, digits + sizeof digits, x).ptr);
  return shortest.find_first_of(".e") == std::string::npos ? shortest + ".0" : shortest;
}

std::string tuple(std::initializer_list<std::string> items) {
  std::string joined;
  for (const std::string& item : items) {
    joined += (joined.empty() ? "" : ", ") + item;
  }
  return "(" + joined + ")";
}

template <typename Enum, size_t count>
std::string name_of(Enum value, const char* const (&names)[count]) {
  return text(names[static_cast<size_t>(value)]);
}

std::string hyper(const HyperInfo& hyper) {
  constexpr const char* ranges[] = {
      "any",
      "not_negative",
      "positive",
      "not_positive",
      "below_one",
      "fraction",
      "flag",
      "decay_kind"};
  const std::string standard = hyper.range == Range::decay_kind
                                   ? text(decay_kinds[static_cast<int>(hyper.standard)])
                                   : number(hyper.standard);
  return tuple({text(hyper.name), standard, name_of(hyper.range, ranges), flag(hyper.kept)});
}

std::string slot(const SlotInfo& slot) {
  constexpr const char* extents[] = {"elements", "rows", "columns", "blocks"};
  constexpr const char* owners[] = {"all", "matrices", "vectors"};
  constexpr const char* begins[] = {"zeros", "unset"};
  constexpr const char* codes[] = {"of_any_sign", "not_negative", "none"};
  return tuple(
      {text(slot.name),
       name_of(slot.extent, extents),
       name_of(slot.owner, owners),
       text_or_none(slot.option),
       flag(slot.follows),
       flag(slot.idle),
       name_of(slot.format, format_names),
       name_of(slot.begin, begins),
       name_of(slot.codes, codes)});
}

std::string condition(const Condition& condition) {
  constexpr const char* settings[] = {"positive", "off", "on", "decoupled"};
  return tuple({text(condition.option), name_of(condition.setting, settings)});
}

std::string coupling(const Coupling& coupling) {
  constexpr const char* whens[] = {"never", "always", "unless_zero"};
  return tuple(
      {name_of(coupling.when, whens), text_or_none(coupling.decay), text_or_none(coupling.kind)});
}

std::string average(const Average& average) {
  return average.base ? tuple({text(average.base), text(average.part)}) : "None";
}

template <typename Items, typename Write>
void print_list(std::FILE* file, const char* key, const Items& items, Write write) {
  std::fprintf(file, "        \"%s\": [\n", key);
  for (const auto& item : items) {
    std::fprintf(file, "            %s,\n", write(item).c_str());
  }
  std::fprintf(file, "        ],\n");
}

void print(std::FILE* file, Rule rule) {
  const Description& description = description_of(rule);
  std::fprintf(file, "    {\n        \"rule\": %s,\n", text(name_of(rule)).c_str());
  std::fprintf(file, "        \"optimizer\": %s,\n", text(description.optimizer).c_str());
  print_list(file, "hypers", hypers_of(rule), hyper);
  print_list(file, "slots", slots_of(rule), slot);
  print_list(file, "conditions", conditions_of(rule), condition);
  std::fprintf(file, "        \"coupling\": %s,\n", coupling(description.coupling).c_str());
  std::fprintf(file, "        \"average\": %s,\n", average(description.average).c_str());
  std::fprintf(file, "        \"elementwise\": %s,\n", flag(is_elementwise(rule)).c_str());
  const int sums = sums_over_all(rule) ? sum_info(rule).sums : 0;
  std::fprintf(file, "        \"sums\": %d,\n    },\n", sums);
}

void print(std::FILE* file, const char* name, const Coefficients& coefficients) {
  std::fprintf(file, "    \"%s\": [\n", name);
  for (const auto& [a, b, c] : coefficients) {
    std::fprintf(
        file, "        [%s, %s, %s],\n", number(a).c_str(), number(b).c_str(), number(c).c_str());
  }
  std::fprintf(file, "    ],\n");
}

} // namespace
} // namespace mlx_opt

int main(int count, char** arguments) {
  using namespace mlx_opt;
  std::FILE* file = count == 2 ? std::fopen(arguments[1], "w") : nullptr;
  if (!file) {
    std::perror("write_rules FILE");
    return 1;
  }
  std::fprintf(
      file, "\"\"\"The rules' descriptions; csrc/tools/write_rules.cpp wrote this.\"\"\"\n");
  std::fprintf(file, "\nRULES = [\n");
  for (std::string_view optimizer : all_optimizers()) {
    for (Rule rule : rules_of(optimizer)) {
      print(file, rule);
    }
  }
  std::fprintf(file, "]\n\nDECAY_KINDS = [\n");
  for (const char* kind : decay_kinds) {
    std::fprintf(file, "    %s,\n", text(kind).c_str());
  }
  std::fprintf(file, "]\n\nCOEFFICIENTS = {\n");
  print(file, "quintic", quintic());
  print(file, "polar_express", polar_express());
  std::fprintf(file, "}\n\nSTACK_ELEMENTS = %zu\n", stack_elements);
  return std::fclose(file) == 0 ? 0 : 1;
}
