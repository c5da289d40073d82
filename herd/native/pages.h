// Attention over keys and values in pages: tiles of query rows against blocks of 64 keys, with a running maximum
// that is only moved when a score outgrows it. Blocks and the pieces whose sums are merged are at fixed places of a
// sequence's span, so that a row's result depends on what it sees alone: not on its neighbours, threads, or how a prompt
// was cut.
#pragma once

#include <vector>

#include "common.h"

namespace herd {

namespace pages {

constexpr i64 KEYS = PANEL;          // of a block
constexpr i64 PIECE = 32;            // blocks whose sums are kept apart and then joined, so that threads can share a span
constexpr float LOG2_E = 1.44269504f;
constexpr float SLACK = 8.f;         // a maximum moves when a score is 2^8 above it

// 2^x to 2e-7 relative, 1 exactly at 0.
inline __m512 power(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-126.f));
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 z = _mm512_sub_ps(x, whole);
  __m512 sum = _mm512_set1_ps(1.5403530e-4f);
  for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.f})
    sum = _mm512_fmadd_ps(sum, z, _mm512_set1_ps(c));
  return _mm512_scalef_ps(sum, whole);
}
inline float power(float x) { return _mm512_cvtss_f32(power(_mm512_set1_ps(x))); }

// What differs between bf16 and fp32: a word of the summed axis is a pair of bf16, or one float.
struct Narrow {
  using Value = bf16;
  static constexpr i64 PER_WORD = 2;
  static __m512 add(__m512 sum, uint32_t a, __m512 b) { return dot(sum, _mm512_set1_epi32(a), (__m512i)b); }
  static void put(bf16* p, __m512 x) { store(p, x); }
  static void put(bf16* p, __m512 x, __mmask16 mask) { store(p, x, mask); }
};
struct Wide {
  using Value = float;
  static constexpr i64 PER_WORD = 1;
  static __m512 add(__m512 sum, uint32_t a, __m512 b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_set1_epi32(a)), b, sum);
  }
  static void put(float* p, __m512 x) { _mm512_storeu_ps(p, x); }
  static void put(float* p, __m512 x, __mmask16 mask) { _mm512_mask_storeu_ps(p, mask, x); }
};

// acc[r][16 j + lane] += sum over words of a[r, word] . panel[word, 16 j + lane]. `beside` is called with each word.
#ifdef __AVX512VNNI__
template <class T, int R, class F = Nothing>
inline void multiply(const uint32_t* a, i64 row, const uint32_t* panel, i64 words, __m512 (&acc)[R][4], F beside = {}) {
  for (i64 p = 0; p < words; ++p, ++a, panel += PANEL) {
    __m512 b[4];
    beside();
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) b[j] = _mm512_load_ps(panel + 16 * j);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) acc[r][j] = T::add(acc[r][j], a[r * row], b[j]);
  }
}
#else
template <class T, int R, class F = Nothing>
inline void multiply(const uint32_t* a, i64 row, const uint32_t* panel, i64 words, __m512 (&acc)[R][4], F beside = {}) {
  if constexpr (T::PER_WORD == 2) return herd::multiply<R>(a, row, 1, panel, words, acc, beside);
  for (int j = 0; j < 4; ++j) {
    __m512 sum[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) sum[r] = _mm512_loadu_ps(&acc[r][j]);
    const uint32_t *x = a, *y = panel + 16 * j;
    for (i64 p = 0; p < words; ++p, ++x, y += PANEL) {
      if (!j) beside();
      const __m512 b = _mm512_load_ps(y);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) sum[r] = T::add(sum[r], x[r * row], b);
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) _mm512_storeu_ps(&acc[r][j], sum[r]);
  }
}
#endif

// 16 rows of 16 words, transposed: word i of all rows becomes to[i * stride]. Rows past `rows` and words past `words` are zero.
inline void turn(const char* const* from, i64 at, i64 rows, i64 words, uint32_t* to, i64 stride) {
  __m512i a[16], b[16];
  const __mmask16 mask = first(words);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    a[i] = i < rows ? _mm512_maskz_loadu_epi32(mask, from[i] + at) : _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      a[4 * i + 2 * k] = _mm512_unpacklo_epi64(b[4 * i + k], b[4 * i + k + 2]);
      a[4 * i + 2 * k + 1] = _mm512_unpackhi_epi64(b[4 * i + k], b[4 * i + k + 2]);
    }
  // a[4 i + c] has words c, 4 + c, 8 + c, 12 + c of rows 4 i .. 4 i + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i x = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88), y = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
    const __m512i z = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88), w = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
    const __m512i transposed[4] = {_mm512_shuffle_i32x4(x, z, 0x88), _mm512_shuffle_i32x4(y, w, 0x88),
                               _mm512_shuffle_i32x4(x, z, 0xdd), _mm512_shuffle_i32x4(y, w, 0xdd)};
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k)
      if (4 * k + c < words) _mm512_store_si512(to + (4 * k + c) * stride, transposed[k]);
  }
}

