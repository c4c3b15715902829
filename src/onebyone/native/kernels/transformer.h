// Layer norms, attention, gathers and transposes. As in convolution.h, every function is called by all threads of a parallel
// region, and ends with a barrier.
#pragma once
#include <cmath>
#include <limits>
#include "convolution.h"

namespace onebyone {
inline Ints lane_numbers() {  // 0, 1, 2, ...
  static constexpr int32_t NUMBERS[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return *reinterpret_cast<const Ints*>(NUMBERS);
}
// the first n lanes of v, and `rest` in the others
inline Vec first_lanes(Vec v, int64_t n, float rest) { return lane_numbers() < (int32_t)n ? v : broadcast(rest); }

// the sum and the maximum of a vector's lanes, in every lane: by halves, and halves of these
inline Vec lane_sum(Vec v) {
  for (int distance = LANES / 2; distance; distance /= 2) v += __builtin_shuffle(v, lane_numbers() ^ distance);
  return v;
}
inline Vec maximum_of_numbers(Vec v, Vec w) { return v > w ? v : w; }  // one instruction; propagates only NaN in w
inline Vec lane_maximum(Vec v) {
  for (int distance = LANES / 2; distance; distance /= 2)
    v = maximum_of_numbers(v, __builtin_shuffle(v, lane_numbers() ^ distance));
  return v;
}

// transposes a square of LANES×LANES numbers in registers, by swapping blocks of 1, 2, 4, ... beside the diagonal
inline void transpose_square(Vec (&v)[LANES]) {
#pragma GCC unroll 4
  for (int size = 1; size < LANES; size *= 2) {
    const Ints lane = lane_numbers(), second = (lane & size) != 0;
    const Ints low = second ? lane - size + LANES : lane, high = second ? lane + LANES : lane + size;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
      if (!(i & size)) {
        const Vec a = v[i], b = v[i + size];
        v[i] = __builtin_shuffle(a, b, low);
        v[i + size] = __builtin_shuffle(a, b, high);
      }
  }
}

// see TransposeStep in steps.h
inline void transpose(const TransposeStep& s, const Team& team) {
  const int64_t rows = s.rows, columns = s.columns, down = ceil_div(rows, LANES), across = ceil_div(columns, LANES);
  team.share(s.matrices * across * down, [&](int64_t u) {
    const int64_t matrix = u / (across * down), column = u / down % across, row = u % down;
    const float* x = s.input + matrix * rows * columns;
    float* y = s.output + matrix * rows * columns;
    if (rows < LANES || columns < LANES) {
      const int64_t bottom = std::min((row + 1) * LANES, rows), right = std::min((column + 1) * LANES, columns);
      for (int64_t c = column * LANES; c < right; c++)
        for (int64_t r = row * LANES; r < bottom; r++) y[c * rows + r] = x[r * columns + c];
      return;
    }
    // the last squares overlap those before if the sides are not multiples of LANES
    const int64_t r = vector_begin(row, rows), c = vector_begin(column, columns);
    Vec square[LANES];
    for (int i = 0; i < LANES; i++) square[i] = load(x + (r + i) * columns + c);
    transpose_square(square);
    for (int i = 0; i < LANES; i++) store_overlapping(y + (c + i) * rows + r, square[i]);
  });
}

// see GatherStep in steps.h
inline void gather(const GatherStep& s, const Team& team) {
  const float* from = s.source;
  const int64_t length = s.length;
  float* to = s.output + s.output_begin;
  if (length == 1 && !s.block_stride) {
    team.share(s.pieces, [&](int64_t i) { to[i] = from[s.index[i]]; });
    return;
  }
  team.share(s.pieces, [&](int64_t i) {
    const int64_t in_block = i % s.pieces_per_block * length;
    float* y = to + (s.block_stride ? i / s.pieces_per_block * s.block_stride + in_block : i * length);
    std::memcpy(y, from + s.index[i], length * sizeof(float));
  });
}

// see LayerNormStep in steps.h. The mean is subtracted before squares are taken: otherwise numbers far from 0 would cancel
inline void layer_norm(const LayerNormStep& s, const Team& team) {
  const int64_t length = s.channels, full = length / LANES * LANES, left = length - full;
  const float one_by_length = 1.0f / (float)length, epsilon = (float)s.epsilon;
  const float *weight = s.weight, *bias = s.bias;
  team.share(s.rows, [&](int64_t i) {
    const float* x = s.input + (s.index ? s.index[i] : i * length);
    float* y = s.output + i * length;
    // four sums: the rounding error grows with a quarter of the row, and the additions do not wait for each other
    Vec total[4] = {};
    const auto mean_of_totals = [&] {
      return lane_sum((total[0] + total[1]) + (total[2] + total[3])) * one_by_length;
    };
    int64_t c = 0;
    for (; c + 4 * LANES <= full; c += 4 * LANES)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) total[j] += load(x + c + j * LANES);
    for (; c < full; c += LANES) total[0] += load(x + c);
    if (left) total[3] += load(x + c, left);
    const Vec mean = mean_of_totals();
    for (Vec& t : total) t = Vec{};
    for (c = 0; c + 4 * LANES <= full; c += 4 * LANES)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const Vec difference = load(x + c + j * LANES) - mean;
        total[j] += difference * difference;
      }
    for (; c < full; c += LANES) {
      const Vec difference = load(x + c) - mean;
      total[0] += difference * difference;
    }
    if (left) {
      const Vec difference = first_lanes(load(x + c, left) - mean, left, 0.0f);
      total[3] += difference * difference;
    }
    const Vec scale = broadcast(1.0f / std::sqrt(mean_of_totals()[0] + epsilon));
    for (c = 0; c < full; c += LANES) {
      Vec v = (load(x + c) - mean) * scale;
      if (weight) v *= load(weight + c);
      if (bias) v += load(bias + c);
      store(y + c, v);
    }
    if (left) {
      Vec v = (load(x + c, left) - mean) * scale;
      if (weight) v *= load(weight + c, left);
      if (bias) v += load(bias + c, left);
      store(y + c, v, left);
    }
  });
}

