// The 512-bit registers and intrinsics that the kernels use, as pairs of 256-bit registers, for processors with AVX2 and
// FMA. In namespace herd, around all kernels, these names hide those of immintrin.h. Numbers are those of AVX-512 to the
// bit, also in the order of sums over a register.
//
// Masks are integers. Those of loads and stores are prefixes (the first n elements), and nothing past them is touched:
// it may be in a page that is not there.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if !defined(__AVX2__) || !defined(__FMA__)
#error "these kernels need AVX-512 with VNNI, or AVX2 with FMA"
#endif

// Compilers define those with immediate operands as macros.
#undef _mm512_cmp_ps_mask
#undef _mm512_extractf32x8_ps
#undef _mm512_extracti64x4_epi64
#undef _mm512_permute_ps
#undef _mm512_roundscale_ps
#undef _mm512_shuffle_i32x4
#undef _mm512_slli_epi16
#undef _mm512_slli_epi32
#undef _mm512_srli_epi16
#undef _mm512_srli_epi32

namespace herd {

struct __m512i;
struct __m512 {
  __m256 a, b;  // lanes 0 to 7, 8 to 15
  explicit operator __m512i() const;
};
struct __m512i {
  __m256i a, b;
  explicit operator __m512() const { return {_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)}; }
};
inline __m512::operator __m512i() const { return {_mm256_castps_si256(a), _mm256_castps_si256(b)}; }

// Half by half: the 256-bit intrinsic of the same name.
#define HERD_1(type, from, name) inline type _mm512_##name(from x) { return {_mm256_##name(x.a), _mm256_##name(x.b)}; }
#define HERD_2(type, name) \
  inline type _mm512_##name(type x, type y) { return {_mm256_##name(x.a, y.a), _mm256_##name(x.b, y.b)}; }
#define HERD_3(type, name)                               \
  inline type _mm512_##name(type x, type y, type z) {    \
    return {_mm256_##name(x.a, y.a, z.a), _mm256_##name(x.b, y.b, z.b)}; \
  }
#define HERD_SHIFT(name) \
  inline __m512i _mm512_##name(__m512i x, int by) { return {_mm256_##name(x.a, by), _mm256_##name(x.b, by)}; }
#define HERD_SET1(name, from) \
  inline __m512i _mm512_##name(from x) { return {_mm256_##name(x), _mm256_##name(x)}; }
// Bits know no lanes: and, or, xor.
#define HERD_BITS(name) \
  inline __m512i _mm512_##name##_si512(__m512i x, __m512i y) { \
    return {_mm256_##name##_si256(x.a, y.a), _mm256_##name##_si256(x.b, y.b)}; \
  }

HERD_1(__m512, __m512i, cvtepi32_ps)
HERD_1(__m512i, __m512, cvtps_epi32)
HERD_1(__m512, __m512, movehdup_ps)
HERD_1(__m512, __m512, moveldup_ps)
HERD_1(__m512, __m512, sqrt_ps)
HERD_2(__m512, add_ps)
HERD_2(__m512, sub_ps)
HERD_2(__m512, mul_ps)
HERD_2(__m512, div_ps)
HERD_2(__m512, max_ps)
HERD_2(__m512, min_ps)
HERD_2(__m512, unpacklo_ps)
HERD_2(__m512, unpackhi_ps)
HERD_2(__m512i, add_epi16)
HERD_2(__m512i, add_epi32)
HERD_2(__m512i, sub_epi32)
HERD_2(__m512i, mullo_epi32)
HERD_2(__m512i, max_epi32)
HERD_2(__m512i, max_epu32)
HERD_2(__m512i, min_epi32)
HERD_2(__m512i, unpacklo_epi32)
HERD_2(__m512i, unpackhi_epi32)
HERD_2(__m512i, unpacklo_epi64)
HERD_2(__m512i, unpackhi_epi64)
HERD_3(__m512, fmadd_ps)
HERD_3(__m512, fmsub_ps)
HERD_3(__m512, fnmadd_ps)
HERD_3(__m512, fmaddsub_ps)
HERD_3(__m512, fmsubadd_ps)
HERD_SHIFT(slli_epi16)
HERD_SHIFT(slli_epi32)
HERD_SHIFT(srli_epi16)
HERD_SHIFT(srli_epi32)
HERD_SET1(set1_epi8, char)
HERD_SET1(set1_epi16, short)
HERD_SET1(set1_epi32, int)
HERD_BITS(and)
HERD_BITS(or)
HERD_BITS(xor)

