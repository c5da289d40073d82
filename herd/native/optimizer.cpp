// The optimizer's passes over gradients, weights and moments, each of which reads and writes them once.
//
// A master weight is fp32 in two parts: the bf16 weight that the model computes with, and signed 16-bit low bits:
// master's bits = (weight's bits << 16) + low bits. The weight is thereby the master rounded to nearest, ties away from
// zero.
//
// Moments in 8 bits: blocks of BLOCK numbers share a scale. A code is a small float, 2^(e - 15) (1 + m / 2^M) times the
// scale, with M = 3 and a sign for the first moment, M = 4 for the root of the second; code 0 is zero, but for the root,
// whose least code is 1. Rounding is random: up with the probability of what is cut off, by a hash of place and seed.

#include "common.h"

namespace herd {

namespace {

constexpr i64 BLOCK = 128, PART = 4096;
constexpr int LOWEST = 112;     // the exponent of 2^-15
constexpr float TINY = 1e-30f;  // a scale below counts as zero

inline __m512i bits(__m512 x) { return _mm512_castps_si512(x); }

inline __m512 load_master(const bf16* weight, const int16_t* low_bits, __mmask16 mask) {
  const __m512i low = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, low_bits));
  return _mm512_castsi512_ps(_mm512_add_epi32(bits(load(weight, mask)), low));
}

inline void store_master(bf16* weight, int16_t* low_bits, __m512 x, __mmask16 mask) {
  const __m512i high = _mm512_srli_epi32(_mm512_add_epi32(bits(x), _mm512_set1_epi32(0x8000)), 16);
  _mm256_mask_storeu_epi16(weight, mask, _mm512_cvtepi32_epi16(high));
  _mm256_mask_storeu_epi16(low_bits, mask, _mm512_cvtepi32_epi16(bits(x)));
}

// 32 bits of each place from `at` on.
inline __m512i hash(i64 at, uint32_t seed) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512i h = _mm512_mullo_epi32(_mm512_add_epi32(_mm512_set1_epi32((int)at), lane), _mm512_set1_epi32(0x9E3779B1));
  h = _mm512_xor_si512(h, _mm512_set1_epi32((int)seed));
  h = _mm512_mullo_epi32(_mm512_xor_si512(h, _mm512_srli_epi32(h, 15)), _mm512_set1_epi32(0x85EBCA6B));
  h = _mm512_mullo_epi32(_mm512_xor_si512(h, _mm512_srli_epi32(h, 13)), _mm512_set1_epi32(0xC2B2AE35));
  return _mm512_xor_si512(h, _mm512_srli_epi32(h, 16));
}

// Magnitude codes of M bits behind the exponent's four, from 0 to 2^(M + 4) - 1, to numbers.
template <int M>
inline __m512 decode(__m512i code) {
  const __m512i x = _mm512_add_epi32(_mm512_slli_epi32(code, 23 - M), _mm512_set1_epi32(LOWEST << 23));
  return _mm512_castsi512_ps(_mm512_maskz_mov_epi32(_mm512_test_epi32_mask(code, code), x));
}

// `noise` has 23 - M bits; x is at least 0.
template <int M>
inline __m512i encode(__m512 x, __m512i noise, int least) {
  const __m512i code = _mm512_sub_epi32(_mm512_srli_epi32(_mm512_add_epi32(bits(x), noise), 23 - M),
                                        _mm512_set1_epi32(LOWEST << M));
  return _mm512_min_epi32(_mm512_max_epi32(code, _mm512_set1_epi32(least)), _mm512_set1_epi32((16 << M) - 1));
}

template <int M>
constexpr float largest() { return 2.f - 1.f / (1 << M); }

// What AdamW does to a master, given both moments.
struct AdamW {
  float beta1, beta2, keep, rate, unbias;
  __m512 first(__m512 g, __m512 mean) const {
    return _mm512_fmadd_ps(_mm512_set1_ps(1 - beta1), _mm512_sub_ps(g, mean), mean);
  }
  __m512 second(__m512 g, __m512 square) const {
    return _mm512_fmadd_ps(_mm512_set1_ps(1 - beta2), _mm512_fmsub_ps(g, g, square), square);
  }
  __m512 step(__m512 master, __m512 mean, __m512 square) const {
    const __m512 root =
        _mm512_add_ps(_mm512_sqrt_ps(_mm512_mul_ps(square, _mm512_set1_ps(unbias))), _mm512_set1_ps(1e-10f));
    return _mm512_fnmadd_ps(_mm512_set1_ps(rate), _mm512_div_ps(mean, root),
                            _mm512_mul_ps(master, _mm512_set1_ps(keep)));
  }
};

}  // namespace

