// Convolutions, depthwise convolutions, pools and what stands between them, on channels-last float32 maps. Every function
// is called by all threads of a parallel region, and ends when all of its work is done.
#pragma once
#include <limits>
#include "threads.h"
#include "simd.h"
#include "red_zones.h"

namespace onebyone {
// one step of a network: what it is, where its numbers are and their sizes; the fields of a row of int64
struct Step {
  int64_t kind;
  const float *x, *weight, *bias, *add, *third;  // `add`: a map added before the activation, or the second operand
  const int64_t* index;                          // where rows begin that are not one after another, in floats
  const float* scales;                           // of a linear layer's channels, and the signs of its weights: scaling.h
  const uint8_t* signs;
  float *y, *scratch;
  int64_t samples, height, width, channels;      // of x
  int64_t outputs, high, wide;                   // of y
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t activation, pool, levels;
  int64_t apart[14];  // attention: see transformer.h
  double number;      // ε of a norm, the scale of attention
};

constexpr int64_t LEAST_ROWS = 16;  // that a thread has for itself: of fewer, threads share the weights instead
constexpr int MOST_TAPS = 64;
constexpr int64_t FEW_WEIGHTS = 1 << 18;  // floats: a panel's share of a core's second cache

inline int64_t parts_of(int64_t n, int64_t most) { return (n + most - 1) / most; }

// rows of x (each tap its own pointers) times one panel of the weights; the sums stay in registers over all taps
template <int N, int VECTORS>
inline void rows_by_panel(const float* const* rows, int64_t taps, int64_t length, const float* w, const float* bias,
                          const float* add, float* y, int64_t apart, int64_t columns, int64_t activation) {
  Vec total[N][VECTORS];
  for (int v = 0; v < VECTORS; v++) {
    const Vec offset = bias ? load(bias + v * LANES) : Vec{};
    for (int r = 0; r < N; r++) total[r][v] = offset;
  }
  for (int64_t t = 0; t < taps; t++) {
    const float* x[N];
    for (int r = 0; r < N; r++) x[r] = rows[t * ROWS + r];
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
      const int64_t at = r * apart + v * LANES, n = columns - v * LANES;
      if (add) total[r][v] += load(add + at, n);
      store(y + at, activated(total[r][v], activation), n);
    }
}

// up to ROWS rows of a convolution, from `row` on, by one panel after another
struct Convolution {
  const Step& s;
  const float* zeros;
  const int64_t rows, panels, taps, length;
  const bool narrow, pointwise;

  Convolution(const Step& step, const float* none)
      : s(step), zeros(none), rows(s.samples * s.high * s.wide), panels(parts_of(s.outputs, PANEL)),
        taps(s.dilation_w ? s.kernel_h * s.kernel_w : s.kernel_h),
        length(s.dilation_w ? s.channels : s.kernel_w * s.channels), narrow(!s.dilation_w),
        pointwise(taps == 1 && s.stride_h == 1 && s.stride_w == 1 && !s.pad_h && !s.pad_w && !narrow) {}

  void find(int64_t row, int64_t n, const float** from) const {
    if (pointwise) {
      for (int64_t r = 0; r < n; r++) from[r] = s.x + (row + r) * length;
      return;
    }
    int64_t sample = row / (s.high * s.wide), oy = row / s.wide % s.high, ox = row % s.wide;
    for (int64_t r = 0; r < n; r++) {
      const int64_t top = oy * s.stride_h - s.pad_h, first = ox * s.stride_w - s.pad_w;
      const float* image = s.x + sample * s.height * s.width * s.channels;
      for (int64_t ky = 0, t = 0; ky < s.kernel_h; ky++) {
        const int64_t h = top + ky * s.dilation_h;
        if (narrow) {
          from[t++ * ROWS + r] = image + (h * s.width + first) * s.channels;
          continue;
        }
        for (int64_t kx = 0; kx < s.kernel_w; kx++) {
          const int64_t v = first + kx * s.dilation_w;
          const bool in = h >= 0 && h < s.height && v >= 0 && v < s.width;
          from[t++ * ROWS + r] = in ? image + (h * s.width + v) * s.channels : zeros;
        }
      }
      if (++ox == s.wide) {
        ox = 0;
        if (++oy == s.high) oy = 0, sample++;
      }
    }
  }

