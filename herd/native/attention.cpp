// Causal attention of short runs of tokens, forward and backward: all scores of a run stay in the cache, bf16 products
// with fp32 sums and softmax. A task is one run and one key head with the query heads that share it.

#include "common.h"

namespace {

// Row-major sizes, in bf16: a token's row [heads | kv | kv] of width c, and of the output [heads].
struct Shape {
  i64 heads, kv, c;
  i64 row() const { return (heads + 2 * kv) * c; }
  i64 wide() const { return heads * c; }
  i64 panels() const { return (c + PANEL - 1) / PANEL; }
};

inline i64 up(i64 x, i64 to) { return (x + to - 1) / to * to; }

// out[rows, c] = scale[r] * left[rows, pairs] . right, left in words.
template <int R>
void store_product(const uint32_t* left, i64 row, const uint32_t* right, i64 pairs, i64 panel_words, const float* scale,
                   bf16* out, i64 stride, i64 c) {
  for (i64 p = 0; p * PANEL < c; ++p) {
    __m512 acc[R][4];
    zero<R>(acc);
    multiply<R>(left, row, 1, right + p * panel_words, pairs, acc);
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < 4; ++j)
        store(out + r * stride + p * PANEL + 16 * j, _mm512_mul_ps(acc[r][j], _mm512_set1_ps(scale[r])),
              first(c - p * PANEL - 16 * j));
  }
}

// sum[keys, c] += left[pairs of queries, keys]^T . right; a key is seen by itself and later queries.
void add_transposed(const uint32_t* left, i64 stride, const uint32_t* right, i64 panel_words, i64 length, i64 c,
                    float* sum) {
  const i64 pairs = (length + 1) / 2;
  for (i64 p = 0; p * PANEL < c; ++p)
    for (i64 k = 0; k < length; k += ROWS)
      with_rows(length - k, [&](auto rows) {
        __m512 acc[rows][4];
        float* at = sum + (p * length + k) * PANEL;
        for (int r = 0; r < rows; ++r)
          for (int j = 0; j < 4; ++j) acc[r][j] = _mm512_load_ps(at + r * PANEL + 16 * j);
        const i64 begin = k / 2;
        multiply<rows>(left + begin * stride + k, 1, stride, right + p * panel_words + begin * PANEL, pairs - begin,
                       acc);
        for (int r = 0; r < rows; ++r)
          for (int j = 0; j < 4; ++j) _mm512_store_ps(at + r * PANEL + 16 * j, acc[r][j]);
      });
}

void store_sum(const float* sum, i64 length, i64 c, bf16* out, i64 stride) {
  for (i64 p = 0; p * PANEL < c; ++p)
    for (i64 k = 0; k < length; ++k)
      for (i64 j = 0; j < PANEL; j += 16)
        store(out + k * stride + p * PANEL + j, _mm512_load_ps(sum + (p * length + k) * PANEL + j),
              first(c - p * PANEL - j));
}

// Panels of the run's keys, [panel of keys][pair of channels][PANEL].
void pack_keys(const bf16* k, i64 stride, i64 length, i64 c, uint32_t* to) {
  for (i64 j = 0; j < length; j += PANEL, to += c / 2 * PANEL)
    panel_of_columns(k + j * stride, stride, c / 2, length - j, to);
}

// Panels of channels, [panel of channels][pair of tokens][PANEL].
void pack_values(const bf16* v, i64 stride, i64 length, i64 c, i64 panel_words, uint32_t* to) {
  for (i64 j = 0; j < c; j += PANEL, to += panel_words) panel_of_rows(v + j, stride, length, c - j, to);
}

}  // namespace

