// Matrix products of rows with panels of packed weights, in register tiles; and one level of Strassen's algorithm on such
// products: seven instead of eight (strassen.h).
#pragma once
#include "scaling.h"

namespace onebyone {
// what happens to a finished tile: scaling, bias, addend, activation, and where it is written
struct Epilogue {
  float* y;                    // the first row and column of the tile in the layer's output
  int64_t stride, rows, columns;  // floats from row to row of the output; what of the tile is inside it
  const float *bias, *addend;  // or null
  int64_t activation;
  const float* row_scales;     // a factor for each row, or null
};

// rows times one panel of weights, plus up to three addends: stored (`result`), or passed to an epilogue
struct PanelProduct {
  const float* x;
  int64_t x_stride, k;
  const float *w, *prefetched;  // the weights, and those that are used next
  const float* addends[3];      // or null; rows are as wide as the panel
  float* result;                // likewise
  const Epilogue* epilogue;     // or null
};

constexpr int UNROLL = 4;
constexpr int64_t max_tile_rows(int vectors) { return vectors <= 2 ? TILE_ROWS : TILE_ROWS * 2 / 3; }

// n rows of a tile of `width` columns through the epilogue; not inlined, so that the product loops stay small
__attribute__((noinline)) inline void finish_tile(const Epilogue& e, const float* tile, int64_t width, int64_t row,
                                                  int64_t n) {
  // local copies: the compiler must assume that each store may change `e`, and would load its fields again
  const float *bias = e.bias, *addend = e.addend ? e.addend + row * e.stride : nullptr;
  const float* row_scales = e.row_scales ? e.row_scales + row : nullptr;
  float* y = e.y + row * e.stride;
  const int64_t stride = e.stride, columns = e.columns, rows = std::min(n, e.rows - row);
  with_constant<NONE, GELU_TANH>(e.activation, [=](auto kind) {
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < columns; c += LANES) {
        const int64_t at = r * stride + c, left = columns - c;
        Vec v = load(tile + r * width + c);
        if (row_scales) v *= row_scales[r];
        if (bias) v += load(bias + c);
        if (addend) v += load(addend + at, left);
        store(y + at, activated(v, kind()), left);
      }
  });
}

// a tile of N rows and V vectors of columns, from `row` on; prefetches `lines` cache lines of weights per UNROLL numbers
template <int N, int V>
void multiply(const PanelProduct& p, int64_t row, int64_t lines, const float* prefetched) {
  constexpr int64_t W = V * LANES;
  Vec total[N][V];
  const float *x = p.x + row * p.x_stride, *w = p.w;
  const int64_t x_stride = p.x_stride, k = p.k;
  for (int r = 0; r < N; r++)
    for (int i = 0; i < V; i++) total[r][i] = Vec{};
  for (const float* addend : p.addends)
    if (addend)
      for (int r = 0; r < N; r++)
        for (int i = 0; i < V; i++) total[r][i] += load(addend + (row + r) * W + i * LANES);
  if (p.epilogue)  // fetch the addend and the output while the products are computed
    for (int r = 0; r < N; r++)
      for (int i = 0; i < V; i++) {
        const int64_t at = (row + r) * p.epilogue->stride + i * LANES;
        if (p.epilogue->addend) __builtin_prefetch(p.epilogue->addend + at, 0, 3);
        __builtin_prefetch(p.epilogue->y + at, 1, 3);
      }
  const auto one = [&](int64_t c) __attribute__((always_inline)) {
    Vec b[V];
    for (int i = 0; i < V; i++) b[i] = load(w + c * W + i * LANES);
#pragma GCC unroll 12
    for (int r = 0; r < N; r++)
      for (int i = 0; i < V; i++) total[r][i] += x[r * x_stride + c] * b[i];
  };
  int64_t c = 0;
  for (; c + UNROLL <= k; c += UNROLL) {
    for (int64_t i = 0; i < lines; i++, prefetched += 16) __builtin_prefetch(prefetched, 0, 2);
#pragma GCC unroll 4
    for (int i = 0; i < UNROLL; i++) one(c + i);
  }
  for (; c < k; c++) one(c);
  alignas(64) float tile[N * W];
  const Epilogue* e = p.epilogue;
  // the common epilogue, straight from the registers
  if (e && e->activation <= RELU && !e->row_scales && e->columns == W && row + N <= e->rows) {
    for (int i = 0; i < V; i++) {
      const Vec bias = e->bias ? load(e->bias + i * LANES) : Vec{};
      for (int r = 0; r < N; r++) {
        const int64_t at = (row + r) * e->stride + i * LANES;
        const Vec sum = e->addend ? total[r][i] + bias + load(e->addend + at) : total[r][i] + bias;
        store(e->y + at, e->activation ? relu(sum) : sum);
      }
    }
    return;
  }
  float* to = e ? tile : p.result + row * W;
  for (int r = 0; r < N; r++)
    for (int i = 0; i < V; i++) store(to + r * W + i * LANES, total[r][i]);
  if (e) finish_tile(*e, tile, W, row, N);
}