// N rows of x times `length` rows of whole vectors (w), multiplied by a factor for each row. All loops over rows and vectors
// must be unrolled, so that the sums stay in registers throughout
template <int N, int VECTORS>
inline void row_product(const float* x, int64_t x_stride, int64_t length, const float* w, int64_t w_stride,
                        const float* factor, float* y, int64_t y_stride) {
  Vec total[N][VECTORS];
  const float* from[N];
#pragma GCC unroll 12
  for (int r = 0; r < N; r++) {
    from[r] = x + r * x_stride;
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; v++) total[r][v] = Vec{};
  }
  for (int64_t c = 0; c < length; c++, w += w_stride) {
    Vec u[VECTORS];
    for (int v = 0; v < VECTORS; v++) u[v] = load(w + v * LANES);
#pragma GCC unroll 12
    for (int r = 0; r < N; r++)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) total[r][v] += from[r][c] * u[v];
  }
#pragma GCC unroll 12
  for (int r = 0; r < N; r++)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; v++) store(y + r * y_stride + v * LANES, total[r][v] * factor[r]);
}

// See AttentionStep in steps.h. A thread processes whole heads, or a range of a head's queries. It packs the keys into
// panels, copies the values if their rows are not whole vectors, and computes up to TILE_ROWS rows of scores at a time
struct Attention {
  const AttentionStep& s;
  const int64_t heads, queries, keys, depth, out, panels, score_stride, value_stride;
  const bool copies_values;

  explicit Attention(const AttentionStep& step)
      : s(step), heads(s.heads), queries(s.query_rows), keys(s.key_rows), depth(s.depth), out(s.value_depth),
        panels(ceil_div(keys, PANEL)),
        score_stride(panels * PANEL + LANES),  // not a power of two: rows would share sets of the cache
        value_stride(out % LANES ? ceil_div(out, LANES) * LANES : s.value_strides.row), copies_values(out % LANES) {}

  int64_t key_floats() const { return with_red_zone(panels * PANEL * depth); }
  int64_t value_floats() const { return with_red_zone(copies_values ? keys * value_stride : 0); }
  int64_t score_floats() const { return with_red_zone(TILE_ROWS * score_stride); }
  int64_t floats() const { return key_floats() + value_floats() + score_floats(); }

  // packs the keys of a head, transposed, and copies or prefetches its values
  void pack(int64_t sample, int64_t head, float* packed_keys, float* copied_values) const {
    const Strides &ks = s.key_strides, &vs = s.value_strides;
    const float* k = s.keys + ks.begin + sample * ks.sample + head * ks.head;
    for (int64_t t = 0; t < panels * PANEL; t += LANES) {
      float* to = packed_keys + t / PANEL * PANEL * depth + t % PANEL;
      const int64_t n = std::min<int64_t>(keys - t, LANES);
      for (int64_t d = 0; d < depth; d += LANES) {
        Vec square[LANES];
        for (int i = 0; i < LANES; i++)
          square[i] = i < n ? load(k + (t + i) * ks.row + d, depth - d) : Vec{};
        transpose_square(square);
        const int64_t deep = std::min<int64_t>(depth - d, LANES);
        for (int64_t i = 0; i < deep; i++) store(to + (d + i) * PANEL, square[i]);
      }
    }
    const float* v = s.values + vs.begin + sample * vs.sample + head * vs.head;
    for (int64_t t = 0; t < keys; t++)
      for (int64_t c = 0; c < out; c += LANES)
        if (copies_values)
          store(copied_values + t * value_stride + c, load(v + t * vs.row + c, out - c));
        else
          __builtin_prefetch(v + t * vs.row + c);  // the hardware does not prefetch rows that are far apart
  }

