// Attention over keys and values that lie in pages: tiles of query rows against blocks of 64 keys, with a running maximum
// that is only moved when a score outgrows it. Blocks and the pieces whose sums are joined lie at fixed places of a
// sequence's span, so that a row's result depends on what it sees alone: not on its neighbours, threads, or how a prompt
// was cut.
#pragma once

#include <vector>

#include "common.h"

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
  static __m512 add(__m512 sum, uint32_t a, __m512 b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
  }
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

// acc[r][16 j + lane] += sum over words of a[r, word] . panel[word, 16 j + lane].
template <class T, int R>
inline void multiply(const uint32_t* a, i64 row, const uint32_t* panel, i64 words, __m512 (&acc)[R][4]) {
  for (i64 p = 0; p < words; ++p, ++a, panel += PANEL) {
    __m512 b[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) b[j] = _mm512_load_ps(panel + 16 * j);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) acc[r][j] = T::add(acc[r][j], a[r * row], b[j]);
  }
}

// 16 rows of 16 words, turned: word i of all rows becomes to[i * stride]. Rows past `rows` and words past `words` are zero.
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
    const __m512i turned[4] = {_mm512_shuffle_i32x4(x, z, 0x88), _mm512_shuffle_i32x4(y, w, 0x88),
                               _mm512_shuffle_i32x4(x, z, 0xdd), _mm512_shuffle_i32x4(y, w, 0xdd)};
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k)
      if (4 * k + c < words) _mm512_store_si512(to + (4 * k + c) * stride, turned[k]);
  }
}

// Two rows of 32 bf16 as 32 words: the pair of each column.
inline void zip(__m512i a, __m512i b, uint32_t* to) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i low = _mm512_or_si512(lane, _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(32)), 16));
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  _mm512_store_si512(to, _mm512_permutex2var_epi16(a, low, b));
  _mm512_store_si512(to + 16, _mm512_permutex2var_epi16(a, high, b));
}

// A panel [row][PANEL] of values, from rows that lie apart; those past `rows` are zero.
inline void panel_of(const bf16*, const char* const* from, i64 at, i64 rows, i64 columns, uint32_t* to) {
  const __mmask32 left = columns >= 32 ? ~0u : (1u << columns) - 1;
  const __mmask32 right = columns >= 64 ? ~0u : columns <= 32 ? 0 : (1u << (columns - 32)) - 1;
  for (i64 i = 0; i < KEYS; i += 2, to += PANEL) {
    const bool odd = i + 1 < rows;
    const bf16 *a = i < rows ? (const bf16*)(from[i] + at) : nullptr, *b = odd ? (const bf16*)(from[i + 1] + at) : nullptr;
    zip(_mm512_maskz_loadu_epi16(a ? left : 0, a), _mm512_maskz_loadu_epi16(b ? left : 0, b), to);
    zip(_mm512_maskz_loadu_epi16(a ? right : 0, a + 32), _mm512_maskz_loadu_epi16(b ? right : 0, b + 32), to + 32);
  }
}
inline void panel_of(const float*, const char* const* from, i64 at, i64 rows, i64 columns, uint32_t* to) {
  for (i64 i = 0; i < KEYS; ++i, to += PANEL)
    for (i64 j = 0; j < 4; ++j)
      _mm512_store_ps(to + 16 * j, i < rows ? _mm512_maskz_loadu_ps(first(columns - 16 * j), (const float*)(from[i] + at) + 16 * j)
                                            : _mm512_setzero_ps());
}

// One layer's pages: [pages, kv, tokens, c] each, and where a sequence's span lies, `blocks` page ids a sequence.
struct Pages {
  void *keys, *values;
  const int32_t* table;
  i64 blocks, tokens, kv, c;

