// The product of rows with few weights: vectors run over the numbers of a row instead of the outputs, which would fill only
// a part of a vector.
#pragma once
#include "simd.h"

namespace onebyone {
// rows and outputs of a register tile: each pair has one vector of partial sums
constexpr int FEW_ROWS = TILE_ROWS / 2, FEW_OUTPUTS = 4;

// the sum of all lanes, in pairs: the rounding error grows with the logarithm of their number
inline float sum_of_lanes(Vec v) {
  float lanes[LANES];
  store(lanes, v);
  for (int n = LANES / 2; n; n /= 2)
    for (int i = 0; i < n; i++) lanes[i] += lanes[i + n];
  return lanes[0];
}

// N rows times O outputs, each `taps` runs of `length` numbers; the weights of an output are `taps` · `length` numbers, one
// output after another. `rows` has TILE_ROWS pointers for each tap
template <int N, int O>
inline void multiply_few(const float* const* rows, int64_t taps, int64_t length, const float* weight, const float* bias,
                         const float* addend, float* y, int64_t stride, int64_t activation) {
  Vec total[N][O] = {};
  for (int64_t t = 0; t < taps; t++) {
    const float *x[N], *w[O];
    for (int r = 0; r < N; r++) x[r] = rows[t * TILE_ROWS + r];
    for (int o = 0; o < O; o++) w[o] = weight + (o * taps + t) * length;
    const auto add = [&](int64_t c, int64_t n) __attribute__((always_inline)) {  // the next n lanes
      Vec u[O];
      for (int o = 0; o < O; o++) u[o] = load(w[o] + c, n);
#pragma GCC unroll 12
      for (int r = 0; r < N; r++) {
        const Vec v = load(x[r] + c, n);
        for (int o = 0; o < O; o++) total[r][o] += v * u[o];
      }
    };
    int64_t c = 0;
    for (; c + LANES <= length; c += LANES) add(c, LANES);
    if (c < length) add(c, length - c);
  }
  for (int r = 0; r < N; r++) {
    Vec sum = bias ? load(bias, O) : Vec{};
    for (int o = 0; o < O; o++) sum[o] += sum_of_lanes(total[r][o]);
    if (addend) sum += load(addend + r * stride, O);
    store(y + r * stride, activated(sum, activation), O);
  }
}

// n rows, and `outputs` of at most FEW_OUTPUTS outputs
inline void multiply_few_outputs(const float* const* rows, int64_t n, int64_t outputs, int64_t taps, int64_t length,
                                 const float* weight, const float* bias, const float* addend, float* y, int64_t stride,
                                 int64_t activation) {
  with_constant<1, FEW_OUTPUTS>(outputs, [&](auto columns) {
    for (int64_t r = 0, left = ceil_div(n, FEW_ROWS); r < n; left--) {
      const int64_t tile = ceil_div(n - r, left), at = r * stride;
      with_rows<FEW_ROWS>(tile, [&](auto count) {
        multiply_few<count(), columns()>(rows + r, taps, length, weight, bias, addend ? addend + at : nullptr, y + at,
                                         stride, activation);
      });
      r += tile;
    }
  });
}
}  // namespace onebyone