// Two rows of 32 bf16 as 32 words, the pair of each column: those of the lower and those of the upper 16 columns.
#ifdef __AVX512VNNI__
struct Zip {
  __m512i low, high;
  Zip() {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    low = _mm512_or_si512(lane, _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(32)), 16));
    high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  }
  __m512i lower(__m512i a, __m512i b) const { return _mm512_permutex2var_epi16(a, low, b); }
  __m512i upper(__m512i a, __m512i b) const { return _mm512_permutex2var_epi16(a, high, b); }
};
#else
struct Zip {
  static __m512i of(__m256i a, __m256i b) {
    const __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
    return {_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)};
  }
  __m512i lower(__m512i a, __m512i b) const { return of(a.a, b.a); }
  __m512i upper(__m512i a, __m512i b) const { return of(a.b, b.b); }
};
#endif

inline void zip(__m512i a, __m512i b, uint32_t* to) {
  const Zip zip;
  _mm512_store_si512(to, zip.lower(a, b));
  _mm512_store_si512(to + 16, zip.upper(a, b));
}

// A panel [row][PANEL] of values, from rows that are apart; those past `rows` are zero.
template <class F>
inline void panel_of(const bf16*, const char* const* from, i64 at, i64 rows, i64 columns, uint32_t* to, F beside) {
  if (rows >= KEYS && columns >= PANEL) {
    for (i64 i = 0; i < KEYS; i += 2, to += PANEL) {
      beside();
      const char *a = from[i] + at, *b = from[i + 1] + at;
      zip(_mm512_loadu_si512(a), _mm512_loadu_si512(b), to);
      zip(_mm512_loadu_si512(a + 64), _mm512_loadu_si512(b + 64), to + 32);
    }
    return;
  }
  const __mmask32 left = columns >= 32 ? ~0u : (1u << columns) - 1;
  const __mmask32 right = columns >= 64 ? ~0u : columns <= 32 ? 0 : (1u << (columns - 32)) - 1;
  for (i64 i = 0; i < KEYS; i += 2, to += PANEL) {
    const bool odd = i + 1 < rows;
    const bf16 *a = i < rows ? (const bf16*)(from[i] + at) : nullptr, *b = odd ? (const bf16*)(from[i + 1] + at) : nullptr;
    zip(_mm512_maskz_loadu_epi16(a ? left : 0, a), _mm512_maskz_loadu_epi16(b ? left : 0, b), to);
    zip(_mm512_maskz_loadu_epi16(a ? right : 0, a + 32), _mm512_maskz_loadu_epi16(b ? right : 0, b + 32), to + 32);
  }
}
template <class F>
inline void panel_of(const float*, const char* const* from, i64 at, i64 rows, i64 columns, uint32_t* to, F beside) {
  for (i64 i = 0; i < KEYS; ++i, to += PANEL, beside())
    for (i64 j = 0; j < 4; ++j)
      _mm512_store_ps(to + 16 * j, i < rows ? _mm512_maskz_loadu_ps(first(columns - 16 * j), (const float*)(from[i] + at) + 16 * j)
                                            : _mm512_setzero_ps());
}

// One layer's pages: [pages, kv, tokens, c] each, and where a sequence's span is, `blocks` page ids a sequence.
struct Pages {
  void *keys, *values;
  const int32_t* table;
  i64 blocks, tokens, kv, c;

  // Bytes from the start of `keys` or `values` to what a key head has at a place of a sequence's span.
  i64 place(i64 sequence, i64 head, i64 spot, i64 size) const {
    return (((i64)table[sequence * blocks + spot / tokens] * kv + head) * tokens + spot % tokens) * c * size;
  }

