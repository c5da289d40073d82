// How rows of a matrix [out, in] are multiplied, by how its weights are stored: as they are in the file, nothing is packed
// again at load. A scheme first prepares the rows of activations (rounded as the weights are), then dots a tile of them
// with a tile of outputs. A sum's order depends on nothing but the width.
#pragma once

#include "common.h"

namespace herd {

constexpr i64 BLOCK = 128;  // int4 and its activations: columns that share a vector of weights
constexpr i64 COLUMNS = 4;  // outputs of a tile
constexpr i64 TOKENS = 4;   // and its tokens

// With WIDE outputs at a time, a tile and its weights are what the registers hold.
// Loops over a tile are unrolled by pragma: an accumulator that is indexed at run time lives in memory.

// Sums of four registers, lane j that of register j.
inline __m128 sums(const __m512 (&a)[4]) {
  const __m512 x = _mm512_add_ps(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
  const __m512 y = _mm512_add_ps(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
  const __m512 z = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y))),
                                 _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y))));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(z), _mm512_extractf32x8_ps(z, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

inline __m128i sums(const __m512i (&a)[4]) {
  const __m512i x = _mm512_add_epi32(_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[0], a[1]));
  const __m512i y = _mm512_add_epi32(_mm512_unpacklo_epi32(a[2], a[3]), _mm512_unpackhi_epi32(a[2], a[3]));
  const __m512i z = _mm512_add_epi32(_mm512_unpacklo_epi64(x, y), _mm512_unpackhi_epi64(x, y));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(z), _mm512_extracti64x4_epi64(z, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// Four neighbouring bf16 scales, those not `held` zero.
inline __m128 four(const bf16* p, __mmask8 held = 15) {
  return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_maskz_loadu_epi16(held, p)), 16));
}

// Fetches weights that come soon, in the order of memory: the rows of a tile and those of the next ones follow each other, and
// only what is asked for in order shows the hardware a stream. `i` is how far WIDE rows of a tile from the k-th on are read, in
// bytes.
constexpr i64 FAR = 8192;
inline void ahead(const uint8_t* const (&w)[COLUMNS], int k, i64 i) {
#pragma GCC unroll 4
  for (int j = 0; j < WIDE; ++j) fetch(w[k] + FAR + WIDE * i + 64 * j);
}

// Products of bytes, four neighbours to a sum of 32 bits, exactly: of activations in -128 to 127 with weights in 0 to 127
// (`add_products`), and with those of Int8 as `int8_weights` makes them, WEIGHT_BASE above their meaning.
#ifdef __AVX512VNNI__
constexpr int WEIGHT_BASE = 128;  // dpbusd wants one side unsigned
inline __m512i add_products(__m512i sum, __m512i w, __m512i x) { return _mm512_dpbusd_epi32(sum, w, x); }
inline __m512i int8_weights(__m512i w) { return _mm512_xor_si512(w, _mm512_set1_epi8((char)0x80)); }
inline __m512i add_int8(__m512i sum, __m512i w, __m512i x) { return _mm512_dpbusd_epi32(sum, w, x); }
#else
constexpr int WEIGHT_BASE = 0;
// Two products of 127 and 128 are within 16 bits.
inline __m256i add_products(__m256i sum, __m256i w, __m256i x) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
inline __m512i add_products(__m512i sum, __m512i w, __m512i x) {
  return {add_products(sum.a, w.a, x.a), add_products(sum.b, w.b, x.b)};
}
inline __m512i int8_weights(__m512i w) { return w; }
// The sign goes from weight to activation: so do two of 128, which an activation of -128 is not.
inline __m512i add_int8(__m512i sum, __m512i w, __m512i x) {
  return add_products(sum, {_mm256_abs_epi8(w.a), _mm256_abs_epi8(w.b)}, {_mm256_sign_epi8(x.a, w.a), _mm256_sign_epi8(x.b, w.b)});
}
#endif

