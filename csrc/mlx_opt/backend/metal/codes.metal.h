// Updates of tensors some of whose slots have codes of 8 bits with scales; see rules/codes.h. Metal
// compiles this text after update.metal.h.
#pragma once

namespace mlx_opt {
namespace MLX_OPT_LEVEL {

// The storages of codes, which are loaded and stored as whole numbers.
struct Int8 {
  using Stored = char;
  using Vector = char4;
  using Codes = SignedCodes;

  MLX_OPT_FN float widen(char code) {
    return static_cast<float>(code);
  }
  MLX_OPT_FN char narrow(float code) {
    return static_cast<char>(static_cast<int>(code));
  }
};

struct UInt8 {
  using Stored = uchar;
  using Vector = uchar4;
  using Codes = UnsignedCodes;

  MLX_OPT_FN float widen(uchar code) {
    return static_cast<float>(code);
  }
  MLX_OPT_FN uchar narrow(float code) {
    return static_cast<uchar>(static_cast<int>(code));
  }
};

// What is done with the `count` values of a field: nothing if it has no codes.
template <typename Format>
struct Coding {
  enum : int { scales = 0 };

  template <int count>
  MLX_OPT_FN void decode(thread float*, thread const float*) {}
  template <int count>
  MLX_OPT_FN void measure(thread const float*, uint, thread int*) {}
  template <int count>
  MLX_OPT_FN void encode(thread float*, thread const float*) {}
};

template <typename Format>
struct CodingOf {
  enum : int { scales = 1 };

  template <int count>
  MLX_OPT_FN void decode(thread float* x, thread const float* scale) {
    for (int lane = 0; lane < count; ++lane) {
      x[lane] = Format::Codes::decode(static_cast<int>(x[lane]), *scale);
    }
  }

  // The bits of the largest size of the first `valid` values.
  template <int count>
  MLX_OPT_FN void measure(thread const float* x, uint valid, thread int* largest) {
    *largest = 0;
    for (uint lane = 0; lane < valid; ++lane) {
      *largest = ::metal::max(*largest, size_bits(x[lane]));
    }
  }

  template <int count>
  MLX_OPT_FN void encode(thread float* x, thread const float* scale) {
    const float reciprocal = reciprocal_of(*scale);
    for (int lane = 0; lane < count; ++lane) {
      x[lane] = static_cast<float>(Format::Codes::encode(x[lane], reciprocal));
    }
  }
};

template <>
struct Coding<Int8> : CodingOf<Int8> {};

template <>
struct Coding<UInt8> : CodingOf<UInt8> {};

// The same for `count` values of each field of a list.
template <typename Fields>
struct Codings;

template <typename... Formats>
struct Codings<List<Formats...>> {
  template <int count>
  MLX_OPT_FN void decode(thread float* x, thread const float* scales) {
    int k = 0, s = 0;
    const int done[] = {
        (Coding<Formats>::template decode<count>(x + k++ * count, scales + s),
         s += Coding<Formats>::scales)...};
    static_cast<void>(done);
  }

  template <int count>
  MLX_OPT_FN void measure(thread const float* x, uint valid, thread int* largest) {
    int k = 0, s = 0;
    const int done[] = {
        (Coding<Formats>::template measure<count>(x + k++ * count, valid, largest + s),
         s += Coding<Formats>::scales)...};
    static_cast<void>(done);
  }

  template <int count>
  MLX_OPT_FN void encode(thread float* x, thread const float* scales) {
    int k = 0, s = 0;
    const int done[] = {
        (Coding<Formats>::template encode<count>(x + k++ * count, scales + s),
         s += Coding<Formats>::scales)...};
    static_cast<void>(done);
  }
};

// An update with `scales` slots of codes. A thread updates vector_width adjacent elements, and the
// threads of a block find its largest size together.
template <
    typename Rule,
    typename In,
    typename Gradient,
    typename Out,
    Scaling scaling,
    int scales,
    typename Rounding = Nearest>
struct CodedUpdate {
  using Step = Update<Rule, In, Gradient, Out, scaling, Rounding>;
  using Places = typename Step::Places;
  enum : int { fields = Step::fields, width = vector_width };
  enum : uint { threads_of_block = elements_of_block / width };

  struct Operands {
    typename Step::Operands of_step;
    const device uchar* in[scales]; // of the codes in order
    device uchar* out[scales];
  };

  // The values of a thread's elements, of which the first `valid` are there.
  struct Values {
    float x[fields * width];
    float g[width];
    uint valid;
  };

  // All operands are row-contiguous.
  MLX_OPT_FN void flat(
      Operands at,
      constant Tensor& tensor,
      constant float* group_uniforms,
      uint group,
      uint index,
      threadgroup int* sizes) {
    const Uniforms<Rule> uniforms = uniforms_of<Rule>(group_uniforms, tensor.group);
    at.of_step.rounding_key = tensor.rounding_key;
    const ulong begin = static_cast<ulong>(group - tensor.first_chunk) * chunk;
    const uint count = at_most(tensor.size - begin, chunk);
    for (uint first = 0; first < count; first += threads * width) {
      const uint i = first + index * width;
      const uint valid = i < count ? at_most(count - i, width) : 0u;
      const bool whole = valid == width && tensor.vectors;
      Values values = empty(valid);
      if (whole) {
        const Places places = Step::everywhere(begin + i);
        In::template load<width>(at.of_step.in, places.of, values.x);
        Access<Gradient, width>::load(at.of_step.gradient, begin + i, values.g);
      } else {
        for (uint lane = 0; lane < valid; ++lane) {
          const ulong place = begin + i + lane;
          load_one(at, Step::everywhere(place), place, lane, values);
        }
      }
      update(at, begin + i, values, whole, uniforms, index, sizes);
    }
  }

