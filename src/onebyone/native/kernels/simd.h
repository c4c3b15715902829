// Vectors as wide as the processor's, and what is done with them. GNU's vector extensions: no instruction set is named.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace onebyone {
#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 12;  // 24 of 32 registers accumulate
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 6;  // 12 of 16
#else
constexpr int LANES = 4, ROWS = 6;
#endif
constexpr int PANEL = 2 * LANES;
constexpr int64_t SOON = 2048;  // floats: how far ahead weights are asked for that each is used but a few times
typedef float Vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
// where the last vector of a row overlaps the one before, two threads may write the same numbers: no fault, and so nothing
// for ThreadSanitizer to report
#if defined(__SANITIZE_THREAD__)
__attribute__((no_sanitize("thread"), noinline))
#endif
inline void store_same(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
inline Vec all(float x) { return x - Vec{}; }

// the first n of a vector, where fewer are there
inline Vec load(const float* p, int64_t n) {
  if (n >= LANES) return load(p);
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
  float kept[LANES] = {};
  for (int64_t i = 0; i < n; i++) kept[i] = p[i];
  return load(kept);
#endif
}
inline void store(float* p, Vec v, int64_t n) {
  if (n >= LANES) return store(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  float kept[LANES];
  store(kept, v);
  for (int64_t i = 0; i < n; i++) p[i] = kept[i];
#endif
}

// max(x, 0), max(x, y) and min(x, y) as PyTorch has them: NaN stays. One instruction each, but for `larger`
inline Vec positive(Vec v) { return Vec{} > v ? Vec{} : v; }
inline Vec larger(Vec v, Vec w) { return (v > w) | (v != v) ? v : w; }
inline Vec smaller(Vec v, Vec w) { return w < v ? w : v; }  // of v; w is a number

// the nearest whole number, and p·2ⁿ
inline Vec rounded(Vec x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_roundscale_ps((__mmask16)-1, (__m512)x, 0);
#else
  const Vec magic = all(12582912.0f);  // 1.5·2²³: adding it rounds to a whole number
  return (x + magic) - magic;
#endif
}
inline Vec times_power(Vec p, Vec n) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_scalef_ps((__mmask16)-1, (__m512)p, (__m512)n);
#else
  const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  return p * reinterpret_cast<const Vec&>(power);
#endif
}

// 2^(x + low) for x from -126 to 127, to a unit or two in the last place, where low is what rounding took from x: 2ⁿ·2ʳ
// with n = ⌊x⌋, and 2ʳ on [0, 1] by a polynomial fitted by least squares of relative errors at Chebyshev's nodes, weighted
// anew until they levelled out
inline Vec power_of_two(Vec x, Vec low = Vec{}) {
#if defined(__AVX512DQ__)
  const Vec n = x, r = (Vec)_mm512_maskz_reduce_ps((__mmask16)-1, (__m512)x, 1) + low;  // `times_power` takes ⌊n⌋
#else
  const Vec n = rounded(x - 0.5f), r = x - n + low;
#endif
  Vec p = all(1.87757669e-3f);
  p = p * r + 8.98934063e-3f;
  p = p * r + 5.58263175e-2f;
  p = p * r + 0.240153611f;
  p = p * r + 0.693153024f;
  p = p * r + 0.99999994f;
  return times_power(p, n);
}

// eˣ to as much: 2^(x·log₂e), with what rounding takes from the product; infinity where float32 overflows. log₂e = LONG + REST and LONG = HEAD + TAIL, HEAD of so few digits that whole numbers times it are exact
inline Vec exponential(Vec x) {
  constexpr float LONG = 1.44269502162933349609f, REST = 1.92596303350e-8f;
#if defined(__AVX512DQ__)
  // NaN where x is: of two, these give the second
  x = (Vec)_mm512_max_ps((__m512)all(-120.0f), _mm512_min_ps((__m512)all(89.0f), (__m512)x));
  const Vec t = x * LONG, lost = (Vec)_mm512_maskz_fmsub_ps((__mmask16)-1, (__m512)x, (__m512)all(LONG), (__m512)t);
#else
  x = larger(smaller(x, all(89.0f)), all(-87.0f));
  constexpr float HEAD = 1.442626953125f, TAIL = LONG - HEAD;
  const Vec whole = rounded(x), large = whole * HEAD, small = (x - whole) * LONG;
  const Vec t = large + small, lost = (large - t) + small + whole * TAIL;
#endif
  return power_of_two(t, x * REST + lost);
}

// x / y to a unit in the last place or two
inline Vec quotient(Vec x, Vec y) {
#if defined(__AVX512F__)
  Vec near = (Vec)_mm512_maskz_rcp14_ps((__mmask16)-1, (__m512)y);
  return x * (near * (2.0f - y * near));  // with a step of Newton's it costs less than a division
#else
  return x / y;
#endif
}

enum Activation { NONE, RELU, RELU6, HARDSWISH, HARDSIGMOID, SILU, SIGMOID, GELU, GELU_TANH };

inline Vec clipped(Vec v, float most) { return smaller(positive(v), all(most)); }

// what a GELU gives for x: 0 below -10, where it is less than 10⁻²² in size, and NaN of -∞, as PyTorch has it
inline Vec with_far_tail(Vec x, Vec gelu) { return x < -10.0f ? x * 0.0f : gelu; }

// x·Φ(x) = max(x, 0) - |x|·Φ(-|x|), and Φ(-t) = 2^q(t), where q was fitted likewise on [0, 9], with q(0) = -1, to 2⁻²⁶
// in Φ(-t) and the rounding of q itself
inline Vec gelu(Vec x) {
  const Ints size = reinterpret_cast<const Ints&>(x) & 0x7fffffff;
  Vec t = reinterpret_cast<const Vec&>(size);
  t = t < 10.0f ? t : all(10.0f);  // q(10) = -119
  Vec q = all(-2.4433946e-6f);
  q = q * t + 3.4923443e-5f;
  q = q * t - 1.6636033e-4f;
  q = q * t - 1.8091779e-4f;
  q = q * t + 7.114799e-3f;
  q = q * t - 5.2526746e-2f;
  q = q * t - 4.5920005e-1f;
  q = q * t - 1.1511059f;
  q = q * t - 1.0f;
  return with_far_tail(x, positive(x) - t * power_of_two(q));
}

// PyTorch's tanh approximation: x·½(1 + tanh u) = x / (1 + e⁻²ᵘ), u = √(2/π)·(x + 0.044715·x³); beyond 10 it is x: neither
// the cube nor the exponential overflows
inline Vec gelu_tanh(Vec x) {
  const Vec v = larger(x, all(-10.0f)), w = smaller(v, all(10.0f));
  constexpr float TWICE = 1.5957691216057308f;  // 2·√(2/π)
  return with_far_tail(x, quotient(v, 1.0f + exponential(w * (w * w * (-TWICE * 0.044715f) - TWICE))));
}

inline Vec activated(Vec v, int64_t kind) {
  if (kind == NONE) return v;  // the two that cost less than a switch
  if (kind == RELU) return positive(v);
  switch (kind) {
    case RELU6: return clipped(v, 6.0f);
    case HARDSWISH: return v * clipped(v + 3.0f, 6.0f) * (1.0f / 6.0f);
    case HARDSIGMOID: return clipped(v + 3.0f, 6.0f) * (1.0f / 6.0f);
    case SILU: return v / (1.0f + exponential(-v));
    case SIGMOID: return 1.0f / (1.0f + exponential(-v));
    case GELU: return gelu(v);
    case GELU_TANH: return gelu_tanh(v);
    default: return v;
  }
}

// calls work with a number that the compiler knows: a std::integral_constant
template <int LEAST, int MOST, class Work>
inline void with_number(int64_t n, const Work& work) {
  if (n == MOST) return work(std::integral_constant<int, MOST>{});
  if constexpr (MOST > LEAST) with_number<LEAST, MOST - 1>(n, work);
}
template <int MOST = ROWS, class Work>
inline void with_rows(int64_t n, const Work& work) {
  with_number<1, MOST>(n, work);
}

// the activation of many vectors, chosen once
__attribute__((noinline)) inline void activate(Vec* v, int64_t n, int64_t kind) {
  with_number<NONE, GELU_TANH>(kind, [&](auto known) {
    for (int64_t i = 0; i < n; i++) v[i] = activated(v[i], known());
  });
}

struct Buffer {
  std::unique_ptr<float[]> floats;
  int64_t size = 0;
  float* of(int64_t wanted) {  // kept from call to call: fresh memory costs a page fault every 4 KiB
    if (wanted > size) {
      floats.reset();
      size = 0;
      floats.reset(new (std::nothrow) float[wanted]);
      if (!floats) return nullptr;
      size = wanted;
    }
    return floats.get();
  }
};
}  // namespace onebyone