// Largest magnitude of `count` values, a multiple of 16; NaN where there is one. As integers, NaN is above infinity.
inline float largest(const float* x, i64 count) {
  __m512i most = _mm512_setzero_si512();
  for (i64 i = 0; i < count; i += 16)
    most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_loadu_si512(x + i), _mm512_set1_epi32(0x7fffffff)));
  const uint32_t bits = _mm512_reduce_max_epu32(most);
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

inline float inverse(float bound, float most) { return most > 0 ? bound / most : 0.f; }
inline float step(float bound, float most) { return std::isfinite(most) ? most / bound : NAN; }
inline __m512i rounded(const float* x, float by) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(by)));
}

// A register of bf16 or fp32 values, those past `count` zero; one of products added to sums.
inline __m512 vector(const bf16* p, i64 count) {
  return (__m512)(count >= 32 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16((1u << count) - 1, p));
}
inline __m512 vector(const float* p, i64 count) { return _mm512_maskz_loadu_ps(first(count), p); }
inline __m512 multiplied(const bf16*, __m512 a, __m512 b, __m512 sum) { return dot(sum, (__m512i)a, (__m512i)b); }
inline __m512 multiplied(const float*, __m512 a, __m512 b, __m512 sum) { return _mm512_fmadd_ps(a, b, sum); }
inline void put(bf16* p, __m512 x) { store(p, x); }
inline void put(float* p, __m512 x) { _mm512_storeu_ps(p, x); }

// bf16 or fp32 weights, activations rounded to the same.
template <class W>
struct Plain {
  static constexpr i64 TILE = WIDE == 4 ? 8 : 4;  // tokens at once
  static constexpr i64 STEP = 64 / sizeof(W);
  i64 k, padded;
  W* values;

  Plain(i64 tokens, i64 k, char* memory) : k(k), padded((k + 31) / 32 * 32), values((W*)memory) {}
  static i64 bytes(i64 tokens, i64 k) { return tokens * ((k + 31) / 32 * 32) * sizeof(W); }
  i64 row_bytes() const { return k * sizeof(W); }
  i64 row_scales() const { return 0; }

  void prepare(i64 m, const float* x) const {
    for (i64 i = 0; i < padded; i += 16) put(values + m * padded + i, _mm512_loadu_ps(x + i));
  }

  template <int R>
  void dots(i64 m, const uint8_t* const (&w)[COLUMNS], const bf16* const (&)[COLUMNS], __m128 (&out)[R]) const {
    __m512 all[R][4];
    const i64 width = k, stride = padded;
    const W* x = values + m * stride;
    // One output's weights after the other's, as a single stream; two at a time beside so many tokens that these come from
    // the second cache.
    constexpr int J = R > 4 ? 2 : 1;
    for (int j = 0; j < 4; j += J) {
      __m512 acc[R][J];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int o = 0; o < J; ++o) acc[r][o] = _mm512_setzero_ps();
      for (i64 i = 0; i < width; i += STEP) {
        __m512 b[J];
#pragma GCC unroll 2
        for (int o = 0; o < J; ++o) {
          fetch(w[j + o] + FAR + i * sizeof(W));
          b[o] = vector((const W*)w[j + o] + i, width - i);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const __m512 a = _mm512_loadu_ps(x + r * stride + i);
#pragma GCC unroll 2
          for (int o = 0; o < J; ++o) acc[r][o] = multiplied((const W*)nullptr, a, b[o], acc[r][o]);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int o = 0; o < J; ++o) all[r][j + o] = acc[r][o];
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) out[r] = sums(all[r]);
  }
};

// int8: weights and activations of a row share one scale each.
struct Int8 {
  static constexpr i64 TILE = TOKENS;
  i64 k, padded;
  int8_t* values;
  float* scales;
  int32_t* bases;  // WEIGHT_BASE times the sum of a token's values

