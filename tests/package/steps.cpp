// Steps of an optimizer from one checkpoint to the next.
//
//   steps OPTIMIZER FOLDER FIRST LAST
//
// Takes parameters.safetensors and, where it is, state.safetensors in FOLDER through the gradients
// gradients.FIRST.safetensors up to, but not including, gradients.LAST.safetensors.
#include <filesystem>
#include <iostream>
#include <map>
#include <string>

#include <mlx/mlx.h>
#include <mlx_opt/mlx_opt.h>

namespace mx = mlx::core;
using mlx_opt::NamedArrays;

namespace {

struct Case {
  mlx_opt::Hyperparameters hypers;
  mlx_opt::Options options = {};
  std::optional<double> loss_scale = std::nullopt;
};

// As in test_cpp.py; each with a learning rate of 0.01, except relative steps.
const std::map<std::string, Case> cases = {
    {"AdamW", {mlx_opt::AdamW{.weight_decay = 0.1}}},
    {"Lion", {mlx_opt::Lion{}}},
    {"Adafactor", {mlx_opt::Adafactor{.weight_decay = 0.1}}},
    {"Adafactor with beta_1", {mlx_opt::Adafactor{.beta_1 = 0.9, .relative_step = false}}},
    {"Muon", {mlx_opt::Muon{}}},
    {"Muon with options",
     {mlx_opt::Muon{
         .nesterov = false,
         .ns_steps = 7,
         .ns_coefficients = mlx_opt::polar_express(),
         .adjust_lr = mlx_opt::AdjustLr::match_rms_adamw,
         .decoupled_weight_decay = true}}},
    {"AdamW with master weights",
     {mlx_opt::AdamW{},
      {.master_weights = mlx_opt::MasterWeights::float32,
       .ema = {.decay = 0.9, .warmup = mlx_opt::EmaWarmup::ratio}}}},
    {"Lion with remainders",
     {mlx_opt::Lion{},
      {.master_weights = mlx_opt::MasterWeights::remainder,
       .ema =
           {.decay = 0.9, .warmup = mlx_opt::EmaWarmup::power, .power = 0.75, .update_after = 1}}}},
    {"AdamW with stochastic rounding", {mlx_opt::AdamW{}, {.rounding_seed = 11}}},
    {"Muon with stochastic rounding",
     {mlx_opt::Muon{}, {.rounding_seed = 11, .ema = {.decay = 0.9}}}},
    {"AdamW with a loss scale", {mlx_opt::AdamW{}, {}, 1024.0}},
    {"AdamW in int8", {mlx_opt::AdamW{}, {.state_dtypes = {.all = mx::int8}}}},
};

NamedArrays read(const std::filesystem::path& path) {
  const auto arrays = mx::load_safetensors(path).first;
  return {arrays.begin(), arrays.end()};
}

void run(const std::string& name, const std::filesystem::path& folder, int first, int last) {
  NamedArrays parameters = read(folder / "parameters.safetensors");
  std::optional<double> learning_rate;
  if (name != "Adafactor") {
    learning_rate = 0.01;
  }
  const auto& [hypers, options, loss_scale] = cases.at(name);
  mlx_opt::Optimizer optimizer(parameters, hypers, learning_rate, {}, options);
  optimizer.set_loss_scale(loss_scale);
  const auto state = folder / "state.safetensors";
  if (std::filesystem::exists(state)) {
    optimizer.load(state);
  }
  for (int i = first; i < last; ++i) {
    NamedArrays gradients = read(folder / ("gradients." + std::to_string(i) + ".safetensors"));
    mx::eval(mlx_opt::values(gradients));
    optimizer.update(parameters, std::move(gradients), {.max_norm = 1.0, .skip_nonfinite = true});
    mx::eval(mlx_opt::values(parameters));
    mx::eval(optimizer.values());
  }
  mx::save_safetensors(folder / "parameters.safetensors", {parameters.begin(), parameters.end()});
  optimizer.save(state);
}

} // namespace

int main(int, char** argv) {
  try {
    run(argv[1], argv[2], std::stoi(argv[3]), std::stoi(argv[4]));
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
