// One query over chosen pages, with the logarithm of its mass, and the bounds by which pages are chosen; the method is in
// herd/model/certified.py.

#include <omp.h>

#include <numeric>
#include <utility>
#include <vector>

#include "common.h"

namespace herd {

namespace {

constexpr i64 SEEN = 256;         // keys from which the channel is estimated in which the keys of a part differ most
constexpr i64 TOGETHER = 65'536;  // keys of a part that is not worth a task of its own

float value(bf16 x) {
  const uint32_t word = (uint32_t)x << 16;
  float out;
  memcpy(&out, &word, 4);
  return out;
}

// Orders the rows so that every `leaf` of them are alike: halves at the median of the channel of most variance, and again.
void halve(const bf16* keys, i64 c, i64 leaf, i64* rows, i64 count, std::pair<float, i64>* pairs) {
  if (count <= leaf) return;
  const i64 seen = std::min(count, SEEN);
  std::vector<float> sum(c, 0.f), square(c, 0.f);
  for (i64 s = 0; s < seen; ++s) {
    const bf16* key = keys + rows[s * count / seen] * c;
    for (i64 i = 0; i < c; ++i) {
      const float x = value(key[i]);
      sum[i] += x;
      square[i] += x * x;
    }
  }
  i64 widest = 0;
  float most = -1.f;
  for (i64 i = 0; i < c; ++i) {
    const float variance = square[i] - sum[i] * sum[i] / seen;
    if (variance > most) most = variance, widest = i;
  }
  for (i64 i = 0; i < count; ++i) pairs[i] = {value(keys[rows[i] * c + widest]), rows[i]};
  const i64 half = (count / leaf + 1) / 2 * leaf;
  std::nth_element(pairs, pairs + half, pairs + count);
  for (i64 i = 0; i < count; ++i) rows[i] = pairs[i].second;
#pragma omp task if (count > TOGETHER)
  halve(keys, c, leaf, rows, half, pairs);
#pragma omp task if (count > TOGETHER)
  halve(keys, c, leaf, rows + half, count - half, pairs + half);
}

}  // namespace

extern "C" {

// order: the rows of keys [count, c] such that every `leaf` of them are alike; `leaf` divides the count.
void arrange(const bf16* keys, i64 count, i64 c, i64 leaf, i64* order) {
  std::vector<std::pair<float, i64>> pairs(count);
  std::iota(order, order + count, (i64)0);
#pragma omp parallel
#pragma omp single
  halve(keys, c, leaf, order, count, pairs.data());
}

// out[h, p] = sum over channels of max(q low, q high): no key of page p scores more. q [heads, c] fp32, low and high
// [pages, kv, c] bf16, c a multiple of 16.
void page_bounds(const float* q, const bf16* low, const bf16* high, float* out, i64 pages, i64 heads, i64 kv, i64 c) {
  const i64 ratio = heads / kv;
#pragma omp parallel for schedule(static)
  for (i64 p = 0; p < pages; ++p)
    for (i64 h = 0; h < heads; ++h) {
      const i64 at = (p * kv + h / ratio) * c;
      __m512 sum = _mm512_setzero_ps();
      for (i64 i = 0; i < c; i += 16) {
        const __m512 x = _mm512_loadu_ps(q + h * c + i);
        const __mmask16 up = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
        sum = _mm512_fmadd_ps(x, _mm512_mask_blend_ps(up, load(low + at + i), load(high + at + i)), sum);
      }
      out[h * pages + p] = _mm512_reduce_add_ps(sum);
    }
}

// out[h, c] = softmax(q . keys^T) values and mass[h] = log sum exp(q . keys^T) over the pages `table`, all full but the
// last, which has `last` keys. q fp32, already scaled; keys and values [., kv, tokens, c] bf16, c a multiple of 16.
void attend_selected(const float* q, const bf16* keys, const bf16* values, const i64* table, i64 count, i64 last, i64 tokens,
                 i64 heads, i64 kv, i64 c, float* out, float* mass) {
  const i64 ratio = heads / kv;
  const int threads = omp_get_max_threads();
  std::vector<float> sums(threads * heads * c, 0.f), tops(threads * heads, -INFINITY), totals(threads * heads, 0.f);
#pragma omp parallel num_threads(threads)
  {
    const int t = omp_get_thread_num();
    float *sum = &sums[t * heads * c], *top = &tops[t * heads], *total = &totals[t * heads];
    float* score = scratch<float>(0, tokens + 16);
#pragma omp for schedule(static)
    for (i64 b = 0; b < count; ++b) {
      const i64 length = b == count - 1 ? last : tokens;
      for (i64 h = 0; h < heads; ++h) {
        const bf16* k = keys + (table[b] * kv + h / ratio) * tokens * c;
        const bf16* v = values + (table[b] * kv + h / ratio) * tokens * c;
        float most = top[h];
        for (i64 j = 0; j < length; ++j) {
          __m512 x = _mm512_setzero_ps();
          for (i64 i = 0; i < c; i += 16) x = _mm512_fmadd_ps(_mm512_loadu_ps(q + h * c + i), load(k + j * c + i), x);
          score[j] = _mm512_reduce_add_ps(x);
          most = std::max(most, score[j]);
        }
        if (most > top[h]) {
          const float fade = std::exp(top[h] - most);
          total[h] *= fade;
          for (i64 i = 0; i < c; ++i) sum[h * c + i] *= fade;
          top[h] = most;
        }
        for (i64 j = 0; j < length; j += 16) {
          const __mmask16 real = first(length - j);
          const __m512 x = _mm512_sub_ps(_mm512_loadu_ps(score + j), _mm512_set1_ps(most));
          const __m512 e = _mm512_maskz_mov_ps(real, exponential(x));
          _mm512_storeu_ps(score + j, e);
          total[h] += _mm512_reduce_add_ps(e);
        }
        for (i64 i = 0; i < c; i += 16) {
          __m512 x = _mm512_loadu_ps(sum + h * c + i);
          for (i64 j = 0; j < length; ++j) x = _mm512_fmadd_ps(_mm512_set1_ps(score[j]), load(v + j * c + i), x);
          _mm512_storeu_ps(sum + h * c + i, x);
        }
      }
    }
  }
  for (i64 h = 0; h < heads; ++h) {
    float most = -INFINITY;
    for (int t = 0; t < threads; ++t) most = std::max(most, tops[t * heads + h]);
    double total = 0;
    std::vector<double> row(c, 0.0);
    for (int t = 0; t < threads; ++t) {
      const double fade = tops[t * heads + h] == -INFINITY ? 0.0 : std::exp((double)tops[t * heads + h] - most);
      total += fade * totals[t * heads + h];
      for (i64 i = 0; i < c; ++i) row[i] += fade * sums[(t * heads + h) * c + i];
    }
    for (i64 i = 0; i < c; ++i) out[h * c + i] = (float)(row[i] / total);
    mass[h] = most + (float)std::log(total);
  }
}
}

}  // namespace herd
