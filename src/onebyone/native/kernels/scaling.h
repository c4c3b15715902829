// Scaling rows and channels by powers of two, so that each row of a Strassen product keeps its own error bound: see
// onebyone/laws/scaling.py.
#pragma once
#include <limits>

#include "convolution.h"

namespace onebyone {
// rows of numbers in memory; rows from `valid` on count as zeros, whatever that memory holds
struct Rows {
  const float* begin;
  int64_t stride, valid;
};

// The bits of |x| as an integer are ordered like the numbers, with infinity above every number and NaN above that.
// EXPONENT_BIAS is the exponent field of 1.0, above FRACTION_BITS bits of fraction
constexpr int32_t INFINITY_BITS = 0x7f800000, EXPONENT_BIAS = 127, FRACTION_BITS = 23;
constexpr int32_t SMALL_ROW = (EXPONENT_BIAS - 40) << FRACTION_BITS, LARGE_ROW = (EXPONENT_BIAS + 40) << FRACTION_BITS;
constexpr int32_t FACTOR_4 = 2 << FRACTION_BITS;

inline Ints magnitude_bits(Vec v) { return reinterpret_cast<const Ints&>(v) & 0x7fffffff; }
inline Ints maximum(Ints a, Ints b) { return a > b ? a : b; }

inline int32_t largest(Ints v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32((__m512i)v);
#else
  int32_t most = 0;
  for (int i = 0; i < LANES; i++) most = std::max<int32_t>(most, v[i]);
  return most;
#endif
}

// the bits of the largest |x| of n numbers
inline int32_t largest_magnitude(const float* x, int64_t n) {
  Ints one{}, other{};
  int64_t c = 0;
  for (; c + 2 * LANES <= n; c += 2 * LANES) {
    one = maximum(one, magnitude_bits(load(x + c)));
    other = maximum(other, magnitude_bits(load(x + c + LANES)));
  }
  for (; c < n; c += LANES) one = maximum(one, magnitude_bits(load(x + c, n - c)));
  return largest(maximum(one, other));
}

// Whether rows i, i + distance, … of x may be added as they are: their largest numbers are within a factor of four of each
// other, and neither very large nor very small. False for rows of zeros, and for infinities and NaN
inline bool may_be_added(const Rows& x, int64_t i, int64_t distance, int64_t k) {
  int32_t least = LARGE_ROW, most = SMALL_ROW;
  for (bool first = true; i < x.valid; i += distance, first = false) {
    const int32_t size = largest_magnitude(x.begin + i * x.stride, k);
    if (size < SMALL_ROW || size > LARGE_ROW) return false;
    least = first ? size : std::min(least, size);
    most = first ? size : std::max(most, size);
  }
  return most - least <= FACTOR_4;
}

// 2ⁿ for n from -126 to 127
inline float power_of_two(int32_t n) {
  const int32_t bits = (n + EXPONENT_BIAS) << FRACTION_BITS;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

// Multiplies a row of k numbers by its channels' scales, if there are any, and by the power of two that brings its largest
// number into [1, 2). Returns the factor that undoes this in the row's products: 0 for a row of zeros; NaN for a row that
// is not finite, which becomes zeros. `to` may be `x`
inline float scale_row(const float* x, const float* channel_scales, int64_t k, float* to) {
  float inverse = 1.0f;
  const auto normalised = [&](const float* from, const float* factors) {
    const int32_t size = largest_magnitude(from, k);
    if (!size || size >= INFINITY_BITS) {
      std::fill_n(to, k, 0.0f);
      inverse = size ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
      return false;
    }
    // clamped so that the inverse is not a subnormal number
    const int32_t exponent = std::clamp((size >> FRACTION_BITS) - EXPONENT_BIAS, -126, 126);
    const float factor = power_of_two(-exponent);
    inverse *= power_of_two(exponent);
    for (int64_t c = 0; c < k; c += LANES) {
      const int64_t n = k - c;
      const Vec v = load(from + c, n) * factor;
      store(to + c, factors ? v * load(factors + c, n) : v, n);
    }
    return true;
  };
  if (normalised(x, channel_scales) && channel_scales) normalised(to, nullptr);
  return inverse;
}

// The products of a row that holds infinities or NaN, for LANES outputs from j on: the sum of those numbers times the
// signs of their weights. `signs` has a bit for each of k numbers and each output, set where the weight is positive;
// behind them the same for negative weights
inline Vec nonfinite_products(const float* x, int64_t k, const uint8_t* signs, int64_t outputs, int64_t j) {
  float sum[LANES] = {};
  const int64_t bytes = ceil_div(outputs, 8), n = std::min<int64_t>(LANES, outputs - j);
  for (int64_t c = 0; c < k; c++) {
    if ((reinterpret_cast<const int32_t&>(x[c]) & 0x7fffffff) < INFINITY_BITS) continue;
    const uint8_t *positive = signs + c * bytes, *negative = positive + k * bytes;
    for (int64_t i = 0; i < n; i++) {
      const int64_t byte = (j + i) / 8, bit = (j + i) % 8;
      sum[i] += x[c] * (float)((positive[byte] >> bit & 1) - (negative[byte] >> bit & 1));
    }
  }
  return load(sum);
}
}  // namespace onebyone
