// 3×3 convolutions at stride 1 by Winograd's F(4×4, 3×3), in float32 on channels-last maps: see onebyone/laws/winograd.py.
//
// Each tile of 6×6 positions is transformed into 36 numbers per channel. Each of the 36 is the input of one linear layer
// over the channels, applied to all tiles; its outputs are transformed back into 4×4 positions. Weights are transformed and
// packed beforehand: (36, panels, C, PANEL). Tiles are processed in blocks that fit the cache. If the weights are small,
// each thread has its own block; if they are large, all threads share one, so that the weights are read only once.
#pragma once
#include <limits>
#include <vector>
#include "threads.h"
#include "simd.h"
#include "red_zones.h"

namespace onebyone {
constexpr int IN_EDGE = 6, OUT_EDGE = 4, PRODUCTS = IN_EDGE * IN_EDGE;  // of a tile

// the interpolation points 0, ±a, ±b, ∞ and the constants of the transforms, all of them exact in float32
constexpr float a = 0.75f, b = 1.5f, a2 = a * a, b2 = b * b, a3 = a2 * a, b3 = b2 * b, ab = a2 * b2, sum = a2 + b2;

struct WinogradJob {
  int64_t samples, height, width, channels, outputs, pad_h, pad_w;
  int relu, max_pool, threads;
  int64_t out_h() const { return height + 2 * pad_h - 2; }
  int64_t out_w() const { return width + 2 * pad_w - 2; }
  int64_t down() const { return ceil_div(out_h(), OUT_EDGE); }
  int64_t across() const { return ceil_div(out_w(), OUT_EDGE); }
  int64_t tiles() const { return samples * down() * across(); }
  int64_t panels() const { return ceil_div(outputs, PANEL); }
  // strides of whole cache lines that are not a power of two: such rows would share sets of the cache
  int64_t in_stride() const { return channels + 16; }
  int64_t out_stride() const { return panels() * PANEL + 16; }
  int64_t in_floats(int64_t block) const { return with_red_zone(PRODUCTS * block * in_stride()); }
  int64_t floats(int64_t block) const { return in_floats(block) + with_red_zone(PRODUCTS * block * out_stride()); }
};

inline void transform_in(const Vec d[IN_EDGE], Vec v[IN_EDGE]) {
  v[0] = ab * d[0] - sum * d[2] + d[4];
  const Vec even_a = d[4] - b2 * d[2], odd_a = a * (d[3] - b2 * d[1]);
  v[1] = even_a + odd_a;
  v[2] = even_a - odd_a;
  const Vec even_b = d[4] - a2 * d[2], odd_b = b * (d[3] - a2 * d[1]);
  v[3] = even_b + odd_b;
  v[4] = even_b - odd_b;
  v[5] = ab * d[1] - sum * d[3] + d[5];
}

inline void transform_out(const Vec m[IN_EDGE], Vec y[OUT_EDGE]) {
  const Vec even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + even_a + even_b;
  y[1] = a * odd_a + b * odd_b;
  y[2] = a2 * even_a + b2 * even_b;
  y[3] = a3 * odd_a + b3 * odd_b + m[5];
}

// the sample of a tile and the position of its first output
struct TilePosition {
  int64_t sample, top, left;
  TilePosition(const WinogradJob& j, int64_t tile) {
    const int64_t in_sample = tile % (j.down() * j.across());
    sample = tile / (j.down() * j.across());
    top = in_sample / j.across() * OUT_EDGE;
    left = in_sample % j.across() * OUT_EDGE;
  }
};

// zeros instead of infinities, NaN, and numbers so large that the transforms could overflow; sets `extreme` if there are any
inline Vec without_extremes(Vec v, bool& extreme) {
  const Vec size = maximum(v, -v);
  const Ints small = size < 0x1p100f;
  for (int i = 0; i < LANES; i++) extreme |= !small[i];
  return small ? v : Vec{};
}

// compiled once: inlined copies could round sums differently
#define ONE_COPY __attribute__((noinline, noclone))

// Transforms the input of a tile. With REPAIR, zeros replace extreme numbers, and `extreme` says for each position of the
// tile whether it holds one
template <bool REPAIR>
ONE_COPY void read_tile(const WinogradJob& j, const float* image, int64_t tile, float* to, int64_t stride, bool* extreme) {
  static const float zeros[LANES] = {};
  const TilePosition at(j, tile);
  const float* from[PRODUCTS];
  int64_t inside[PRODUCTS];
  for (int y = 0; y < IN_EDGE; y++)
    for (int x = 0; x < IN_EDGE; x++) {
      const int64_t h = at.top + y - j.pad_h, w = at.left + x - j.pad_w;
      const bool in = h >= 0 && h < j.height && w >= 0 && w < j.width;
      from[y * IN_EDGE + x] = in ? image + ((at.sample * j.height + h) * j.width + w) * j.channels : zeros;
      inside[y * IN_EDGE + x] = in;
    }
  for (int64_t c = 0; c < j.channels; c += LANES) {
    Vec half[IN_EDGE][IN_EDGE];
    for (int x = 0; x < IN_EDGE; x++) {
      Vec d[IN_EDGE], v[IN_EDGE];
      for (int y = 0; y < IN_EDGE; y++) {
        d[y] = load(from[y * IN_EDGE + x] + inside[y * IN_EDGE + x] * c);
        if (REPAIR) d[y] = without_extremes(d[y], extreme[y * IN_EDGE + x]);
      }
      transform_in(d, v);
      for (int y = 0; y < IN_EDGE; y++) half[y][x] = v[y];
    }
    for (int y = 0; y < IN_EDGE; y++) {
      Vec v[IN_EDGE];
      transform_in(half[y], v);
      for (int x = 0; x < IN_EDGE; x++) store(to + (y * IN_EDGE + x) * stride + c, v[x]);
    }
  }
}

// Transforms the products of a tile into its outputs, and adds the bias and the addend; returns whether all outputs are
// finite before the addend is added. With REPAIR, outputs whose window holds an extreme number become NaN
template <bool REPAIR>
ONE_COPY bool write_tile(const WinogradJob& j, float* image, const float* bias, const float* addend, int64_t tile,
                         const float* from, int64_t stride, const bool* extreme) {
  const TilePosition at(j, tile);
  const int64_t rows = std::min<int64_t>(OUT_EDGE, j.out_h() - at.top);
  const int64_t columns = std::min<int64_t>(OUT_EDGE, j.out_w() - at.left);
  const int64_t step = j.max_pool ? 2 : 1, high = j.out_h() / step, wide = j.out_w() / step;
  Vec finite_check{};
  for (int64_t k = 0; k < j.outputs; k += LANES) {
    Vec half[OUT_EDGE][IN_EDGE], y[OUT_EDGE][OUT_EDGE];
    for (int x = 0; x < IN_EDGE; x++) {
      Vec m[IN_EDGE], v[OUT_EDGE];
      for (int i = 0; i < IN_EDGE; i++) m[i] = load(from + (i * IN_EDGE + x) * stride + k);
      transform_out(m, v);
      for (int i = 0; i < OUT_EDGE; i++) half[i][x] = v[i];
    }
    const Vec offset = bias ? load(bias + k) : Vec{};
    for (int i = 0; i < OUT_EDGE; i++) {
      transform_out(half[i], y[i]);
      for (int x = 0; x < OUT_EDGE; x++) {
        y[i][x] += offset;
        for (int p = 0; REPAIR && p < 9; p++)
          if (extreme[(i + p / 3) * IN_EDGE + x + p % 3]) y[i][x] = broadcast(std::numeric_limits<float>::quiet_NaN());
        finite_check += y[i][x] * 0.0f;  // NaN for an infinity or NaN
        if (addend && i < rows && x < columns)
          y[i][x] += load(addend + ((at.sample * j.out_h() + at.top + i) * j.out_w() + at.left + x) * j.outputs + k);
        if (j.relu) y[i][x] = relu(y[i][x]);
      }
    }
    for (int64_t i = 0; i + step <= rows; i += step)
      for (int64_t x = 0; x + step <= columns; x += step) {
        Vec v = y[i][x];
        if (j.max_pool) v = maximum(maximum(maximum(v, y[i][x + 1]), y[i + 1][x]), y[i + 1][x + 1]);
        store(image + ((at.sample * high + (at.top + i) / step) * wide + (at.left + x) / step) * j.outputs + k, v);
      }
  }
  for (int i = 0; i < LANES; i++)
    if (finite_check[i] != finite_check[i]) return false;
  return true;
}

template <int N>
inline void product(const float* __restrict x, int64_t x_stride, const float* __restrict w, float* __restrict y,
                    int64_t y_stride, int64_t channels) {
  Vec total[N][2];
  for (int r = 0; r < N; r++) total[r][0] = total[r][1] = Vec{};
  for (int64_t c = 0; c < channels; c++) {
    const Vec left = load(w + c * PANEL), right = load(w + c * PANEL + LANES);
    for (int i = 0; i < PANEL; i += 16) __builtin_prefetch(w + c * PANEL + PREFETCH_FLOATS + i, 0, 2);
#pragma GCC unroll 12
    for (int r = 0; r < N; r++) {
      total[r][0] += x[r * x_stride + c] * left;
      total[r][1] += x[r * x_stride + c] * right;
    }
  }
  for (int r = 0; r < N; r++) {
    store(y + r * y_stride, total[r][0]);
    store(y + r * y_stride + LANES, total[r][1]);
  }
}

// one panel of one of the 36 linear layers, for all tiles of a block, in register tiles of nearly equal numbers of rows
inline void multiply(const WinogradJob& j, const float* x, const float* w, float* y, int64_t tiles) {
  for (int64_t row = 0, parts = ceil_div(tiles, TILE_ROWS); row < tiles; parts--) {
    const int64_t n = ceil_div(tiles - row, parts);
    const float* from = x + row * j.in_stride();
    float* to = y + row * j.out_stride();
    with_rows(n, [&](auto count) { product<count()>(from, j.in_stride(), w, to, j.out_stride(), j.channels); });
    row += n;
  }
}

// Computes a tile again that gave an infinity or NaN. The transforms spread such a number over all outputs of the tile; here
// only the outputs whose window holds an extreme number become NaN, and the others get their values
inline void repair_tile(const WinogradJob& j, const float* image, const float* weight, const float* bias,
                        const float* addend, float* result, int64_t tile) {
  std::vector<float> memory(PRODUCTS * (j.in_stride() + j.out_stride()));
  float *x = memory.data(), *y = x + PRODUCTS * j.in_stride();
  bool extreme[PRODUCTS] = {};
  read_tile<true>(j, image, tile, x, j.in_stride(), extreme);
  // without extreme inputs, the sums themselves overflow
  if (std::none_of(extreme, extreme + PRODUCTS, [](bool e) { return e; })) return;
  for (int64_t u = 0; u < PRODUCTS * j.panels(); u++)
    multiply(j, x + u / j.panels() * j.in_stride(), weight + u * j.channels * PANEL,
             y + u / j.panels() * j.out_stride() + u % j.panels() * PANEL, 1);
  write_tile<true>(j, result, bias, addend, tile, y, j.out_stride(), extreme);
}

// bytes: weights that each thread may read for every dozen tiles; weights that a last-level cache holds; what a block that
// all threads share may then take. And its number of tiles if the weights are in memory and should be read only once
constexpr int64_t SMALL_WEIGHTS = 5 << 20, CACHED_WEIGHTS = 16 << 20, SHARED_BLOCK = 5 << 19;
constexpr int64_t MAX_TILES = 64, MIN_TILES = 2 * TILE_ROWS;

struct WinogradBlocks {
  bool separate;  // each thread has its own block
  int64_t count, size;
  explicit WinogradBlocks(const WinogradJob& j) {
    const int64_t tiles = j.tiles(), weights = PRODUCTS * 4 * j.channels * j.panels() * PANEL;
    separate = weights <= SMALL_WEIGHTS && tiles >= 8 * TILE_ROWS * j.threads;
    const int64_t fitting = std::clamp<int64_t>(SHARED_BLOCK / (4 * j.floats(1)), MIN_TILES, MAX_TILES);
    const int64_t most = separate ? TILE_ROWS : weights <= CACHED_WEIGHTS ? fitting : MAX_TILES;
    count = ceil_div(tiles, most);
    size = separate ? TILE_ROWS : ceil_div(tiles, count);
  }
  int64_t floats(const WinogradJob& j) const { return j.floats(size) * (separate ? j.threads : 1); }
};

// called by all threads of a team; `addend` has the shape of the convolution's output, or is null
inline void winograd(const WinogradJob& j, const WinogradBlocks& blocks, const Team& team, const float* image,
                     const float* weight, const float* bias, const float* addend, float* result, float* scratch) {
  const int64_t tiles = j.tiles(), panels = j.panels(), block = blocks.size;
  const int64_t x_stride = block * j.in_stride(), y_stride = block * j.out_stride();  // between the 36 layers
  float* memory = scratch + (blocks.separate ? team.thread * j.floats(block) : 0);
  float *x = take(memory, j.in_floats(block)), *y = take(memory, j.floats(block) - j.in_floats(block));
  const auto write = [&](int64_t tile, const float* from) {
    if (!write_tile<false>(j, result, bias, addend, tile, from, y_stride, nullptr))
      repair_tile(j, image, weight, bias, addend, result, tile);
  };
  const auto unit = [&](int64_t u, int64_t n) {
    multiply(j, x + u / panels * x_stride, weight + u * j.channels * PANEL, y + u / panels * y_stride + u % panels * PANEL,
             n);
  };
  if (blocks.separate) {
    return team.share_dynamically(blocks.count, [&](int64_t i) {
      const int64_t first = i * block, n = std::min(block, tiles - first);
      for (int64_t t = 0; t < n; t++) read_tile<false>(j, image, first + t, x + t * j.in_stride(), x_stride, nullptr);
      for (int64_t u = 0; u < PRODUCTS * panels; u++) unit(u, n);
      for (int64_t t = 0; t < n; t++) write(first + t, y + t * j.out_stride());
    });
  }
  for (int64_t first = 0; first < tiles; first += block) {
    const int64_t n = std::min(block, tiles - first);
    team.share(n, [&](int64_t t) { read_tile<false>(j, image, first + t, x + t * j.in_stride(), x_stride, nullptr); });
    team.share(PRODUCTS * panels, [&](int64_t u) { unit(u, n); });
    team.share(n, [&](int64_t t) { write(first + t, y + t * j.out_stride()); });
  }
}
}  // namespace onebyone
