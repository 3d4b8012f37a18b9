// A file of a test.
#pragma once

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include <unistd.h>

// A file that is gone at the end of the test.
class File {
 public:
  explicit File(const std::string& name)
      : path_("/tmp/mlx_opt_" + std::to_string(getpid()) + "_" + name + ".safetensors") {}
  ~File() {
    std::remove(path_.c_str());
  }

  const std::string& path() const {
    return path_;
  }

  std::string bytes() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  void write(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary) << bytes;
  }

 private:
  std::string path_;
};
