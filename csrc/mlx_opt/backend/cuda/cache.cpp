#include "mlx_opt/backend/cuda/cache.h"

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>

namespace mlx_opt::cuda {
namespace {

namespace fs = std::filesystem;

// FNV-1a.
uint64_t hash(const std::string& text, uint64_t seed) {
  uint64_t value = seed;
  for (unsigned char c : text) {
    value = (value ^ c) * 0x100000001b3u;
  }
  return value;
}

constexpr uint64_t seed = 0xcbf29ce484222325u;
constexpr uint64_t other_seed = 0x9e3779b97f4a7c15u;

std::string digits(uint64_t x) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(x));
  return text;
}

// The first line of an entry, which a damaged one does not have: of the value, its length and hash.
std::string header_of(const std::string& value) {
  return "mlx_opt 1 " + digits(value.size()) + " " + digits(hash(value, seed)) + "\n";
}

std::string from_environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

} // namespace

Cache Cache::of_user() {
  if (const auto own = from_environment("MLX_OPT_CACHE_DIR"); !own.empty()) {
    return Cache(own);
  }
  if (const auto caches = from_environment("XDG_CACHE_HOME"); !caches.empty()) {
    return Cache(fs::path(caches) / "mlx_opt");
  }
  const auto home = from_environment("HOME");
  return Cache(home.empty() ? fs::path() : fs::path(home) / ".cache" / "mlx_opt");
}

fs::path Cache::path_of(const std::string& key) const {
  return folder_ / (digits(hash(key, seed)) + digits(hash(key, other_seed)));
}

std::optional<std::string> Cache::find(const std::string& key) const {
  std::ifstream file(path_of(key), std::ios::binary);
  if (folder_.empty() || !file) {
    return std::nullopt;
  }
  std::string header;
  std::getline(file, header);
  std::string value{std::istreambuf_iterator<char>(file), {}};
  if (header + "\n" != header_of(value)) {
    return std::nullopt;
  }
  return value;
}

// Through a file of its own that is renamed: another process sees all of it or nothing.
void Cache::keep(const std::string& key, const std::string& value) const {
  if (folder_.empty()) {
    return;
  }
  std::error_code ignored;
  fs::create_directories(folder_, ignored);
  const fs::path path = path_of(key);
  const fs::path temporary = path.string() + "." + std::to_string(getpid());
  std::ofstream file(temporary, std::ios::binary);
  file << header_of(value) << value;
  file.close();
  if (file) {
    fs::rename(temporary, path, ignored);
  }
  if (!file || ignored) {
    fs::remove(temporary, ignored);
  }
}

} // namespace mlx_opt::cuda