extern "C" {

// sums[p] = sum of x^2 over part p of PART numbers, fp32.
void squares(const bf16* x, float* sums, i64 n) {
#pragma omp parallel for schedule(static)
  for (i64 p = 0; p < (n + PART - 1) / PART; ++p) {
    __m512 sum[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    for (i64 i = p * PART, j = 0; i < std::min(n, (p + 1) * PART); i += 16, j = (j + 1) % 4) {
      const __m512 a = load(x + i, first(n - i));
      sum[j] = _mm512_fmadd_ps(a, a, sum[j]);
    }
    sums[p] = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
  }
}

// Nesterov momentum: mean += (1 - momentum) (clip grad - mean); update = clip grad + momentum (mean - clip grad).
void momentum_update(const bf16* grad, float* mean, bf16* update, i64 n, double clip, double momentum) {
  const float scale = clip, keep = momentum;
#pragma omp parallel for schedule(static)
  for (i64 i = 0; i < n; i += 16) {
    const __mmask16 mask = first(n - i);
    const __m512 g = _mm512_mul_ps(load(grad + i, mask), _mm512_set1_ps(scale));
    __m512 m = _mm512_maskz_loadu_ps(mask, mean + i);
    m = _mm512_fmadd_ps(_mm512_set1_ps(1 - keep), _mm512_sub_ps(g, m), m);
    _mm512_mask_storeu_ps(mean + i, mask, m);
    store(update + i, _mm512_fmadd_ps(_mm512_set1_ps(keep), _mm512_sub_ps(m, g), g), mask);
  }
}

// master = keep * master - rate * update.
void apply_update(const bf16* update, bf16* weight, int16_t* low_bits, i64 n, double keep, double rate) {
#pragma omp parallel for schedule(static)
  for (i64 i = 0; i < n; i += 16) {
    const __mmask16 mask = first(n - i);
    const __m512 m = _mm512_mul_ps(load_master(weight + i, low_bits + i, mask), _mm512_set1_ps(keep));
    store_master(weight + i, low_bits + i, _mm512_fnmadd_ps(_mm512_set1_ps(rate), load(update + i, mask), m), mask);
  }
}

// `keep` = 1 - rate * decay, `rate` holds the first moment's bias correction, `unbias` = 1 / the second's.
void adamw(const bf16* grad, bf16* weight, int16_t* low_bits, float* mean, float* square, i64 n, double clip,
           double beta1, double beta2, double keep, double rate, double unbias) {
  const AdamW rule{(float)beta1, (float)beta2, (float)keep, (float)rate, (float)unbias};
#pragma omp parallel for schedule(static)
  for (i64 i = 0; i < n; i += 16) {
    const __mmask16 mask = first(n - i);
    const __m512 g = _mm512_mul_ps(load(grad + i, mask), _mm512_set1_ps(clip));
    const __m512 a = rule.first(g, _mm512_maskz_loadu_ps(mask, mean + i));
    const __m512 b = rule.second(g, _mm512_maskz_loadu_ps(mask, square + i));
    _mm512_mask_storeu_ps(mean + i, mask, a);
    _mm512_mask_storeu_ps(square + i, mask, b);
    store_master(weight + i, low_bits + i, rule.step(load_master(weight + i, low_bits + i, mask), a, b), mask);
  }
}

// The same with moments in 8 bits; scales[block] = (of the first moment, of the second's root).
void adamw_8bit(const bf16* grad, bf16* weight, int16_t* low_bits, uint8_t* mean, uint8_t* root, float* scales, i64 n,
                double clip, double beta1, double beta2, double keep, double rate, double unbias, i64 seed) {
  const AdamW rule{(float)beta1, (float)beta2, (float)keep, (float)rate, (float)unbias};
#pragma omp parallel for schedule(static)
  for (i64 block = 0; block < (n + BLOCK - 1) / BLOCK; ++block) {
    __m512 a[BLOCK / 16], b[BLOCK / 16], most_a = _mm512_setzero_ps(), most_b = _mm512_setzero_ps();
    const __m512 scale_a = _mm512_set1_ps(scales[2 * block]), scale_b = _mm512_set1_ps(scales[2 * block + 1]);
    for (i64 j = 0; j < BLOCK / 16; ++j) {
      const i64 i = block * BLOCK + 16 * j;
      const __mmask16 mask = first(n - i);
      const __m512 g = _mm512_mul_ps(load(grad + i, mask), _mm512_set1_ps(clip));
      const __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, mean + i));
      const __m512i sign = _mm512_slli_epi32(_mm512_srli_epi32(code, 7), 31);
      const __m512 before = decode<3>(_mm512_and_si512(code, _mm512_set1_epi32(127)));
      const __m512 s = _mm512_mul_ps(decode<4>(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, root + i))), scale_b);
      a[j] = rule.first(g, _mm512_mul_ps(_mm512_castsi512_ps(_mm512_or_si512(bits(before), sign)), scale_a));
      b[j] = rule.second(g, _mm512_mul_ps(s, s));
      most_a = _mm512_max_ps(most_a, _mm512_abs_ps(a[j]));
      most_b = _mm512_max_ps(most_b, b[j]);
      const __m512 master = load_master(weight + i, low_bits + i, mask);
      store_master(weight + i, low_bits + i, rule.step(master, a[j], b[j]), mask);
    }
    const float top_a = _mm512_reduce_max_ps(most_a) / largest<3>();
    const float top_b = std::sqrt(_mm512_reduce_max_ps(most_b)) / largest<4>();
    scales[2 * block] = top_a;
    scales[2 * block + 1] = top_b;
    const __m512 over_a = _mm512_set1_ps(top_a > TINY ? 1 / top_a : 0), over_b = _mm512_set1_ps(top_b > TINY ? 1 / top_b : 0);
    for (i64 j = 0; j < BLOCK / 16; ++j) {
      const i64 i = block * BLOCK + 16 * j;
      const __mmask16 mask = first(n - i);
      const __m512i noise = hash(i, (uint32_t)seed);
      const __m512i low = _mm512_and_si512(noise, _mm512_set1_epi32((1 << 20) - 1));
      const __m512i code = encode<3>(_mm512_mul_ps(_mm512_abs_ps(a[j]), over_a), low, 0);
      const __m512i sign = _mm512_slli_epi32(_mm512_srli_epi32(bits(a[j]), 31), 7);
      _mm_mask_storeu_epi8(mean + i, mask, _mm512_cvtepi32_epi8(_mm512_or_si512(code, sign)));
      const __m512 s = _mm512_mul_ps(_mm512_sqrt_ps(b[j]), over_b);
      _mm_mask_storeu_epi8(root + i, mask, _mm512_cvtepi32_epi8(encode<4>(s, _mm512_srli_epi32(noise, 13), 1)));
    }
  }
}
}

}  // namespace herd
