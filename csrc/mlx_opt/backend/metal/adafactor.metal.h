// Common code of Adafactor's passes. A pass writes sums over fixed parts to the tensor's scratch
// memory; the next pass adds them up in a fixed order.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

using metal::adafactor_across;
using metal::adafactor_columns;
using metal::adafactor_lines;
using metal::adafactor_own;
using metal::adafactor_pitch;
using metal::AdafactorArguments;
using metal::AdafactorStrided;
using metal::AdafactorTensor;

// The addresses of a tensor's operands. in: in the order of AdafactorStrided::elements, or the
// means of rows and of columns; out: the results in the same order. A result may share an input's
// buffer: each element is written by the thread that read it.
struct AdafactorOperands {
  const device uchar* in[4];
  device uchar* out[3];
};

// An element's index in each operand.
struct AdafactorPlaces {
  ulong of[4];

  MLX_OPT_FN AdafactorPlaces by(constant AdafactorArguments&, ulong i) {
    return {{i, i, i, i}};
  }

  MLX_OPT_FN AdafactorPlaces by(constant AdafactorStrided& arguments, ulong i) {
    long places[4];
    locate(arguments.elements, i, places);
    AdafactorPlaces at;
    for (int k = 0; k < 4; ++k) {
      at.of[k] = static_cast<ulong>(places[k]);
    }
    return at;
  }
};

template <bool rows>
MLX_OPT_FN ulong place_of_mean(constant AdafactorArguments&, ulong i) {
  return i;
}

template <bool rows>
MLX_OPT_FN ulong place_of_mean(constant AdafactorStrided& arguments, ulong i) {
  long place[1];
  if (rows) {
    locate(arguments.row_means, i, place);
  } else {
    locate(arguments.column_means, i, place);
  }
  return static_cast<ulong>(place[0]);
}

MLX_OPT_FN bool is_applied(constant AdafactorTensor& t, Uniforms<Adafactor> uniforms) {
  return !t.skip_nonfinite || is_finite(uniforms.scale.factor);
}

MLX_OPT_FN uint parts_of(uint count, uint each) {
  return (count + each - 1) / each;
}

// The sum of the numbers [begin, begin + count) of the scratch memory.
MLX_OPT_FN float sum_of(
    device const float* scratch, ulong begin, uint count, uint index, threadgroup float* staged) {
  LongSum sum = {0.0f, 0.0f};
  for (uint i = index; i < count; i += threads) {
    sum = plus(sum, scratch[begin + i]);
  }
  return sum_over_group(value_of(sum), index, staged);
}

// A tile of a tensor's matrices in the orientation of its gradient in memory. A thread processes
// adafactor_own elements of each of its lines, `count` at a time.
struct AdafactorTile {
  uint matrix, lines, columns;
  uint down, across, tiles_down; // its place in the matrix, and of how many
  uint top, left, height, width;

  MLX_OPT_FN AdafactorTile of(constant AdafactorTensor& t, uint group) {
    AdafactorTile tile;
    tile.lines = t.transposed ? t.columns : t.rows;
    tile.columns = t.transposed ? t.rows : t.columns;
    tile.tiles_down = parts_of(tile.lines, adafactor_lines);
    const uint tiles_across = parts_of(tile.columns, adafactor_columns);
    tile.across = group % tiles_across;
    tile.down = group / tiles_across % tile.tiles_down;
    tile.matrix = group / tiles_across / tile.tiles_down;
    tile.top = tile.down * adafactor_lines;
    tile.left = tile.across * adafactor_columns;
    tile.height = at_most(tile.lines - tile.top, adafactor_lines);
    tile.width = at_most(tile.columns - tile.left, adafactor_columns);
    return tile;
  }

  MLX_OPT_FN ulong begin_of(AdafactorTile tile, uint line) {
    return (static_cast<ulong>(tile.matrix) * tile.lines + tile.top + line) * tile.columns +
           tile.left;
  }

  // The column of the first of this thread's elements [own, own + count).
  template <int count>
  MLX_OPT_FN uint column_of(uint own, uint index) {
    return own * adafactor_across + index % adafactor_across * count;
  }
};

// Calls, for each of this thread's lines of a tile, `each.begin_line(line)`, then
// `each.elements<count>(own, column, place)` for its elements of the line, then
// `each.end_line(line)`.
template <int count, typename Each>
MLX_OPT_FN void over_lines(thread Each& each, AdafactorTile tile, uint index) {
  for (uint line = index / adafactor_across; line < tile.height;
       line += threads / adafactor_across) {
    const ulong begin = AdafactorTile::begin_of(tile, line);
    each.begin_line(line);
    for (uint own = 0; own < adafactor_own; own += count) {
      const uint column = AdafactorTile::column_of<count>(own, index);
      if (column < tile.width) {
        each.template elements<count>(own, begin + column);
      }
    }
    each.end_line(line);
  }
}

// The factors of the rows and columns of one of a tensor's matrices.
struct Factors {
  ulong rows, columns; // offsets of the first ones in the scratch memory
  float mean;          // the mean of the rows' means
  bool transposed;

  MLX_OPT_FN Factors of(constant AdafactorTensor& t, uint matrix, float mean) {
    return {
        t.scratch.row_means + static_cast<ulong>(matrix) * t.rows,
        t.scratch.column_factors + static_cast<ulong>(matrix) * t.columns,
        mean,
        t.transposed != 0};
  }

  MLX_OPT_FN float of_row(Factors f, device const float* scratch, uint row) {
    return Adafactor::row_factor(scratch[f.rows + row], f.mean);
  }

  MLX_OPT_FN float of_column(Factors f, device const float* scratch, uint column) {
    return scratch[f.columns + column];
  }

  // The factor of a line of the gradient.
  MLX_OPT_FN float of_line(Factors f, device const float* scratch, uint line) {
    return f.transposed ? of_column(f, scratch, line) : of_row(f, scratch, line);
  }

  // The factors of this thread's elements of a tile's lines.
  template <int count>
  MLX_OPT_FN void of_columns(
      Factors f, device const float* scratch, AdafactorTile tile, uint index, thread float* to) {
    for (uint own = 0; own < adafactor_own; own += count) {
      for (int lane = 0; lane < count; ++lane) {
        const uint column = tile.left + AdafactorTile::column_of<count>(own, index) + lane;
        if (column < tile.columns) {
          to[own + lane] =
              f.transposed ? of_row(f, scratch, column) : of_column(f, scratch, column);
        }
      }
    }
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
