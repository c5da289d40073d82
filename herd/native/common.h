// What all kernels share: bf16 in and out of fp32 registers, scratch memory, and the one matrix tile.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#ifdef __AVX512VNNI__
#include <immintrin.h>
#else
#include "wide.h"
#endif

namespace herd {

using bf16 = uint16_t;
using i64 = int64_t;

constexpr i64 PANEL = 64;  // columns of a packed panel: four registers
constexpr i64 ROWS = 6;    // rows of a tile
// Registers of a tile's row that are summed at a time, the others after them: 24 accumulators of 32 registers with 4 of b and
// 1 of a, or of 16 half as wide 12, with 2 and 1.
#ifdef __AVX512VNNI__
constexpr int WIDE = 4;
#else
constexpr int WIDE = 1;
#endif

inline __mmask16 first(i64 count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1); }

inline __m512 load(const bf16* p, __mmask16 mask = 0xffff) {
  const __m256i words = mask == 0xffff ? _mm256_loadu_si256((const __m256i*)p) : _mm256_maskz_loadu_epi16(mask, p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}

// 16 pairs of bf16, and 16 fp32 rounded to bf16 (nearest, ties to even). Without AVX512_BF16 (Cascade Lake, Ice Lake) a
// word's halves are fp32 after a shift and a mask, and its product two multiply-adds: the same arithmetic at a third of
// the speed, but that numbers below 2^-126 are kept, not zero.
#ifdef __AVX512BF16__
inline __m512 dot(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
inline __m256i rounded(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
#else
inline __m512 dot(__m512 sum, __m512i a, __m512i b) {
  const __m512i upper = _mm512_set1_epi32(0xffff0000);
  const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(a, upper));
  sum = _mm512_fmadd_ps(odd, _mm512_castsi512_ps(_mm512_and_si512(b, upper)), sum);
  const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(a, 16));
  return _mm512_fmadd_ps(even, _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), sum);
}
inline __m256i rounded(__m512 x) {
  const __m512i word = _mm512_castps_si512(x);
  const __m512i tie = _mm512_and_si512(_mm512_srli_epi32(word, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(word, _mm512_set1_epi32(0x7fff)), tie);
  const __m512i quiet = _mm512_or_si512(word, _mm512_set1_epi32(1 << 22));  // a NaN stays one
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(up, is_nan, quiet), 16));
}
#endif

// Masked stores are slow: only where the mask hides something.
inline void store(bf16* p, __m512 x, __mmask16 mask = 0xffff) {
  const __m256i words = rounded(x);
  if (mask == 0xffff)
    _mm256_storeu_si256((__m256i*)p, words);
  else
    _mm256_mask_storeu_epi16(p, mask, words);
}

// e^x to 2e-7 relative; 0 below -100.
inline __m512 exponential(__m512 x) {
  const __m512 y = _mm512_mul_ps(_mm512_max_ps(x, _mm512_set1_ps(-100.f)), _mm512_set1_ps(1.44269504f));
  const __m512 whole = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 z = _mm512_mul_ps(_mm512_sub_ps(y, whole), _mm512_set1_ps(0.69314718f));
  __m512 sum = _mm512_set1_ps(1.f / 720);
  for (float c : {1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f}) sum = _mm512_fmadd_ps(sum, z, _mm512_set1_ps(c));
  return _mm512_scalef_ps(sum, whole);
}

// (even, odd) channels times (cos, sin); with `back`, times (cos, -sin).
template <bool back>
inline __m512 rotated(__m512 x, __m512 turn) {
  const __m512 other = _mm512_mul_ps(_mm512_permute_ps(x, 0xB1), _mm512_movehdup_ps(turn));
  const __m512 real = _mm512_moveldup_ps(turn);
  return back ? _mm512_fmsubadd_ps(x, real, other) : _mm512_fmaddsub_ps(x, real, other);
}

// Asks for a line of memory ahead of its use, into the second cache: the first one has so few places for lines under way
// that arithmetic would wait for them.
inline void fetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }

// Memory of the calling thread, kept from call to call; each `slot` is a block of its own.
template <class T>
T* scratch(int slot, i64 count) {
  static thread_local struct Blocks {
    void* data[16] = {};
    size_t size[16] = {};
    ~Blocks() {
      for (void* block : data) free(block);
    }
  } blocks;
  const size_t bytes = (count * sizeof(T) + 4095) / 4096 * 4096;
  if (blocks.size[slot] < bytes) {
    free(blocks.data[slot]);
    blocks.data[slot] = aligned_alloc(4096, bytes);
    blocks.size[slot] = bytes;
  }
  return (T*)blocks.data[slot];
}

// Pairs of bf16 along the summed axis are one 32-bit word. A panel is [pair][PANEL] words, zero past the last column.