  void multiply(int64_t row, int64_t n, int64_t panel, const float* const* from) const {
    const float* w = s.weight + panel * taps * length * PANEL;
    const float* bias = s.bias ? s.bias + panel * PANEL : nullptr;
    const int64_t columns = std::min<int64_t>(PANEL, s.outputs - panel * PANEL);
    const int64_t offset = row * s.outputs + panel * PANEL;
    const float* add = s.add ? s.add + offset : nullptr;
    with_rows(n, [&](auto count) {
      const auto product = columns > LANES ? rows_by_panel<count(), 2> : rows_by_panel<count(), 1>;
      product(from, taps, length, w, bias, add, s.y + offset, s.outputs, columns, s.activation);
    });
  }

  void part(int64_t begin, int64_t end, int64_t first, int64_t last) const {
    const float* from[MOST_TAPS * ROWS];
    for (int64_t row = begin, n; row < end; row += n) {
      const int64_t left = end - row;
      n = left <= ROWS ? left : parts_of(left, parts_of(left, ROWS));
      find(row, n, from);
      for (int64_t panel = first; panel < last; panel++) multiply(row, n, panel, from);
    }
  }
};

// a convolution as products of rows with panels: a tap is one place of the kernel (a whole row of it where the map is
// narrow and padded beforehand: `dilation_w` 0); places in the padding read zeros
inline void convolution(const Step& s, const float* zeros, const Team& team) {
  const Convolution c(s, zeros);
  const bool apart = c.rows >= LEAST_ROWS * team.size;
  const int64_t begin = apart ? team.begin(c.rows) : 0, rows = apart ? team.begin(c.rows, 1) - begin : c.rows;
  const int64_t blocks = parts_of(rows, 4 * ROWS);
  const auto block = [&](int64_t b, int64_t panel) {  // the weights are read once, the rows again and again
    c.part(begin + rows * b / blocks, begin + rows * (b + 1) / blocks, panel, panel + 1);
  };
  if (apart && c.taps * c.length * s.outputs <= FEW_WEIGHTS) {
    c.part(begin, begin + rows, 0, c.panels);
  } else if (apart) {
    for (int64_t panel = 0; panel < c.panels; panel++)
      for (int64_t b = 0; b < blocks; b++) block(b, panel);
  } else {
    return team.share(blocks * c.panels, [&](int64_t u) { block(u % blocks, u / blocks); });
  }
  team.wait();
}

// the first channel of each vector; the last one overlaps the one before where channels are no whole vectors
inline int64_t lane(int64_t i, int64_t channels) { return std::min(i * LANES, channels - LANES); }

constexpr int BESIDE = 7;  // places of one row that share the weights they have in registers

// one vector of channels at BESIDE places. K and S, the kernel's width and the stride, are known for the usual ones: `from`
// says for each row of the kernel where the places begin that any of its taps reads, each once; or else (K = 0) where they
// begin for tap after tap
template <int K, int S>
inline void places_beside(const Step& s, const float* const* from, int64_t c, Vec* total) {
  constexpr int SPAN = (BESIDE - 1) * S + K;
  const Vec offset = s.bias ? load(s.bias + c) : Vec{};
  Vec sum[BESIDE] = {offset, offset, offset, offset, offset, offset, offset};
  const float* weight = s.weight + c;
  if constexpr (K > 0) {
    for (int64_t ky = 0; ky < s.kernel_h; ky++, from += SPAN, weight += K * s.channels) {
      Vec w[K];
#pragma GCC unroll 8
      for (int kx = 0; kx < K; kx++) w[kx] = load(weight + kx * s.channels);
#pragma GCC unroll 24
      for (int j = 0; j < SPAN; j++) {
        const Vec x = load(from[j] + c);
#pragma GCC unroll 8
        for (int i = 0; i < BESIDE; i++)
          if (j >= i * S && j < i * S + K) sum[i] += x * w[j - i * S];
      }
    }
  } else {
    for (int64_t t = 0; t < s.kernel_h * s.kernel_w; t++, from += BESIDE, weight += s.channels) {
      const Vec w = load(weight);
#pragma GCC unroll 8
      for (int i = 0; i < BESIDE; i++) sum[i] += load(from[i] + c) * w;
    }
  }
  for (int i = 0; i < BESIDE; i++) total[i] = sum[i];
}

template <int K, int S>
inline void depthwise_of(const Step& s, const float* zeros, const Team& team) {
  const int64_t vectors = parts_of(s.channels, LANES), units = s.samples * s.high * vectors;
  const int64_t reads = K > 0 ? (BESIDE - 1) * S + K : s.kernel_w * BESIDE;  // for a row of the kernel
  for (int64_t u = team.begin(units), end = team.begin(units, 1), next; u < end; u = next) {
    const int64_t line = u / vectors, sample = line / s.high, oy = line % s.high;
    next = std::min(end, (line + 1) * vectors);
    const float* image = s.x + sample * s.height * s.width * s.channels;
    for (int64_t x = 0; x < s.wide; x += BESIDE) {
      // the last places overlap those before where the row is no whole number of them
      const int64_t ox = std::max<int64_t>(0, std::min(x, s.wide - BESIDE)), n = std::min<int64_t>(BESIDE, s.wide);
      const float* from[MOST_TAPS * BESIDE];
      for (int64_t ky = 0; ky < s.kernel_h; ky++) {
        const int64_t h = oy * s.stride_h - s.pad_h + ky * s.dilation_h, left = ox * s.stride_w - s.pad_w;
        const bool in = h >= 0 && h < s.height;
        for (int64_t j = 0; j < reads; j++) {
          const int64_t v = left + (K > 0 ? j : j % BESIDE * s.stride_w + j / BESIDE * s.dilation_w);
          from[ky * reads + j] = in && v >= 0 && v < s.width ? image + (h * s.width + v) * s.channels : zeros;
        }
      }
      float* to = s.y + (line * s.wide + ox) * s.channels;
      for (int64_t i = u - line * vectors; i < next - line * vectors; i++) {
        const int64_t c = lane(i, s.channels);
        Vec total[BESIDE];
        places_beside<K, S>(s, from, c, total);
        if (s.activation) activate(total, BESIDE, s.activation);
        for (int64_t j = 0; j < n; j++) store_same(to + j * s.channels + c, total[j]);
      }
    }
  }
  team.wait();
}

inline void depthwise(const Step& s, const float* zeros, const Team& team) {
  const auto is = [&](int64_t kernel, int64_t stride) {
    return s.kernel_w == kernel && s.stride_w == stride && s.dilation_w == 1;
  };
  if (is(3, 1)) return depthwise_of<3, 1>(s, zeros, team);
  if (is(3, 2)) return depthwise_of<3, 2>(s, zeros, team);
  if (is(5, 1)) return depthwise_of<5, 1>(s, zeros, team);
  if (is(5, 2)) return depthwise_of<5, 2>(s, zeros, team);
  if (is(7, 1)) return depthwise_of<7, 1>(s, zeros, team);
  depthwise_of<0, 0>(s, zeros, team);
}

inline void max_pool(const Step& s, const Team& team) {
  const int64_t vectors = parts_of(s.channels, LANES), units = s.samples * s.high;
  team.share(units, [&](int64_t u) {
    const int64_t sample = u / s.high, top = u % s.high * s.stride_h - s.pad_h;
    for (int64_t ox = 0; ox < s.wide; ox++) {
      const int64_t first = ox * s.stride_w - s.pad_w;
      for (int64_t i = 0; i < vectors; i++) {
        const int64_t c = lane(i, s.channels);
        Vec best = all(-std::numeric_limits<float>::infinity());  // of a window that lies in the padding as a whole
        for (int64_t ky = 0; ky < s.kernel_h; ky++)
          for (int64_t kx = 0; kx < s.kernel_w; kx++) {
            const int64_t h = top + ky * s.dilation_h, v = first + kx * s.dilation_w;
            if (h < 0 || h >= s.height || v < 0 || v >= s.width) continue;
            best = larger(load(s.x + ((sample * s.height + h) * s.width + v) * s.channels + c), best);
          }
        store(s.y + (u * s.wide + ox) * s.channels + c, best);
      }
    }
  });
}

// the mean over all places: (N, H, W, C) to (N, C). Each thread sums the places that are its own: what lies in its caches
// stays there; `scratch` holds the sums
inline int64_t mean_scratch(const Step& s, int threads) { return threads * zoned(s.samples * s.channels); }

inline void mean(const Step& s, const Team& team) {
  const int64_t vectors = parts_of(s.channels, LANES), places = s.height * s.width, all_of = s.samples * s.channels;
  const int64_t begin = team.begin(s.samples * places), end = team.begin(s.samples * places, 1);
  float* own = s.scratch + team.me * zoned(all_of);
  float* sums = take(own, zoned(all_of));
  for (int64_t u = 0; u < s.samples * vectors; u++) {
    const int64_t sample = u / vectors, c = lane(u % vectors, s.channels);
    const float* x = s.x + c;
    Vec total[4] = {};  // four sums: rounding grows with a quarter of the places
    for (int64_t p = std::max(begin, sample * places), last = std::min(end, (sample + 1) * places); p < last; p++)
      total[p % 4] += load(x + p * s.channels);
    store(sums + sample * s.channels + c, (total[0] + total[1]) + (total[2] + total[3]));
  }
  team.wait();
  team.share(s.samples * vectors, [&](int64_t u) {
    const int64_t at = u / vectors * s.channels + lane(u % vectors, s.channels);
    Vec total{};
    for (int64_t t = 0; t < team.size; t++) total += load(s.scratch + t * zoned(all_of) + at);
    store_same(s.y + at, total * (1.0f / (float)places));
  });
}

// x + add, or x·add, place by place or one number a channel; then the activation. The second operand is a map, its rows
// where `index` says if it is given; or a constant, whose `levels` rows repeat if there are any
enum Meeting { ALONE, ADDED, MULTIPLIED, MULTIPLIED_BY_CHANNEL };

inline void elementwise(const Step& s, const Team& team) {
  const int64_t places = s.height * s.width, vectors = parts_of(s.channels, LANES);
  const float* second = s.add ? s.add : s.weight;
  const int64_t* index = s.index;
  const int64_t every = s.pool == MULTIPLIED_BY_CHANNEL ? places : 0, repeating = s.add ? 0 : s.levels;
  const bool beside = !index && !every && !repeating;
  team.share(s.samples * places, [&](int64_t p) {
    const float* x = s.x + p * s.channels;
    const float* other = second + p * s.channels;
    if (!beside) other = second + (index ? index[p] : (every ? p / every : p % repeating) * s.channels);
    for (int64_t i = 0; i < vectors; i++) {
      // no overlap: in place, what is there twice would be computed twice
      const int64_t c = i * LANES, n = s.channels - c;
      Vec v = load(x + c, n);
      if (s.pool == ADDED) v += load(other + c, n);
      if (s.pool >= MULTIPLIED) v *= load(other + c, n);
      store(s.y + p * s.channels + c, activated(v, s.activation), n);
    }
  });
}

// (N, C, H, W) to (N, H + 2·pad, W + 2·pad, C)
inline void laid_channels_last(const Step& s, const Team& team) {
  team.share(s.samples * s.high, [&](int64_t u) {
    const int64_t sample = u / s.high, h = u % s.high - s.pad_h;
    float* line = s.y + u * s.wide * s.channels;
    if (h < 0 || h >= s.height) {
      std::fill_n(line, s.wide * s.channels, 0.0f);
      return;
    }
    std::fill_n(line, s.pad_w * s.channels, 0.0f);
    std::fill_n(line + (s.pad_w + s.width) * s.channels, s.pad_w * s.channels, 0.0f);
    for (int64_t c = 0; c < s.channels; c++) {
      const float* from = s.x + ((sample * s.channels + c) * s.height + h) * s.width;
      float* to = line + s.pad_w * s.channels + c;
      for (int64_t x = 0; x < s.width; x++) to[x * s.channels] = from[x];
    }
  });
}
}  // namespace onebyone