#undef HERD_1
#undef HERD_2
#undef HERD_3
#undef HERD_SHIFT
#undef HERD_SET1
#undef HERD_BITS

inline __m512 _mm512_setzero_ps() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline __m512i _mm512_setzero_si512() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline __m512 _mm512_set1_ps(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline __m512i _mm512_set_epi32(int p, int o, int n, int m, int l, int k, int j, int i, int h, int g, int f, int e, int d,
                                int c, int b, int a) {
  return {_mm256_set_epi32(h, g, f, e, d, c, b, a), _mm256_set_epi32(p, o, n, m, l, k, j, i)};
}

// Doubles are only there to be moved in pairs of floats.
using __m512d = __m512;
inline __m512d _mm512_castps_pd(__m512 x) { return x; }
inline __m512 _mm512_castpd_ps(__m512d x) { return x; }
inline __m512d _mm512_unpacklo_pd(__m512d x, __m512d y) {
  return (__m512)_mm512_unpacklo_epi64((__m512i)x, (__m512i)y);
}
inline __m512d _mm512_unpackhi_pd(__m512d x, __m512d y) {
  return (__m512)_mm512_unpackhi_epi64((__m512i)x, (__m512i)y);
}

inline __m512 _mm512_castsi512_ps(__m512i x) { return (__m512)x; }
inline __m512i _mm512_castps_si512(__m512 x) { return (__m512i)x; }
inline __m256 _mm512_castps512_ps256(__m512 x) { return x.a; }
inline __m128 _mm512_castps512_ps128(__m512 x) { return _mm256_castps256_ps128(x.a); }
inline __m512 _mm512_castps128_ps512(__m128 x) { return {_mm256_zextps128_ps256(x), _mm256_setzero_ps()}; }
inline __m256i _mm512_castsi512_si256(__m512i x) { return x.a; }
inline __m256 _mm512_extractf32x8_ps(__m512 x, int half) { return half ? x.b : x.a; }
inline __m256i _mm512_extracti64x4_epi64(__m512i x, int half) { return half ? x.b : x.a; }
inline float _mm512_cvtss_f32(__m512 x) { return _mm256_cvtss_f32(x.a); }

// Memory.

inline __m512 _mm512_load_ps(const void* p) {
  return {_mm256_load_ps((const float*)p), _mm256_load_ps((const float*)p + 8)};
}
inline __m512 _mm512_loadu_ps(const void* p) {
  return {_mm256_loadu_ps((const float*)p), _mm256_loadu_ps((const float*)p + 8)};
}
inline __m512i _mm512_load_si512(const void* p) {
  return {_mm256_load_si256((const __m256i*)p), _mm256_load_si256((const __m256i*)p + 1)};
}
inline __m512i _mm512_loadu_si512(const void* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
inline void _mm512_store_ps(void* p, __m512 x) {
  _mm256_store_ps((float*)p, x.a);
  _mm256_store_ps((float*)p + 8, x.b);
}
inline void _mm512_storeu_ps(void* p, __m512 x) {
  _mm256_storeu_ps((float*)p, x.a);
  _mm256_storeu_ps((float*)p + 8, x.b);
}
inline void _mm512_store_si512(void* p, __m512i x) {
  _mm256_store_si256((__m256i*)p, x.a);
  _mm256_store_si256((__m256i*)p + 1, x.b);
}
inline void _mm512_storeu_si512(void* p, __m512i x) {
  _mm256_storeu_si256((__m256i*)p, x.a);
  _mm256_storeu_si256((__m256i*)p + 1, x.b);
}

// All bits of the lanes of 32 bits that an 8-bit mask has.
inline __m256i lanes(unsigned mask) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)mask), bit), bit);
}