  // replaces a row of scores, plus its bias, by e^(score - largest score); returns the reciprocal of their sum
  float softmax(float* row, const float* bias) const {
    constexpr float LOWEST = -std::numeric_limits<float>::infinity();
    const int64_t end = (keys - 1) / LANES * LANES;
    Vec last = load(row + end);
    if (bias) last += load(bias + end, keys - end);
    last = first_lanes(last, keys - end, LOWEST);
    Vec most = last, total{};
    for (int64_t t = 0; t < end; t += LANES) {
      Vec x = load(row + t);
      if (bias) store(row + t, x += load(bias + t));
      most = maximum_of_numbers(x, most);
    }
    most = lane_maximum(most);
    // weights of at most 2⁻¹²⁰ of the largest become 0, those of -∞ among them: subnormal numbers are slow. NaN stays
#if defined(__AVX512F__)
    const Vec underflow = broadcast(-200.0f);
#else
    const Vec underflow = broadcast(-120.0f);
#endif
    const auto exponential_of = [&](Vec x) {
      const Vec z = (x - most) * 1.44269504f;
      return power_of_two(z < -120.0f ? underflow : z);
    };
    for (int64_t t = 0; t < end; t += LANES) {
      const Vec e = exponential_of(load(row + t));
      total += e;
      store(row + t, e);
    }
    last = exponential_of(last);
    store(row + end, last);
    return 1.0f / lane_sum(total + last)[0];
  }

  void multiply(int64_t n, const float* x, int64_t x_stride, int64_t length, const float* w, int64_t w_stride,
                const float* factor, float* y, int64_t y_stride, int64_t columns) const {
    with_rows(n, [&](auto count) {
      const auto product = columns > LANES ? row_product<count(), 2> : row_product<count(), 1>;
      product(x, x_stride, length, w, w_stride, factor, y, y_stride);
    });
  }

  // queries [begin, end) of one head
  void part(int64_t sample, int64_t head, int64_t begin, int64_t end, const float* k, const float* v,
            float* scores) const {
    const Strides &qs = s.query_strides, &vs = s.value_strides;
    const float* q = s.queries + qs.begin + sample * qs.sample + head * qs.head;
    const float* bias = s.bias ? s.bias + sample * s.bias_sample_stride + head * s.bias_head_stride : nullptr;
    if (!copies_values) v = s.values + vs.begin + sample * vs.sample + head * vs.head;
    float factor[TILE_ROWS], tile[TILE_ROWS * PANEL];
    for (int64_t t = begin, n; t < end; t += n) {
      const int64_t left = end - t;
      n = left <= TILE_ROWS ? left : ceil_div(left, ceil_div(left, TILE_ROWS));
      std::fill_n(factor, n, (float)s.scale);
      for (int64_t p = 0; p < panels; p++)
        multiply(n, q + t * qs.row, qs.row, depth, k + p * PANEL * depth, PANEL, factor, scores + p * PANEL,
                 score_stride, keys - p * PANEL);
      for (int64_t r = 0; r < n; r++)
        factor[r] = softmax(scores + r * score_stride, bias ? bias + (t + r) * keys : nullptr);
      float* y = s.output + ((sample * queries + t) * heads + head) * out;
      for (int64_t c = 0; c < out; c += PANEL) {
        const int64_t columns = std::min<int64_t>(PANEL, out - c);
        const bool full = columns % LANES == 0;
        multiply(n, scores, score_stride, keys, v + c, value_stride, factor, full ? y + c : tile,
                 full ? heads * out : PANEL, columns);
        for (int64_t r = 0; !full && r < n; r++) std::copy_n(tile + r * PANEL, columns, y + c + r * heads * out);
      }
    }
  }
};

inline int64_t attention_scratch(const AttentionStep& s, int threads) { return threads * Attention(s).floats(); }

inline void attention(const AttentionStep& s, const Team& team) {
  const Attention a(s);
  const int64_t heads = s.samples * a.heads;
  // ranges of a head's queries, so that all threads have about the same work; no more than needed, because the keys of a
  // head are packed again for each range on another thread
  int64_t parts = 1;
  const auto rounds = [&] { return ceil_div(heads * parts, team.size); };
  while (rounds() * team.size * 20 > heads * parts * 21 && parts < a.queries) parts++;
  float* scratch = s.scratch + team.thread * a.floats();
  float *k = take(scratch, a.key_floats()), *v = take(scratch, a.value_floats()), *scores = take(scratch, a.score_floats());
  int64_t packed = -1;
  team.share(heads * parts, [&](int64_t u) {
    const int64_t head = u / parts, part = u % parts;
    if (head != packed) a.pack(head / a.heads, head % a.heads, k, v);
    packed = head;
    a.part(head / a.heads, head % a.heads, a.queries * part / parts, a.queries * (part + 1) / parts, k, v, scores);
  });
}
}  // namespace onebyone
