// Convolutions, depthwise convolutions, pools and elementwise operations on channels-last float32 maps. Every function is
// called by all threads of a parallel region, and ends with a barrier.
#pragma once
#include <limits>
#include "threads.h"
#include "few_outputs.h"
#include "red_zones.h"

namespace onebyone {
constexpr int64_t MIN_ROWS_PER_THREAD = 16;  // with fewer, the threads share the weights instead of the rows
constexpr int MAX_TAPS = 64;
constexpr int64_t FEW_WEIGHTS = 1 << 18;  // floats: what fits a core's second-level cache beside the rows

// N rows of the input times one panel of the weights; each tap has its own row pointers, and the sums stay in registers
// over all taps
template <int N, int VECTORS>
inline void multiply_taps(const float* const* rows, int64_t taps, int64_t length, const float* w, const float* bias,
                          const float* addend, float* y, int64_t stride, int64_t columns, int64_t activation) {
  Vec total[N][VECTORS];
  for (int v = 0; v < VECTORS; v++) {
    const Vec offset = bias ? load(bias + v * LANES) : Vec{};
    for (int r = 0; r < N; r++) total[r][v] = offset;
  }
  for (int64_t t = 0; t < taps; t++) {
    const float* x[N];
    for (int r = 0; r < N; r++) x[r] = rows[t * TILE_ROWS + r];
    for (int64_t c = 0; c < length; c++, w += PANEL) {
      Vec u[VECTORS];
      for (int v = 0; v < VECTORS; v++) u[v] = load(w + v * LANES);
#pragma GCC unroll 12
      for (int r = 0; r < N; r++)
        for (int v = 0; v < VECTORS; v++) total[r][v] += x[r][c] * u[v];
    }
  }
  for (int r = 0; r < N; r++)
    for (int v = 0; v < VECTORS; v++) {
      const int64_t at = r * stride + v * LANES, n = columns - v * LANES;
      if (addend) total[r][v] += load(addend + at, n);
      store(y + at, activated(total[r][v], activation), n);
    }
}

// a convolution as products of rows with panels of weights, for up to TILE_ROWS rows of the output at a time
struct Convolution {
  const ConvolutionStep& s;
  const float* zeros;
  const int64_t rows, columns, panels;  // `columns` outputs are computed together
  const bool whole_rows;
  const int64_t taps, length;  // a tap is a position of the kernel or, with whole_rows, a row of it
  const bool pointwise;

  Convolution(const ConvolutionStep& step, const float* zero_row)
      : s(step), zeros(zero_row), rows(s.samples * s.out_height * s.out_width),
        columns(s.few_outputs ? FEW_OUTPUTS : PANEL), panels(ceil_div(s.out_channels, columns)),
        whole_rows(s.whole_rows), taps(whole_rows ? s.window.kernel_h : s.window.kernel_h * s.window.kernel_w),
        length(whole_rows ? s.window.kernel_w * s.channels : s.channels),
        pointwise(taps == 1 && s.window.stride_h == 1 && s.window.stride_w == 1 && !s.window.pad_h &&
                  !s.window.pad_w && !whole_rows) {}

  // where the rows of the input begin that n rows of the output read, for each tap; positions in the padding read zeros
  void find(int64_t row, int64_t n, const float** from) const {
    if (pointwise) {
      for (int64_t r = 0; r < n; r++) from[r] = s.input + (row + r) * length;
      return;
    }
    const SlidingWindow& w = s.window;
    int64_t sample = row / (s.out_height * s.out_width), oy = row / s.out_width % s.out_height, ox = row % s.out_width;
    for (int64_t r = 0; r < n; r++) {
      const int64_t top = oy * w.stride_h - w.pad_h, left = ox * w.stride_w - w.pad_w;
      const float* image = s.input + sample * s.height * s.width * s.channels;
      for (int64_t ky = 0, t = 0; ky < w.kernel_h; ky++) {
        const int64_t y = top + ky * w.dilation_h;
        if (whole_rows) {
          from[t++ * TILE_ROWS + r] = image + (y * s.width + left) * s.channels;
          continue;
        }
        for (int64_t kx = 0; kx < w.kernel_w; kx++) {
          const int64_t x = left + kx * w.dilation_w;
          const bool inside = y >= 0 && y < s.height && x >= 0 && x < s.width;
          from[t++ * TILE_ROWS + r] = inside ? image + (y * s.width + x) * s.channels : zeros;
        }
      }
      if (++ox == s.out_width) {
        ox = 0;
        if (++oy == s.out_height) oy = 0, sample++;
      }
    }
  }

