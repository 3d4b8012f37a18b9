// The files that a GPU's kernels are made of, as the build has embedded them: a kernel's program
// takes those that it needs, so that a change of the others leaves its text as it was.
#pragma once

#include <initializer_list>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>

namespace mlx_opt::gpu {

/// Contents by name. Includes are left out.
using Texts = std::map<std::string_view, std::string_view>;

/// The files, one behind the other.
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
