// Compiled programs kept on disk. Knows neither CUDA nor MLX.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace mlx_opt::cuda {

/// A folder of entries that only the user can write to. It is not used if somebody else owns it or
/// can write to it, or if it is a symbolic link; nor is such a file in it. That it cannot be read
/// or written is no error: then nothing is kept.
class Cache {
 public:
  static constexpr uint64_t default_limit = uint64_t{64} << 20;

  /// `limit`: the most bytes that all entries may have together.
  explicit Cache(const std::filesystem::path& folder, uint64_t limit = default_limit);

  /// In the folder that MLX_OPT_CACHE_DIR names, else mlx_opt in XDG_CACHE_HOME or ~/.cache.
  static Cache of_user();

  /// What is kept under `key`, a text of any length; nothing if the entry is missing or damaged.
  std::optional<std::string> find(const std::string& key) const;

  /// Removes the oldest entries if there would be more than the limit.
  void store(const std::string& key, const std::string& value) const;

  const std::filesystem::path& folder() const {
    return folder_;
  }

 private:
  std::filesystem::path folder_;
  uint64_t limit_;
};

} // namespace mlx_opt::cuda
