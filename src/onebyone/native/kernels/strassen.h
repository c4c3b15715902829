// Linear layers by Strassen's algorithm in Winograd's order, with none, one or two levels: see onebyone/laws/strassen.py.
// The sums of the weights are computed beforehand, those of the rows in one pass, and those of the results in the
// accumulators of the products, which start from what is to be added.
//
// Where adding two rows would spoil the precision of one, all rows are scaled first, in a copy, and their products are
// scaled back: see scaling.h. The pass that sums the rows finds out whether that is needed. Without `signs` it never is.
//
// Weights are packed as (panels, 7^levels, K / 2^levels, panel width); a panel serves all quarters of the output. The last
// panel may be narrower.
#pragma once
#include "gemm.h"

namespace onebyone {
// how the work and the scratch memory of a linear step are divided
struct LinearLayout {
  const LinearStep& s;
  int64_t parts;      // the rows, inputs and outputs are halved this often: 1, 2 or 4 parts
  int64_t part_rows, k, columns;  // of the smallest part
  int64_t width;      // of a panel, in floats
  int64_t panels;     // of the smallest part
  int64_t blocks;     // of rows of the smallest part; a unit of work is a panel with a block
  int64_t max_block;  // rows of a block at most
  bool fetched;       // rows are copied before the products
  bool copied;        // all seven operands are copied, not only the four sums
  bool guarded;       // rows that differ in size are scaled

