#include "mlx_opt/backend/cuda/cache.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <tuple>
#include <utility>
#include <vector>

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

// The first line of an entry: the value's length and hash, by which a damaged entry is detected.
std::string header_of(const std::string& value) {
  return "mlx_opt 1 " + digits(value.size()) + " " + digits(hash(value, seed)) + "\n";
}

std::string name_of(const std::string& key) {
  return digits(hash(key, seed)) + digits(hash(key, other_seed));
}

// True for an entry or a file that will become one; other files in the folder are left alone.
bool is_own_name(const std::string& name) {
  return name.size() >= 32 && name.find_first_not_of("0123456789abcdef.") == std::string::npos;
}

std::string from_environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// Removes a trailing slash or dot, because with one the system follows a symbolic link.
fs::path without_end(const fs::path& folder) {
  const fs::path path = folder.lexically_normal();
  return path.has_filename() ? path : path.parent_path();
}

// An open file or folder. All checks use the descriptor, so it does not matter if the path leads
// elsewhere by then.
class Descriptor {
 public:
  explicit Descriptor(int descriptor) : descriptor_(descriptor) {}
  Descriptor(Descriptor&& other) : descriptor_(std::exchange(other.descriptor_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    close();
  }

  explicit operator bool() const {
    return descriptor_ >= 0;
  }

  int get() const {
    return descriptor_;
  }

  // The size if it is of `type`, a file or a folder, and only the user can write to it.
  std::optional<uint64_t> size_if_private(mode_t type) const {
    struct stat status;
    if (descriptor_ < 0 || fstat(descriptor_, &status) != 0 || (status.st_mode & S_IFMT) != type ||
        status.st_uid != geteuid() || (status.st_mode & (S_IWGRP | S_IWOTH))) {
      return std::nullopt;
    }
    return status.st_size;
  }

  bool read(std::string& text) const {
    size_t done = 0;
    while (done < text.size()) {
      const ssize_t count = ::read(descriptor_, text.data() + done, text.size() - done);
      if (count <= 0) {
        return false;
      }
      done += count;
    }
    return true;
  }

  bool write(const std::string& text) const {
    size_t done = 0;
    while (done < text.size()) {
      const ssize_t count = ::write(descriptor_, text.data() + done, text.size() - done);
      if (count <= 0) {
        return false;
      }
      done += count;
    }
    return true;
  }

  // False if written data is lost, which some file systems report only here.
  bool close() {
    const int descriptor = std::exchange(descriptor_, -1);
    return descriptor < 0 || ::close(descriptor) == 0;
  }

 private:
  int descriptor_;
};

Descriptor open_folder(const fs::path& path) {
  Descriptor folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  return folder.size_if_private(S_IFDIR) ? std::move(folder) : Descriptor(-1);
}

void make_folder(const fs::path& path) {
  if (mkdir(path.c_str(), S_IRWXU) != 0 && errno == ENOENT && path.has_parent_path()) {
    make_folder(path.parent_path());
    mkdir(path.c_str(), S_IRWXU);
  }
}

// Removes the oldest entries until the others have no more than `limit` bytes.
void make_room(const Descriptor& folder, uint64_t limit) {
  struct Entry {
    std::pair<time_t, long> changed;
    std::string name;
    uint64_t size;
  };
  std::vector<Entry> entries;
  uint64_t total = 0;
  // The listing closes its descriptor, so it needs its own.
  const int descriptor = openat(folder.get(), ".", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  DIR* listing = fdopendir(descriptor);
  if (!listing) {
    Descriptor{descriptor}.close();
    return;
  }
  while (const dirent* item = readdir(listing)) {
    struct stat status;
    if (is_own_name(item->d_name) &&
        fstatat(descriptor, item->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
        S_ISREG(status.st_mode)) {
      const auto size = static_cast<uint64_t>(status.st_size);
      entries.push_back({{status.st_mtim.tv_sec, status.st_mtim.tv_nsec}, item->d_name, size});
      total += size;
    }
  }
  closedir(listing);
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.changed, a.name) < std::tie(b.changed, b.name);
  });
  for (auto oldest = entries.begin(); total > limit && oldest != entries.end(); ++oldest) {
    unlinkat(folder.get(), oldest->name.c_str(), 0);
    total -= oldest->size;
  }
}

} // namespace

Cache::Cache(const fs::path& folder, uint64_t limit)
    : folder_(without_end(folder)), limit_(limit) {}

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

std::optional<std::string> Cache::find(const std::string& key) const {
  const Descriptor folder = open_folder(folder_);
  // O_NONBLOCK, because opening something that is not a file might block.
  const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
  const Descriptor file(openat(folder.get(), name_of(key).c_str(), flags));
  const auto size = file.size_if_private(S_IFREG);
  if (!size || *size > limit_) {
    return std::nullopt;
  }
  std::string text(*size, '\0');
  if (!file.read(text)) {
    return std::nullopt;
  }
  const size_t header = text.find('\n') + 1;
  std::string value = text.substr(header);
  if (text.compare(0, header, header_of(value)) != 0) {
    return std::nullopt;
  }
  return value;
}

// Writes a temporary file and renames it, so that another process sees all of the entry or nothing.
void Cache::store(const std::string& key, const std::string& value) const {
  make_folder(folder_);
  const Descriptor folder = open_folder(folder_);
  const std::string text = header_of(value) + value;
  if (!folder || text.size() > limit_) {
    return;
  }
  make_room(folder, limit_ - text.size());
  const std::string name = name_of(key);
  // A name that no other process or thread uses; if it exists, it is not opened.
  const auto now = std::chrono::system_clock::now().time_since_epoch().count();
  const std::string temporary = name + "." + std::to_string(getpid()) + "." + std::to_string(now);
  const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  const int at = folder.get();
  Descriptor file(openat(at, temporary.c_str(), flags, S_IRUSR | S_IWUSR));
  if (!file) {
    return;
  }
  const bool written = file.write(text);
  if (!file.close() || !written || renameat(at, temporary.c_str(), at, name.c_str()) != 0) {
    unlinkat(at, temporary.c_str(), 0);
  }
}

} // namespace mlx_opt::cuda