  Int8(i64 tokens, i64 k, char* memory) : k(k), padded((k + 63) / 64 * 64) {
    values = (int8_t*)memory;
    scales = (float*)(memory + tokens * padded);
    bases = (int32_t*)(scales + tokens);
  }
  static i64 bytes(i64 tokens, i64 k) { return tokens * ((k + 63) / 64 * 64 + 8); }
  i64 row_bytes() const { return k; }
  i64 row_scales() const { return 1; }

  void prepare(i64 m, const float* x) const {
    const float most = largest(x, padded), by = inverse(127, most);
    __m512i sum = _mm512_setzero_si512();
    for (i64 i = 0; i < padded; i += 16) {
      const __m512i q = rounded(x + i, by);
      sum = _mm512_add_epi32(sum, q);
      _mm_storeu_si128((__m128i*)(values + m * padded + i), _mm512_cvtsepi32_epi8(q));
    }
    scales[m] = step(127, most);
    bases[m] = WEIGHT_BASE * _mm512_reduce_add_epi32(sum);
  }

  template <int R>
  void dots(i64 m, const uint8_t* const (&w)[COLUMNS], const bf16* const (&ws)[COLUMNS], __m128 (&out)[R]) const {
    __m512i acc[R][4];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) acc[r][j] = _mm512_setzero_si512();
    const i64 width = this->k, stride = padded;
    const int8_t* x = values + m * stride;
#pragma GCC unroll 4
    for (int k = 0; k < 4; k += WIDE)
      for (i64 i = 0; i < width; i += 64) {
        const __mmask64 mask = width - i >= 64 ? ~0ull : (1ull << (width - i)) - 1;
        __m512i b[WIDE];
        ahead(w, k, i);
#pragma GCC unroll 4
        for (int j = 0; j < WIDE; ++j) b[j] = int8_weights(_mm512_maskz_loadu_epi8(mask, w[k + j] + i));
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const __m512i a = _mm512_loadu_si512(x + r * stride + i);
#pragma GCC unroll 4
          for (int j = 0; j < WIDE; ++j) acc[r][k + j] = add_int8(acc[r][k + j], b[j], a);
        }
      }
    const bf16 near[4] = {*ws[0], *ws[1], *ws[2], *ws[3]};
    const __m128 weight_scales = four(near);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m128 sum = _mm_cvtepi32_ps(_mm_sub_epi32(sums(acc[r]), _mm_set1_epi32(bases[m + r])));
      out[r] = _mm_mul_ps(_mm_mul_ps(sum, _mm_set1_ps(scales[m + r])), weight_scales);
    }
  }
};

// int4: weights have a scale for each 32, 64 or 128 columns, activations (int8) one for each 128. A byte holds two
// neighbouring columns, the low half the even one; so activations are stored as 64 even, then 64 odd ones.
struct Int4 {
  static constexpr i64 TILE = TOKENS;
  struct Part {
    int8_t even[64], odd[64];
    int32_t base[16];  // -8 times the sum of a lane's values, as a stored weight is 8 above its meaning
  };
  i64 k, blocks, per_block, groups;
  Part* parts;
  float* scales;
  __m512i spread;  // lane to the scale of its group within a block

  Int4(i64 tokens, i64 k, i64 group, char* memory)
      : k(k), blocks((k + BLOCK - 1) / BLOCK), per_block(BLOCK / group), groups(k / group) {
    parts = (Part*)memory;
    scales = (float*)(parts + tokens * blocks);
    int32_t lane[16];
    for (int i = 0; i < 16; ++i) lane[i] = i / (group / 8);
    spread = _mm512_loadu_si512(lane);
  }
  static i64 bytes(i64 tokens, i64 k) { return tokens * ((k + BLOCK - 1) / BLOCK) * (sizeof(Part) + 4); }
  i64 row_bytes() const { return k / 2; }
  i64 row_scales() const { return groups; }

