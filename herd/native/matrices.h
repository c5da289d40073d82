// Products of rows with matrices in whatever form their weights are stored, for a team of threads that draws tasks one by one.
// Which thread computes an output, and beside which rows, does not change its sum; bf16 matrices alone are read in two
// ways, by few rows and by many, whose sums differ in order.
#pragma once

#include <omp.h>
#include <sched.h>

#include <atomic>
#include <vector>

#include "pages.h"
#include "schemes.h"

namespace herd {

// Threads that go through the stages of a forward together: a stage's tasks are drawn by `next`, `wait` ends it.
// Waiting is spinning: a stage takes microseconds, and waking a thread takes longer.
class Team {
  alignas(64) std::atomic<i64> drawn{0};
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<unsigned> phase{0};

 public:
  int size = 1;

  i64 next() { return drawn.fetch_add(1, std::memory_order_relaxed); }

  void wait() {
    const unsigned now = phase.load(std::memory_order_relaxed);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
      arrived.store(0, std::memory_order_relaxed);
      drawn.store(0, std::memory_order_relaxed);
      phase.store(now + 1, std::memory_order_release);
      return;
    }
    for (int i = 0; phase.load(std::memory_order_acquire) == now; ++i)
      if (i < 20000)
        _mm_pause();
      else
        sched_yield();
  }
};

enum Kind : i64 { FP32, BF16, INT8, INT4, FP8, FP32_TRANSPOSED, BF16_TRANSPOSED };  // [out, in], but the transposed ones [in, out]

// A matrix, or one for each expert; the layout is known to herd/native/forward.py.
struct Matrix {
  const uint8_t* data;
  const bf16* scales;
  i64 kind, in, out, detail;

  // Calls f with the scheme that its rows of activations are prepared by, in `memory` for `tokens` rows.
  template <class F>
  void with_scheme(i64 tokens, char* memory, F f) const {
    switch (kind) {
      case INT8: return f(Int8(tokens, in, memory));
      case INT4: return f(Int4(tokens, in, detail, memory));
      case FP8: return f(Fp8(tokens, in, detail, memory));
      case BF16: case BF16_TRANSPOSED: return f(Plain<bf16>(tokens, in, memory));
      default: return f(Plain<float>(tokens, in, memory));
    }
  }
  i64 bytes(i64 tokens) const {
    switch (kind) {
      case INT8: return Int8::bytes(tokens, in);
      case INT4: return Int4::bytes(tokens, in);
      case FP8: return Fp8::bytes(tokens, in);
      case BF16: case BF16_TRANSPOSED: return Plain<bf16>::bytes(tokens, in);
      default: return Plain<float>::bytes(tokens, in);
    }
  }
};

