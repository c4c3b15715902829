// 3×3 convolutions at stride 1 by Winograd's F(4×4, 3×3), float32, maps channels last; see onebyone/laws/winograd.py.
//
// Each tile of 6×6 places is transformed (36 numbers a channel), each of the 36 is one fully connected layer over the
// channels, applied to all tiles, and what comes out is transformed back to 4×4 places. Weights are transformed and
// packed beforehand: (36, panels, C, PANEL). Tiles go through in blocks that stay in the cache: where the weights are
// small, each thread has a block of its own; where they are large, all threads share one, so that weights are read once.
#pragma once
#include <limits>
#include <vector>
#include "threads.h"
#include "simd.h"
#include "red_zones.h"

namespace onebyone {
constexpr int EDGE = 6, TILE = 4, PRODUCTS = EDGE * EDGE;

// the points 0, ±a, ±b, ∞ and what the transforms need of them: every constant is exact in float32
constexpr float a = 0.75f, b = 1.5f, a2 = a * a, b2 = b * b, a3 = a2 * a, b3 = b2 * b, ab = a2 * b2, sum = a2 + b2;

struct Job {
  int64_t samples, height, width, channels, outputs, pad_h, pad_w;
  int relu, pool, threads;
  int64_t out_h() const { return height + 2 * pad_h - 2; }
  int64_t out_w() const { return width + 2 * pad_w - 2; }
  int64_t down() const { return (out_h() + TILE - 1) / TILE; }
  int64_t across() const { return (out_w() + TILE - 1) / TILE; }
  int64_t tiles() const { return samples * down() * across(); }
  int64_t panels() const { return (outputs + PANEL - 1) / PANEL; }
  // rows of whole cache lines, and no power of two apart: those would share the cache's sets
  int64_t in_row() const { return channels + 16; }
  int64_t out_row() const { return panels() * PANEL + 16; }
  int64_t in_floats(int64_t block) const { return zoned(PRODUCTS * block * in_row()); }
  int64_t floats(int64_t block) const { return in_floats(block) + zoned(PRODUCTS * block * out_row()); }
};

inline void transform_in(const Vec d[EDGE], Vec v[EDGE]) {
  v[0] = ab * d[0] - sum * d[2] + d[4];
  const Vec even_a = d[4] - b2 * d[2], odd_a = a * (d[3] - b2 * d[1]);
  v[1] = even_a + odd_a;
  v[2] = even_a - odd_a;
  const Vec even_b = d[4] - a2 * d[2], odd_b = b * (d[3] - a2 * d[1]);
  v[3] = even_b + odd_b;
  v[4] = even_b - odd_b;
  v[5] = ab * d[1] - sum * d[3] + d[5];
}

inline void transform_out(const Vec m[EDGE], Vec y[TILE]) {
  const Vec even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + even_a + even_b;
  y[1] = a * odd_a + b * odd_b;
  y[2] = a2 * even_a + b2 * even_b;
  y[3] = a3 * odd_a + b3 * odd_b + m[5];
}

struct Place {
  int64_t sample, top, left;
  Place(const Job& j, int64_t tile) {
    const int64_t in_sample = tile % (j.down() * j.across());
    sample = tile / (j.down() * j.across());
    top = in_sample / j.across() * TILE;
    left = in_sample % j.across() * TILE;
  }
};

// zeros instead of infinities, NaN and what is so large that the transforms could overflow
inline Vec tame(Vec v, bool& wild) {
  const Vec size = larger(v, -v);
  const Ints small = size < 0x1p100f;
  for (int i = 0; i < LANES; i++) wild |= !small[i];
  return small ? v : Vec{};
}

// compiled once, so that sums are rounded alike wherever it is called
#define ONE_COPY __attribute__((noinline, noclone))

// of a tile read again, `wild` gets for each place whether it holds such a number; zeros are transformed in their stead
template <bool AGAIN>
ONE_COPY void read_tile(const Job& j, const float* image, int64_t tile, float* to, int64_t apart, bool* wild) {
  static const float zeros[LANES] = {};
  const Place at(j, tile);
  const float* from[PRODUCTS];
  int64_t inside[PRODUCTS];
  for (int y = 0; y < EDGE; y++)
    for (int x = 0; x < EDGE; x++) {
      const int64_t h = at.top + y - j.pad_h, w = at.left + x - j.pad_w;
      const bool in = h >= 0 && h < j.height && w >= 0 && w < j.width;
      from[y * EDGE + x] = in ? image + ((at.sample * j.height + h) * j.width + w) * j.channels : zeros;
      inside[y * EDGE + x] = in;
    }
  for (int64_t c = 0; c < j.channels; c += LANES) {
    Vec half[EDGE][EDGE];
    for (int x = 0; x < EDGE; x++) {
      Vec d[EDGE], v[EDGE];
      for (int y = 0; y < EDGE; y++) {
        d[y] = load(from[y * EDGE + x] + inside[y * EDGE + x] * c);
        if (AGAIN) d[y] = tame(d[y], wild[y * EDGE + x]);
      }
      transform_in(d, v);
      for (int y = 0; y < EDGE; y++) half[y][x] = v[y];
    }
    for (int y = 0; y < EDGE; y++) {
      Vec v[EDGE];
      transform_in(half[y], v);
      for (int x = 0; x < EDGE; x++) store(to + (y * EDGE + x) * apart + c, v[x]);
    }
  }
}

// whether all that it writes is finite; `wild` places of a tile written again make NaN of the windows that hold them
template <bool AGAIN>
ONE_COPY bool write_tile(const Job& j, float* image, const float* bias, int64_t tile, const float* from, int64_t apart,
                         const bool* wild) {
  const Place at(j, tile);
  const int64_t rows = std::min<int64_t>(TILE, j.out_h() - at.top), columns = std::min<int64_t>(TILE, j.out_w() - at.left);
  const int64_t step = j.pool ? 2 : 1, high = j.out_h() / step, wide = j.out_w() / step;
  Vec watch{};
  for (int64_t k = 0; k < j.outputs; k += LANES) {
    Vec half[TILE][EDGE], y[TILE][TILE];
    for (int x = 0; x < EDGE; x++) {
      Vec m[EDGE], v[TILE];
      for (int i = 0; i < EDGE; i++) m[i] = load(from + (i * EDGE + x) * apart + k);
      transform_out(m, v);
      for (int i = 0; i < TILE; i++) half[i][x] = v[i];
    }
    const Vec offset = bias ? load(bias + k) : Vec{};
    for (int i = 0; i < TILE; i++) {
      transform_out(half[i], y[i]);
      for (int x = 0; x < TILE; x++) {
        y[i][x] += offset;
        for (int p = 0; AGAIN && p < 9; p++)
          if (wild[(i + p / 3) * EDGE + x + p % 3]) y[i][x] = all(std::numeric_limits<float>::quiet_NaN());
        watch += y[i][x] * 0.0f;  // NaN of an infinity or NaN
        if (j.relu) y[i][x] = positive(y[i][x]);
      }
    }
    for (int64_t i = 0; i + step <= rows; i += step)
      for (int64_t x = 0; x + step <= columns; x += step) {
        Vec v = y[i][x];
        if (j.pool) v = larger(larger(larger(v, y[i][x + 1]), y[i + 1][x]), y[i + 1][x + 1]);
        store(image + ((at.sample * high + (at.top + i) / step) * wide + (at.left + x) / step) * j.outputs + k, v);
      }
  }
  for (int i = 0; i < LANES; i++)
    if (watch[i] != watch[i]) return false;
  return true;
}

template <int N>
inline void product(const float* __restrict x, int64_t x_row, const float* __restrict w, float* __restrict y, int64_t y_row,
             int64_t channels) {
  Vec total[N][2];
  for (int r = 0; r < N; r++) total[r][0] = total[r][1] = Vec{};
  for (int64_t c = 0; c < channels; c++) {
    const Vec left = load(w + c * PANEL), right = load(w + c * PANEL + LANES);
    for (int i = 0; i < PANEL; i += 16) __builtin_prefetch(w + c * PANEL + SOON + i, 0, 2);
#pragma GCC unroll 12
    for (int r = 0; r < N; r++) {
      total[r][0] += x[r * x_row + c] * left;
      total[r][1] += x[r * x_row + c] * right;
    }
  }
  for (int r = 0; r < N; r++) {
    store(y + r * y_row, total[r][0]);
    store(y + r * y_row + LANES, total[r][1]);
  }
}

// one of the 36 layers on one panel of its outputs, all tiles of a block: in parts of nearly equal numbers of rows
inline void multiply(const Job& j, const float* x, const float* w, float* y, int64_t tiles) {
  for (int64_t row = 0, parts = (tiles + ROWS - 1) / ROWS; row < tiles; parts--) {
    const int64_t n = (tiles - row + parts - 1) / parts;
    const float* from = x + row * j.in_row();
    float* to = y + row * j.out_row();
    with_rows(n, [&](auto count) { product<count()>(from, j.in_row(), w, to, j.out_row(), j.channels); });
    row += n;
  }
}

// A tile again that has given an infinity or NaN: the transforms spread such a number over all that a tile gives, where
// only the windows that hold it should show it. These give NaN, and the others what they are.
inline void tile_again(const Job& j, const float* image, const float* weight, const float* bias, float* result,
                       int64_t tile) {
  std::vector<float> memory(PRODUCTS * (j.in_row() + j.out_row()));
  float *x = memory.data(), *y = x + PRODUCTS * j.in_row();
  bool wild[PRODUCTS] = {};
  read_tile<true>(j, image, tile, x, j.in_row(), wild);
  if (std::none_of(wild, wild + PRODUCTS, [](bool w) { return w; })) return;  // the sums themselves are so large
  for (int64_t u = 0; u < PRODUCTS * j.panels(); u++)
    multiply(j, x + u / j.panels() * j.in_row(), weight + u * j.channels * PANEL,
             y + u / j.panels() * j.out_row() + u % j.panels() * PANEL, 1);
  write_tile<true>(j, result, bias, tile, y, j.out_row(), wild);
}

// bytes: weights that each thread may go through for every dozen tiles; weights that a last cache holds; what a block
// that all threads share may take then, and its tiles where weights come from memory and are to be read once
constexpr int64_t SMALL = 5 << 20, CACHED = 16 << 20, BLOCK = 5 << 19, MOST_TILES = 64, LEAST_TILES = 2 * ROWS;

struct Blocks {
  bool apart;
  int64_t count, size;
  explicit Blocks(const Job& j) {
    const int64_t tiles = j.tiles(), weights = PRODUCTS * 4 * j.channels * j.panels() * PANEL;
    apart = weights <= SMALL && tiles >= 8 * ROWS * j.threads;
    const int64_t fitting = std::clamp<int64_t>(BLOCK / (4 * j.floats(1)), LEAST_TILES, MOST_TILES);
    const int64_t most = apart ? ROWS : weights <= CACHED ? fitting : MOST_TILES;
    count = (tiles + most - 1) / most;
    size = apart ? ROWS : (tiles + count - 1) / count;
  }
  int64_t floats(const Job& j) const { return j.floats(size) * (apart ? j.threads : 1); }
};

// run by all threads of a team
inline void winograd(const Job& j, const Blocks& blocks, const Team& team, const float* image, const float* weight, const float* bias,
                     float* result, float* scratch) {
  const int64_t tiles = j.tiles(), panels = j.panels(), block = blocks.size;
  const int64_t xs = block * j.in_row(), ys = block * j.out_row();
  float* own = scratch + (blocks.apart ? team.me * j.floats(block) : 0);
  float *x = take(own, j.in_floats(block)), *y = take(own, j.floats(block) - j.in_floats(block));
  const auto write = [&](int64_t tile, const float* from) {
    if (!write_tile<false>(j, result, bias, tile, from, ys, nullptr)) tile_again(j, image, weight, bias, result, tile);
  };
  const auto unit = [&](int64_t u, int64_t n) {
    multiply(j, x + u / panels * xs, weight + u * j.channels * PANEL, y + u / panels * ys + u % panels * PANEL, n);
  };
  if (blocks.apart) {
    return team.share_in_turn(blocks.count, [&](int64_t i) {
      const int64_t first = i * block, n = std::min(block, tiles - first);
      for (int64_t t = 0; t < n; t++) read_tile<false>(j, image, first + t, x + t * j.in_row(), xs, nullptr);
      for (int64_t u = 0; u < PRODUCTS * panels; u++) unit(u, n);
      for (int64_t t = 0; t < n; t++) write(first + t, y + t * j.out_row());
    });
  }
  for (int64_t first = 0; first < tiles; first += block) {
    const int64_t n = std::min(block, tiles - first);
    team.share(n, [&](int64_t t) { read_tile<false>(j, image, first + t, x + t * j.in_row(), xs, nullptr); });
    team.share(PRODUCTS * panels, [&](int64_t u) { unit(u, n); });
    team.share(n, [&](int64_t t) { write(first + t, y + t * j.out_row()); });
  }
}
}  // namespace onebyone