  LinearLayout(const LinearStep& step, int threads) : s(step) {
    parts = int64_t(1) << s.levels;
    part_rows = ceil_div(s.rows, parts);
    k = s.inputs / parts;
    columns = s.outputs / parts;
    width = s.vectors * LANES;
    panels = ceil_div(columns, width);
    // rows that begin 4 KiB apart would share one set of the first-level cache
    const bool conflicting = s.inputs % 1024 == 0 && s.rows > 4;
    fetched = s.index || s.factors || (conflicting && !s.levels);
    copied = conflicting && !fetched;
    guarded = s.levels && s.signs;
    const int64_t longest = 160 >> s.levels;
    blocks = ceil_div(part_rows, longest);
    for (int64_t more = blocks; more < std::min(4 * blocks, part_rows + 1); more++) {  // the same number for each thread
      const int64_t units = panels * more, rounds = ceil_div(units, threads);
      if (units * 20 < rounds * threads * 19) continue;
      blocks = more;
      break;
    }
    // A bound on a block's rows that never decreases as the layer's rows increase; ceil_div(part_rows, blocks) could. So
    // every size below is monotone in the rows, and scratch for some number of rows is enough for any smaller number
    max_block = std::min(part_rows, longest) + 1;
  }
  // The floats of a row of sums at some level (0: of a copied row). Sums are half as long as what they sum, in whole cache
  // lines, and successive rows do not share a set of the cache
  int64_t sum_stride(int64_t level) const { return ceil_div(s.inputs >> level, 16) * 16 + 16; }
  int64_t stored_operands() const { return copied ? OPERANDS : 4; }
  // sizes of the parts of the scratch. Rows include those that fill up the smallest parts, whose products are discarded
  int64_t row_floats() const { return with_red_zone(fetched || guarded ? part_rows * parts * sum_stride(0) : 0); }
  int64_t outer_sum_floats() const {
    return with_red_zone(s.levels ? stored_operands() * part_rows * (parts / 2) * sum_stride(1) : 0);
  }
  int64_t inner_sum_floats() const {
    return with_red_zone(s.levels > 1 ? OPERANDS * 4 * part_rows * sum_stride(2) : 0);
  }
  // the factors that undo the scaling of each row; and, for each thread, whether it found rows that must be scaled
  int64_t row_scale_floats() const { return with_red_zone(guarded ? ceil_div(s.rows, 16) * 16 : 0); }
  int64_t mark_floats(int threads) const { return with_red_zone(guarded ? ceil_div(threads, 16) * 16 : 0); }
  // the intermediate results of one thread
  int64_t temporary_floats() const {
    return with_red_zone(s.levels ? max_block * width * (s.levels > 1 ? 4 + 4 * 4 : 4) : 0);
  }
  int64_t shared_floats(int threads) const {
    return row_floats() + outer_sum_floats() + inner_sum_floats() + row_scale_floats() + mark_floats(threads);
  }
  int64_t floats(int threads) const { return shared_floats(threads) + threads * temporary_floats(); }
};

// copies row i of the input as it is multiplied: see LinearStep in steps.h
inline void fetch_row(const LinearStep& s, int64_t i, float* to) {
  const float* x = s.input + i * s.inputs;
  if (s.index) {
    const int64_t length = s.inputs / s.pieces;
    for (int64_t p = 0; p < s.pieces; p++, to += length) {
      const int64_t at = s.index[i * s.pieces + p];
      if (at < 0) std::fill_n(to, length, 0.0f);
      else std::memcpy(to, s.input + at, length * sizeof(float));
    }
  } else if (s.factors) {
    const float* factors = s.factors + (s.first_row + i) / s.rows_per_factor * s.inputs;
    for (int64_t c = 0; c < s.inputs; c += LANES) {
      const int64_t n = s.inputs - c;
      store(to + c, load(x + c, n) * load(factors + c, n), n);
    }
  } else {
    std::memcpy(to, x, s.inputs * sizeof(float));
  }
}

// row i of the four sums of an operand's quarters, and of three of those quarters themselves if they are copied
inline void sum_rows(const Rows& x, int64_t i, int64_t half, int64_t k, float* const to[OPERANDS]) {
  const float *upper = x.begin + i * x.stride, *lower = x.begin + (half + i) * x.stride;
  const bool upper_valid = i < x.valid, lower_valid = half + i < x.valid;
  for (int64_t c = 0; c < k; c += LANES) {
    const int64_t n = k - c;
    const Vec a11 = upper_valid ? load(upper + c, n) : Vec{}, a12 = upper_valid ? load(upper + k + c, n) : Vec{};
    const Vec a21 = lower_valid ? load(lower + c, n) : Vec{}, a22 = lower_valid ? load(lower + k + c, n) : Vec{};
    const Vec s1 = a21 + a22, s2 = s1 - a11;
    store(to[S1] + c, s1, n);
    store(to[S2] + c, s2, n);
    store(to[S3] + c, a11 - a21, n);
    store(to[S4] + c, a12 - s2, n);
    if (!to[A11]) continue;
    store(to[A11] + c, a11, n);
    store(to[A12] + c, a12, n);
    store(to[A22] + c, a22, n);
  }
}

// the operands in the order in which they are stored: the sums first
constexpr Operand STORED[] = {S1, S2, S3, S4, A11, A12, A22};

// the seven operands of x; the sums are stored in `memory`
struct Operands {
  Rows of[OPERANDS];
  float* sums[OPERANDS] = {};
  Operands(const Rows& x, int64_t half, int64_t k, float* memory, int64_t sum_stride, int64_t stored) {
    of[A11] = {x.begin, x.stride, std::min(half, x.valid)};
    of[A12] = {x.begin + k, x.stride, std::min(half, x.valid)};
    of[A22] = {x.begin + half * x.stride + k, x.stride, x.valid - half};
    for (int64_t i = 0; i < stored; i++) {
      sums[STORED[i]] = memory + i * half * sum_stride;
      of[STORED[i]] = {sums[STORED[i]], sum_stride, half};
    }
  }
  void sum(const Rows& x, int64_t i, int64_t half, int64_t k) const {
    float* to[OPERANDS];
    for (int o = 0; o < OPERANDS; o++) to[o] = sums[o] ? sums[o] + i * of[o].stride : nullptr;
    sum_rows(x, i, half, k, to);
  }
  void set(StrassenProduct& product, int64_t row) const {
    for (int o = 0; o < OPERANDS; o++) {
      product.a[o] = of[o].begin + row * of[o].stride;
      product.a_stride[o] = of[o].stride;
    }
  }
};

// one linear step with panels of V vectors
template <int V>
struct LinearRun {
  static constexpr int64_t W = V * LANES;
  const LinearLayout l;
  const LinearStep& s;
  const float* row_scales = nullptr;  // the factors that undo the scaling of each row, where rows are scaled
  LinearRun(const LinearStep& step, int threads) : l(step, threads), s(step) {}

  // the epilogue of panel j of the part of the output in this row and column of parts, from its row r0 on
  Epilogue epilogue(int64_t j, int64_t row_part, int64_t column_part, int64_t r0) const {
    const int64_t row = row_part * l.part_rows + r0, column = column_part * l.columns + j * W;
    const int64_t at = row * s.outputs + column;
    return {s.output + at, s.outputs, s.rows - row, std::min(W, l.columns - j * W), s.bias ? s.bias + column : nullptr,
            s.addend ? s.addend + at : nullptr, s.activation, row_scales ? row_scales + row : nullptr};
  }