inline __m512 silu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.f);
  return _mm512_div_ps(x, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

constexpr i64 MANY = 16;  // rows from which on bf16 weights [out, in] are packed into panels before they multiply

// One product of a stage: prepared rows sorted by group, group g's before row ends[g], times their group's matrix. `gated`
// matrices have a gate and an up half, and the output is silu(gate) * up.
struct Job {
  const Matrix* w;
  char* rows;  // as the matrix's scheme prepared them
  const i64* ends;
  i64 groups, count;  // rows in all
  float* out;         // [rows][columns()]
  bool gated;

  struct Part {
    i64 group, begin, end;
  };
  std::vector<Part> parts;
  i64 step, chunks;

  Job(const Matrix& w, char* rows, const i64* ends, i64 groups, float* out, bool gated)
      : w(&w), rows(rows), ends(ends), groups(groups), count(ends[groups - 1]), out(out), gated(gated) {
    const bool transposed = w.kind >= FP32_TRANSPOSED;
    i64 met = 0;  // groups with rows
    panels = transposed || (w.kind == BF16 && count >= MANY);
    for (i64 g = 0; g < groups; ++g) met += ends[g] > (g ? ends[g - 1] : 0);
    // Long stretches of memory for each thread, and yet several tasks for each.
    const i64 share = columns() * (transposed ? met : 1) / (4 * omp_get_num_threads());
    const i64 side_by_side = w.kind == BF16_TRANSPOSED ? std::clamp<i64>(share / strip(), 1, STRIPS) : 1;
    step = panels ? side_by_side * strip() : std::max<i64>(16, share / 4 * 4);
    chunks = (columns() + step - 1) / step;
    // Tiles of rows that stay in the first cache while the weights pass by.
    const i64 block = panels           ? 1024 * ROWS
                      : w.kind == BF16 ? MANY
                                       : std::clamp<i64>(32768 / w.in / TOKENS * TOKENS, 2 * TOKENS, 24 * TOKENS);
    for (i64 g = 0, begin = 0; g < groups; begin = ends[g++])
      for (i64 r = begin; r < ends[g]; r += block) parts.push_back({g, r, std::min(r + block, ends[g])});
  }
  bool panels;

  i64 columns() const { return gated ? w->out / 2 : w->out; }
  i64 strip() const { return gated ? PANEL / 2 : PANEL; }  // outputs of a panel
  i64 tasks() const { return (i64)parts.size() * chunks; }

  void run(i64 task) const {
    const Part& part = parts[task / chunks];
    const i64 begin = task % chunks * step, end = std::min(begin + step, columns());
    const i64 rows_of_part = part.end - part.begin;
    if (w->kind == BF16_TRANSPOSED && rows_of_part <= TILE)
      with_rows<TILE>(rows_of_part, [&](auto tile) { by_stream<decltype(tile)::value>(part, begin, end - begin); });
    else if (w->kind == BF16_TRANSPOSED && rows_of_part <= STREAMED)
      by_stream<0>(part, begin, end - begin);
    else if (!panels)
      w->with_scheme(count, rows, [&](const auto& scheme) { by_rows(scheme, part, begin, end); });
    else
      for (i64 c = begin; c < end; c += strip()) {
        // While a panel multiplies, the weights of the next one come; of the last one's next the threads are not sure.
        const i64 later = task + omp_get_num_threads();
        Coming next = c + strip() < end ? coming(part.group, c + strip())
                      : later < tasks() ? coming(parts[later / chunks].group, later % chunks * step)
                                        : Coming{};
        if (w->kind == FP32_TRANSPOSED)
          by_panel<pages::Wide>(part, c, std::min(strip(), end - c), next);
        else
          by_panel<pages::Narrow>(part, c, std::min(strip(), end - c), next);
      }
  }

  // The weights of a panel in bf16, two lines of the cache at a time.
  struct Coming {
    const char* at = nullptr;
    i64 stride = 0, second = 0, left = 0;
    void fetch_two() {
      if (left <= 0) return;
      --left;
      fetch(at), fetch(at + second);
      at += stride;
    }
  };
  Coming coming(i64 group, i64 column) const {
    const bf16* from = (const bf16*)w->data + group * w->in * w->out;
    if (w->kind != BF16) return {};
    return {(const char*)(from + column * w->in), gated ? 64 : 128, gated ? columns() * w->in * 2 : 64, w->in};
  }

  template <class S>
  void by_rows(const S& scheme, const Part& part, i64 begin, i64 end) const {
    for (i64 c = begin; c < end; c += COLUMNS)
      for (i64 m = part.begin; m < part.end; m += S::TILE)
        with_rows<S::TILE>(part.end - m, [&](auto tile) {
          constexpr int count = decltype(tile)::value;
          __m128 found[count], up[count];
          dots<count>(scheme, part.group, c, m, end - c, found);
          if (gated) dots<count>(scheme, part.group, columns() + c, m, end - c, up);
          for (int r = 0; r < count; ++r) {
            if (gated) found[r] = _mm_mul_ps(_mm512_castps512_ps128(silu(_mm512_castps128_ps512(found[r]))), up[r]);
            memcpy(out + (m + r) * columns() + c, &found[r], std::min(COLUMNS, end - c) * sizeof(float));
          }
        });
  }

  template <int R, class S>
  void dots(const S& scheme, i64 group, i64 column, i64 m, i64 columns, __m128 (&found)[R]) const {
    const uint8_t* from[COLUMNS];
    const bf16* scales[COLUMNS];
#pragma GCC unroll 4
    for (i64 j = 0; j < COLUMNS; ++j) {  // past the last column, the last one again
      const i64 at = group * w->out + column + std::min(j, columns - 1);
      from[j] = w->data + at * scheme.row_bytes();
      scales[j] = w->scales + at * scheme.row_scales();
    }
    scheme.template dots<R>(m, from, scales, found);
  }

  // A panel holds `count` columns from `column` on; of gated matrices those of the gate, then those of the up half.
  template <class T>
  void by_panel(const Part& part, i64 column, i64 count, Coming& next) const {
    using Value = typename T::Value;
    const i64 words = (w->in + T::PER_WORD - 1) / T::PER_WORD, wide = columns();
    uint32_t* panel = scratch<uint32_t>(13, words * PANEL);
    const Value* from = (const Value*)w->data + part.group * w->in * w->out;
    if (w->kind == BF16)
      pack_rows((const bf16*)from, column, count, words, panel);
    else
      pack_transposed(from, column, count, panel);
    const Plain<Value> x(this->count, w->in, rows);
    for (i64 m = part.begin; m < part.end; m += ROWS)
      with_rows(part.end - m, [&](auto tile) {
        constexpr int count_rows = decltype(tile)::value;
        __m512 acc[count_rows][4];
        zero(acc);
        const auto* from_row = (const uint32_t*)(x.values + m * x.padded);
        pages::multiply<T, count_rows>(from_row, x.padded / T::PER_WORD, panel, words, acc, [&] { next.fetch_two(); });
        put_tile<count_rows>(acc, m, column, count);
      });
  }

  template <int R>
  void put_tile(const __m512 (&acc)[R][4], i64 m, i64 column, i64 count) const {
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      float* to = out + (m + r) * columns() + column;
      if (gated) {
        keep(to, _mm512_mul_ps(silu(acc[r][0]), acc[r][2]), count);
        keep(to + 16, _mm512_mul_ps(silu(acc[r][1]), acc[r][3]), count - 16);
      } else {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) keep(to + 16 * j, acc[r][j], count - 16 * j);
      }
    }
  }

  // What `by_panel` computes, for few rows of weights [in, out]: the words of several panels side by side go to products at
  // once, for a single tile of R rows; for more rows (R = 0) by way of the first cache, block by block. Memory is asked for
  // in its order, a block of rows ahead, each row across all panels: a panel's 64 bytes of each row alone, far apart, would
  // come at half the speed. The sums wait meanwhile.
  template <int R>
  void by_stream(const Part& part, i64 column, i64 count) const {
    const i64 n = w->out, in = w->in, rows = part.end - part.begin, strips = (count + strip() - 1) / strip();
    const auto mask = [](i64 held) { return held >= 32 ? ~0u : held <= 0 ? 0u : (1u << held) - 1; };
    const pages::Zip zip;
    const Plain<bf16> x(this->count, in, this->rows);
    const uint32_t* a = (const uint32_t*)(x.values + part.begin * x.padded);
    const i64 words = x.padded / 2;
    const bf16* group = (const bf16*)w->data + part.group * in * n;
    const i64 second = gated ? columns() : 32;  // from a panel's left half to its right one
    __m512* sums = scratch<__m512>(12, strips * rows * 4);
    uint32_t* panel = scratch<uint32_t>(13, DEEP / 2 * PANEL);
    for (i64 block = 0; block < in; block += DEEP) {
      const bf16* next = group + (block + DEEP) * n + column;  // of what is fetched ahead
      const i64 begin = block / 2, end = std::min(block + DEEP, in + 1) / 2;
      i64 fetched = 0;
      const auto fetch_two = [&] {
        fetch(next + fetched * strip());
        fetch(next + fetched * strip() + second);
        if (++fetched == strips) fetched = 0, next += n;
      };
      for (i64 s = 0; s < strips; ++s) {
        i64 left = 2 * (end - begin);  // lines to fetch beside this panel, two at a time
        const i64 at = column + s * strip(), held = std::min(strip(), count - s * strip());
        const __mmask32 left_mask = mask(held), right_mask = mask(gated ? held : held - 32);
        __m512 acc[std::max(R, 1)][4];
        if constexpr (R > 0) waiting<R>(sums + s * rows * 4, block, acc);
        for (i64 pair = begin; pair < end; ++pair) {
          const __mmask32 odd = 2 * pair + 1 < in ? ~0u : 0;
          if constexpr (R > 0) fetch_two(), fetch_two();
          const bf16 *even_row = group + 2 * pair * n + at, *odd_row = even_row + n;
          const __m512i p = _mm512_maskz_loadu_epi16(left_mask, even_row);
          const __m512i q = _mm512_maskz_loadu_epi16(left_mask & odd, odd_row);
          const __m512i u = _mm512_maskz_loadu_epi16(right_mask, even_row + second);
          const __m512i v = _mm512_maskz_loadu_epi16(right_mask & odd, odd_row + second);
          const __m512i b[4] = {zip.lower(p, q), zip.upper(p, q), zip.lower(u, v), zip.upper(u, v)};
#pragma GCC unroll 6
          for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) acc[r][j] = pages::Narrow::add(acc[r][j], a[r * words + pair], (__m512)b[j]);
          if constexpr (R == 0)
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) _mm512_store_si512(panel + (pair - begin) * PANEL + 16 * j, b[j]);
        }
        const auto finish = [&](auto& done, i64 m) {
          constexpr int count_rows = std::extent_v<std::remove_reference_t<decltype(done)>>;
          if (block + DEEP >= in)
            put_tile<count_rows>(done, part.begin + m, at, held);
          else
#pragma GCC unroll 6
            for (int r = 0; r < count_rows; ++r)
#pragma GCC unroll 4
              for (int j = 0; j < 4; ++j) sums[(s * rows + m + r) * 4 + j] = done[r][j];
        };
        if constexpr (R > 0)
          finish(acc, 0);
        else
          for (i64 m = 0; m < rows; m += ROWS)
            with_rows(rows - m, [&](auto tile) {
              __m512 done[decltype(tile)::value][4];
              waiting<decltype(tile)::value>(sums + (s * rows + m) * 4, block, done);
              pages::multiply<pages::Narrow, decltype(tile)::value>(a + m * words + begin, words, panel, end - begin, done,
                                                                      [&] { if (left-- > 0) fetch_two(); });
              finish(done, m);
            });
      }
    }
  }
  template <int R>
  static void waiting(const __m512* sums, i64 block, __m512 (&acc)[R][4]) {
    if (!block) return zero(acc);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) acc[r][j] = sums[4 * r + j];
  }
  static constexpr int TILE = WIDE == 4 ? ROWS : 1;  // rows whose sums over whole panels are held in registers
  static constexpr i64 STRIPS = 8;  // panels that a task takes side by side
  static constexpr i64 DEEP = 64;   // rows of [in, out] of a block
  static constexpr i64 STREAMED = 48;  // rows up to which weights [in, out] are streamed
  static constexpr i64 NEXT = 24;      // rows that are fetched ahead elsewhere

  static void keep(float* to, __m512 x, i64 count) {
    if (count >= 16)
      _mm512_storeu_ps(to, x);
    else if (count > 0)
      _mm512_mask_storeu_ps(to, first(count), x);
  }

  void pack_rows(const bf16* from, i64 column, i64 count, i64 words, uint32_t* panel) const {
    for (i64 i = 0; i < PANEL; i += 16) {
      const bool second = gated && i >= PANEL / 2;
      const i64 base = second ? columns() + column - PANEL / 2 : column, held = (second ? PANEL / 2 : 0) + count - i;
      const char* lines[16];
      for (i64 j = 0; j < 16; ++j) lines[j] = (const char*)(from + (base + std::min(i + j, i + held - 1)) * w->in);
      if (held <= 0) std::fill(lines, lines + 16, (const char*)from);
      for (i64 at = 0; at < words; at += 16) pages::turn(lines, at * 4, held, words - at, panel + at * PANEL + i, PANEL);
    }
  }

  void pack_transposed(const bf16* from, i64 column, i64 count, uint32_t* panel) const {
    const i64 n = w->out, in = w->in, right = gated ? columns() + column : column + 32;
    const auto mask = [](i64 held) { return held >= 32 ? ~0u : held <= 0 ? 0u : (1u << held) - 1; };
    const __mmask32 left_mask = mask(count), right_mask = mask(gated ? count : count - 32);
    for (i64 k = 0; k < in; k += 2, panel += PANEL) {
      const bf16 *a = from + k * n, *b = a + n;
      const __mmask32 odd = k + 1 < in ? ~0u : 0;
      for (const bf16* line : {a + NEXT * n, b + NEXT * n}) {
        fetch(line + column);
        fetch(line + right);
      }
      pages::zip(_mm512_maskz_loadu_epi16(left_mask, a + column), _mm512_maskz_loadu_epi16(left_mask & odd, b + column), panel);
      pages::zip(_mm512_maskz_loadu_epi16(right_mask, a + right), _mm512_maskz_loadu_epi16(right_mask & odd, b + right),
                 panel + 32);
    }
  }

  void pack_transposed(const float* from, i64 column, i64 count, uint32_t* panel) const {
    for (i64 k = 0; k < w->in; ++k, from += w->out, panel += PANEL)
      for (i64 j = 0; j < PANEL; j += 16) {
        const bool second = gated && j >= PANEL / 2;
        const i64 held = (second ? PANEL / 2 : 0) + count - j;
        const __mmask16 mask = first(second || !gated ? held : std::min<i64>(held, PANEL / 2 - j));
        const float* at = from + (second ? columns() + column - PANEL / 2 : column) + j;
        _mm512_store_ps((float*)panel + j, _mm512_maskz_loadu_ps(mask, at));
      }
  }
};

// All tasks of a stage's products.
inline void run(Team& team, const std::vector<Job>& jobs) {
  i64 total = 0;
  for (const Job& job : jobs) total += job.tasks();
  for (i64 t = team.next(); t < total; t = team.next()) {
    i64 left = t;
    const Job* job = jobs.data();
    while (left >= job->tasks()) left -= (job++)->tasks();
    job->run(left);
  }
  team.wait();
}

}  // namespace herd