// all rows, in tiles of nearly equal numbers of rows
template <int V>
inline void multiply_all(const PanelProduct& p, int64_t rows) {
  const int64_t tiles = ceil_div(rows, max_tile_rows(V)), lines = ceil_div(UNROLL * V * LANES / 16, tiles);
  const float* prefetched = p.prefetched;
  for (int64_t row = 0, left = tiles; row < rows; left--) {
    const int64_t n = ceil_div(rows - row, left);
    with_rows<max_tile_rows(V)>(n, [&](auto count) { multiply<count(), V>(p, row, lines, prefetched); });
    prefetched += p.k / UNROLL * lines * 16;
    row += n;
  }
}

// One level of Strassen's algorithm: seven products of an operand of the rows with a factor of the weights. The operands
// are named as in onebyone/laws/strassen.py and listed in the order in which they are multiplied
enum Operand { A11, A12, S2, S3, A22, S1, S4, OPERANDS };
struct StrassenProduct {
  const float* a[OPERANDS];
  int64_t a_stride[OPERANDS], k;
  const float* w;
  float *m1, *u2, *u3, *m5;      // memory for intermediate results
  const float* addends[4];       // what is added to C11, C12, C21 and C22, or null
  float* results[4];             // where they are stored, or
  const Epilogue* epilogues[4];  // what finishes them
};

template <int V>
inline void multiply_strassen(const StrassenProduct& s, int64_t rows) {
  constexpr int64_t W = V * LANES;
  const auto product = [&](Operand o, const float* one, const float* two, const float* three, float* result,
                           const Epilogue* epilogue) {
    const float* w = s.w + o * s.k * W;
    multiply_all<V>({s.a[o], s.a_stride[o], s.k, w, w + s.k * W, {one, two, three}, result, epilogue}, rows);
  };
  product(A11, nullptr, nullptr, nullptr, s.m1, nullptr);
  product(A12, s.m1, s.addends[0], nullptr, s.results[0], s.epilogues[0]);
  product(S2, s.m1, nullptr, nullptr, s.u2, nullptr);
  product(S3, s.u2, nullptr, nullptr, s.u3, nullptr);
  product(A22, s.u3, s.addends[2], nullptr, s.results[2], s.epilogues[2]);
  product(S1, nullptr, nullptr, nullptr, s.m5, nullptr);
  float* c22 = s.results[3] ? s.results[3] : s.u3;
  for (int64_t i = 0; i < rows * W; i += LANES) {
    const Vec sum = load(s.m5 + i) + load(s.u3 + i);
    store(c22 + i, s.addends[3] ? sum + load(s.addends[3] + i) : sum);
  }
  if (s.epilogues[3]) finish_tile(*s.epilogues[3], c22, W, 0, rows);
  product(S4, s.m5, s.u2, s.addends[1], s.results[1], s.epilogues[1]);
}
}  // namespace onebyone
