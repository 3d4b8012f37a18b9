// Writes the program of every kernel to test into the folder given, a file each.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <vector>

#include "mlx_opt/backend/metal/adafactor_source.h"
#include "mlx_opt/backend/metal/norm_source.h"
#include "mlx_opt/backend/metal/source.h"

using namespace mlx_opt::metal;
using mlx_opt::Rule;
using mlx_opt::Scaling;

namespace {

constexpr Storage storages[] = {Storage::float32, Storage::float16, Storage::bfloat16};
constexpr Kind ways[] = {Kind::flat, Kind::transposed, Kind::strided, Kind::strided_long};
constexpr int rules = std::size(mlx_opt::rule_infos);

Kernel uniform(Rule rule, Kind kind, Storage storage) {
  Kernel kernel{rule, kind, 1, {}, {}};
  const int moments = mlx_opt::info(rule).moments;
  std::fill_n(kernel.in, moments + 2, storage);
  std::fill_n(kernel.out, moments + 1, storage);
  return kernel;
}

// A parameter, moments and a gradient of storages of their own; the results of others.
Kernel mixed(Rule rule, Kind kind, int mix) {
  const Storage parameter = storages[mix % 3];
  const Storage moment = storages[mix / 3 % 3];
  const Storage gradient = storages[mix / 9];
  Kernel kernel = uniform(rule, kind, moment);
  kernel.in[0] = parameter;
  kernel.in[mlx_opt::info(rule).moments + 1] = gradient;
  kernel.out[0] = gradient;
  return kernel;
}

Kernel packed(Kernel kernel) {
  kernel.capacity = most_in_a_pack(kernel.rule);
  return kernel;
}

std::vector<Kernel> all_kernels() {
  std::vector<Kernel> kernels;
  for (int i = 0; i < rules; ++i) {
    const auto rule = static_cast<Rule>(i);
    kernels.push_back({rule, Kind::prepare});
    for (Storage storage : storages) {
      for (Kind way : ways) {
        kernels.push_back(uniform(rule, way, storage));
      }
      kernels.push_back(packed(uniform(rule, Kind::flat, storage)));
    }
    for (Scaling scaling : {Scaling::always, Scaling::if_finite}) {
      for (Kind way : {Kind::flat, Kind::transposed, Kind::strided}) {
        kernels.push_back(uniform(rule, way, storages[i % 3]));
        kernels.back().scaling = scaling;
      }
    }
  }
  for (int mix = 0; mix < 27; ++mix) {
    const auto rule = static_cast<Rule>(mix % rules);
    for (Kind way : ways) {
      kernels.push_back(mixed(rule, way, mix));
    }
    kernels.push_back(packed(mixed(rule, Kind::flat, mix)));
    kernels.push_back(mixed(rule, Kind::flat, mix));
    kernels.back().scaling = Scaling::if_finite;
  }
  return kernels;
}

// Adafactor's passes, over a parameter, its means, its first moment and its gradient of storages of
// their own. The results are of the parameter's, its moment of the moment's.
void push_passes(std::vector<FactorKernel>& kernels, Storage w, Storage v, Storage m, Storage g) {
  kernels.push_back({FactorKind::rates, {}, {}});
  for (bool strided : {false, true}) {
    kernels.push_back({FactorKind::squares, {g, w}, {}, strided});
    kernels.push_back({FactorKind::means, {v, m}, {w, v}, strided});
    kernels.push_back({FactorKind::update_squares, {g}, {}, strided});
    kernels.push_back({FactorKind::update, {g, w}, {w}, strided});
    kernels.push_back({FactorKind::update, {g, w, m}, {w, m}, strided});
    kernels.push_back({FactorKind::element_squares, {g, w, v}, {}, strided});
    for (FactorKind kind : {FactorKind::element_update, FactorKind::element_step}) {
      kernels.push_back({kind, {g, w, v}, {w, v}, strided});
      kernels.push_back({kind, {g, w, v, m}, {w, v, m}, strided});
    }
  }
  kernels.push_back({FactorKind::turned_update, {g, w}, {w}});
  kernels.push_back({FactorKind::turned_update, {g, w, m}, {w, m}});
}

std::vector<FactorKernel> factor_kernels() {
  std::vector<FactorKernel> kernels{{FactorKind::prepare, {}, {}}};
  for (Storage storage : storages) {
    push_passes(kernels, storage, storage, storage, storage);
  }
  for (int mix = 0; mix < 3; ++mix) {
    const auto at = [&](int k) { return storages[(mix + k) % 3]; };
    push_passes(kernels, at(0), at(1), at(2), at(1));
  }
  return kernels;
}

std::vector<NormKernel> norm_kernels() {
  std::vector<NormKernel> kernels{{NormKind::norm}, {NormKind::clip}};
  for (Storage storage : storages) {
    kernels.push_back({NormKind::squares, storage});
    kernels.push_back({NormKind::squares, storage, most_squares_in_a_pack});
    kernels.push_back({NormKind::strided_squares, storage});
    kernels.push_back({NormKind::strided_squares_long, storage});
  }
  return kernels;
}

// Whether all could be written.
template <typename Kernels>
bool write(const Kernels& kernels, const std::filesystem::path& folder) {
  return std::all_of(kernels.begin(), kernels.end(), [&](const auto& kernel) {
    std::ofstream file(folder / (name(kernel) + ".metal"));
    file << source(kernel);
    return bool(file.flush());
  });
}

} // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: " << arguments[0] << " FOLDER\n";
    return 2;
  }
  const std::filesystem::path folder = arguments[1];
  std::filesystem::create_directories(folder);
  if (!write(all_kernels(), folder) || !write(factor_kernels(), folder) ||
      !write(norm_kernels(), folder)) {
    std::cerr << "cannot write to " << folder << "\n";
    return 1;
  }
}
