// Compiled programs kept on disk. Knows neither CUDA nor MLX.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace mlx_opt::cuda {

/// A folder of entries. That it cannot be read or written is no error: then nothing is kept.
class Cache {
 public:
  explicit Cache(std::filesystem::path folder) : folder_(std::move(folder)) {}

  /// In the folder that MLX_OPT_CACHE_DIR names, else mlx_opt in XDG_CACHE_HOME or ~/.cache.
  static Cache of_user();

  /// What is kept under `key`, a text of any length; nothing if the entry is missing or damaged.
  std::optional<std::string> find(const std::string& key) const;

  void keep(const std::string& key, const std::string& value) const;

  const std::filesystem::path& folder() const {
    return folder_;
  }

 private:
  std::filesystem::path path_of(const std::string& key) const;

  std::filesystem::path folder_;
};

} // namespace mlx_opt::cuda
