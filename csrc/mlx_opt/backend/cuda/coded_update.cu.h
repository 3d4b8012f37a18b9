// The pass of an elementwise rule some of whose slots have codes of 8 bits, and its walks. NVRTC
// compiles this text after update.cu.h and codes.cu.h.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// `count`: slots of codes. Their scales are behind the gradient, and behind all other words of the
// results.
template <
    typename Rule,
    typename Fields,
    typename Format,
    typename New,
    Scaling scaling,
    typename How,
    int count>
struct CodedUpdate : Update<Rule, Fields, Format, New, scaling, How> {
  using Base = Update<Rule, Fields, Format, New, scaling, How>;
  using Base::Base;
  static constexpr int scales = count;
  static constexpr int first_scale = Base::In::count;
  static constexpr int first_new_scale = Base::Out::count + How::words;
  using Tensor = cuda::Tensor<first_scale + scales, first_new_scale + scales>;
};

// A block of codes is updated by adjacent threads of a warp, which find its largest size together.
template <typename Pass>
struct CodedWalks {
  using Tensor = typename Pass::Tensor;
  using In = typename Pass::In;
  using Out = typename Pass::Out;
  using Rows = typename Pass::Rows;
  static constexpr int operands = In::count;
  static constexpr int scales = Pass::scales;
  static constexpr int vector_width = In::all_halves && Out::all_halves ? 8 : 4;
  static constexpr int lanes = elements_of_block / vector_width; // threads of a block of codes
  static constexpr int at_once = threads / lanes;                // blocks of codes
  static constexpr int in_chunk = chunk / elements_of_block;     // likewise
  static_assert(tile == elements_of_block && in_chunk == tile, "each row of a tile is a block");

  using Values = float[operands][vector_width];
  using Places = Index[operands];

  // What a thread has of a block of codes: adjacent elements if vectors are loaded, else each
  // beside one of the next thread.
  template <bool loads_vectors>
  struct Part {
    static constexpr bool vectors = loads_vectors;
    static constexpr int apart = vectors ? 1 : lanes;

    Index block; // of the tensor
    int count;   // elements of the block that there are; with vectors all

    // Where in the block the element of a lane is.
    MLX_OPT_FN int column_of(int lane) {
      const int own = threadIdx.x % lanes;
      return (vectors ? own * vector_width : own) + lane * apart;
    }

    __device__ __forceinline__ Index at(int lane) const {
      return block * elements_of_block + column_of(lane);
    }

    __device__ __forceinline__ bool has(int lane) const {
      return vectors || column_of(lane) < count;
    }

    __device__ __forceinline__ bool begins_block() const {
      return column_of(0) == 0 && has(0);
    }
  };

  // All operands are row-contiguous.
  template <typename Table>
  MLX_OPT_FN void flat(const Table& table) {
    const unsigned block = Pass::block();
    const Tensor& tensor = find<&Tensor::first_chunk>(table, block);
    Pass pass(table.group_uniforms, tensor);
    const Index begin = static_cast<Index>(block - tensor.first_chunk) * chunk;
    if (size_of(tensor) - begin >= chunk && In::template aligned<vector_width>(tensor.in) &&
        Out::template aligned<vector_width>(tensor.out)) {
      update_chunk<true>(tensor, begin, everywhere, pass);
    } else {
      update_chunk<false>(tensor, begin, everywhere, pass);
    }
  }

  // The gradient's columns are contiguous, and there are whole blocks of codes in each row.
  template <typename Table>
  MLX_OPT_FN void transposed(const Table& table) {
    using Loads = PatchLoads<typename Pass::Gradient, vector_width, tile, tile>;
    __shared__ typename Loads::Memory patch;
    const Tensor& tensor = find<&Tensor::first_chunk>(table, blockIdx.x);
    Pass pass(table.group_uniforms, tensor);
    const Index rows = size_of(tensor) / tensor.columns;
    const unsigned across = tensor.columns / tile;
    const unsigned index = blockIdx.x - tensor.first_chunk;
    const Index top = static_cast<Index>(index / across) * tile;
    const unsigned left = index % across; // in tiles
    const int height = rows - top < tile ? static_cast<int>(rows - top) : tile;

    using Source = List<typename Pass::Gradient>;
    const void* const* gradient = tensor.in + operands - 1;
    const bool vectors =
        rows % vector_width == 0 && Source::template aligned<vector_width>(gradient);
    Loads loads;
    loads.load(*gradient, left * tile * rows + top, rows, height, tile, vectors);
    loads.put(patch);
    __syncthreads();
    const Index first = top * across + left;
    if (height == tile && Rows::template aligned<vector_width>(tensor.in) &&
        Out::template aligned<vector_width>(tensor.out)) {
      update_tile<true>(tensor, first, across, height, patch, pass);
    } else {
      update_tile<false>(tensor, first, across, height, patch, pass);
    }
  }

  // What has no codes has any layout.
  template <int inputs, int outputs>
  MLX_OPT_FN void strided(const cuda::Strided<inputs, outputs>& args) {
    Pass pass(args.group_uniforms, args.tensor);
    const auto place = [&](Index i, Places& at) {
      Index all[inputs];
      locate(args.layout, i, all);
#pragma unroll
      for (int k = 0; k < operands; ++k) {
        at[k] = all[k];
      }
    };
    update_chunk<false>(args.tensor, static_cast<Index>(blockIdx.x) * chunk, place, pass);
  }

