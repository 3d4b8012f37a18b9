// A cache of compiled programs on disk. Depends on neither CUDA nor MLX.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace mlx_opt::cuda {

/// A folder of entries that only the user can write to. A folder that somebody else owns or can
/// write to, or that is a symbolic link, is not used; nor is such a file in it. If the folder
/// cannot be read or written, nothing is cached, which is not an error.
class Cache {
 public:
  static constexpr uint64_t default_limit = uint64_t{64} << 20;

  /// `limit`: the maximum size of all entries together, in bytes.
  explicit Cache(const std::filesystem::path& folder, uint64_t limit = default_limit);

  /// The cache in the folder that MLX_OPT_CACHE_DIR names, else in mlx_opt in XDG_CACHE_HOME or
  /// ~/.cache.
  static Cache of_user();

  /// The value of `key`, a text of any length; nothing if the entry is missing or damaged.
  std::optional<std::string> find(const std::string& key) const;

  /// Stores a value, and removes the oldest entries if the limit is exceeded.
  void store(const std::string& key, const std::string& value) const;

  const std::filesystem::path& folder() const {
    return folder_;
  }

 private:
  std::filesystem::path folder_;
  uint64_t limit_;
};

} // namespace mlx_opt::cuda