  // Bytes from the start of `keys` or `values` to what a key head has at a place of a sequence's span.
  i64 place(i64 sequence, i64 head, i64 spot, i64 size) const {
    return (((i64)table[sequence * blocks + spot / tokens] * kv + head) * tokens + spot % tokens) * c * size;
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

// Adds blocks [begin, end) of the span to the sums.
template <class T>
void attend(const Pages& p, i64 sequence, i64 head, const Queries<T>& q, i64 begin, i64 end, Sums& sums) {
  using Value = typename T::Value;
  const i64 size = sizeof(Value), words = (p.c + T::PER_WORD - 1) / T::PER_WORD, panels = (p.c + PANEL - 1) / PANEL;
  const i64 wide = panels * PANEL, key_words = KEYS / T::PER_WORD, longest = *std::max_element(q.last, q.last + q.rows);
  uint32_t* keys = scratch<uint32_t>(8, words * PANEL);
  uint32_t* values = scratch<uint32_t>(9, panels * key_words * PANEL);
  const float scale = LOG2_E / std::sqrt((float)p.c);
  for (i64 block = begin; block < end; ++block) {
    const i64 start = block * KEYS, count = std::min(KEYS, longest + 1 - start);
    const char *k[KEYS], *v[KEYS];
    for (i64 i = 0; i < count; ++i) {
      const i64 place = i && (start + i) % p.tokens ? k[i - 1] + p.c * size - (const char*)p.keys
                                                     : p.place(sequence, head, start + i, size);
      k[i] = (const char*)p.keys + place;
      v[i] = (const char*)p.values + place;
    }
    if (start + KEYS <= longest) {  // what comes next may lie in another page
      const i64 next = p.place(sequence, head, start + KEYS, size);
      for (i64 i = 0; i < std::min(KEYS, p.tokens) * p.c * size; i += 64) {
        _mm_prefetch((const char*)p.keys + next + i, _MM_HINT_T1);
        _mm_prefetch((const char*)p.values + next + i, _MM_HINT_T1);
      }
    }
    for (i64 i = 0; i < KEYS; i += 16)
      for (i64 w = 0; w < words; w += 16)
        turn(k + i, w * 4, count - i, words - w, keys + w * PANEL + i, PANEL);
    for (i64 c = 0; c < panels; ++c)
      panel_of((const Value*)nullptr, v, c * PANEL * size, count, p.c - c * PANEL, values + c * key_words * PANEL);
    for (i64 r0 = 0; r0 < q.rows; r0 += ROWS)
      with_rows(q.rows - r0, [&](auto tile) {
        constexpr int rows = decltype(tile)::value;
        if (*std::max_element(q.last + r0, q.last + r0 + rows) < start) return;
        __m512 acc[rows][4];
        zero<rows>(acc);
        multiply<T, rows>((const uint32_t*)(q.values + r0 * p.c), words, keys, words, acc);
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
          multiply<T, rows>((const uint32_t*)weight, key_words, values + c * key_words * PANEL, key_words, acc);
#pragma GCC unroll 6
          for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) _mm512_store_ps(at + r * wide + 16 * j, acc[r][j]);
        }
      });
  }
}

// Part of the work of one forward: query tokens [begin, end) of a sequence and one key head, and of their span piece
// `piece`, or all of it if -1.
struct Task {
  i64 sequence, head, begin, end, piece, slot;
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
      : tile(std::max<i64>(1, 96 / (heads / kv))), ratio(heads / kv), heads(heads), c(c) {
    i64 whole = 0;
    for (i64 s = 0; s < sequences; ++s) whole += kv * ((starts[s + 1] - starts[s] + tile - 1) / tile);
    const bool cut = whole < 2 * threads;
    for (i64 s = 0; s < sequences; ++s)
      for (i64 end = starts[s + 1]; end > starts[s]; end -= std::min(tile, end - starts[s]))
        for (i64 head = 0; head < kv; ++head) {
          const i64 begin = std::max<i64>(starts[s], end - tile);
          const i64 pieces = last[end - 1] / (KEYS * PIECE) + 1;  // the last token sees most
          if (!cut || pieces == 1) {
            tasks.push_back({s, head, begin, end, -1, -1});
            continue;
          }
          joins.push_back({s, head, begin, end, pieces, slots});
          for (i64 i = 0; i < pieces; ++i) tasks.push_back({s, head, begin, end, i, slots++});
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
    const i64 rows = (t.end - t.begin) * ratio, floats = slot_floats();
    Value* own = scratch<Value>(10, tile * ratio * c + 32);
    i64* seen = scratch<i64>(11, tile * ratio);
    for (i64 n = t.begin; n < t.end; ++n) {
      memcpy(own + (n - t.begin) * ratio * c, q + (n * heads + t.head * ratio) * c, ratio * c * sizeof(Value));
      std::fill(seen + (n - t.begin) * ratio, seen + (n - t.begin + 1) * ratio, last[n]);
    }
    const Queries<T> queries{own, seen, rows};
    const i64 blocks = last[t.end - 1] / KEYS + 1;
    if (t.piece >= 0) {
      Sums sums(slots_memory + t.slot * floats, tile * ratio);
      sums.clear(rows, wide());
      attend<T>(p, t.sequence, t.head, queries, t.piece * PIECE, std::min(blocks, (t.piece + 1) * PIECE), sums);
      return;
    }
    float* memory = scratch<float>(12, 2 * floats);
    Sums all(memory, tile * ratio), part(memory + floats, tile * ratio);
    all.clear(rows, wide());
    for (i64 block = 0; block < blocks; block += PIECE) {
      Sums& sums = block ? part : all;
      if (block) part.clear(rows, wide());
      attend<T>(p, t.sequence, t.head, queries, block, std::min(blocks, block + PIECE), sums);
      if (block) join(all, part, rows, wide());
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
