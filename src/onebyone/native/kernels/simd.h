// Vectors of the CPU's width and functions on them. GNU vector extensions: no instruction set is required.
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
#include "steps.h"

namespace onebyone {
// LANES: floats of a vector. TILE_ROWS: rows of a register tile, of which each row has two vectors of accumulators
#if defined(__AVX512F__)
constexpr int LANES = 16, TILE_ROWS = 12;  // 24 of 32 registers accumulate
#elif defined(__AVX__)
constexpr int LANES = 8, TILE_ROWS = 6;  // 12 of 16
#else
constexpr int LANES = 4, TILE_ROWS = 6;
#endif
constexpr int PANEL = 2 * LANES;           // columns of a panel of packed weights
constexpr int64_t PREFETCH_FLOATS = 2048;  // how far ahead to prefetch weights that are used only a few times
typedef float Vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline int64_t ceil_div(int64_t n, int64_t divisor) { return (n + divisor - 1) / divisor; }

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
// A store that another thread may repeat with the same numbers, where the last vector of a row overlaps the one before.
// That is harmless, so ThreadSanitizer must not report it.
#if defined(__SANITIZE_THREAD__)
__attribute__((no_sanitize("thread"), noinline))
#endif
inline void store_overlapping(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
inline Vec broadcast(float x) { return x - Vec{}; }

// the first n lanes, or all of them if n is at least LANES; memory behind them is not read or written
inline Vec load(const float* p, int64_t n) {
  if (n >= LANES) return load(p);
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
  float lanes[LANES] = {};
  for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
  return load(lanes);
#endif
}
inline void store(float* p, Vec v, int64_t n) {
  if (n >= LANES) return store(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  float lanes[LANES];
  store(lanes, v);
  for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
#endif
}

// max(x, 0), max(x, y) and min(x, y) that propagate NaN, as PyTorch's do; `minimum` only that of its first operand. Each
// is one instruction, except `maximum`
inline Vec relu(Vec v) { return Vec{} > v ? Vec{} : v; }
inline Vec maximum(Vec v, Vec w) { return (v > w) | (v != v) ? v : w; }
inline Vec minimum(Vec v, Vec w) { return w < v ? w : v; }

// the nearest integer, and p·2ⁿ
inline Vec round_to_integer(Vec x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_roundscale_ps((__mmask16)-1, (__m512)x, 0);
#else
  const Vec magic = broadcast(12582912.0f);  // 1.5·2²³: adding it rounds to an integer
  return (x + magic) - magic;
#endif
}
inline Vec times_power_of_two(Vec p, Vec n) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_scalef_ps((__mmask16)-1, (__m512)p, (__m512)n);
#else
  const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  return p * reinterpret_cast<const Vec&>(power);
#endif
}

// 2^(x + low) for x from -126 to 127, within one or two units in the last place; low is the part of the argument that
// rounding took from x. It is 2ⁿ·2ʳ with n = ⌊x⌋. The polynomial for 2ʳ on [0, 1] was fitted by least squares of the
// relative error at Chebyshev nodes, reweighted until the errors were equal
inline Vec power_of_two(Vec x, Vec low = Vec{}) {
#if defined(__AVX512DQ__)
  // times_power_of_two rounds n = x down by itself
  const Vec n = x, r = (Vec)_mm512_maskz_reduce_ps((__mmask16)-1, (__m512)x, 1) + low;
#else
  const Vec n = round_to_integer(x - 0.5f), r = x - n + low;
#endif
  Vec p = broadcast(1.87757669e-3f);
  p = p * r + 8.98934063e-3f;
  p = p * r + 5.58263175e-2f;
  p = p * r + 0.240153611f;
  p = p * r + 0.693153024f;
  p = p * r + 0.99999994f;
  return times_power_of_two(p, n);
}

// eˣ within one or two units in the last place, as 2^(x·log₂e) with the rounding error of the product; infinity where
// float32 overflows. log₂e = LONG + REST and LONG = HEAD + TAIL; HEAD is so short that its products with integers are exact
inline Vec exponential(Vec x) {
  constexpr float LONG = 1.44269502162933349609f, REST = 1.92596303350e-8f;
#if defined(__AVX512DQ__)
  // these instructions return their second operand if either is NaN
  x = (Vec)_mm512_max_ps((__m512)broadcast(-120.0f), _mm512_min_ps((__m512)broadcast(89.0f), (__m512)x));
  const Vec t = x * LONG, lost = (Vec)_mm512_maskz_fmsub_ps((__mmask16)-1, (__m512)x, (__m512)broadcast(LONG), (__m512)t);
#else
  x = maximum(minimum(x, broadcast(89.0f)), broadcast(-87.0f));
  constexpr float HEAD = 1.442626953125f, TAIL = LONG - HEAD;
  const Vec integer = round_to_integer(x), large = integer * HEAD, small = (x - integer) * LONG;
  const Vec t = large + small, lost = (large - t) + small + integer * TAIL;
#endif
  return power_of_two(t, x * REST + lost);
}

// x / y within one or two units in the last place
inline Vec quotient(Vec x, Vec y) {
#if defined(__AVX512F__)
  Vec reciprocal = (Vec)_mm512_maskz_rcp14_ps((__mmask16)-1, (__m512)y);
  return x * (reciprocal * (2.0f - y * reciprocal));  // one Newton step costs less than a division
#else
  return x / y;
#endif
}

inline Vec clamped(Vec v, float upper) { return minimum(relu(v), broadcast(upper)); }

// a GELU with its value for x below -10: 0 (its size is less than 10⁻²²), and NaN for -∞, as in PyTorch
inline Vec with_lower_tail(Vec x, Vec gelu) { return x < -10.0f ? x * 0.0f : gelu; }

// x·Φ(x) = max(x, 0) - |x|·Φ(-|x|), where Φ(-t) = 2^q(t). q was fitted in the same way on [0, 9], with q(0) = -1, to an
// error of 2⁻²⁶ in Φ(-t) and the rounding of q itself
inline Vec gelu(Vec x) {
  const Ints magnitude = reinterpret_cast<const Ints&>(x) & 0x7fffffff;
  Vec t = reinterpret_cast<const Vec&>(magnitude);
  t = t < 10.0f ? t : broadcast(10.0f);  // q(10) = -119
  Vec q = broadcast(-2.4433946e-6f);
  q = q * t + 3.4923443e-5f;
  q = q * t - 1.6636033e-4f;
  q = q * t - 1.8091779e-4f;
  q = q * t + 7.114799e-3f;
  q = q * t - 5.2526746e-2f;
  q = q * t - 4.5920005e-1f;
  q = q * t - 1.1511059f;
  q = q * t - 1.0f;
  return with_lower_tail(x, relu(x) - t * power_of_two(q));
}

// PyTorch's tanh approximation: x·½(1 + tanh u) = x / (1 + e⁻²ᵘ) with u = √(2/π)·(x + 0.044715·x³). Beyond 10 it is x, and
// the argument is clamped so that neither the cube nor the exponential overflows
inline Vec gelu_tanh(Vec x) {
  const Vec v = maximum(x, broadcast(-10.0f)), w = minimum(v, broadcast(10.0f));
  constexpr float TWICE = 1.5957691216057308f;  // 2·√(2/π)
  return with_lower_tail(x, quotient(v, 1.0f + exponential(w * (w * w * (-TWICE * 0.044715f) - TWICE))));
}

inline Vec activated(Vec v, int64_t kind) {
  if (kind == NONE) return v;  // these two cost less than the switch
  if (kind == RELU) return relu(v);
  switch (kind) {
    case RELU6: return clamped(v, 6.0f);
    case HARDSWISH: return v * clamped(v + 3.0f, 6.0f) * (1.0f / 6.0f);
    case HARDSIGMOID: return clamped(v + 3.0f, 6.0f) * (1.0f / 6.0f);
    case SILU: return v / (1.0f + exponential(-v));
    case SIGMOID: return 1.0f / (1.0f + exponential(-v));
    case GELU: return gelu(v);
    case GELU_TANH: return gelu_tanh(v);
    default: return v;
  }
}

// calls `work` with n as a compile-time constant: a std::integral_constant between FIRST and LAST
template <int FIRST, int LAST, class Work>
inline void with_constant(int64_t n, const Work& work) {
  if (n == LAST) return work(std::integral_constant<int, LAST>{});
  if constexpr (LAST > FIRST) with_constant<FIRST, LAST - 1>(n, work);
}
template <int MOST = TILE_ROWS, class Work>
inline void with_rows(int64_t n, const Work& work) {
  with_constant<1, MOST>(n, work);
}

// the activation of many vectors, selected once
__attribute__((noinline)) inline void activate(Vec* v, int64_t n, int64_t kind) {
  with_constant<NONE, GELU_TANH>(kind, [&](auto known) {
    for (int64_t i = 0; i < n; i++) v[i] = activated(v[i], known());
  });
}

// memory that is kept from call to call: fresh memory costs a page fault every 4 KiB
struct Buffer {
  std::unique_ptr<float[]> floats;
  int64_t size = 0;
  float* of(int64_t wanted) {
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