  // What a key head has from `spot` on, in one page: asked for line by line beside the arithmetic on what came before, as
  // all at once would hold that up.
  struct Coming {
    const char *keys = nullptr, *values = nullptr;
    i64 left = 0;
    void some() {
      if (left <= 0) return;
      left -= 64;
      fetch(keys), fetch(values);
      keys += 64, values += 64;
    }
  };
  Coming coming(i64 sequence, i64 head, i64 spot, i64 size) const {
    const i64 next = place(sequence, head, spot, size);
    return {(const char*)keys + next, (const char*)values + next, std::min(KEYS, tokens) * c * size};
  }
};

// Running sums of query rows over a stretch of the span: the sum of weights in 16 lanes, weighted values, the maximum.
struct Sums {
  float *most, *total, *values;  // [rows], [rows][16], [rows][panels of c]

  static i64 floats(i64 rows, i64 wide) { return rows * (16 + 16 + wide); }
  Sums(float* memory, i64 rows) : most(memory), total(memory + 16 * rows), values(memory + 32 * rows) {}
  void clear(i64 rows, i64 wide) {
    std::fill(most, most + rows, -INFINITY);
    memset(total, 0, rows * 16 * sizeof(float));
    memset(values, 0, rows * wide * sizeof(float));
  }
};

// `into` takes up `from`, both sums of the same rows; the earlier stretch is `into`.
inline void join(Sums& into, const Sums& from, i64 rows, i64 wide) {
  for (i64 r = 0; r < rows; ++r) {
    if (from.most[r] == -INFINITY) continue;
    const float most = std::max(into.most[r], from.most[r]);
    const float a = into.most[r] == -INFINITY ? 0.f : power(into.most[r] - most), b = power(from.most[r] - most);
    into.most[r] = most;
    const auto mix = [&](float* x, const float* y) {
      const __m512 kept = _mm512_mul_ps(_mm512_load_ps(x), _mm512_set1_ps(a));
      _mm512_store_ps(x, _mm512_fmadd_ps(_mm512_load_ps(y), _mm512_set1_ps(b), kept));
    };
    mix(into.total + 16 * r, from.total + 16 * r);
    for (i64 j = 0; j < wide; j += 16) mix(into.values + r * wide + j, from.values + r * wide + j);
  }
}

// Some query rows of one sequence that share a key head: `rows` of them, [rows][c] in the pages' type, each with the
// last place of the span that it sees.
template <class T>
struct Queries {
  const typename T::Value* values;
  const i64* last;
  i64 rows;
};