// The first `bytes` of 32, zeros behind: whole words, and of the last one what there is.
inline __m256i load_head(const void* p, int bytes) {
  const int words = bytes / 4, rest = bytes % 4;
  __m256i x = _mm256_maskload_epi32((const int*)p, lanes((1u << words) - 1));
  if (!rest) return x;
  const uint8_t* tail = (const uint8_t*)p + 4 * words;
  uint32_t last = 0;
  for (int i = 0; i < rest; ++i) last |= (uint32_t)tail[i] << (8 * i);
  return _mm256_or_si256(x, _mm256_and_si256(_mm256_set1_epi32((int)last), lanes(1u << words)));
}
inline void store_head(void* p, int bytes, __m256i x) {
  alignas(32) char all[32];
  _mm256_store_si256((__m256i*)all, x);
  memcpy(p, all, bytes);
}

inline __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* p) {
  if (mask == 0xffff) return _mm512_loadu_ps(p);
  return {_mm256_maskload_ps((const float*)p, lanes(mask & 255)), _mm256_maskload_ps((const float*)p + 8, lanes(mask >> 8))};
}
inline __m512i _mm512_maskz_loadu_epi32(__mmask16 mask, const void* p) { return (__m512i)_mm512_maskz_loadu_ps(mask, p); }
inline __m512i _mm512_maskz_loadu_epi16(__mmask32 mask, const void* p) {
  if (mask == ~0u) return _mm512_loadu_si512(p);
  return {load_head(p, 2 * __builtin_popcount(mask & 0xffff)),
          load_head((const char*)p + 32, 2 * __builtin_popcount(mask >> 16))};
}
inline __m512i _mm512_maskz_loadu_epi8(__mmask64 mask, const void* p) {
  if (mask == ~0ull) return _mm512_loadu_si512(p);
  return {load_head(p, __builtin_popcount((uint32_t)mask)), load_head((const char*)p + 32, __builtin_popcountll(mask >> 32))};
}
inline __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* p) { return load_head(p, 2 * __builtin_popcount(mask)); }
inline __m256i _mm256_maskz_loadu_epi8(__mmask32 mask, const void* p) {
  return mask == ~0u ? _mm256_loadu_si256((const __m256i*)p) : load_head(p, __builtin_popcount(mask));
}
inline __m128i _mm_maskz_loadu_epi16(__mmask8 mask, const void* p) {
  if (mask == 15) return _mm_loadl_epi64((const __m128i*)p);
  return _mm256_castsi256_si128(load_head(p, 2 * __builtin_popcount(mask)));
}
inline __m128i _mm_maskz_loadu_epi8(__mmask16 mask, const void* p) {
  return mask == 0xffff ? _mm_loadu_si128((const __m128i*)p)
                        : _mm256_castsi256_si128(load_head(p, __builtin_popcount(mask)));
}
inline void _mm512_mask_storeu_ps(void* p, __mmask16 mask, __m512 x) {
  if (mask == 0xffff) return _mm512_storeu_ps(p, x);
  _mm256_maskstore_ps((float*)p, lanes(mask & 255), x.a);
  _mm256_maskstore_ps((float*)p + 8, lanes(mask >> 8), x.b);
}
inline void _mm256_mask_storeu_epi32(void* p, __mmask8 mask, __m256i x) { _mm256_maskstore_epi32((int*)p, lanes(mask), x); }
inline void _mm256_mask_storeu_epi16(void* p, __mmask16 mask, __m256i x) {
  if (mask == 0xffff)
    _mm256_storeu_si256((__m256i*)p, x);
  else
    store_head(p, 2 * __builtin_popcount(mask), x);
}
inline void _mm_mask_storeu_epi8(void* p, __mmask16 mask, __m128i x) {
  if (mask == 0xffff)
    _mm_storeu_si128((__m128i*)p, x);
  else
    store_head(p, __builtin_popcount(mask), _mm256_castsi128_si256(x));
}

