// The text of the CUDA backend's programs, and the kernels' keys; nothing is compiled.
#include <doctest/doctest.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <regex>
#include <set>

#include "cuda_kernels.h"
#include "mlx_opt/backend/cuda/kernel_program.h"
#include "mlx_opt/backend/cuda/kernel_source.h"
#include "mlx_opt/backend/cuda/records.h"

using namespace cuda_kernels;

namespace {

std::vector<Kernel> all_kernels() {
  std::vector<Kernel> kernels;
  for (const auto& some :
       {uniform_kernels(), mixed_kernels(), norm_kernels(), adafactor_kernels()}) {
    kernels.insert(kernels.end(), some.begin(), some.end());
  }
  return kernels;
}

std::set<std::string> all_rules() {
  std::set<std::string> names = {"Adafactor", "Clipping"};
  for (const auto& rule : mlx_opt::rule_infos) {
    names.insert(std::string(rule.name));
  }
  return names;
}

// The rules that a header defines: SGD's defines three.
std::set<std::string> rules_of(std::string_view header) {
  const std::string text(header);
  const std::regex definition("\nstruct (\\w+) \\{");
  const std::set<std::string> all = all_rules();
  std::set<std::string> names;
  for (std::sregex_iterator found(text.begin(), text.end(), definition), end; found != end;
       ++found) {
    if (const std::string name = (*found)[1]; all.contains(name)) {
      names.insert(name);
    }
  }
  return names;
}

// The rules whose names are in a text, as words.
std::set<std::string> named_in(const std::string& text) {
  static const std::set<std::string> all = all_rules();
  const auto is_of_word = [](unsigned char c) { return std::isalnum(c) || c == '_'; };
  std::set<std::string> names;
  for (auto at = text.begin(); at != text.end();) {
    const auto begin = std::find_if(at, text.end(), is_of_word);
    at = std::find_if_not(begin, text.end(), is_of_word);
    if (const std::string word(begin, at); all.contains(word)) {
      names.insert(word);
    }
  }
  return names;
}

} // namespace

TEST_CASE("a kernel's text names the rules of its own header and no other") {
  for (int i = 0; i < rules; ++i) {
    const auto rule = static_cast<Rule>(i);
    const std::string name(mlx_opt::info(rule).name);
    const auto own = rules_of(mlx_opt::gpu::header_of(texts(), name));
    CAPTURE(name);
    CHECK(own.count(name) == 1);
    for (const Kernel& kernel : uniform_kernels(rule)) {
      CHECK(named_in(source(kernel)) == own);
    }
  }
  const std::set<std::string> adamw = {"AdamAMSGrad", "AdamW", "AdamWVariant", "CautiousAdamW"};
  CHECK(named_in(source(uniform(Rule::AdamW, Walk::flat, Storage::float32, 56))) == adamw);
}

TEST_CASE("the texts of the norm, of clipping and of Adafactor hold no rule but their own") {
  for (const Kernel& kernel : norm_kernels()) {
    const bool clips = std::holds_alternative<ClipKernel>(kernel);
    CHECK(
        named_in(source(kernel)) ==
        (clips ? std::set<std::string>{"Clipping"} : std::set<std::string>{}));
  }
  for (const Kernel& kernel : adafactor_kernels()) {
    CHECK(named_in(source(kernel)) == std::set<std::string>{"Adafactor"});
  }
}

TEST_CASE("a rule that no header defines") {
  CHECK_THROWS_WITH_AS(
      source(PrepareKernel{"Nothing", 1, 1}), doctest::Contains("Nothing"), std::logic_error);
}

TEST_CASE("kernels are equal where their texts are, and nowhere else") {
  const auto kernels = all_kernels();
  std::vector<std::string> sources;
  for (const Kernel& kernel : kernels) {
    sources.push_back(source(kernel));
  }
  for (size_t i = 0; i < kernels.size(); ++i) {
    for (size_t k = 0; k < kernels.size(); ++k) {
      const bool same = sources[i] == sources[k];
      CHECK((kernels[i] == kernels[k]) == same);
      CHECK((kernels[i] < kernels[k] || kernels[k] < kernels[i]) == !same);
    }
  }
}

TEST_CASE("kernels that differ in one field are told apart") {
  const UpdateKernel kernel = six_states(Walk::flat);
  std::vector<UpdateKernel> others(8, kernel);
  others[0].walk = Walk::transposed;
  others[1].scaling = Scaling::always;
  others[2].capacity = 11;
  others[3].in = repeated(Storage::float32, 7);
  others[3].in.add(Storage::bfloat16);
  others[4].out = repeated(Storage::float32, 6);
  others[5].rule = "SixState";
  others[6].pass = Pass::state;
  others[7].clips = true;
  for (const UpdateKernel& other : others) {
    CHECK(other != kernel);
  }
  CHECK(six_states(Walk::flat) == kernel);
}

TEST_CASE("a record is as wide as its program, and its group costs no tensor of a launch") {
  const auto capacity = [](size_t record) {
    return capacity_of(large_parameter, table_head, record);
  };
  CHECK(Records(4, 3).bytes() == 72);
  CHECK(capacity(Records(4, 3).bytes()) == 454);
  CHECK(capacity_of(small_parameter, table_head, Records(4, 3).bytes()) == 56);
  CHECK(Records(2, 1).bytes() == 40);
  CHECK(capacity(Records(2, 1).bytes()) == 818);
  CHECK(capacity(Records(8, 7).bytes()) == 240);
  CHECK(capacity(Records(max_operands, max_operands).bytes()) > 0);
}

TEST_CASE("records lie in memory as the kernels have them") {
  using Wide = Tensor<8, 7>;
  Records records(8, 7);
  CHECK(records.bytes() == sizeof(Wide));
  char memory[64];
  for (uint64_t i = 0; i < 3; ++i) {
    Extent extent{};
    extent.size = (uint64_t{1} << 48) - 1 - i;
    extent.group = static_cast<uint16_t>(65535 - i);
    extent.columns = static_cast<int>(7 + i);
    records.add(extent);
    extent.first_chunk = static_cast<unsigned>(70 + i);
    records.set(i, extent);
    for (int k = 0; k < 8; ++k) {
      records.set_input(i, k, memory + k);
    }
    for (int k = 0; k < 7; ++k) {
      records.set_output(i, k, memory + 16 + k);
    }
  }
  REQUIRE(records.count() == 3);
  for (uint64_t i = 0; i < 3; ++i) {
    Wide tensor;
    std::memcpy(&tensor, records.at(i), sizeof tensor);
    CHECK(uint64_t{tensor.size} == (uint64_t{1} << 48) - 1 - i);
    CHECK(uint64_t{tensor.group} == 65535 - i);
    CHECK(tensor.first_chunk == 70 + i);
    CHECK(tensor.columns == static_cast<int>(7 + i));
    for (int k = 0; k < 8; ++k) {
      CHECK(tensor.in[k] == memory + k);
    }
    for (int k = 0; k < 7; ++k) {
      CHECK(tensor.out[k] == memory + 16 + k);
    }
  }
}
