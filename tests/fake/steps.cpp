#include "steps.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <map>

#include "mlx/mlx.h"
#include "mlx_opt/graph/step_primitive.h"

namespace steps {

using mlx_opt::Rule;

mx::array numbers(mx::Shape shape, mx::Dtype dtype, int seed) {
  auto x =
      mx::random::normal(std::move(shape), mx::float32, mx::random::key(seed), mx::Device::cpu);
  x = mx::astype(mx::abs(x, mx::Device::cpu), dtype, mx::Device::cpu);
  x.eval();
  return x;
}

std::vector<mlx_opt::Scalar> sample_hypers(Rule rule) {
  const std::map<std::string_view, double> unusual = {
      {"weight_decay", 0.1},
      {"momentum", 0.9},
      {"dampening", 0.3},
      {"mu_product", 0.2},
      {"averaged_steps", 3.0},
      {"d0", 0.1},
      {"d", 0.5},
      {"d_step", 0.25},

      {"v_length", 8.0}};
  std::vector<mlx_opt::Scalar> hypers;
  for (const mlx_opt::HyperInfo& hyper : mlx_opt::hypers_of(rule)) {
    const auto found = unusual.find(hyper.name);
    const bool flag = hyper.range == mlx_opt::Range::flag;
    hypers.push_back(found != unusual.end() ? found->second : flag ? 1.0 : hyper.standard);
  }
  return hypers;
}

mlx_opt::StepSpec sgd(size_t tensors, double weight_decay) {
  return {Rule::SGD, {{tensors, 2}}, {}, {{{weight_decay, 0.0, 0.0, 0.0}, {}}}};
}

std::vector<mx::array> adafactor(
    std::vector<mx::array> operands,
    size_t vectors,
    bool first_moment,
    const std::vector<mlx_opt::Scalar>& hypers,
    const mx::array& learning_rate,
    const mx::array& step,
    mx::StreamOrDevice s,
    const std::optional<mlx_opt::GradientScale>& scale) {
  const mlx_opt::Program program(Rule::Adafactor, first_moment);
  const size_t rest = operands.size() - vectors * program.operands(0);
  return mlx_opt::step(
      program,
      std::move(operands),
      {vectors, rest / program.operands(1)},
      hypers,
      learning_rate,
      step,
      s,
      scale);
}

mx::Shape state_shape(const mx::Shape& parameter, bool factored, size_t index) {
  const mlx_opt::Program program(Rule::Adafactor, true);
  return mlx_opt::slot_shape(*program.slots(factored)[index], parameter);
}

namespace {

// Some elements are NaN, as those are that have no value yet.
mx::array partly_unset(const mx::array& x) {
  const mx::array nan(std::numeric_limits<float>::quiet_NaN(), x.dtype());
  const auto cpu = mx::Device::cpu;
  auto result = mx::where(mx::greater(x, mx::array(1, x.dtype()), cpu), nan, x, cpu);
  result.eval();
  return result;
}

} // namespace

std::vector<mx::array> operands_of(
    Rule rule, const std::vector<mx::Shape>& shapes, mx::Dtype dtype) {
  const auto slots = mlx_opt::Program(rule).slots(0);
  std::vector<mx::array> operands;
  for (const auto& shape : shapes) {
    for (size_t k = 0; k < slots.size() + 2; ++k) {
      const bool is_slot = 0 < k && k <= slots.size();
      const auto x = numbers(shape, dtype, static_cast<int>(operands.size()));
      const bool unset = is_slot && slots[k - 1]->begin == mlx_opt::Begin::unset;
      operands.push_back(unset ? partly_unset(x) : x);
    }
  }
  return operands;
}

std::vector<mx::array> operands_with_masters(
    Rule rule, const std::vector<mx::Shape>& shapes, mx::Dtype dtype) {
  const auto cpu = mx::Device::cpu;
  const size_t slots = mlx_opt::Program(rule).slots(0).size();
  const auto plain = operands_of(rule, shapes, dtype);
  std::vector<mx::array> operands;
  for (auto of_tensor = plain.begin(); of_tensor != plain.end(); of_tensor += slots + 2) {
    operands.push_back(of_tensor[0]);
    for (size_t k = 1; k <= slots; ++k) {
      operands.push_back(mx::astype(of_tensor[k], mx::float32, cpu));
    }
    const auto weight = mx::astype(of_tensor[0], mx::float32, cpu);
    const auto other = numbers(weight.shape(), mx::float32, static_cast<int>(operands.size()));
    // Most round to their parameter.
    const auto near = mx::multiply(weight, mx::array(1.0001f), cpu);
    operands.push_back(
        partly_unset(mx::where(mx::less(other, mx::array(0.3f), cpu), other, near, cpu)));
    operands.push_back(of_tensor[slots + 1]);
  }
  mx::eval(operands);
  return operands;
}

std::vector<mx::array> operands_with_remainders(Rule rule, const std::vector<mx::Shape>& shapes) {
  const auto cpu = mx::Device::cpu;
  auto operands = operands_with_masters(rule, shapes, mx::bfloat16);
  const size_t count = operands.size() / shapes.size();
  for (size_t master = count - 2; master < operands.size(); master += count) {
    const auto key = mx::random::key(master);
    operands[master] = mx::astype(
        mx::random::randint(0, 65536, operands[master].shape(), mx::uint32, key, cpu),
        mx::uint16,
        cpu);
  }
  mx::eval(operands);
  return operands;
}

std::vector<mx::array> with_averages(const std::vector<mx::array>& operands, size_t tensors) {
  const size_t count = operands.size() / tensors;
  std::vector<mx::array> all;
  for (size_t i = 0; i < operands.size(); ++i) {
    if (i % count == count - 1) {
      all.push_back(
          partly_unset(numbers(operands[i].shape(), mx::float32, static_cast<int>(1000 + i))));
    }
    all.push_back(operands[i]);
  }
  mx::eval(all);
  return all;
}

std::vector<mx::array> without_nan(std::vector<mx::array> arrays) {
  for (auto& x : arrays) {
    const auto wide = mx::astype(x, mx::float32);
    x = mx::where(mx::isnan(wide), mx::array(-1.0f), wide);
  }
  mx::eval(arrays);
  return arrays;
}

std::vector<mx::array> step_with_masters(
    Rule rule,
    mlx_opt::MasterWeights masters,
    std::vector<mx::array> operands,
    mx::StreamOrDevice s,
    const std::optional<mlx_opt::GradientScale>& scale) {
  const auto program = mlx_opt::Program(rule).with(masters);
  const size_t tensors = operands.size() / program.operands(1);
  const Scalars scalars;
  return mlx_opt::step(
      program,
      std::move(operands),
      {0, tensors},
      sample_hypers(rule),
      scalars.learning_rate,
      scalars.step,
      s,
      scale);
}

namespace {

mlx_opt::Program program_with_codes(Rule rule) {
  mlx_opt::Formats formats;
  for (const mlx_opt::SlotInfo& slot : mlx_opt::slots_of(rule)) {
    formats[slot.name] = mlx_opt::Format::int8;
  }
  return mlx_opt::Program(rule, false, nullptr, formats);
}

} // namespace

std::vector<mx::array> operands_with_codes(Rule rule, const std::vector<mx::Shape>& shapes) {
  const auto program = program_with_codes(rule);
  std::vector<mx::array> operands;
  for (const mx::Shape& shape : shapes) {
    operands.push_back(numbers(shape, mx::float32, 1));
    for (const mlx_opt::SlotInfo* slot : program.slots(1)) {
      const mx::array x = numbers(mlx_opt::slot_shape(*slot, shape), mx::float32, 2);
      const mx::Dtype dtype = mlx_opt::slot_dtype(*slot, mx::float32);
      const bool is_coded = slot->format == mlx_opt::Format::int8;
      const mx::array codes = mx::remainder(mx::multiply(x, mx::array(1000.0f)), mx::array(127.0f));
      operands.push_back(mx::astype(is_coded ? codes : x, dtype));
    }
    operands.push_back(numbers(shape, mx::float32, 3));
  }
  mx::eval(operands);
  return operands;
}

std::vector<mx::array> step_with_codes(
    Rule rule,
    std::vector<mx::array> operands,
    mx::StreamOrDevice s,
    const std::optional<mlx_opt::GradientScale>& scale) {
  const auto program = program_with_codes(rule);
  const size_t tensors = operands.size() / program.operands(1);
  const Scalars scalars;
  return mlx_opt::step(
      program,
      std::move(operands),
      {0, tensors},
      sample_hypers(rule),
      scalars.learning_rate,
      scalars.step,
      s,
      scale);
}

std::vector<mx::array> step_with_rounding(
    Rule rule,
    std::vector<mx::array> operands,
    mx::StreamOrDevice s,
    const std::optional<mlx_opt::GradientScale>& scale) {
  const auto program = mlx_opt::Program(rule).with_rounding(7);
  const size_t tensors = operands.size() / program.operands(0);
  const Scalars scalars;
  return mlx_opt::step(
      program,
      std::move(operands),
      {tensors},
      sample_hypers(rule),
      scalars.learning_rate,
      scalars.step,
      s,
      scale);
}

std::vector<mx::array> step_with_ema(
    Rule rule,
    mlx_opt::MasterWeights masters,
    std::vector<mx::array> operands,
    mx::StreamOrDevice s,
    const std::optional<mlx_opt::GradientScale>& scale) {
  const auto program = mlx_opt::Program(rule).with(masters).with_ema();
  const size_t last = program.kinds() - 1;
  std::vector<size_t> tensors(program.kinds());
  tensors[last] = operands.size() / program.operands(last);
  auto hypers = sample_hypers(rule);
  hypers.push_back(mx::array(0.125f));
  const Scalars scalars;
  return mlx_opt::step(
      program, std::move(operands), tensors, hypers, scalars.learning_rate, scalars.step, s, scale);
}

std::vector<mx::array> copies_of(const std::vector<mx::array>& arrays) {
  std::vector<mx::array> copies;
  for (const auto& x : arrays) {
    copies.push_back(mx::contiguous(x + mx::array(0, x.dtype()), false, mx::Device::cpu));
  }
  mx::eval(copies);
  return copies;
}

std::vector<mx::array> narrow_adamw(
    std::vector<mx::array> operands, const Scalars& scalars, mx::Stream stream) {
  const mlx_opt::Formats formats{{"m", mlx_opt::Format::float16}, {"v", mlx_opt::Format::bfloat16}};
  const mlx_opt::Program program(Rule::AdamW, false, nullptr, formats);
  const size_t tensors = operands.size() / program.operands(0);
  const auto hypers = sample_hypers(Rule::AdamW);
  const auto& [learning_rate, step, scale] = scalars;
  return mlx_opt::step(
      program, std::move(operands), {tensors}, hypers, learning_rate, step, stream, scale);
}

std::vector<mx::array> evaluate_on_gpu(
    std::vector<mx::array> results, const std::function<void(const mx::array&)>& hold) {
  std::vector<mx::array> token{results[0].inputs()[0]};
  token[0].primitive().eval_gpu(token[0].inputs(), token);
  std::for_each(token[0].inputs().begin(), token[0].inputs().end(), hold);
  for (auto& result : results) {
    std::vector<mx::array> outputs{result};
    result.primitive().eval_gpu(result.inputs(), outputs);
    result.set_status(mx::array::Status::available);
    result.detach();
  }
  return results;
}

void check_equal(
    const std::vector<mx::array>& got,
    const std::vector<mx::array>& expected,
    Tolerance tolerance) {
  REQUIRE(got.size() == expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK(got[i].dtype() == expected[i].dtype());
    CHECK(got[i].shape() == expected[i].shape());
    const auto wide = [](const mx::array& x) { return mx::astype(x, mx::float32); };
    const double place = got[i].dtype() == mx::float32   ? tolerance.relative
                         : got[i].dtype() == mx::float16 ? 1e-3
                                                         : 8e-3;
    CHECK(mx::allclose(wide(got[i]), wide(expected[i]), place, tolerance.absolute).item<bool>());
    if (got[i].dtype() != mx::float32) {
      const auto different = mx::sum(mx::not_equal(got[i], expected[i]));
      CHECK(mx::astype(different, mx::float32).item<float>() <= 1 + 0.01 * got[i].size());
    }
  }
}

} // namespace steps