// From rows [summed][column]: words of two neighbouring rows. Rows past `rows` count as zero.
inline void interleave(const bf16* from, i64 stride, i64 rows, i64 columns, uint32_t* to, i64 to_stride) {
  for (i64 r = 0; r < rows; r += 2, to += to_stride) {
    const bf16 *a = from + r * stride, *b = a + stride;
    if (r + 1 < rows)
      for (i64 j = 0; j < columns; ++j) to[j] = a[j] | (uint32_t)b[j] << 16;
    else
      for (i64 j = 0; j < columns; ++j) to[j] = a[j];
  }
}

inline void panel_of_rows(const bf16* from, i64 stride, i64 rows, i64 columns, uint32_t* to) {
  if (columns < PANEL) memset(to, 0, (rows + 1) / 2 * PANEL * 4);
  interleave(from, stride, rows, std::min(columns, PANEL), to, PANEL);
}

// x[i][j] becomes x[j][i].
inline void transpose(__m512i (&x)[16]) {
  __m512i y[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // squares of 4 x 4 within 128-bit lanes
    const __m512i a = _mm512_unpacklo_epi32(x[i], x[i + 1]), b = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    const __m512i c = _mm512_unpacklo_epi32(x[i + 2], x[i + 3]), d = _mm512_unpackhi_epi32(x[i + 2], x[i + 3]);
    y[i] = _mm512_unpacklo_epi64(a, c);
    y[i + 1] = _mm512_unpackhi_epi64(a, c);
    y[i + 2] = _mm512_unpacklo_epi64(b, d);
    y[i + 3] = _mm512_unpackhi_epi64(b, d);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // then the lanes
    const __m512i a = _mm512_shuffle_i32x4(y[i], y[i + 4], 0x88), b = _mm512_shuffle_i32x4(y[i], y[i + 4], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(y[i + 8], y[i + 12], 0x88), d = _mm512_shuffle_i32x4(y[i + 8], y[i + 12], 0xdd);
    x[i] = _mm512_shuffle_i32x4(a, c, 0x88);
    x[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
    x[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
    x[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
}

// From rows [column][summed], the words in the order of memory.
inline void panel_of_columns(const bf16* from, i64 stride, i64 pairs, i64 columns, uint32_t* to) {
  for (i64 j = 0; j < PANEL; j += 16)
    for (i64 p = 0; p < pairs; p += 16) {
      __m512i x[16];
      for (int i = 0; i < 16; ++i)
        x[i] = j + i < columns ? _mm512_maskz_loadu_epi32(first(pairs - p), from + (j + i) * stride + 2 * p)
                               : _mm512_setzero_si512();
      transpose(x);
      for (int i = 0; i < std::min<i64>(16, pairs - p); ++i) _mm512_store_si512(to + (p + i) * PANEL + j, x[i]);
    }
}

struct Nothing {
  void operator()() const {}
};

// acc[r][16 j + lane] += sum over pairs of a[r, pair] . panel[pair, 16 j + lane]; `row` and `step` are a's strides in words.
#ifdef __AVX512VNNI__
template <int R>
inline void multiply(const uint32_t* a, i64 row, i64 step, const uint32_t* panel, i64 pairs, __m512 (&acc)[R][4]) {
  for (i64 p = 0; p < pairs; ++p, a += step, panel += PANEL) {
    __m512i b[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) b[j] = _mm512_load_si512(panel + 16 * j);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const __m512i x = _mm512_set1_epi32(a[r * row]);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) acc[r][j] = dot(acc[r][j], x, b[j]);
    }
  }
}
#else
// One register of a row after the other, and of a pair, as `dot` has them, the odd ones before the even ones: there is no
// place for more beside 12 accumulators.
template <int R, class F = Nothing>
inline void multiply(const uint32_t* a, i64 row, i64 step, const uint32_t* panel, i64 pairs, __m512 (&acc)[R][4], F beside = {}) {
  const __m512i upper = _mm512_set1_epi32(0xffff0000);
  for (int j = 0; j < 4; ++j) {
    __m512 sum[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) sum[r] = _mm512_loadu_ps(&acc[r][j]);
    const uint32_t *x = a, *y = panel + 16 * j;
    for (i64 p = 0; p < pairs; ++p, x += step, y += PANEL) {
      if (!j) beside();
      const __m512i b = _mm512_load_si512(y);
      const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(b, upper));
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r)
        sum[r] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(_mm512_set1_epi32(x[r * row]), upper)), odd, sum[r]);
      const uint32_t* again = x;
      asm("" : "+r"(again));  // words are read again, not kept
      const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(b, 16));
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r)
        sum[r] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_set1_epi32(again[r * row]), 16)), even, sum[r]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) _mm512_storeu_ps(&acc[r][j], sum[r]);
  }
}
#endif

template <int R, int J>
inline void zero(__m512 (&acc)[R][J]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) acc[r][j] = _mm512_setzero_ps();
}

// Calls f with an integral constant R = min(rows, MOST), so that a tile's rows are registers.
template <int MOST = ROWS, class F>
inline void with_rows(i64 rows, F f) {
  if constexpr (MOST > 1)
    if (rows < MOST) return with_rows<MOST - 1>(rows, f);
  f(std::integral_constant<int, MOST>());
}

}  // namespace herd
