#include <doctest/doctest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#include "cache_folder.h"
#include "mlx_opt/backend/cuda/cache.h"

using mlx_opt::cuda::Cache;

namespace {

// The exit status of a child, for what would change this whole process.
int status_of_child(const std::function<int()>& work) {
  const pid_t child = fork();
  if (child == 0) {
    _exit(work());
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

constexpr int sound = 0;
constexpr int not_possible = 77;

// On a full disk nothing is stored, no file remains, and earlier entries are still there.
int keep_on_full_disk(const fs::path& folder, const std::string& large) {
  const Cache cache(folder);
  cache.store("large", large);
  const bool clean = cache.find("small") == "small" && !cache.find("large");
  return clean && files_in(folder) == 1 ? sound : 1;
}

} // namespace

TEST_CASE("what was kept is found, by its own key, in another process' eyes too") {
  Folder folder;
  const Cache cache(folder.path / "deep" / "down");
  CHECK(!cache.find("a"));
  cache.store("a", value);
  cache.store("b", "");
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
  cache.store("a", value);
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
    cache.store("a", value);
    CHECK(cache.find("a") == value);
  }
}

TEST_CASE("a folder that cannot be written or read is no error") {
  Folder folder;
  write(folder.path / "file", "");
  const Cache cache(folder.path / "file" / "below");
  cache.store("a", value);
  CHECK(!cache.find("a"));
  const Cache none{fs::path()};
  none.store("a", value);
  CHECK(!none.find("a"));
}

TEST_CASE("the oldest entries make room for a new one, and other files stay") {
  Folder folder;
  const Cache cache(folder.path, 3 * (value.size() + 100));
  write(folder.path / "of somebody", std::string(100000, 'x'));
  const auto now = fs::file_time_type::clock::now();
  const std::vector<std::string> keys = {"a", "b", "c", "d", "e"};
  for (size_t i = 0; i < keys.size(); ++i) {
    cache.store(keys[i], value);
    for (const auto& entry : fs::directory_iterator(folder.path)) {
      if (fs::last_write_time(entry) > now - std::chrono::hours(1)) {
        fs::last_write_time(entry, now - std::chrono::hours(10 - i));
      }
    }
  }
  CHECK(!cache.find("a"));
  CHECK(!cache.find("b"));
  for (const char* key : {"c", "d", "e"}) {
    CHECK(cache.find(key) == value);
  }
  CHECK(files_in(folder.path) == 4);
  // A file of a process that ended while it wrote.
  const fs::path left = folder.path / (std::string(32, '0') + ".1.2");
  write(left, value);
  fs::last_write_time(left, now - std::chrono::hours(20));
  cache.store("f", value);
  CHECK(!fs::exists(left));
  CHECK(cache.find("f") == value);
}

TEST_CASE("an entry larger than the limit is neither kept nor read") {
  Folder folder;
  Cache(folder.path).store("a", value);
  const Cache small(folder.path, value.size());
  CHECK(!small.find("a"));
  small.store("b", value);
  CHECK(Cache(folder.path).find("a") == value);
  CHECK(files_in(folder.path) == 1);
}

TEST_CASE("a file that cannot be written to its end is not kept") {
  Folder folder;
  Cache(folder.path).store("small", "small");
  const int status = status_of_child([&] {
    const rlimit limit{4096, 4096};
    signal(SIGXFSZ, SIG_IGN);
    return setrlimit(RLIMIT_FSIZE, &limit) == 0 ? keep_on_full_disk(folder.path, value)
                                                : not_possible;
  });
  CHECK(status == sound);
}

TEST_CASE("a full disk is no error") {
  Folder folder;
  const int status = status_of_child([&] {
    const char* path = folder.path.c_str();
    // A file system of 64 KiB, which no other process sees.
    if (unshare(CLONE_NEWNS) != 0 ||
        mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        mount("tmpfs", path, "tmpfs", 0, "size=64k,mode=700") != 0) {
      return not_possible;
    }
    Cache(folder.path).store("small", "small");
    return keep_on_full_disk(folder.path, std::string(100000, 'x'));
  });
  if (status == not_possible) {
    MESSAGE("not run: this process may not mount a file system");
  } else {
    CHECK(status == sound);
  }
}

TEST_CASE("several threads store and find one entry") {
  Folder folder;
  const Cache cache(folder.path);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        cache.store("a", value);
        const auto found = cache.find("a");
        wrong += found && *found != value;
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  CHECK(wrong == 0);
  CHECK(cache.find("a") == value);
  CHECK(files_in(folder.path) == 1);
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