  void prepare(i64 m, const float* x) const {
    for (i64 b = 0; b < blocks; ++b, x += BLOCK) {
      const float most = largest(x, BLOCK), by = inverse(127, most);
      Part& part = parts[m * blocks + b];
      for (i64 i = 0; i < BLOCK; i += 16) {
        const __m128i q = _mm512_cvtsepi32_epi8(rounded(x + i, by));
        const __m128i halves = _mm_shuffle_epi8(q, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
        _mm_storel_epi64((__m128i*)(part.even + i / 2), halves);
        _mm_storel_epi64((__m128i*)(part.odd + i / 2), _mm_srli_si128(halves, 8));
      }
      const __m512i eights = _mm512_set1_epi8(8);
      const __m512i sum = add_products(add_products(_mm512_setzero_si512(), eights, _mm512_loadu_si512(part.even)), eights,
                                       _mm512_loadu_si512(part.odd));
      _mm512_storeu_si512(part.base, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
      scales[m * blocks + b] = step(127, most);
    }
  }

  template <int R>
  void dots(i64 m, const uint8_t* const (&w)[COLUMNS], const bf16* const (&ws)[COLUMNS], __m128 (&out)[R]) const {
    __m512 acc[R][4];
    zero(acc);
    const i64 stride = blocks, row = this->k / 2, each = per_block, all = groups;
    const __m512i where = spread;
    const Part* x = parts + m * stride;
    const float* xs = scales + m * stride;
#pragma GCC unroll 4
    for (int k = 0; k < 4; k += WIDE)
      for (i64 b = 0; b < stride; ++b) {
        const i64 bytes = std::min<i64>(64, row - 64 * b);
        const __mmask8 held = (1 << std::min(each, all - each * b)) - 1;
        ahead(w, k, 64 * b);
        const __mmask64 mask = bytes == 64 ? ~0ull : (1ull << bytes) - 1;
#pragma GCC unroll 4
        for (int j = k; j < k + WIDE; ++j) {
          const __m512i both = _mm512_maskz_loadu_epi8(mask, w[j] + 64 * b), low = _mm512_set1_epi8(15);
          const __m512i even = _mm512_and_si512(both, low), odd = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
          const __m512 scale = _mm512_permutexvar_ps(where, _mm512_castps128_ps512(four(ws[j] + each * b, held)));
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            const Part& a = x[r * stride + b];
            __m512i sum = add_products(_mm512_loadu_si512(a.base), even, _mm512_loadu_si512(a.even));
            sum = add_products(sum, odd, _mm512_loadu_si512(a.odd));
            acc[r][j] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(xs[r * stride + b])), scale,
                                        acc[r][j]);
          }
        }
      }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) out[r] = sums(acc[r]);
  }
};

// Codes of e4m3, one in 16 bits, to bf16, given the table of those without a sign.
#ifdef __AVX512VNNI__
struct E4m3 {
  __m512i t0, t1, t2, t3;
  explicit E4m3(const bf16 (&table)[128])
      : t0(_mm512_loadu_si512(table)), t1(_mm512_loadu_si512(table + 32)), t2(_mm512_loadu_si512(table + 64)),
        t3(_mm512_loadu_si512(table + 96)) {}
  __m512i operator()(__m512i code) const {
    const __m512i low = _mm512_permutex2var_epi16(t0, code, t1), high = _mm512_permutex2var_epi16(t2, code, t3);
    const __mmask32 upper = _mm512_test_epi16_mask(code, _mm512_set1_epi16(64));
    const __m512i sign = _mm512_and_si512(_mm512_slli_epi16(code, 8), _mm512_set1_epi16((short)0x8000));
    return _mm512_or_si512(sign, _mm512_mask_mov_epi16(low, upper, high));
  }
};
#else
struct E4m3 {  // from 8 on by a shift and another bias, those below by a table of lower and one of upper bytes
  __m256i lower, upper;
  explicit E4m3(const bf16 (&table)[128]) {
    const __m256i small = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    lower = _mm256_shuffle_epi8(small, _mm256_set1_epi64x(0x0e0c0a0806040200));
    upper = _mm256_shuffle_epi8(small, _mm256_set1_epi64x(0x0f0d0b0907050301));
  }
  __m256i operator()(__m256i code) const {
    const __m256i bare = _mm256_and_si256(code, _mm256_set1_epi16(127));
    const __m256i large = _mm256_add_epi16(_mm256_slli_epi16(bare, 4), _mm256_set1_epi16(120 << 7));
    const __m256i small = _mm256_or_si256(_mm256_shuffle_epi8(lower, bare), _mm256_slli_epi16(_mm256_shuffle_epi8(upper, bare), 8));
    const __m256i sign = _mm256_and_si256(_mm256_slli_epi16(code, 8), _mm256_set1_epi16((short)0x8000));
    return _mm256_or_si256(sign, _mm256_blendv_epi8(large, small, _mm256_cmpgt_epi16(_mm256_set1_epi16(8), bare)));
  }
  __m512i operator()(__m512i code) const { return {(*this)(code.a), (*this)(code.b)}; }
};
#endif

