// Rows times panels of weights in registers, and seven such products of halves that do what eight would: see strassen.h.
#pragma once
#include "scaling.h"

namespace onebyone {
struct Finish {  // where a tile goes when it is done: rows of the layer's answer
  float* y;
  int64_t apart, rows, columns;
  const float *bias, *add;
  int64_t activation;
  const float* back;  // what each row is to be multiplied by, or null
};

// rows times one panel of weights, and what is added to that: kept (`to`), or finished
struct Product {
  const float* x;
  int64_t x_row, k;
  const float *w, *ahead;  // weights, and those that come next: asked for while these are used
  const float* add[3];     // as wide as a panel
  float* to;               // likewise
  const Finish* finish;
};

constexpr int FOUR = 4;
constexpr int64_t most_rows(int vectors) { return vectors <= 2 ? ROWS : ROWS * 2 / 3; }

// the end of a layer: rows scaled back, bias, what is added, the activation; apart from the products, so that they stay small
__attribute__((noinline)) inline void finished(const Finish& f, const float* tile, int64_t width, int64_t row, int64_t n) {
  // copies: the compiler must take it that each number stored may change `f`, and would read it again
  const float *bias = f.bias, *add = f.add ? f.add + row * f.apart : nullptr;
  const float* back = f.back ? f.back + row : nullptr;
  float* y = f.y + row * f.apart;
  const int64_t apart = f.apart, columns = f.columns, rows = std::min(n, f.rows - row);
  with_number<NONE, GELU_TANH>(f.activation, [=](auto kind) {
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < columns; c += LANES) {
        const int64_t at = r * apart + c, left = columns - c;
        Vec v = load(tile + r * width + c);
        if (back) v *= back[r];
        if (bias) v += load(bias + c);
        if (add) v += load(add + at, left);
        store(y + at, activated(v, kind()), left);
      }
  });
}

// N rows from `row` on, V vectors wide; `lines` of the weights ahead for every FOUR numbers of a row
template <int N, int V>
void multiply(const Product& p, int64_t row, int64_t lines, const float* ahead) {
  constexpr int64_t W = V * LANES;
  Vec total[N][V];
  const float *x = p.x + row * p.x_row, *w = p.w;
  const int64_t x_row = p.x_row, k = p.k;
  for (int r = 0; r < N; r++)
    for (int i = 0; i < V; i++) total[r][i] = Vec{};
  for (const float* add : p.add)
    if (add)
      for (int r = 0; r < N; r++)
        for (int i = 0; i < V; i++) total[r][i] += load(add + (row + r) * W + i * LANES);
  if (p.finish)  // what it is added to and where it goes may be far: they come while the products are made
    for (int r = 0; r < N; r++)
      for (int i = 0; i < V; i++) {
        const int64_t at = (row + r) * p.finish->apart + i * LANES;
        if (p.finish->add) __builtin_prefetch(p.finish->add + at, 0, 3);
        __builtin_prefetch(p.finish->y + at, 1, 3);
      }
  const auto one = [&](int64_t c) __attribute__((always_inline)) {
    Vec b[V];
    for (int i = 0; i < V; i++) b[i] = load(w + c * W + i * LANES);
#pragma GCC unroll 12
    for (int r = 0; r < N; r++)
      for (int i = 0; i < V; i++) total[r][i] += x[r * x_row + c] * b[i];
  };
  int64_t c = 0;
  for (; c + FOUR <= k; c += FOUR) {
    for (int64_t i = 0; i < lines; i++, ahead += 16) __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 4
    for (int i = 0; i < FOUR; i++) one(c + i);
  }
  for (; c < k; c++) one(c);
  alignas(64) float tile[N * W];
  const Finish* f = p.finish;
  if (f && f->activation <= RELU && !f->back && f->columns == W && row + N <= f->rows) {
    for (int i = 0; i < V; i++) {
      const Vec bias = f->bias ? load(f->bias + i * LANES) : Vec{};
      for (int r = 0; r < N; r++) {
        const int64_t at = (row + r) * f->apart + i * LANES;
        const Vec sum = f->add ? total[r][i] + bias + load(f->add + at) : total[r][i] + bias;
        store(f->y + at, f->activation ? positive(sum) : sum);
      }
    }
    return;
  }
  float* to = f ? tile : p.to + row * W;
  for (int r = 0; r < N; r++)
    for (int i = 0; i < V; i++) store(to + r * W + i * LANES, total[r][i]);
  if (f) finished(*f, tile, W, row, N);
}

template <int V>
inline void multiply_all(const Product& p, int64_t rows) {
  const int64_t tiles = parts_of(rows, most_rows(V)), lines = parts_of(FOUR * V * LANES / 16, tiles);
  const float* ahead = p.ahead;
  for (int64_t row = 0, left = tiles; row < rows; left--) {
    const int64_t n = parts_of(rows - row, left);
    with_rows<most_rows(V)>(n, [&](auto count) { multiply<count(), V>(p, row, lines, ahead); });
    ahead += p.k / FOUR * lines * 16;
    row += n;
  }
}

// one product of halves in seven: the operands in the order in which they are multiplied
enum Operand { A11, A12, S2, S3, A22, S1, S4, OPERANDS };
struct Quad {
  const float* a[OPERANDS];
  int64_t a_row[OPERANDS], k;
  const float* w;
  float *p, *q, *r, *v;    // M1, U2, U3, M5
  const float* from[4];    // what is added to C11, C12, C21, C22, or null
  float* to[4];            // where they are kept, or
  const Finish* finish[4];
};

template <int V>
inline void multiply_quad(const Quad& s, int64_t rows) {
  constexpr int64_t W = V * LANES;
  const auto product = [&](Operand o, const float* one, const float* two, const float* three, float* to,
                           const Finish* finish) {
    const float* w = s.w + o * s.k * W;
    multiply_all<V>({s.a[o], s.a_row[o], s.k, w, w + s.k * W, {one, two, three}, to, finish}, rows);
  };
  product(A11, nullptr, nullptr, nullptr, s.p, nullptr);
  product(A12, s.p, s.from[0], nullptr, s.to[0], s.finish[0]);
  product(S2, s.p, nullptr, nullptr, s.q, nullptr);
  product(S3, s.q, nullptr, nullptr, s.r, nullptr);
  product(A22, s.r, s.from[2], nullptr, s.to[2], s.finish[2]);
  product(S1, nullptr, nullptr, nullptr, s.v, nullptr);
  float* c22 = s.to[3] ? s.to[3] : s.r;
  for (int64_t i = 0; i < rows * W; i += LANES) {
    const Vec sum = load(s.v + i) + load(s.r + i);
    store(c22 + i, s.from[3] ? sum + load(s.from[3] + i) : sum);
  }
  if (s.finish[3]) finished(*s.finish[3], c22, W, 0, rows);
  product(S4, s.v, s.q, s.from[1], s.to[1], s.finish[1]);
}
}  // namespace onebyone