// Masks of lanes: here any.

inline __m512 _mm512_mask_blend_ps(__mmask16 mask, __m512 x, __m512 y) {
  return {_mm256_blendv_ps(x.a, y.a, _mm256_castsi256_ps(lanes(mask & 255))),
          _mm256_blendv_ps(x.b, y.b, _mm256_castsi256_ps(lanes(mask >> 8)))};
}
inline __m512 _mm512_mask_mov_ps(__m512 x, __mmask16 mask, __m512 y) { return _mm512_mask_blend_ps(mask, x, y); }
inline __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 x) {
  if (mask == 0xffff) return x;
  return {_mm256_and_ps(x.a, _mm256_castsi256_ps(lanes(mask & 255))),
          _mm256_and_ps(x.b, _mm256_castsi256_ps(lanes(mask >> 8)))};
}
inline __m512i _mm512_mask_mov_epi32(__m512i x, __mmask16 mask, __m512i y) {
  return (__m512i)_mm512_mask_blend_ps(mask, (__m512)x, (__m512)y);
}
inline __m512i _mm512_maskz_mov_epi32(__mmask16 mask, __m512i x) { return (__m512i)_mm512_maskz_mov_ps(mask, (__m512)x); }
inline __m512 _mm512_mask_loadu_ps(__m512 x, __mmask16 mask, const void* p) {
  return mask == 0xffff ? _mm512_loadu_ps(p) : _mm512_mask_blend_ps(mask, x, _mm512_maskz_loadu_ps(mask, p));
}
template <int by>
inline __mmask16 compared(__m512 x, __m512 y) {
  return _mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, by)) | _mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, by)) << 8;
}
#define _mm512_cmp_ps_mask(x, y, by) compared<by>(x, y)
inline __mmask16 _mm512_test_epi32_mask(__m512i x, __m512i y) {
  const __m512i both = _mm512_and_si512(x, y), none = _mm512_setzero_si512();
  const __m512i empty{_mm256_cmpeq_epi32(both.a, none.a), _mm256_cmpeq_epi32(both.b, none.b)};
  return ~(_mm256_movemask_ps(_mm256_castsi256_ps(empty.a)) | _mm256_movemask_ps(_mm256_castsi256_ps(empty.b)) << 8);
}

// Conversions.