// Adds a block of the span to the sums, and asks for the block that comes next.
template <class T>
void attend(const Pages& p, i64 sequence, i64 head, const Queries<T>& q, i64 block, Pages::Coming next, Sums& sums) {
  using Value = typename T::Value;
  const i64 size = sizeof(Value), words = (p.c + T::PER_WORD - 1) / T::PER_WORD, panels = (p.c + PANEL - 1) / PANEL;
  const i64 wide = panels * PANEL, key_words = KEYS / T::PER_WORD, longest = *std::max_element(q.last, q.last + q.rows);
  uint32_t* keys = scratch<uint32_t>(8, words * PANEL);
  uint32_t* values = scratch<uint32_t>(9, panels * key_words * PANEL);
  const float scale = LOG2_E / std::sqrt((float)p.c);
  const i64 start = block * KEYS, count = std::min(KEYS, longest + 1 - start);
  const char *k[KEYS], *v[KEYS];
  for (i64 i = 0; i < count;) {
    i64 place = p.place(sequence, head, start + i, size);
    for (i64 end = std::min(count, i + p.tokens - (start + i) % p.tokens); i < end; ++i, place += p.c * size) {
      k[i] = (const char*)p.keys + place;
      v[i] = (const char*)p.values + place;
    }
  }
  const auto beside = [&] { next.some(); };  // as often as it takes, in steps that the memory keeps up with
  for (i64 i = 0; i < KEYS; i += 16)
    for (i64 w = 0; w < words; w += 16, beside(), beside(), beside(), beside())
      turn(k + i, w * 4, count - i, words - w, keys + w * PANEL + i, PANEL);
  for (i64 c = 0; c < panels; ++c)
    panel_of((const Value*)nullptr, v, c * PANEL * size, count, p.c - c * PANEL, values + c * key_words * PANEL,
             beside);
  for (i64 r0 = 0; r0 < q.rows; r0 += ROWS)
    with_rows(q.rows - r0, [&](auto tile) {
      constexpr int rows = decltype(tile)::value;
      if (*std::max_element(q.last + r0, q.last + r0 + rows) < start) return;
      __m512 acc[rows][4];
      zero(acc);
      multiply<T, rows>((const uint32_t*)(q.values + r0 * p.c), words, keys, words, acc, beside);
      alignas(64) Value weight[rows * KEYS];
      float shrink[rows];
      bool moved = false;
#pragma GCC unroll 6
      for (int r = 0; r < rows; ++r) {
        const i64 seen = q.last[r0 + r] + 1 - start;
        const __m512 lowest = _mm512_set1_ps(-INFINITY);
        __m512 top = lowest;
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          acc[r][j] = _mm512_mul_ps(acc[r][j], _mm512_set1_ps(scale));
          if (seen < KEYS) acc[r][j] = _mm512_mask_mov_ps(lowest, first(seen - 16 * j), acc[r][j]);
          top = _mm512_max_ps(top, acc[r][j]);
        }
        float most = sums.most[r0 + r];
        shrink[r] = 1.f;
        if (_mm512_cmp_ps_mask(top, _mm512_set1_ps(most + SLACK), _CMP_GT_OQ)) {
          const float now = _mm512_reduce_max_ps(top);
          shrink[r] = power(most - now);
          sums.most[r0 + r] = most = now;
          moved = true;
        }
        float* total = sums.total + (r0 + r) * 16;
        __m512 sum = _mm512_mul_ps(_mm512_load_ps(total), _mm512_set1_ps(shrink[r]));
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          __m512 e = power(_mm512_sub_ps(acc[r][j], _mm512_set1_ps(most)));
          if (seen < KEYS) e = _mm512_maskz_mov_ps(first(seen - 16 * j), e);
          sum = _mm512_add_ps(sum, e);
          T::put(weight + r * KEYS + 16 * j, e);
        }
        _mm512_store_ps(total, sum);
      }
      for (i64 c = 0; c < panels; ++c) {
        float* at = sums.values + r0 * wide + c * PANEL;
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) {
            acc[r][j] = _mm512_load_ps(at + r * wide + 16 * j);
            if (moved) acc[r][j] = _mm512_mul_ps(acc[r][j], _mm512_set1_ps(shrink[r]));
          }
        multiply<T, rows>((const uint32_t*)weight, key_words, values + c * key_words * PANEL, key_words, acc, beside);
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) _mm512_store_ps(at + r * wide + 16 * j, acc[r][j]);
      }
    });
}

// Part of the work of one forward: query tokens [begin, end) of a sequence with all of their span and one key head, or
// with `piece` of the span and all key heads, which are adjacent in memory. Then the sums of head h go to slot
// `slot` + h `stride`.
struct Task {
  i64 sequence, head, begin, end, piece, slot, stride;
};

// All tasks of one call. Few tokens with long spans are cut along the span too, into pieces that `finish` joins; the
// sums are the same either way.
struct Plan {
  std::vector<Task> tasks, joins;
  i64 slots = 0, tile = 1, ratio = 1, heads = 0, c = 0;

  Plan() = default;
  i64 wide() const { return (c + PANEL - 1) / PANEL * PANEL; }
  i64 slot_floats() const { return Sums::floats(tile * ratio, wide()); }

  // Sequence s has tokens starts[s] .. starts[s + 1], token n sees places 0 .. last[n] of its span.
  Plan(const i64* last, const int32_t* starts, i64 sequences, i64 heads, i64 kv, i64 c, i64 threads)
      : ratio(heads / kv), heads(heads), c(c) {
    i64 longest = 1, whole = 0;
    for (i64 s = 0; s < sequences; ++s) longest = std::max<i64>(longest, starts[s + 1] - starts[s]);
    tile = std::clamp<i64>(96 / ratio, 1, longest);
    for (i64 s = 0; s < sequences; ++s) whole += kv * ((starts[s + 1] - starts[s] + tile - 1) / tile);
    const bool cut = whole <= 2 * threads;
    for (i64 s = 0; s < sequences; ++s)
      for (i64 end = starts[s + 1]; end > starts[s]; end -= std::min(tile, end - starts[s])) {
        const i64 begin = std::max<i64>(starts[s], end - tile);
        const i64 pieces = last[end - 1] / (KEYS * PIECE) + 1;  // the last token sees most
        const bool joined = cut && pieces > 1;
        for (i64 head = 0; head < kv; ++head)
          if (joined)
            joins.push_back({s, head, begin, end, pieces, slots + head * pieces, pieces});
          else
            tasks.push_back({s, head, begin, end, -1, -1, 0});
        if (!joined) continue;
        for (i64 i = 0; i < pieces; ++i) tasks.push_back({s, 0, begin, end, i, slots + i, pieces});
        slots += kv * pieces;
      }
    // Longest first, so that threads end together.
    std::stable_sort(tasks.begin(), tasks.end(), [&](const Task& a, const Task& b) {
      return (a.end - a.begin) * (a.piece < 0 ? last[a.end - 1] : KEYS * PIECE) >
             (b.end - b.begin) * (b.piece < 0 ? last[b.end - 1] : KEYS * PIECE);
    });
  }

