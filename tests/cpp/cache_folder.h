// A temporary folder for a test of the cache, and its contents.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace fs = std::filesystem;

struct Folder {
  Folder() {
    char name[] = "/tmp/mlx_opt_cache_XXXXXX";
    path = mkdtemp(name);
  }
  ~Folder() {
    fs::remove_all(path);
  }
  fs::path path;
};

inline std::string content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

inline fs::path only_entry(const fs::path& folder) {
  return fs::directory_iterator(folder)->path();
}

inline size_t files_in(const fs::path& folder) {
  return std::distance(fs::directory_iterator(folder), {});
}

inline const std::string value =
    std::string("code\0with\nany bytes", 19) + std::string(5000, '\xfe');
