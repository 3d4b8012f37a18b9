// The source files of a GPU's kernels, which the build embeds. A kernel's program contains only the
// files that it needs, so a change to another file does not change its text.
#pragma once

#include <initializer_list>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>

namespace mlx_opt::gpu {

/// Contents by file name, without the #include lines.
using Texts = std::map<std::string_view, std::string_view>;

/// The files, concatenated.
inline std::string joined(const Texts& texts, std::initializer_list<std::string_view> files) {
  std::string text;
  for (std::string_view file : files) {
    text += texts.at(file);
  }
  return text;
}

/// The header that defines the rule.
inline std::string_view header_of(const Texts& texts, std::string_view rule) {
  const std::string definition = "\nstruct " + std::string(rule) + " {";
  for (const auto& [file, text] : texts) {
    if (text.find(definition) != std::string_view::npos) {
      return text;
    }
  }
  throw std::logic_error("mlx_opt: no header defines the rule " + std::string(rule));
}

} // namespace mlx_opt::gpu
