// Learns handwritten digits with a small network, in C++ from the data file to the checkpoint.
//
//   digits DATA [--epochs N] [--load FOLDER] [--save FOLDER]
//
// DATA is written by data.py. --load goes on from a checkpoint, --save leaves one; digits.py, the
// same training in Python, reads and writes the same checkpoints.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>

#include <unistd.h>

#include <mlx/mlx.h>
#include <mlx_opt/mlx_opt.h>

namespace mx = mlx::core;
using mlx_opt::Arrays;
using mlx_opt::NamedArrays;

namespace {

constexpr int sizes[] = {64, 128, 10};
constexpr int layers = 2;
constexpr int training_images = 1500;
constexpr int batch_size = 50;
constexpr int batches = training_images / batch_size;
constexpr double learning_rate = 1e-3;
constexpr double weight_decay = 0.05;
constexpr double max_norm = 1.0;

struct Arguments {
  std::string data;
  int epochs = 10;
  std::optional<std::filesystem::path> load;
  std::optional<std::filesystem::path> save;
};

struct Digits {
  mx::array images; // (N, 64), in [0, 1]
  mx::array labels; // (N,)
};

Arguments parse(int argc, char** argv) {
  if (argc < 2 || argc % 2 != 0) {
    throw std::invalid_argument("digits DATA [--epochs N] [--load FOLDER] [--save FOLDER]");
  }
  Arguments arguments{.data = argv[1]};
  for (int i = 2; i < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--epochs") {
      arguments.epochs = std::stoi(argv[i + 1]);
    } else if (option == "--load") {
      arguments.load = argv[i + 1];
    } else if (option == "--save") {
      arguments.save = argv[i + 1];
    } else {
      throw std::invalid_argument("there is no option " + option);
    }
  }
  return arguments;
}

NamedArrays initial_parameters() {
  NamedArrays parameters;
  for (int i = 0; i < layers; ++i) {
    const float limit = 1 / std::sqrt(static_cast<float>(sizes[i]));
    const std::string name = "layers." + std::to_string(i);
    parameters.emplace(
        name + ".weight",
        mx::random::uniform(
            -limit, limit, {sizes[i + 1], sizes[i]}, mx::float32, mx::random::key(i)));
    parameters.emplace(name + ".bias", mx::zeros({sizes[i + 1]}));
  }
  return parameters;
}

// The parameters as value_and_grad takes them: in the order of their names.
mx::array logits(const Arrays& parameters, const mx::array& images) {
  const auto linear = [&](int layer, const mx::array& x) {
    return mx::addmm(parameters[2 * layer], x, mx::transpose(parameters[2 * layer + 1]));
  };
  return linear(1, mx::maximum(linear(0, images), mx::array(0.0f)));
}

mx::array cross_entropy(const Arrays& parameters, const Digits& digits) {
  const mx::array scores = logits(parameters, digits.images);
  const mx::array of_label =
      mx::squeeze(mx::take_along_axis(scores, mx::expand_dims(digits.labels, 1), 1), 1);
  return mx::mean(mx::logsumexp(scores, 1) - of_label);
}

double accuracy(const NamedArrays& parameters, const Digits& digits) {
  const mx::array scores = logits(mlx_opt::values(parameters), digits.images);
  return mx::mean(mx::equal(mx::argmax(scores, 1), digits.labels)).item<float>();
}

/// One step; returns the loss before it.
double train(NamedArrays& parameters, mlx_opt::Optimizer& optimizer, const Digits& batch) {
  const auto loss_and_grad = mx::value_and_grad(
      [&](const Arrays& values) { return cross_entropy(values, batch); }, {0, 1, 2, 3});
  auto [loss, slopes] = loss_and_grad(mlx_opt::values(parameters));
  mx::eval(slopes);
  NamedArrays gradients;
  for (size_t i = 0; const auto& [name, parameter] : parameters) {
    gradients.emplace(name, std::move(slopes[i++]));
  }
  optimizer.update(
      parameters, std::move(gradients), {.max_norm = max_norm, .skip_nonfinite = true});
  mx::eval(mlx_opt::values(parameters));
  mx::eval(optimizer.values());
  return loss.item<float>();
}

void show_progress(int epoch, int batch) {
  if (isatty(STDERR_FILENO)) {
    std::fprintf(stderr, "\repoch %3d batch %d/%d", epoch + 1, batch, batches);
    std::fputs(batch == batches ? "\r" : "", stderr);
  }
}

double train_epoch(
    NamedArrays& parameters, mlx_opt::Optimizer& optimizer, const Digits& digits, int epoch) {
  const mx::array order = mx::random::permutation(training_images, mx::random::key(100 + epoch));
  double total = 0;
  for (int batch = 0; batch < batches; ++batch) {
    const mx::array picked = mx::slice(order, {batch * batch_size}, {(batch + 1) * batch_size});
    total += train(
        parameters,
        optimizer,
        {mx::take(digits.images, picked, 0), mx::take(digits.labels, picked, 0)});
    show_progress(epoch, batch + 1);
  }
  return total / batches;
}

Digits load(const std::string& path, bool training) {
  const auto data = mx::load_safetensors(path).first;
  const int first = training ? 0 : training_images;
  const int last = training ? training_images : data.at("labels").shape(0);
  return {
      mx::slice(data.at("images"), {first, 0}, {last, sizes[0]}),
      mx::slice(data.at("labels"), {first}, {last})};
}

void run(const Arguments& arguments) {
  const Digits training = load(arguments.data, true);
  const Digits test = load(arguments.data, false);
  NamedArrays parameters = initial_parameters();
  mlx_opt::Optimizer optimizer(
      parameters, mlx_opt::AdamW{.weight_decay = weight_decay}, learning_rate);
  if (arguments.load) {
    const auto saved = mx::load_safetensors(*arguments.load / "parameters.safetensors").first;
    parameters = {saved.begin(), saved.end()};
    optimizer.load(*arguments.load / "optimizer.safetensors");
  }
  for (int epoch = optimizer.step() / batches; epoch < arguments.epochs; ++epoch) {
    const double loss = train_epoch(parameters, optimizer, training, epoch);
    const double right = accuracy(parameters, test);
    std::printf("epoch %3d loss %.6f test accuracy %.4f\n", epoch + 1, loss, right);
  }
  if (arguments.save) {
    std::filesystem::create_directories(*arguments.save);
    mx::save_safetensors(
        *arguments.save / "parameters.safetensors", {parameters.begin(), parameters.end()});
    optimizer.save(*arguments.save / "optimizer.safetensors");
  }
}

} // namespace

int main(int argc, char** argv) {
  try {
    run(parse(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