  // a unit of work without Strassen's algorithm
  template <int U>
  void direct(const Rows& x, int64_t j, int64_t r0, int64_t rows) const {
    const int64_t panel = l.k * U * LANES;
    const Epilogue e = epilogue(j, 0, 0, r0);
    const float* w = s.weight + j * l.k * W;
    // a single tile uses weights as fast as they arrive: prefetch a little ahead instead of a whole panel
    const float* prefetched = w + (rows <= max_tile_rows(U) ? std::min(panel, PREFETCH_FLOATS) : panel);
    multiply_all<U>({x.begin + r0 * x.stride, x.stride, l.k, w, prefetched, {}, nullptr, &e}, rows);
  }

  StrassenProduct product_of(const Operands& x, const float* w, int64_t r0, float* temporary) const {
    StrassenProduct product{};
    x.set(product, r0);
    product.k = l.k;
    product.w = w;
    float** temporaries[] = {&product.m1, &product.u2, &product.u3, &product.m5};
    for (int i = 0; i < 4; i++) *temporaries[i] = temporary + i * l.max_block * W;
    return product;
  }

  // a unit of work with one level
  template <int U>
  void one_level(const Operands& x, int64_t j, int64_t r0, int64_t rows, float* temporary) const {
    StrassenProduct p = product_of(x, s.weight + j * OPERANDS * l.k * W, r0, temporary);
    const Epilogue e[] = {epilogue(j, 0, 0, r0), epilogue(j, 0, 1, r0), epilogue(j, 1, 0, r0), epilogue(j, 1, 1, r0)};
    for (int i = 0; i < 4; i++) p.epilogues[i] = e + i;
    multiply_strassen<U>(p, rows);
  }

  // four tiles: an intermediate result of the outer level
  struct Quarters {
    float* of[4];
    Quarters(float* memory, int64_t floats) {
      for (int i = 0; i < 4; i++) of[i] = memory + i * floats;
    }
  };

  // a unit of work with two levels: each of the seven outer products is itself a Strassen product
  template <int U>
  void two_levels(const Operands* x, int64_t j, int64_t r0, int64_t rows, float* temporary) const {
    const int64_t floats = l.max_block * W, width = U * LANES;
    const Quarters m1(temporary + 4 * floats, floats), u2(temporary + 8 * floats, floats);
    const Quarters u3(temporary + 12 * floats, floats), m5(temporary + 16 * floats, floats);
    const float* weight = s.weight + j * OPERANDS * OPERANDS * l.k * W;
    const auto product = [&](Operand o, const Quarters* addend, const Quarters* result, int row_half, int column_half) {
      StrassenProduct inner = product_of(x[o], weight + o * OPERANDS * l.k * width, r0, temporary);
      Epilogue e[4];
      for (int i = 0; i < 4; i++) {
        inner.addends[i] = addend ? addend->of[i] : nullptr;
        if (result) {
          inner.results[i] = result->of[i];
          continue;
        }
        e[i] = epilogue(j, 2 * row_half + i / 2, 2 * column_half + i % 2, r0);
        inner.epilogues[i] = e + i;
      }
      multiply_strassen<U>(inner, rows);
    };
    product(A11, nullptr, &m1, 0, 0);
    product(A12, &m1, nullptr, 0, 0);  // C11
    product(S2, &m1, &u2, 0, 0);
    product(S3, &u2, &u3, 0, 0);
    product(A22, &u3, nullptr, 1, 0);  // C21
    product(S1, nullptr, &m5, 0, 0);
    for (int i = 0; i < 4; i++) {
      for (int64_t at = 0; at < rows * width; at += LANES) {
        const Vec m = load(m5.of[i] + at);
        store(u3.of[i] + at, load(u3.of[i] + at) + m);
        store(m5.of[i] + at, load(u2.of[i] + at) + m);
      }
      finish_tile(epilogue(j, 2 + i / 2, 2 + i % 2, r0), u3.of[i], width, 0, rows);  // C22
    }
    product(S4, &m5, nullptr, 0, 1);  // C12
  }

