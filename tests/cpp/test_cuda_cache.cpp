#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>

#include "mlx_opt/backend/cuda/cache.h"

using mlx_opt::cuda::Cache;
namespace fs = std::filesystem;

namespace {

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

std::string content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

fs::path only_entry(const fs::path& folder) {
  return fs::directory_iterator(folder)->path();
}

const std::string value = std::string("code\0with\nany bytes", 19) + std::string(5000, '\xfe');

} // namespace

TEST_CASE("what was kept is found, by its own key, in another process' eyes too") {
  Folder folder;
  const Cache cache(folder.path / "deep" / "down");
  CHECK(!cache.find("a"));
  cache.keep("a", value);
  cache.keep("b", "");
  CHECK(Cache(folder.path / "deep" / "down").find("a") == value);
  CHECK(cache.find("b") == "");
  CHECK(!cache.find("c"));
  for (const auto& entry : fs::directory_iterator(cache.folder())) {
    CHECK(entry.path().filename().string().size() == 32); // no temporary file is left
  }
}

TEST_CASE("a damaged entry is not found, and can be kept anew") {
  Folder folder;
  const Cache cache(folder.path);
  cache.keep("a", value);
  const fs::path entry = only_entry(folder.path);
  const std::string sound = content(entry);
  std::string flipped = sound;
  flipped[sound.size() / 2] ^= 1;
  for (const std::string& damaged :
       {std::string(),
        std::string("nonsense"),
        sound.substr(0, 10),
        sound.substr(0, sound.size() - 1),
        sound + "x",
        flipped}) {
    write(entry, damaged);
    CHECK(!cache.find("a"));
    cache.keep("a", value);
    CHECK(cache.find("a") == value);
  }
}

TEST_CASE("a folder that cannot be written or read is no error") {
  Folder folder;
  write(folder.path / "file", "");
  const Cache cache(folder.path / "file" / "below");
  cache.keep("a", value);
  CHECK(!cache.find("a"));
  const Cache none{fs::path()};
  none.keep("a", value);
  CHECK(!none.find("a"));
}

TEST_CASE("the user's folder is the first that the environment names") {
  for (const char* name : {"MLX_OPT_CACHE_DIR", "XDG_CACHE_HOME", "HOME"}) {
    unsetenv(name);
  }
  CHECK(Cache::of_user().folder().empty());
  setenv("HOME", "/home/somebody", 1);
  CHECK(Cache::of_user().folder() == "/home/somebody/.cache/mlx_opt");
  setenv("XDG_CACHE_HOME", "/caches", 1);
  CHECK(Cache::of_user().folder() == "/caches/mlx_opt");
  setenv("MLX_OPT_CACHE_DIR", "/own", 1);
  CHECK(Cache::of_user().folder() == "/own");
}