extern "C" {

// out[n, heads * c] = softmax(q . k^T / sqrt(c)) v within each run; lse[n, heads] = log sum exp of the scaled scores.
// Run i is the tokens begins[i] .. begins[i + 1]. c is even.
void attention_forward(const bf16* qkv, bf16* out, float* lse, const i64* begins, i64 runs, i64 heads, i64 kv, i64 c) {
  const Shape shape{heads, kv, c};
  const i64 row = shape.row(), ratio = heads / kv;
  const float scale = 1.f / std::sqrt((float)c);
#pragma omp parallel for schedule(dynamic)
  for (i64 t = 0; t < runs * kv; ++t) {
    const i64 begin = begins[t / kv], length = begins[t / kv + 1] - begin, group = t % kv;
    const i64 width = up(length, PANEL), panel_words = (length + 1) / 2 * PANEL;
    const bf16 *q = qkv + begin * row + group * ratio * c, *k = qkv + begin * row + (heads + group) * c;
    uint32_t* keys = scratch<uint32_t>(4, width * c / 2);
    uint32_t* values = scratch<uint32_t>(5, shape.panels() * panel_words);
    float* score = scratch<float>(6, ROWS * width);
    bf16* weight = scratch<bf16>(7, ROWS * width);
    pack_keys(k, row, length, c, keys);
    pack_values(k + kv * c, row, length, c, panel_words, values);
    for (i64 h = 0; h < ratio; ++h)
      for (i64 r0 = 0; r0 < length; r0 += ROWS)
        with_rows(length - r0, [&](auto rows) {
          const i64 seen = r0 + rows;
          for (i64 j = 0; j < seen; j += PANEL) {
            __m512 acc[rows][4];
            zero<rows>(acc);
            multiply<rows>((const uint32_t*)(q + r0 * row + h * c), row / 2, 1, keys + j * c / 2, c / 2, acc);
            for (int r = 0; r < rows; ++r)
              for (int i = 0; i < 4; ++i)
                _mm512_store_ps(score + r * width + j + 16 * i, _mm512_mul_ps(acc[r][i], _mm512_set1_ps(scale)));
          }
          float inverse[rows];
          for (int r = 0; r < rows; ++r) {
            const i64 valid = r0 + r + 1;
            const __m512 lowest = _mm512_set1_ps(-INFINITY);
            __m512 top = lowest, sum = _mm512_setzero_ps();
            for (i64 j = 0; j < valid; j += 16)
              top = _mm512_max_ps(top, _mm512_mask_loadu_ps(lowest, first(valid - j), score + r * width + j));
            const float most = _mm512_reduce_max_ps(top);
            for (i64 j = 0; j < seen; j += 16) {
              const __m512 x = _mm512_sub_ps(_mm512_load_ps(score + r * width + j), _mm512_set1_ps(most));
              const __m512 e = _mm512_maskz_mov_ps(first(valid - j), exponential(x));
              sum = _mm512_add_ps(sum, e);
              store(weight + r * width + j, e);
            }
            const float total = _mm512_reduce_add_ps(sum);
            inverse[r] = 1.f / total;
            lse[(begin + r0 + r) * heads + group * ratio + h] = most + std::log(total);
          }
          bf16* to = out + (begin + r0) * shape.wide() + (group * ratio + h) * c;
          store_product<rows>((uint32_t*)weight, width / 2, values, (seen + 1) / 2, panel_words, inverse, to,
                              shape.wide(), c);
        });
  }
}

// The gradient of `qkv`, in its layout, from that of `out`.
void attention_backward(const bf16* dout, const bf16* qkv, const bf16* out, const float* lse, bf16* dqkv,
                        const i64* begins, i64 runs, i64 heads, i64 kv, i64 c) {
  const Shape shape{heads, kv, c};
  const i64 row = shape.row(), wide = shape.wide(), ratio = heads / kv;
  const float scale = 1.f / std::sqrt((float)c), ones[ROWS] = {1, 1, 1, 1, 1, 1};
#pragma omp parallel for schedule(dynamic)
  for (i64 t = 0; t < runs * kv; ++t) {
    const i64 begin = begins[t / kv], length = begins[t / kv + 1] - begin, group = t % kv;
    const i64 width = up(length, PANEL), panel_words = (length + 1) / 2 * PANEL;
    const i64 stride = width + 16;  // not a power of two: neighbours in a column would share a cache set
    const bf16* k = qkv + begin * row + (heads + group) * c;
    const bf16* v = k + kv * c;
    uint32_t* keys = scratch<uint32_t>(4, width * c / 2);
    uint32_t* values = scratch<uint32_t>(5, width * c / 2);
    uint32_t* key_rows = scratch<uint32_t>(6, shape.panels() * panel_words);
    uint32_t* other_rows = scratch<uint32_t>(7, shape.panels() * panel_words);
    bf16* weight = scratch<bf16>(8, (ROWS + 1) * width);
    bf16* slope = scratch<bf16>(9, (ROWS + 1) * width);
    uint32_t* weights = scratch<uint32_t>(10, (length + ROWS) / 2 * stride);
    uint32_t* slopes = scratch<uint32_t>(11, (length + ROWS) / 2 * stride);
    float* dk = scratch<float>(12, shape.panels() * length * PANEL);
    float* dv = scratch<float>(13, shape.panels() * length * PANEL);
    memset(dk, 0, shape.panels() * length * PANEL * sizeof(float));
    memset(dv, 0, shape.panels() * length * PANEL * sizeof(float));
    pack_keys(k, row, length, c, keys);
    pack_keys(v, row, length, c, values);
    pack_values(k, row, length, c, panel_words, key_rows);
    for (i64 h = group * ratio; h < (group + 1) * ratio; ++h) {
      const bf16 *q = qkv + begin * row + h * c, *g = dout + begin * wide + h * c, *o = out + begin * wide + h * c;
      for (i64 r0 = 0; r0 < length; r0 += ROWS)
        with_rows(length - r0, [&](auto rows) {
          const i64 seen = r0 + rows;
          float delta[rows];
          for (int r = 0; r < rows; ++r) {
            __m512 sum = _mm512_setzero_ps();
            for (i64 j = 0; j < c; j += 16)
              sum = _mm512_fmadd_ps(load(g + (r0 + r) * wide + j, first(c - j)),
                                    load(o + (r0 + r) * wide + j, first(c - j)), sum);
            delta[r] = _mm512_reduce_add_ps(sum);
          }
          for (i64 j = 0; j < seen; j += PANEL) {
            __m512 s[rows][4], d[rows][4];
            zero<rows>(s);
            multiply<rows>((const uint32_t*)(q + r0 * row), row / 2, 1, keys + j * c / 2, c / 2, s);
            float kept[ROWS * PANEL];
            for (int r = 0; r < rows; ++r)
              for (int i = 0; i < 4; ++i) _mm512_storeu_ps(kept + r * PANEL + 16 * i, s[r][i]);
            zero<rows>(d);
            multiply<rows>((const uint32_t*)(g + r0 * wide), wide / 2, 1, values + j * c / 2, c / 2, d);
            for (int r = 0; r < rows; ++r) {
              const __m512 less = _mm512_set1_ps(lse[(begin + r0 + r) * heads + h]);
              for (int i = 0; i < 4; ++i) {
                const __m512 score = _mm512_loadu_ps(kept + r * PANEL + 16 * i);
                const __m512 p = _mm512_maskz_mov_ps(
                    first(r0 + r + 1 - j - 16 * i),
                    exponential(_mm512_fmsub_ps(score, _mm512_set1_ps(scale), less)));
                const __m512 ds = _mm512_mul_ps(_mm512_mul_ps(p, _mm512_set1_ps(scale)),
                                                _mm512_sub_ps(d[r][i], _mm512_set1_ps(delta[r])));
                store(weight + r * width + j + 16 * i, p);
                store(slope + r * width + j + 16 * i, ds);
              }
            }
          }
          store_product<rows>((uint32_t*)slope, width / 2, key_rows, (seen + 1) / 2, panel_words, ones,
                              dqkv + (begin + r0) * row + h * c, row, c);
          // A tile of keys reads up to its own end, which may lie past what these queries see.
          const i64 columns = std::min(width, up(seen, PANEL));
          interleave(weight, width, rows, columns, weights + r0 / 2 * stride, stride);
          interleave(slope, width, rows, columns, slopes + r0 / 2 * stride, stride);
        });
      pack_values(g, wide, length, c, panel_words, other_rows);
      add_transposed(weights, stride, other_rows, panel_words, length, c, dv);
      pack_values(q, row, length, c, panel_words, other_rows);
      add_transposed(slopes, stride, other_rows, panel_words, length, c, dk);
    }
    store_sum(dk, length, c, dqkv + begin * row + (heads + group) * c, row);
    store_sum(dv, length, c, dqkv + begin * row + (heads + kv + group) * c, row);
  }
}
}
