// Who may read and write the cache's files.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache_folder.h"
#include "mlx_opt/backend/cuda/cache.h"

using mlx_opt::cuda::Cache;

namespace {

mode_t mode_of(const fs::path& path) {
  struct stat status;
  REQUIRE(stat(path.c_str(), &status) == 0);
  return status.st_mode & 07777;
}

constexpr uid_t somebody_else = 65534;

bool is_root() {
  if (geteuid() != 0) {
    MESSAGE("not run: only root can give files away");
  }
  return geteuid() == 0;
}

} // namespace

TEST_CASE("folders are made for the user alone, whatever the mask") {
  Folder folder;
  const mode_t before = umask(0);
  const Cache cache(folder.path / "deep" / "down");
  cache.store("a", value);
  umask(before);
  CHECK(cache.find("a") == value);
  CHECK(mode_of(folder.path / "deep") == 0700);
  CHECK(mode_of(folder.path / "deep" / "down") == 0700);
  CHECK(mode_of(only_entry(cache.folder())) == 0600);
}

TEST_CASE("a folder that others can write to is not used") {
  Folder folder;
  const Cache cache(folder.path);
  cache.store("a", value);
  for (mode_t mode : {0720, 0702, 0777, 01777}) {
    REQUIRE(chmod(folder.path.c_str(), mode) == 0);
    CHECK(!cache.find("a"));
    cache.store("b", value);
    CHECK(files_in(folder.path) == 1);
  }
  REQUIRE(chmod(folder.path.c_str(), 0755) == 0);
  CHECK(cache.find("a") == value);
}

TEST_CASE("a folder of another user is not used") {
  if (!is_root()) {
    return;
  }
  Folder folder;
  const Cache cache(folder.path);
  cache.store("a", value);
  REQUIRE(chown(folder.path.c_str(), somebody_else, -1) == 0);
  CHECK(!cache.find("a"));
  cache.store("b", value);
  CHECK(files_in(folder.path) == 1);
}

TEST_CASE("a file that others can write to, or own, is not read, and is replaced") {
  Folder folder;
  const Cache cache(folder.path);
  cache.store("a", value);
  const fs::path entry = only_entry(folder.path);
  for (mode_t mode : {0620, 0602, 0666}) {
    REQUIRE(chmod(entry.c_str(), mode) == 0);
    CHECK(!cache.find("a"));
    cache.store("a", value);
    CHECK(cache.find("a") == value);
    CHECK(mode_of(entry) == 0600);
  }
  if (is_root()) {
    REQUIRE(chown(entry.c_str(), somebody_else, -1) == 0);
    CHECK(!cache.find("a"));
    cache.store("a", value);
    CHECK(cache.find("a") == value);
  }
}

TEST_CASE("a link in place of a file is not followed") {
  Folder folder;
  Folder other;
  const Cache cache(folder.path);
  cache.store("a", value);
  const fs::path entry = only_entry(folder.path);
  const fs::path target = other.path / "target";
  fs::rename(entry, target);
  const std::string before = content(target);
  fs::create_symlink(target, entry);
  CHECK(!cache.find("a"));
  cache.store("a", value + value);
  CHECK(cache.find("a") == value + value);
  CHECK(!fs::is_symlink(entry));
  CHECK(content(target) == before);
}

TEST_CASE("a link in place of the folder is not followed, however it is written") {
  Folder target;
  Folder folder;
  Cache(target.path).store("a", value);
  const fs::path link = folder.path / "link";
  fs::create_directory_symlink(target.path, link);
  for (const fs::path& path : {link, link / "", link / ".", link / "." / ""}) {
    CAPTURE(path.string());
    const Cache cache(path);
    CHECK(!cache.find("a"));
    cache.store("b", value);
    CHECK(files_in(target.path) == 1);
  }
}

TEST_CASE("what is no file is not read, and nobody waits for it") {
  Folder folder;
  const Cache cache(folder.path);
  cache.store("a", value);
  const fs::path entry = only_entry(folder.path);
  fs::remove(entry);
  REQUIRE(mkfifo(entry.c_str(), 0600) == 0);
  CHECK(!cache.find("a"));
  cache.store("a", value);
  CHECK(cache.find("a") == value);
  fs::remove(entry);
  fs::create_directory(entry);
  CHECK(!cache.find("a"));
  cache.store("a", value);
  CHECK(!cache.find("a"));
  CHECK(files_in(folder.path) == 1);
}