 private:
  // Where an element is in each operand, if all are row-contiguous.
  MLX_OPT_FN void everywhere(Index i, Places& at) {
#pragma unroll
    for (int k = 0; k < operands; ++k) {
      at[k] = i;
    }
  }

  // `place(i, at)`: where element i of the tensor is in each operand.
  template <bool vectors, typename Place>
  MLX_OPT_FN void update_chunk(const Tensor& tensor, Index begin, const Place& place, Pass& pass) {
    const Index remaining = size_of(tensor) - begin;
    const int count = vectors || remaining > chunk ? chunk : static_cast<int>(remaining);
    for (int i = 0; i * elements_of_block < count; i += at_once) {
      const int block = i + threadIdx.x / lanes;
      const Part<vectors> part{
          begin / elements_of_block + block, count - block * elements_of_block};
      update<In>(tensor, part, place, [](Values&) {}, pass);
    }
  }

  // `first`: the tile's first block of codes; `across`: blocks of a row of the tensor.
  template <bool vectors, typename Memory>
  MLX_OPT_FN void update_tile(
      const Tensor& tensor,
      Index first,
      unsigned across,
      int height,
      Memory& gradient,
      Pass& pass) {
    for (int i = 0; i < height; i += at_once) {
      const int row = i + threadIdx.x / lanes;
      const Part<vectors> part{
          first + static_cast<Index>(row) * across, row < height ? elements_of_block : 0};
      const auto get = [&](Values& x) {
        if constexpr (vectors) {
          gradient.get(row, part.column_of(0), x[operands - 1]);
        } else if (part.count > 0) {
#pragma unroll
          for (int lane = 0; lane < vector_width; ++lane) {
            x[operands - 1][lane] = gradient.at(row, part.column_of(lane));
          }
        }
      };
      update<Rows>(tensor, part, everywhere, get, pass);
    }
  }

  // Updates a part of a block. `Loaded`: the formats of the first operands; `get(x)` loads the
  // rest. All threads of a warp must come here.
  template <typename Loaded, typename Part, typename Place, typename Get>
  MLX_OPT_FN void update(
      const Tensor& tensor, const Part& part, const Place& place, const Get& get, Pass& pass) {
    if (!pass.is_applied()) {
      copy_through(tensor, part, place);
      return;
    }
    Values x = {};
    float scale[scales] = {};
    if (part.has(0)) {
#pragma unroll
      for (int s = 0; s < scales; ++s) {
        scale[s] = static_cast<const float*>(tensor.in[Pass::first_scale + s])[part.block];
      }
    }
    load<Loaded>(tensor, part, place, x);
    get(x);
    decode_all(Rows{}, x, scale);
    pass.apply(x);
    int largest[scales];
    measure_all(Out{}, x, part, largest);
#pragma unroll
    for (int s = 0; s < scales; ++s) {
      scale[s] = scale_of_block(largest_of<lanes>(largest[s]));
    }
    encode_all(Out{}, x, scale);
    Pass::Rounding::template round<Out>(tensor, pass.uniforms.step, part.at(0), part.apart, x);
    store(tensor, part, x);
    if (part.begins_block()) {
#pragma unroll
      for (int s = 0; s < scales; ++s) {
        static_cast<float*>(tensor.out[Pass::first_new_scale + s])[part.block] = scale[s];
      }
    }
  }

  template <typename Loaded, typename Part, typename Place>
  MLX_OPT_FN void load(const Tensor& tensor, const Part& part, const Place& place, Values& x) {
    if constexpr (Part::vectors) {
      Loaded::load_all(tensor.in, part.at(0), x);
    } else {
#pragma unroll
      for (int lane = 0; lane < vector_width; ++lane) {
        if (part.has(lane)) {
          Places at;
          float one[operands][1];
          place(part.at(lane), at);
          Loaded::load_each(tensor.in, at, one);
#pragma unroll
          for (int k = 0; k < Loaded::count; ++k) {
            x[k][lane] = one[k][0];
          }
        }
      }
    }
  }

  template <typename Part>
  MLX_OPT_FN void store(const Tensor& tensor, const Part& part, const Values& x) {
    if constexpr (Part::vectors) {
      Out::store_all(tensor.out, part.at(0), x);
    } else {
#pragma unroll
      for (int lane = 0; lane < vector_width; ++lane) {
        if (part.has(lane)) {
          float one[Out::count][1];
#pragma unroll
          for (int k = 0; k < Out::count; ++k) {
            one[k][0] = x[k][lane];
          }
          Out::store_all(tensor.out, part.at(lane), one);
        }
      }
    }
  }

  // Copies what the results replace if the step is skipped.
  template <typename Part, typename Place>
  MLX_OPT_FN void copy_through(const Tensor& tensor, const Part& part, const Place& place) {
#pragma unroll 1
    for (int lane = 0; lane < vector_width && part.has(lane); ++lane) {
      Places at;
      place(part.at(lane), at);
      Rows::template copy_all<Out>(tensor.in, at, tensor.out, part.at(lane));
    }
    if (part.begins_block()) {
#pragma unroll
      for (int s = 0; s < scales; ++s) {
        const void* from = tensor.in[Pass::first_scale + s];
        void* to = tensor.out[Pass::first_new_scale + s];
        copy<Float32, Float32>(from, part.block, to, part.block);
      }
    }
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