// fp8 (e4m3): weights by a table to bf16, which holds them exactly, as it does the activations rounded to e4m3.
struct Fp8 {
  static constexpr i64 TILE = TOKENS;
  i64 k, padded;
  float cap;
  bf16* values;
  float* scales;
  bf16 table[128];

  Fp8(i64 tokens, i64 k, float cap, char* memory) : k(k), padded((k + 31) / 32 * 32), cap(cap) {
    values = (bf16*)memory;
    scales = (float*)(values + tokens * padded);
    for (int i = 0; i < 128; ++i) {
      const int exponent = i >> 3, mantissa = i & 7;
      const float value = exponent ? std::ldexp(8.f + mantissa, exponent - 10) : std::ldexp((float)mantissa, -9);
      uint32_t bits;
      memcpy(&bits, &value, 4);
      table[i] = bits >> 16;
    }
  }
  static i64 bytes(i64 tokens, i64 k) { return tokens * ((k + 31) / 32 * 64 + 4); }
  i64 row_bytes() const { return k; }
  i64 row_scales() const { return 1; }

  void prepare(i64 m, const float* x) const {
    const float found = largest(x, padded), most = found > cap ? cap : found, by = inverse(448, most);
    for (i64 i = 0; i < padded; i += 16) {
      __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(by));
      v = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-448)), _mm512_set1_ps(448));
      const __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 20), _mm512_set1_epi32(1));
      const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7ffff)));
      const __m512 normal = _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32((int)0xfff00000)));
      const __m512 small = _mm512_roundscale_ps(v, 9 << 4 | _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      const __mmask16 below = _mm512_cmp_ps_mask(_mm512_abs_ps(v), _mm512_set1_ps(0x1p-6f), _CMP_LT_OQ);
      store(values + m * padded + i, _mm512_mask_mov_ps(normal, below, small));
    }
    scales[m] = std::isfinite(found) ? most / 448 : NAN;
  }

  template <int R>
  void dots(i64 m, const uint8_t* const (&w)[COLUMNS], const bf16* const (&ws)[COLUMNS], __m128 (&out)[R]) const {
    __m512 acc[R][4];
    zero(acc);
    const E4m3 decoded(table);
    const i64 width = this->k, stride = padded;
    const bf16* x = values + m * stride;
#pragma GCC unroll 4
    for (int k = 0; k < 4; k += WIDE)
      for (i64 i = 0; i < width; i += 32) {
        const __mmask32 mask = width - i >= 32 ? ~0u : (1u << (width - i)) - 1;
        ahead(w, k, i);
#pragma GCC unroll 4
        for (int j = k; j < k + WIDE; ++j) {
          const __m512i b = decoded(_mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(mask, w[j] + i)));
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) acc[r][j] = dot(acc[r][j], _mm512_loadu_si512(x + r * stride + i), b);
        }
      }
    const bf16 near[4] = {*ws[0], *ws[1], *ws[2], *ws[3]};
    const __m128 weight_scales = four(near);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
      out[r] = _mm_mul_ps(_mm_mul_ps(sums(acc[r]), _mm_set1_ps(scales[m + r])), weight_scales);
  }
};

}  // namespace herd
