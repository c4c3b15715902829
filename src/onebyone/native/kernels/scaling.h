// Rows and channels scaled by powers of two, so that each row of Strassen's products keeps an error bound of its own: see
// onebyone/laws/scaling.py.
#pragma once
#include <limits>

#include "convolution.h"

namespace onebyone {
struct Rows {
  const float* at;
  int64_t apart, valid;  // rows from `valid` on are zeros, whatever lies there
};

// |x| as its bits, an integer: these are in the order of the numbers, with infinity above all numbers and NaN above that
constexpr int32_t INFINITE = 0x7f800000, ONE = 127, DIGITS = 23;  // ONE: the exponent of 1, above DIGITS bits of fraction
constexpr int32_t SMALL_ROW = (ONE - 40) << DIGITS, LARGE_ROW = (ONE + 40) << DIGITS, FOURFOLD = 2 << DIGITS;

inline Ints size_of(Vec v) { return reinterpret_cast<const Ints&>(v) & 0x7fffffff; }
inline Ints larger(Ints a, Ints b) { return a > b ? a : b; }

inline int32_t largest(Ints v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32((__m512i)v);
#else
  int32_t most = 0;
  for (int i = 0; i < LANES; i++) most = std::max<int32_t>(most, v[i]);
  return most;
#endif
}

// the largest |x| of n numbers, as its bits
inline int32_t largest(const float* x, int64_t n) {
  Ints one{}, other{};
  int64_t c = 0;
  for (; c + 2 * LANES <= n; c += 2 * LANES) {
    one = larger(one, size_of(load(x + c)));
    other = larger(other, size_of(load(x + c + LANES)));
  }
  for (; c < n; c += LANES) one = larger(one, size_of(load(x + c, n - c)));
  return largest(larger(one, other));
}

// Whether rows i, i + apart, … of x, which meet in sums, may do so as they are: their largest numbers are within a factor
// of four, neither very large nor very small. Zeros, infinities and NaN are not.
inline bool alike(const Rows& x, int64_t i, int64_t apart, int64_t k) {
  int32_t least = LARGE_ROW, most = SMALL_ROW;
  for (bool first = true; i < x.valid; i += apart, first = false) {
    const int32_t size = largest(x.at + i * x.apart, k);
    if (size < SMALL_ROW || size > LARGE_ROW) return false;
    least = first ? size : std::min(least, size);
    most = first ? size : std::max(most, size);
  }
  return most - least <= FOURFOLD;
}

// 2ⁿ for n from -126 to 127
inline float power(int32_t n) {
  const int32_t bits = (n + ONE) << DIGITS;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

// A row of k numbers as it is multiplied: times its channels' scales, if there are any, and the power of two that brings
// its largest number into [1, 2). Gives what its products are to be multiplied by: 0 for a row of zeros; NaN for a row that
// is not finite, which becomes zeros. `to` may be `x`.
inline float scale_row(const float* x, const float* scales, int64_t k, float* to) {
  float back = 1.0f;
  const auto scaled = [&](const float* from, const float* by) {
    const int32_t size = largest(from, k);
    if (!size || size >= INFINITE) {
      std::fill_n(to, k, 0.0f);
      back = size ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
      return false;
    }
    const int32_t exponent = std::clamp((size >> DIGITS) - ONE, -126, 126);  // so that its inverse is no subnormal number
    const float down = power(-exponent);
    back *= power(exponent);
    for (int64_t c = 0; c < k; c += LANES) {
      const int64_t n = k - c;
      const Vec v = load(from + c, n) * down;
      store(to + c, by ? v * load(by + c, n) : v, n);
    }
    return true;
  };
  if (scaled(x, scales) && scales) scaled(to, nullptr);
  return back;
}

// Products of a row that holds infinities or NaN with LANES outputs from j on: only those numbers count, times the signs of
// their weights. `signs`: for each of k numbers a bit for each output, set where the weight is positive; then negative ones.
inline Vec nonfinite_products(const float* x, int64_t k, const uint8_t* signs, int64_t outputs, int64_t j) {
  float sum[LANES] = {};
  const int64_t bytes = parts_of(outputs, 8), n = std::min<int64_t>(LANES, outputs - j);
  for (int64_t c = 0; c < k; c++) {
    if ((reinterpret_cast<const int32_t&>(x[c]) & 0x7fffffff) < INFINITE) continue;
    const uint8_t *positive = signs + c * bytes, *negative = positive + k * bytes;
    for (int64_t i = 0; i < n; i++) {
      const int64_t byte = (j + i) / 8, bit = (j + i) % 8;
      sum[i] += x[c] * (float)((positive[byte] >> bit & 1) - (negative[byte] >> bit & 1));
    }
  }
  return load(sum);
}
}  // namespace onebyone
