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

// As in test_cpp.py; each with a learning rate of 0.01, except relative steps.
const std::map<std::string, mlx_opt::Hyperparameters> optimizers = {
    {"AdamW", mlx_opt::AdamW{.weight_decay = 0.1}},
    {"Lion", mlx_opt::Lion{}},
    {"Adafactor", mlx_opt::Adafactor{.weight_decay = 0.1}},
    {"Adafactor with beta_1", mlx_opt::Adafactor{.beta_1 = 0.9, .relative_step = false}},
    {"Muon", mlx_opt::Muon{}},
    {"Muon with options",
     mlx_opt::Muon{
         .nesterov = false,
         .ns_steps = 7,
         .ns_coefficients = mlx_opt::polar_express(),
         .adjust_lr = mlx_opt::AdjustLr::match_rms_adamw,
         .decoupled_weight_decay = true}},
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
  mlx_opt::Optimizer optimizer(parameters, optimizers.at(name), learning_rate);
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
