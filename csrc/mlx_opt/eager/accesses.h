// The arrays that a step overwrites, and those that it only reads.
#pragma once

#include "mlx_opt/graph/request.h"

namespace mlx_opt {

struct Accesses {
  ArrayRefs overwritten;
  ArrayRefs read;

  void add(const Leaves& leaves) {
    for (const Leaves::Kind& kind : leaves.kinds()) {
      read.reserve(read.size() + kind.leaves.size());
      overwritten.reserve(overwritten.size() + kind.arrays.size() - kind.leaves.size());
      for (auto next = kind.arrays.begin(); next != kind.arrays.end(); next += kind.operands) {
        overwritten.insert(overwritten.end(), next, next + kind.operands - 1);
        read.push_back(next[kind.operands - 1]);
      }
    }
  }
};

} // namespace mlx_opt