inline __m512i _mm512_cvtepu16_epi32(__m256i x) {
  return {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1))};
}
inline __m512i _mm512_cvtepi16_epi32(__m256i x) {
  return {_mm256_cvtepi16_epi32(_mm256_castsi256_si128(x)), _mm256_cvtepi16_epi32(_mm256_extracti128_si256(x, 1))};
}
inline __m512i _mm512_cvtepu8_epi16(__m256i x) {
  return {_mm256_cvtepu8_epi16(_mm256_castsi256_si128(x)), _mm256_cvtepu8_epi16(_mm256_extracti128_si256(x, 1))};
}
inline __m512i _mm512_cvtepu8_epi32(__m128i x) {
  return {_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))};
}
// The lower 16 bits of each word.
inline __m256i _mm512_cvtepi32_epi16(__m512i x) {
  const __m512i low = _mm512_and_si512(x, _mm512_set1_epi32(0xffff));
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(low.a, low.b), 0xd8);
}
inline __m128i bytes_of(__m256i words) {  // of 16 bits, each of which fits
  return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
inline __m128i _mm512_cvtepi32_epi8(__m512i x) {
  return bytes_of(_mm512_cvtepi32_epi16(_mm512_and_si512(x, _mm512_set1_epi32(255))));
}
inline __m128i _mm512_cvtsepi32_epi8(__m512i x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
  return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

// Arithmetic that AVX2 lacks.

inline __m512 _mm512_abs_ps(__m512 x) {
  return (__m512)_mm512_and_si512((__m512i)x, _mm512_set1_epi32(0x7fffffff));
}
// To a multiple of 2^-(how >> 4).
inline __m512 _mm512_roundscale_ps(__m512 x, int how) {
  const __m512 up = _mm512_set1_ps((float)(1 << (how >> 4))), down = _mm512_set1_ps(1.f / (1 << (how >> 4)));
  if (how >> 4) x = _mm512_mul_ps(x, up);
  x = {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
       _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  return how >> 4 ? _mm512_mul_ps(x, down) : x;
}
// x 2^whole, in two steps, as 2^whole alone may not be a number.
inline __m512 _mm512_scalef_ps(__m512 x, __m512 whole) {
  const __m512 bound = _mm512_min_ps(_mm512_max_ps(whole, _mm512_set1_ps(-252)), _mm512_set1_ps(254));
  const __m512i power = _mm512_cvtps_epi32(bound), one = _mm512_set1_epi32(127);
  const __m512i half{_mm256_srai_epi32(power.a, 1), _mm256_srai_epi32(power.b, 1)};
  x = _mm512_mul_ps(x, (__m512)_mm512_slli_epi32(_mm512_add_epi32(half, one), 23));
  return _mm512_mul_ps(x, (__m512)_mm512_slli_epi32(_mm512_add_epi32(_mm512_sub_epi32(power, half), one), 23));
}

// Order among lanes.

template <int order>
inline __m512 permuted(__m512 x) { return {_mm256_permute_ps(x.a, order), _mm256_permute_ps(x.b, order)}; }
#define _mm512_permute_ps(x, order) permuted<order>(x)
// Lanes of 128 bits: the lower two of the result come from x, the upper two from y.
template <int order>
inline __m512i shuffled(__m512i x, __m512i y) {
  return {_mm256_permute2x128_si256(x.a, x.b, (order & 3) | (order >> 2 & 3) << 4),
          _mm256_permute2x128_si256(y.a, y.b, (order >> 4 & 3) | (order >> 6 & 3) << 4)};
}
#define _mm512_shuffle_i32x4(x, y, order) shuffled<order>(x, y)
// `where` is below 8.
inline __m512 _mm512_permutexvar_ps(__m512i where, __m512 x) {
  return {_mm256_permutevar8x32_ps(x.a, where.a), _mm256_permutevar8x32_ps(x.a, where.b)};
}

// Halves onto each other until one lane is left.
inline float _mm512_reduce_add_ps(__m512 x) {
  const __m256 y = _mm256_add_ps(x.b, x.a);
  const __m128 z = _mm_add_ps(_mm256_extractf128_ps(y, 1), _mm256_castps256_ps128(y));
  const __m128 w = _mm_add_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_add_ss(w, _mm_movehdup_ps(w)));
}
inline float _mm512_reduce_max_ps(__m512 x) {
  const __m256 y = _mm256_max_ps(x.b, x.a);
  const __m128 z = _mm_max_ps(_mm256_extractf128_ps(y, 1), _mm256_castps256_ps128(y));
  const __m128 w = _mm_max_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_max_ss(w, _mm_movehdup_ps(w)));
}
inline int _mm512_reduce_add_epi32(__m512i x) {
  const __m256i y = _mm256_add_epi32(x.b, x.a);
  const __m128i z = _mm_add_epi32(_mm256_extracti128_si256(y, 1), _mm256_castsi256_si128(y));
  const __m128i w = _mm_add_epi32(z, _mm_shuffle_epi32(z, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(w, _mm_shuffle_epi32(w, 0xb1)));
}
inline unsigned _mm512_reduce_max_epu32(__m512i x) {
  const __m256i y = _mm256_max_epu32(x.b, x.a);
  const __m128i z = _mm_max_epu32(_mm256_extracti128_si256(y, 1), _mm256_castsi256_si128(y));
  const __m128i w = _mm_max_epu32(z, _mm_shuffle_epi32(z, 0x4e));
  return (unsigned)_mm_cvtsi128_si32(_mm_max_epu32(w, _mm_shuffle_epi32(w, 0xb1)));
}

}  // namespace herd