  // all units of work; `work` gets the number of vectors of the panel as a compile-time constant
  template <class Work>
  void products(const Team& team, const Work& work) const {
    team.share(l.panels * l.blocks, [&](int64_t u) {
      const int64_t j = u / l.blocks, b = u % l.blocks;
      const int64_t r0 = l.part_rows * b / l.blocks, end = l.part_rows * (b + 1) / l.blocks;
      with_constant<1, V>(std::min<int64_t>(V, ceil_div(l.columns - j * W, LANES)), [&](auto vectors) {
        work(vectors, j, r0, end - r0);
      });
    });
  }

  // The sums of x's rows. Returns false, without all of them, if rows that would be added must be scaled first
  bool sum(const Team& team, const Rows& x, const Operands& to, float* marks) const {
    const int64_t half = l.part_rows * l.parts / 2;
    bool summable = true;
    if (marks) marks[team.thread] = 0;
    team.share(l.part_rows, [&](int64_t i) {
      if (marks && !(summable = summable && may_be_added(x, i, l.part_rows, s.inputs))) marks[team.thread] = 1;
      for (int64_t row = i; row < half && summable; row += l.part_rows) to.sum(x, row, half, s.inputs / 2);
    });
    for (int64_t t = 0; t < team.size && marks; t++) summable = summable && !marks[t];
    return summable;
  }

  // the output of row i, which holds an infinity or NaN, after all others; `x` is memory for the row
  void nonfinite_row(int64_t i, float* x) const {
    float tile[LANES];
    fetch_row(s, i, x);
    for (int64_t j = 0; j < s.outputs; j += LANES) {
      const int64_t at = i * s.outputs + j;
      store(tile, nonfinite_products(x, s.inputs, s.signs, s.outputs, j));
      finish_tile({s.output + at, s.outputs, 1, std::min<int64_t>(LANES, s.outputs - j), s.bias ? s.bias + j : nullptr,
                   s.addend ? s.addend + at : nullptr, s.activation, nullptr}, tile, LANES, 0, 1);
    }
  }

  void run(const Team& team) {
    Rows x{s.input, s.inputs, s.rows};
    float* scratch = s.scratch;
    float *rows = take(scratch, l.row_floats()), *sums = take(scratch, l.outer_sum_floats());
    float* inner_sums = take(scratch, l.inner_sum_floats());
    float *scales = take(scratch, l.row_scale_floats()), *marks = take(scratch, l.mark_floats(team.size));
    float* temporary = take(scratch += team.thread * l.temporary_floats(), l.temporary_floats());
    if (l.fetched) {
      x = {rows, l.sum_stride(0), s.rows};
      team.share(s.rows, [&](int64_t i) { fetch_row(s, i, rows + i * x.stride); });
    }
    if (!s.levels)
      return products(team, [&](auto u, int64_t j, int64_t r0, int64_t n) { direct<u()>(x, j, r0, n); });
    const auto outer = [&] {
      return Operands(x, l.part_rows * l.parts / 2, s.inputs / 2, sums, l.sum_stride(1), l.stored_operands());
    };
    Operands operands = outer();
    if (s.channel_scales || !sum(team, x, operands, l.guarded ? marks : nullptr)) {
      team.share(s.rows, [&](int64_t i) {
        scales[i] = scale_row(x.begin + i * x.stride, s.channel_scales, s.inputs, rows + i * l.sum_stride(0));
      });
      x = {rows, l.sum_stride(0), s.rows};
      row_scales = scales;
      operands = outer();
      sum(team, x, operands, nullptr);
    }
    if (s.levels == 1)
      products(team, [&](auto u, int64_t j, int64_t r0, int64_t n) { one_level<u()>(operands, j, r0, n, temporary); });
    else
      inner_level(team, operands, inner_sums, temporary);
    if (row_scales)
      team.share(s.rows, [&](int64_t i) {
        if (row_scales[i] != row_scales[i]) nonfinite_row(i, rows + i * l.sum_stride(0));
      });
  }