  // q and out are [tokens, heads, c], q in the pages' type, out in fp32 (`Out` float) or in bf16.
  template <class T, class Out>
  void run(const Task& t, const Pages& p, const typename T::Value* q, const i64* last, float* slots_memory, Out* out) const {
    using Value = typename T::Value;
    const i64 tokens = t.end - t.begin, rows = tokens * ratio, floats = slot_floats(), size = sizeof(Value);
    const i64 count = t.piece < 0 ? 1 : heads / ratio;  // key heads
    Value* own = scratch<Value>(10, count * rows * c + 32);
    i64* seen = scratch<i64>(11, rows);
    for (i64 n = 0; n < tokens; ++n) {
      for (i64 h = 0; h < count; ++h)
        memcpy(own + (h * tokens + n) * ratio * c, q + ((t.begin + n) * heads + (t.head + h) * ratio) * c, ratio * c * size);
      std::fill(seen + n * ratio, seen + (n + 1) * ratio, last[t.begin + n]);
    }
    const auto queries = [&](i64 h) { return Queries<T>{own + h * rows * c, seen, rows}; };
    const i64 blocks = last[t.end - 1] / KEYS + 1;
    const auto next = [&](i64 head, i64 block) {
      return block + 1 < blocks ? p.coming(t.sequence, head, (block + 1) * KEYS, size) : Pages::Coming{};
    };
    if (t.piece >= 0) {
      const auto sums = [&](i64 h) { return Sums(slots_memory + (t.slot + h * t.stride) * floats, tile * ratio); };
      for (i64 h = 0; h < count; ++h) sums(h).clear(rows, wide());
      const i64 begin = t.piece * PIECE, end = std::min(blocks, begin + PIECE);
      for (i64 block = begin; block < end; ++block)
        for (i64 h = 0; h < count; ++h) {
          Sums of_head = sums(h);
          attend<T>(p, t.sequence, h, queries(h), block, next(h, block), of_head);
        }
      return;
    }
    float* memory = scratch<float>(12, 2 * floats);
    Sums all(memory, tile * ratio), part(memory + floats, tile * ratio);
    all.clear(rows, wide());
    for (i64 begin = 0; begin < blocks; begin += PIECE) {
      Sums& sums = begin ? part : all;
      if (begin) part.clear(rows, wide());
      for (i64 block = begin; block < std::min(blocks, begin + PIECE); ++block)
        attend<T>(p, t.sequence, t.head, queries(0), block, next(t.head, block), sums);
      if (begin) join(all, part, rows, wide());
    }
    finish(t, all, out);
  }

  template <class Out>
  void join_pieces(const Task& t, float* slots_memory, Out* out) const {
    const i64 rows = (t.end - t.begin) * ratio;
    Sums all(slots_memory + t.slot * slot_floats(), tile * ratio);
    for (i64 i = 1; i < t.piece; ++i)
      join(all, Sums(slots_memory + (t.slot + i) * slot_floats(), tile * ratio), rows, wide());
    finish(t, all, out);
  }

  template <class Out>
  void finish(const Task& t, const Sums& sums, Out* out) const {
    for (i64 r = 0; r < (t.end - t.begin) * ratio; ++r) {
      const __m512 by = _mm512_set1_ps(1.f / _mm512_reduce_add_ps(_mm512_load_ps(sums.total + 16 * r)));
      Out* to = out + ((t.begin + r / ratio) * heads + t.head * ratio + r % ratio) * c;
      for (i64 j = 0; j < c; j += 16)
        write(to + j, _mm512_mul_ps(_mm512_load_ps(sums.values + r * wide() + j), by), first(c - j));
    }
  }
  static void write(float* p, __m512 x, __mmask16 mask) { _mm512_mask_storeu_ps(p, mask, x); }
  static void write(bf16* p, __m512 x, __mmask16 mask) { store(p, x, mask); }
};

}  // namespace pages

}  // namespace herd
