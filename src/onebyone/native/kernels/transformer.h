// What transformers do with rows of channels: norms, attention, gathers, transposes. As in convolution.h every function is
// called by all threads of a parallel region, and ends when all of its work is done.
#pragma once
#include <cmath>
#include <limits>
#include "convolution.h"

namespace onebyone {
inline Ints numbered() {  // 0, 1, 2, ...
  static constexpr int32_t NUMBERS[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return *reinterpret_cast<const Ints*>(NUMBERS);
}
// the first n numbers of v, and `rest` behind them
inline Vec first(Vec v, int64_t n, float rest) { return numbered() < (int32_t)n ? v : all(rest); }

// the sum of a vector's numbers and the largest, in each of its places: halves meet, and halves of these
inline Vec summed(Vec v) {
  for (int apart = LANES / 2; apart; apart /= 2) v += __builtin_shuffle(v, numbered() ^ apart);
  return v;
}
inline Vec larger_number(Vec v, Vec w) { return v > w ? v : w; }  // one instruction: NaN stays where it is in w
inline Vec largest(Vec v) {
  for (int apart = LANES / 2; apart; apart /= 2) v = larger_number(v, __builtin_shuffle(v, numbered() ^ apart));
  return v;
}

// a square of LANES×LANES numbers turned, in registers: blocks of 1, 2, 4, ... beside the diagonal change places
inline void turn(Vec (&v)[LANES]) {
#pragma GCC unroll 4
  for (int apart = 1; apart < LANES; apart *= 2) {
    const Ints lane = numbered(), second = (lane & apart) != 0;
    const Ints low = second ? lane - apart + LANES : lane, high = second ? lane + LANES : lane + apart;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
      if (!(i & apart)) {
        const Vec a = v[i], b = v[i + apart];
        v[i] = __builtin_shuffle(a, b, low);
        v[i + apart] = __builtin_shuffle(a, b, high);
      }
  }
}

// (samples, height, width) to (samples, width, height)
inline void turned(const Step& s, const Team& team) {
  const int64_t high = s.height, wide = s.width, down = parts_of(high, LANES), across = parts_of(wide, LANES);
  team.share(s.samples * across * down, [&](int64_t u) {
    const int64_t sample = u / (across * down), column = u / down % across, row = u % down;
    const float* x = s.x + sample * high * wide;
    float* y = s.y + sample * high * wide;
    if (high < LANES || wide < LANES) {
      const int64_t bottom = std::min((row + 1) * LANES, high), right = std::min((column + 1) * LANES, wide);
      for (int64_t c = column * LANES; c < right; c++)
        for (int64_t r = row * LANES; r < bottom; r++) y[c * high + r] = x[r * wide + c];
      return;
    }
    // the last squares overlap those before where the sides are no whole number of them
    const int64_t r = lane(row, high), c = lane(column, wide);
    Vec square[LANES];
    for (int i = 0; i < LANES; i++) square[i] = load(x + (r + i) * wide + c);
    turn(square);
    for (int i = 0; i < LANES; i++) store_same(y + (c + i) * high + r, square[i]);
  });
}

// rows from anywhere, of a map or of a constant; several such steps write the parts of one map
inline void rows(const Step& s, const Team& team) {
  const float* from = s.x ? s.x : s.weight;
  const int64_t length = s.channels;
  float* to = s.y + s.pad_h;
  if (length == 1 && s.wide <= 0) {
    team.share(s.samples, [&](int64_t i) { to[i] = from[s.index[i]]; });
    return;
  }
  team.share(s.samples, [&](int64_t i) {
    float* y = to + (s.wide > 0 ? i / s.high * s.wide + i % s.high * length : i * length);
    std::memcpy(y, from + s.index[i], length * sizeof(float));
  });
}

// each row less its mean, by its standard deviation: the mean first, since squares of what is far from 0 cancel
inline void layer_norm(const Step& s, const Team& team) {
  const int64_t length = s.channels, whole = length / LANES * LANES, left = length - whole;
  const float one_by = 1.0f / (float)length, least = (float)s.number;
  const float *weight = s.weight, *bias = s.bias;
  team.share(s.samples, [&](int64_t i) {
    const float* x = s.x + (s.index ? s.index[i] : i * length);
    float* y = s.y + i * length;
    Vec total[4] = {};  // four sums: rounding grows with a quarter of the row, and additions need not wait
    const auto sum = [&] { return summed((total[0] + total[1]) + (total[2] + total[3])) * one_by; };
    int64_t c = 0;
    for (; c + 4 * LANES <= whole; c += 4 * LANES)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) total[j] += load(x + c + j * LANES);
    for (; c < whole; c += LANES) total[0] += load(x + c);
    if (left) total[3] += load(x + c, left);
    const Vec mean = sum();
    for (Vec& t : total) t = Vec{};
    for (c = 0; c + 4 * LANES <= whole; c += 4 * LANES)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const Vec away = load(x + c + j * LANES) - mean;
        total[j] += away * away;
      }
    for (; c < whole; c += LANES) {
      const Vec away = load(x + c) - mean;
      total[0] += away * away;
    }
    if (left) {
      const Vec away = first(load(x + c, left) - mean, left, 0.0f);
      total[3] += away * away;
    }
    const Vec scale = all(1.0f / std::sqrt(sum()[0] + least));
    for (c = 0; c < whole; c += LANES) {
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

// N rows (x, x_apart from one to the next) times `length` rows of whole vectors (w, w_apart), by a factor for each row;
// the sums stay in registers, from the first to the last: hence the loops that are unrolled
template <int N, int VECTORS>
inline void product(const float* x, int64_t x_apart, int64_t length, const float* w, int64_t w_apart,
                    const float* factor, float* y, int64_t y_apart) {
  Vec total[N][VECTORS];
  const float* from[N];
#pragma GCC unroll 12
  for (int r = 0; r < N; r++) {
    from[r] = x + r * x_apart;
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; v++) total[r][v] = Vec{};
  }
  for (int64_t c = 0; c < length; c++, w += w_apart) {
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
    for (int v = 0; v < VECTORS; v++) store(y + r * y_apart + v * LANES, total[r][v] * factor[r]);
}

// softmax(scale·q·kᵀ + mask)·v. A thread takes heads, or parts of a head's rows of queries; K is turned into panels for
// it, and V copied where its rows are no whole vectors; up to ROWS rows of scores at a time
struct Attention {
  const Step& s;
  const int64_t heads, queries, keys, depth, out, panels, apart, v_apart;
  const bool copied;

  explicit Attention(const Step& step)
      : s(step), heads(s.height), queries(s.high), keys(s.wide), depth(s.channels), out(s.outputs),
        panels(parts_of(keys, PANEL)),
        apart(panels * PANEL + LANES),  // no power of two: rows would share a cache's sets
        v_apart(out % LANES ? parts_of(out, LANES) * LANES : s.apart[11]), copied(out % LANES) {}

  int64_t k_floats() const { return zoned(panels * PANEL * depth); }
  int64_t v_floats() const { return zoned(copied ? keys * v_apart : 0); }
  int64_t score_floats() const { return zoned(ROWS * apart); }
  int64_t floats() const { return k_floats() + v_floats() + score_floats(); }

  void lay(int64_t sample, int64_t head, float* k_to, float* v_to) const {
    const float* k = s.add + s.apart[4] + sample * s.apart[5] + head * s.apart[6];
    for (int64_t t = 0; t < panels * PANEL; t += LANES) {
      float* to = k_to + t / PANEL * PANEL * depth + t % PANEL;
      const int64_t n = std::min<int64_t>(keys - t, LANES);
      for (int64_t d = 0; d < depth; d += LANES) {
        Vec square[LANES];
        for (int i = 0; i < LANES; i++)
          square[i] = i < n ? load(k + (t + i) * s.apart[7] + d, depth - d) : Vec{};
        turn(square);
        const int64_t deep = std::min<int64_t>(depth - d, LANES);
        for (int64_t i = 0; i < deep; i++) store(to + (d + i) * PANEL, square[i]);
      }
    }
    const float* v = s.third + s.apart[8] + sample * s.apart[9] + head * s.apart[10];
    for (int64_t t = 0; t < keys; t++)
      for (int64_t c = 0; c < out; c += LANES)
        if (copied)
          store(v_to + t * v_apart + c, load(v + t * s.apart[11] + c, out - c));
        else
          __builtin_prefetch(v + t * s.apart[11] + c);  // wanted soon, and rows far apart are not foreseen
  }

  // a row's scores, and its mask with them, to eˣ⁻ᵐᵃˣ; returns one by their sum
  float weights(float* row, const float* mask) const {
    constexpr float NEVER = -std::numeric_limits<float>::infinity();
    const int64_t end = (keys - 1) / LANES * LANES;
    Vec last = load(row + end);
    if (mask) last += load(mask + end, keys - end);
    last = first(last, keys - end, NEVER);
    Vec most = last, total{};
    for (int64_t t = 0; t < end; t += LANES) {
      Vec x = load(row + t);
      if (mask) store(row + t, x += load(mask + t));
      most = larger_number(x, most);
    }
    most = largest(most);
    // what is no more than 2⁻¹²⁰ of the largest counts as nothing, and so does -∞: numbers too small to be normal are
    // slow; NaN stays
#if defined(__AVX512F__)
    const Vec nothing = all(-200.0f);
#else
    const Vec nothing = all(-120.0f);
#endif
    const auto lifted = [&](Vec x) {
      const Vec z = (x - most) * 1.44269504f;
      return power_of_two(z < -120.0f ? nothing : z);
    };
    for (int64_t t = 0; t < end; t += LANES) {
      const Vec e = lifted(load(row + t));
      total += e;
      store(row + t, e);
    }
    last = lifted(last);
    store(row + end, last);
    return 1.0f / summed(total + last)[0];
  }

  void multiply(int64_t n, const float* x, int64_t x_apart, int64_t length, const float* w, int64_t w_apart,
                const float* factor, float* y, int64_t y_apart, int64_t columns) const {
    with_rows(n, [&](auto count) {
      const auto by = columns > LANES ? product<count(), 2> : product<count(), 1>;
      by(x, x_apart, length, w, w_apart, factor, y, y_apart);
    });
  }

  // queries [begin, end) of one head
  void part(int64_t sample, int64_t head, int64_t begin, int64_t end, const float* k, const float* v,
            float* scores) const {
    const float* q = s.x + s.apart[0] + sample * s.apart[1] + head * s.apart[2];
    const float* mask = s.weight ? s.weight + sample * s.apart[12] + head * s.apart[13] : nullptr;
    if (!copied) v = s.third + s.apart[8] + sample * s.apart[9] + head * s.apart[10];
    float factor[ROWS], tile[ROWS * PANEL];
    for (int64_t t = begin, n; t < end; t += n) {
      const int64_t left = end - t;
      n = left <= ROWS ? left : parts_of(left, parts_of(left, ROWS));
      std::fill_n(factor, n, (float)s.number);
      for (int64_t p = 0; p < panels; p++)
        multiply(n, q + t * s.apart[3], s.apart[3], depth, k + p * PANEL * depth, PANEL, factor, scores + p * PANEL,
                 apart, keys - p * PANEL);
      for (int64_t r = 0; r < n; r++) factor[r] = weights(scores + r * apart, mask ? mask + (t + r) * keys : nullptr);
      float* y = s.y + ((sample * queries + t) * heads + head) * out;
      for (int64_t c = 0; c < out; c += PANEL) {
        const int64_t columns = std::min<int64_t>(PANEL, out - c);
        const bool whole = columns % LANES == 0;
        multiply(n, scores, apart, keys, v + c, v_apart, factor, whole ? y + c : tile, whole ? heads * out : PANEL,
                 columns);
        for (int64_t r = 0; !whole && r < n; r++) std::copy_n(tile + r * PANEL, columns, y + c + r * heads * out);
      }
    }
  }
};

inline int64_t attention_scratch(const Step& s, int threads) { return threads * Attention(s).floats(); }

inline void attention(const Step& s, const Team& team) {
  const Attention a(s);
  const int64_t heads = s.samples * a.heads;
  // parts of a head, so that threads have as much to do: no more of them than they need, each may lay K again
  int64_t parts = 1;
  const auto rounds = [&] { return parts_of(heads * parts, team.size); };
  while (rounds() * team.size * 20 > heads * parts * 21 && parts < a.queries) parts++;
  float* own = s.scratch + team.me * a.floats();
  float *k = take(own, a.k_floats()), *v = take(own, a.v_floats()), *scores = take(own, a.score_floats());
  int64_t laid = -1;
  team.share(heads * parts, [&](int64_t u) {
    const int64_t head = u / parts, part = u % parts;
    if (head != laid) a.lay(head / a.heads, head % a.heads, k, v);
    laid = head;
    a.part(head / a.heads, head % a.heads, a.queries * part / parts, a.queries * (part + 1) / parts, k, v, scores);
  });
}
}  // namespace onebyone