  void multiply(int64_t row, int64_t n, int64_t panel, const float* const* from) const {
    const int64_t first = panel * columns, outputs = std::min(columns, s.out_channels - first);
    const float* w = s.weight + first * taps * length;
    const float* bias = s.bias ? s.bias + first : nullptr;
    const int64_t offset = row * s.out_channels + first;
    const float* addend = s.addend ? s.addend + offset : nullptr;
    float* y = s.output + offset;
    if (s.few_outputs)
      return multiply_few_outputs(from, n, outputs, taps, length, w, bias, addend, y, s.out_channels, s.activation);
    with_rows(n, [&](auto count) {
      const auto product = outputs > LANES ? multiply_taps<count(), 2> : multiply_taps<count(), 1>;
      product(from, taps, length, w, bias, addend, y, s.out_channels, outputs, s.activation);
    });
  }

  // rows [begin, end) of the output with panels [first, last)
  void part(int64_t begin, int64_t end, int64_t first, int64_t last) const {
    const float* from[MAX_TAPS * TILE_ROWS];
    for (int64_t row = begin, n; row < end; row += n) {
      const int64_t left = end - row;
      n = left <= TILE_ROWS ? left : ceil_div(left, ceil_div(left, TILE_ROWS));
      find(row, n, from);
      for (int64_t panel = first; panel < last; panel++) multiply(row, n, panel, from);
    }
  }
};

inline void convolution(const ConvolutionStep& s, const float* zeros, const Team& team) {
  const Convolution c(s, zeros);
  const bool separate = c.rows >= MIN_ROWS_PER_THREAD * team.size;  // each thread computes its own rows
  const int64_t begin = separate ? team.begin(c.rows) : 0, rows = separate ? team.end(c.rows) - begin : c.rows;
  const int64_t blocks = ceil_div(rows, 4 * TILE_ROWS);
  const auto block = [&](int64_t b, int64_t panel) {  // the weights are read once, the rows for each panel
    c.part(begin + rows * b / blocks, begin + rows * (b + 1) / blocks, panel, panel + 1);
  };
  if (separate && c.taps * c.length * s.out_channels <= FEW_WEIGHTS) {
    c.part(begin, begin + rows, 0, c.panels);
  } else if (separate) {
    for (int64_t panel = 0; panel < c.panels; panel++)
      for (int64_t b = 0; b < blocks; b++) block(b, panel);
  } else {
    return team.share(blocks * c.panels, [&](int64_t u) { block(u % blocks, u / blocks); });
  }
  team.wait();
}

// the first channel of vector i; the last vector overlaps the one before if the channels are not whole vectors
inline int64_t vector_begin(int64_t i, int64_t channels) { return std::min(i * LANES, channels - LANES); }

constexpr int NEIGHBOURS = 7;  // positions of a row of the output that are computed together and share loaded weights

// One vector of channels at NEIGHBOURS positions. For common kernel widths K and strides S, `from` has the positions that
// each row of the kernel reads, each once. With K = 0 it has NEIGHBOURS positions for each tap
template <int K, int S>
inline void depthwise_positions(const DepthwiseStep& s, const float* const* from, int64_t c, Vec* total) {
  constexpr int SPAN = (NEIGHBOURS - 1) * S + K;
  const Vec offset = s.bias ? load(s.bias + c) : Vec{};
  Vec sum[NEIGHBOURS] = {offset, offset, offset, offset, offset, offset, offset};
  const float* weight = s.weight + c;
  if constexpr (K > 0) {
    for (int64_t ky = 0; ky < s.window.kernel_h; ky++, from += SPAN, weight += K * s.channels) {
      Vec w[K];
#pragma GCC unroll 8
      for (int kx = 0; kx < K; kx++) w[kx] = load(weight + kx * s.channels);
#pragma GCC unroll 24
      for (int j = 0; j < SPAN; j++) {
        const Vec x = load(from[j] + c);
#pragma GCC unroll 8
        for (int i = 0; i < NEIGHBOURS; i++)
          if (j >= i * S && j < i * S + K) sum[i] += x * w[j - i * S];
      }
    }
  } else {
    const int64_t taps = s.window.kernel_h * s.window.kernel_w;
    for (int64_t t = 0; t < taps; t++, from += NEIGHBOURS, weight += s.channels) {
      const Vec w = load(weight);
#pragma GCC unroll 8
      for (int i = 0; i < NEIGHBOURS; i++) sum[i] += load(from[i] + c) * w;
    }
  }
  for (int i = 0; i < NEIGHBOURS; i++) total[i] = sum[i];
}

template <int K, int S>
inline void depthwise_of(const DepthwiseStep& s, const float* zeros, const Team& team) {
  const SlidingWindow& w = s.window;
  const int64_t vectors = ceil_div(s.channels, LANES), units = s.samples * s.out_height * vectors;
  const int64_t reads = K > 0 ? (NEIGHBOURS - 1) * S + K : w.kernel_w * NEIGHBOURS;  // for a row of the kernel
  for (int64_t u = team.begin(units), end = team.end(units), next; u < end; u = next) {
    const int64_t line = u / vectors, sample = line / s.out_height, oy = line % s.out_height;
    next = std::min(end, (line + 1) * vectors);
    const float* image = s.input + sample * s.height * s.width * s.channels;
    for (int64_t x = 0; x < s.out_width; x += NEIGHBOURS) {
      // the last positions overlap those before if the row is not a multiple of NEIGHBOURS
      const int64_t ox = std::max<int64_t>(0, std::min(x, s.out_width - NEIGHBOURS));
      const int64_t n = std::min<int64_t>(NEIGHBOURS, s.out_width);
      const float* from[MAX_TAPS * NEIGHBOURS];
      for (int64_t ky = 0; ky < w.kernel_h; ky++) {
        const int64_t h = oy * w.stride_h - w.pad_h + ky * w.dilation_h, left = ox * w.stride_w - w.pad_w;
        const bool inside = h >= 0 && h < s.height;
        for (int64_t j = 0; j < reads; j++) {
          const int64_t v = left + (K > 0 ? j : j % NEIGHBOURS * w.stride_w + j / NEIGHBOURS * w.dilation_w);
          from[ky * reads + j] = inside && v >= 0 && v < s.width ? image + (h * s.width + v) * s.channels : zeros;
        }
      }
      float* to = s.output + (line * s.out_width + ox) * s.channels;
      for (int64_t i = u - line * vectors; i < next - line * vectors; i++) {
        const int64_t c = vector_begin(i, s.channels);
        Vec total[NEIGHBOURS];
        depthwise_positions<K, S>(s, from, c, total);
        if (s.activation) activate(total, NEIGHBOURS, s.activation);
        for (int64_t j = 0; j < n; j++) store_overlapping(to + j * s.channels + c, total[j]);
      }
    }
  }
  team.wait();
}

inline void depthwise(const DepthwiseStep& s, const float* zeros, const Team& team) {
  const auto is = [&](int64_t kernel, int64_t stride) {
    return s.window.kernel_w == kernel && s.window.stride_w == stride && s.window.dilation_w == 1;
  };
  if (is(3, 1)) return depthwise_of<3, 1>(s, zeros, team);
  if (is(3, 2)) return depthwise_of<3, 2>(s, zeros, team);
  if (is(5, 1)) return depthwise_of<5, 1>(s, zeros, team);
  if (is(5, 2)) return depthwise_of<5, 2>(s, zeros, team);
  if (is(7, 1)) return depthwise_of<7, 1>(s, zeros, team);
  depthwise_of<0, 0>(s, zeros, team);
}

inline void max_pool(const MaxPoolStep& s, const Team& team) {
  const SlidingWindow& w = s.window;
  const int64_t vectors = ceil_div(s.channels, LANES), units = s.samples * s.out_height;
  team.share(units, [&](int64_t u) {
    const int64_t sample = u / s.out_height, top = u % s.out_height * w.stride_h - w.pad_h;
    for (int64_t ox = 0; ox < s.out_width; ox++) {
      const int64_t first = ox * w.stride_w - w.pad_w;
      for (int64_t i = 0; i < vectors; i++) {
        const int64_t c = vector_begin(i, s.channels);
        Vec best = broadcast(-std::numeric_limits<float>::infinity());  // the result of a window inside the padding
        for (int64_t ky = 0; ky < w.kernel_h; ky++)
          for (int64_t kx = 0; kx < w.kernel_w; kx++) {
            const int64_t h = top + ky * w.dilation_h, v = first + kx * w.dilation_w;
            if (h < 0 || h >= s.height || v < 0 || v >= s.width) continue;
            best = maximum(load(s.input + ((sample * s.height + h) * s.width + v) * s.channels + c), best);
          }
        store(s.output + (u * s.out_width + ox) * s.channels + c, best);
      }
    }
  });
}

// the scratch of `mean`: sums of each thread
inline int64_t mean_scratch(const MeanStep& s, int threads) { return threads * with_red_zone(s.samples * s.channels); }

// each thread sums the positions that it has in its own caches; then the threads' sums are added
inline void mean(const MeanStep& s, const Team& team) {
  const int64_t vectors = ceil_div(s.channels, LANES), positions = s.height * s.width, count = s.samples * s.channels;
  const int64_t begin = team.begin(s.samples * positions), end = team.end(s.samples * positions);
  float* scratch = s.scratch + team.thread * with_red_zone(count);
  float* sums = take(scratch, with_red_zone(count));
  for (int64_t u = 0; u < s.samples * vectors; u++) {
    const int64_t sample = u / vectors, c = vector_begin(u % vectors, s.channels);
    const float* x = s.input + c;
    Vec total[4] = {};  // four sums: the rounding error grows with a quarter of the positions
    for (int64_t p = std::max(begin, sample * positions), last = std::min(end, (sample + 1) * positions); p < last; p++)
      total[p % 4] += load(x + p * s.channels);
    store(sums + sample * s.channels + c, (total[0] + total[1]) + (total[2] + total[3]));
  }
  team.wait();
  team.share(s.samples * vectors, [&](int64_t u) {
    const int64_t at = u / vectors * s.channels + vector_begin(u % vectors, s.channels);
    Vec total{};
    for (int64_t t = 0; t < team.size; t++) total += load(s.scratch + t * with_red_zone(count) + at);
    store_overlapping(s.output + at, total * (1.0f / (float)positions));
  });
}

// see ElementwiseStep in steps.h
inline void elementwise(const ElementwiseStep& s, const Team& team) {
  const int64_t vectors = ceil_div(s.channels, LANES);
  const float* second = s.second ? s.second : s.input;
  const int64_t *index = s.index, repeats = s.positions_per_row, period = s.period;
  const bool same_row = !index && !repeats && !period;
  team.share(s.positions, [&](int64_t p) {
    const float* x = s.input + p * s.channels;
    const float* other = second + p * s.channels;
    if (!same_row) other = second + (index ? index[p] : (repeats ? p / repeats : p % period) * s.channels);
    for (int64_t i = 0; i < vectors; i++) {
      // vectors must not overlap: the step may run in place, and would then be applied twice
      const int64_t c = i * LANES, n = s.channels - c;
      Vec v = load(x + c, n);
      if (s.operation == SUM) v += load(other + c, n);
      if (s.operation == PRODUCT) v *= load(other + c, n);
      store(s.output + p * s.channels + c, activated(v, s.activation), n);
    }
  });
}

// see InputStep in steps.h
inline void copy_input(const InputStep& s, const Team& team) {
  const int64_t out_height = s.height + 2 * s.pad_h, out_width = s.width + 2 * s.pad_w;
  team.share(s.samples * out_height, [&](int64_t u) {
    const int64_t sample = u / out_height, h = u % out_height - s.pad_h;
    float* line = s.output + u * out_width * s.channels;
    if (h < 0 || h >= s.height) {
      std::fill_n(line, out_width * s.channels, 0.0f);
      return;
    }
    std::fill_n(line, s.pad_w * s.channels, 0.0f);
    std::fill_n(line + (s.pad_w + s.width) * s.channels, s.pad_w * s.channels, 0.0f);
    for (int64_t c = 0; c < s.channels; c++) {
      const float* from = s.input + ((sample * s.channels + c) * s.height + h) * s.width;
      float* to = line + s.pad_w * s.channels + c;
      for (int64_t x = 0; x < s.width; x++) to[x * s.channels] = from[x];
    }
  });
}
}  // namespace onebyone