  // the sums of the seven operands' own quarters, and the products with two levels
  void inner_level(const Team& team, const Operands& operands, float* sums, float* temporary) const {
    const int64_t floats = 4 * l.part_rows * l.sum_stride(2);
    const auto inner = [&](int o) {
      return Operands(operands.of[o], l.part_rows, l.k, sums + o * floats, l.sum_stride(2), 4);
    };
    const Operands of[] = {inner(0), inner(1), inner(2), inner(3), inner(4), inner(5), inner(6)};
    team.share(OPERANDS * l.part_rows, [&](int64_t i) {
      of[i / l.part_rows].sum(operands.of[i / l.part_rows], i % l.part_rows, l.part_rows, l.k);
    });
    products(team, [&](auto u, int64_t j, int64_t r0, int64_t n) { two_levels<u()>(of, j, r0, n, temporary); });
  }
};

// How the rows of a linear step are divided among threads. If there are enough, each thread processes its own rows, in
// chunks whose sums fit the second-level cache; what it computes stays in its own caches. Otherwise the threads share the
// weights
constexpr int64_t MAX_CHUNK = 256, CHUNK_FLOATS = 1 << 18;  // the most rows of a chunk, and about how many floats it has
struct RowDivision {
  bool separate;  // each thread processes its own rows
  int64_t chunk;
  RowDivision(const LinearStep& s, int threads) {
    const int64_t each = ceil_div(s.rows, threads);
    separate = each >= MIN_ROWS_PER_THREAD;
    const int64_t most = std::clamp<int64_t>(CHUNK_FLOATS / s.inputs, 4 * MIN_ROWS_PER_THREAD, MAX_CHUNK);
    chunk = separate ? ceil_div(each, ceil_div(each, most)) : s.rows;
  }
  // the step for some of its rows
  static LinearStep part(LinearStep s, int64_t row, int64_t rows) {
    if (s.index) s.index += row * s.pieces;
    else s.input += row * s.inputs;
    s.first_row += row;
    s.output += row * s.outputs;
    if (s.addend) s.addend += row * s.outputs;
    s.rows = rows;
    return s;
  }
  // the scratch of one thread that processes its own rows: no chunk has more than `chunk` rows, and sizes are monotone
  int64_t thread_floats(const LinearStep& s) const { return LinearLayout(part(s, 0, chunk), 1).floats(1); }
  // work(step) for each chunk of the rows of one thread
  template <class Work>
  void each_chunk(const LinearStep& s, const Team& team, const Work& work) const {
    const int64_t first = team.begin(s.rows), rows = team.end(s.rows) - first, count = ceil_div(rows, chunk);
    for (int64_t i = 0; i < count; i++) {
      const int64_t row = rows * i / count;
      work(part(s, first + row, rows * (i + 1) / count - row));
    }
  }
};

inline int64_t linear_scratch(const LinearStep& s, int threads) {
  const RowDivision d(s, threads);
  return d.separate ? threads * d.thread_floats(s) : LinearLayout(s, threads).floats(threads);
}

// By how many floats a linear step would write beyond its scratch, at most over all threads and chunks; 0 if it does not.
// It computes where `LinearRun` writes last
inline int64_t linear_scratch_overrun(const LinearStep& s, int threads) {
  const RowDivision d(s, threads);
  int64_t overrun = 0;
  const auto written = [](const LinearLayout& l, int64_t thread, int threads) {
    // temporaries before the last one
    const int64_t rows = ceil_div(l.part_rows, l.blocks), before = l.s.levels > 1 ? 19 : 3;
    const int64_t shared = l.shared_floats(threads);
    return l.s.levels ? shared + thread * l.temporary_floats() + (before * l.max_block + rows) * l.width : shared;
  };
  for (int64_t thread = 0; thread < threads; thread++) {
    if (d.separate)
      d.each_chunk(s, {thread, threads}, [&](const LinearStep& chunk) {
        overrun = std::max(overrun, written(LinearLayout(chunk, 1), 0, 1) - d.thread_floats(s));
      });
    else
      overrun = std::max(overrun, written(LinearLayout(s, threads), thread, threads) - linear_scratch(s, threads));
  }
  return overrun;
}

inline void run_linear(const LinearStep& s, const Team& team) {
  switch (s.vectors) {
    case 1: return LinearRun<1>(s, team.size).run(team);
    case 2: return LinearRun<2>(s, team.size).run(team);
    case 3: return LinearRun<3>(s, team.size).run(team);
  }
}

inline void linear(const LinearStep& s, const Team& team) {
  const RowDivision d(s, team.size);
  if (!d.separate) return run_linear(s, team);  // it ends with a barrier
  float* scratch = s.scratch + team.thread * d.thread_floats(s);
  d.each_chunk(s, team, [&](LinearStep chunk) {
    unpoison(scratch, d.thread_floats(s));  // the zones of the chunk before are elsewhere
    chunk.scratch = scratch;
    run_linear(chunk, {0, 1});
  });
  team.wait();
}
}  // namespace onebyone