  // The parameter and the gradient have any layout, and so have slots without codes.
  template <typename Index>
  MLX_OPT_FN void strided(
      Operands at,
      constant Strided<fields + 1>& tensor,
      constant float* group_uniforms,
      uint group,
      uint index,
      threadgroup int* sizes) {
    const Uniforms<Rule> uniforms = uniforms_of<Rule>(group_uniforms, tensor.group);
    at.of_step.rounding_key = tensor.rounding_key;
    const ulong begin = static_cast<ulong>(group) * chunk;
    const uint count = at_most(tensor.size - begin, chunk);
    for (uint first = 0; first < count; first += threads * width) {
      const uint i = first + index * width;
      Values values = empty(i < count ? at_most(count - i, width) : 0u);
      for (uint lane = 0; lane < values.valid; ++lane) {
        long places[fields + 1];
        locate(tensor.layout, static_cast<Index>(begin + i + lane), places);
        Places from;
        for (int k = 0; k < fields; ++k) {
          from.of[k] = static_cast<ulong>(places[k]);
        }
        load_one(at, from, static_cast<ulong>(places[fields]), lane, values);
      }
      update(at, begin + i, values, false, uniforms, index, sizes);
    }
  }

 private:
  MLX_OPT_FN Values empty(uint valid) {
    Values values;
    for (int k = 0; k < fields * width; ++k) {
      values.x[k] = 0.0f;
    }
    for (int lane = 0; lane < width; ++lane) {
      values.g[lane] = 0.0f;
    }
    values.valid = valid;
    return values;
  }

  MLX_OPT_FN void load_one(
      Operands at, Places from, ulong gradient, uint lane, thread Values& values) {
    float one[fields];
    In::template load<1>(at.of_step.in, from.of, one);
    for (int k = 0; k < fields; ++k) {
      values.x[k * width + lane] = one[k];
    }
    Access<Gradient, 1>::load(at.of_step.gradient, gradient, values.g + lane);
  }

  // Updates the elements from `first` on. All threads of the threadgroup must come here.
  MLX_OPT_FN void update(
      Operands at,
      ulong first,
      thread Values& values,
      bool whole,
      Uniforms<Rule> uniforms,
      uint index,
      threadgroup int* sizes) {
    const ulong block = first / elements_of_block;
    const bool writes_scales = values.valid > 0 && index % threads_of_block == 0;
    float of_block[scales];
    for (int s = 0; s < scales; ++s) {
      of_block[s] = 0.0f;
      if (values.valid > 0) {
        Access<Float32, 1>::load(at.in[s], block, of_block + s);
      }
    }
    if (Step::is_applied(uniforms.scale.factor)) {
      int largest[scales];
      Codings<In>::template decode<width>(values.x, of_block);
      Step::template apply<width>(values.x, values.g, uniforms);
      Codings<In>::template measure<width>(values.x, values.valid, largest);
      share(largest, index, sizes);
      for (int s = 0; s < scales; ++s) {
        of_block[s] = scale_of_block(largest[s]);
      }
      Codings<In>::template encode<width>(values.x, of_block);
      Rounding::template round<width>(
          Out{}, values.x, at.of_step.rounding_key, uniforms.step, first);
    }
    if (writes_scales) {
      for (int s = 0; s < scales; ++s) {
        Access<Float32, 1>::store(at.out[s], block, of_block + s);
      }
    }
    store(at, first, values, whole);
  }

  // Replaces sizes by the largest of the threads of a block.
  MLX_OPT_FN void share(thread int* largest, uint index, threadgroup int* sizes) {
    wait_for_group(); // until all have read those of the elements before
    for (uint s = 0; s < scales; ++s) {
      sizes[s * threads + index] = largest[s];
    }
    wait_for_group();
    const uint first = index / threads_of_block * threads_of_block;
    for (uint s = 0; s < scales; ++s) {
      for (uint i = first; i < first + threads_of_block; ++i) {
        largest[s] = ::metal::max(largest[s], sizes[s * threads + i]);
      }
    }
  }

  MLX_OPT_FN void store(Operands at, ulong first, thread const Values& values, bool whole) {
    if (whole) {
      Out::template store<width>(at.of_step.out, first, values.x);
      return;
    }
    for (uint lane = 0; lane < values.valid; ++lane) {
      float one[fields];
      for (int k = 0; k < fields; ++k) {
        one[k] = values.x[k * width + lane];
      }
      Out::template store<1>(at.of_step.out, first + lane, one);
    }
  }
};

} // namespace MLX_OPT_LEVEL
} // namespace mlx_opt
