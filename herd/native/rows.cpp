// What is done to each token alone: norm, rotation, SwiGLU, gates, softmax.
// Sums over tokens are taken block by block, then over the blocks in order: the number of threads does not matter.

#include "common.h"

namespace herd {

namespace {

constexpr i64 BLOCK = 256;

inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

}  // namespace

extern "C" {

// y = x / rms(x) * w; rscale[n] = 1 / rms.
void norm_forward(const bf16* x, const bf16* w, bf16* y, float* rscale, i64 n, i64 d, double eps) {
#pragma omp parallel for schedule(static)
  for (i64 i = 0; i < n; ++i) {
    __m512 sum = _mm512_setzero_ps();
    for (i64 j = 0; j < d; j += 16) {
      const __m512 a = load(x + i * d + j, first(d - j));
      sum = _mm512_fmadd_ps(a, a, sum);
    }
    rscale[i] = 1.f / std::sqrt(_mm512_reduce_add_ps(sum) / d + (float)eps);
    for (i64 j = 0; j < d; j += 16) {
      const __mmask16 mask = first(d - j);
      const __m512 a = _mm512_mul_ps(load(x + i * d + j, mask), _mm512_set1_ps(rscale[i]));
      store(y + i * d + j, _mm512_mul_ps(a, load(w + j, mask)), mask);
    }
  }
}

// dx = rscale * (g - xhat * mean(g * xhat)) with g = dy * w, xhat = x * rscale; dw = sum over rows of dy * xhat, fp32.
void norm_backward(const bf16* dy, const bf16* x, const bf16* w, const float* rscale, bf16* dx, float* dw, i64 n,
                   i64 d) {
  const i64 blocks = (n + BLOCK - 1) / BLOCK, width = (d + 15) / 16 * 16;
  float* partial = scratch<float>(0, blocks * width);
#pragma omp parallel for schedule(static)
  for (i64 b = 0; b < blocks; ++b) {
    float* mine = partial + b * width;
    memset(mine, 0, width * sizeof(float));
    for (i64 i = b * BLOCK; i < std::min(n, (b + 1) * BLOCK); ++i) {
      const __m512 scale = _mm512_set1_ps(rscale[i]);
      __m512 sum = _mm512_setzero_ps();
      for (i64 j = 0; j < d; j += 16) {
        const __mmask16 mask = first(d - j);
        const __m512 xhat = _mm512_mul_ps(load(x + i * d + j, mask), scale), g = load(dy + i * d + j, mask);
        const __m512 product = _mm512_mul_ps(g, xhat);
        sum = _mm512_fmadd_ps(product, load(w + j, mask), sum);
        _mm512_store_ps(mine + j, _mm512_add_ps(_mm512_load_ps(mine + j), product));
      }
      const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / d);
      for (i64 j = 0; j < d; j += 16) {
        const __mmask16 mask = first(d - j);
        const __m512 xhat = _mm512_mul_ps(load(x + i * d + j, mask), scale);
        const __m512 g = _mm512_mul_ps(load(dy + i * d + j, mask), load(w + j, mask));
        store(dx + i * d + j, _mm512_mul_ps(scale, _mm512_fnmadd_ps(xhat, mean, g)), mask);
      }
    }
  }
  memset(dw, 0, d * sizeof(float));
  for (i64 b = 0; b < blocks; ++b)
    for (i64 j = 0; j < d; ++j) dw[j] += partial[b * width + j];
}

// out = silu(gate) * up for rows [gate | up], f columns each.
void swiglu_forward(const bf16* x, bf16* out, i64 n, i64 f) {
#pragma omp parallel for schedule(static)
  for (i64 i = 0; i < n; ++i)
    for (i64 j = 0; j < f; j += 16) {
      const __mmask16 mask = first(f - j);
      const __m512 gate = load(x + 2 * i * f + j, mask), up = load(x + (2 * i + 1) * f + j, mask);
      store(out + i * f + j, _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid(gate)), up), mask);
    }
}

void swiglu_backward(const bf16* grad, const bf16* x, bf16* dx, i64 n, i64 f) {
  const __m512 one = _mm512_set1_ps(1.f);
#pragma omp parallel for schedule(static)
  for (i64 i = 0; i < n; ++i)
    for (i64 j = 0; j < f; j += 16) {
      const __mmask16 mask = first(f - j);
      const __m512 gate = load(x + 2 * i * f + j, mask), up = load(x + (2 * i + 1) * f + j, mask);
      const __m512 g = load(grad + i * f + j, mask), s = sigmoid(gate);
      // d silu(x) = s (1 + x (1 - s))
      const __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(gate, _mm512_sub_ps(one, s), one));
      store(dx + 2 * i * f + j, _mm512_mul_ps(_mm512_mul_ps(g, up), slope), mask);
      store(dx + (2 * i + 1) * f + j, _mm512_mul_ps(g, _mm512_mul_ps(gate, s)), mask);
    }
}

// Local layers: query and key heads rotated, then normed if `normed`; rscale[n, heads] = 1 / rms. Global layers (turn is
// null): queries times temperature[n] if given. Values are copied. Rows are [heads + kv | kv] of width c.
void prepare_forward(const bf16* x, bf16* y, const float* turn, const float* temperature, float* rscale, i64 n,
                     i64 heads, i64 kv, i64 c, double eps, i64 normed) {
  const i64 rotated_heads = turn ? heads + kv : temperature ? heads : 0, row = (heads + 2 * kv) * c;
#pragma omp parallel for schedule(static)
  for (i64 i = 0; i < n; ++i) {
    for (i64 h = 0; h < rotated_heads; ++h) {
      const bf16* from = x + i * row + h * c;
      bf16* to = y + i * row + h * c;
      float scale = 1.f;
      if (!turn) {
        scale = temperature[i];
      } else if (normed) {  // a rotation keeps the length
        __m512 sum = _mm512_setzero_ps();
        for (i64 j = 0; j < c; j += 16) {
          const __m512 a = load(from + j);
          sum = _mm512_fmadd_ps(a, a, sum);
        }
        scale = rscale[i * rotated_heads + h] = 1.f / std::sqrt(_mm512_reduce_add_ps(sum) / c + (float)eps);
      }
      for (i64 j = 0; j < c; j += 16) {
        __m512 a = load(from + j);
        if (turn) a = rotated<false>(a, _mm512_loadu_ps(turn + i * c + j));
        store(to + j, _mm512_mul_ps(a, _mm512_set1_ps(scale)));
      }
    }
    const i64 done = rotated_heads * c;
    memcpy(y + i * row + done, x + i * row + done, (row - done) * sizeof(bf16));
  }
}

// In place: from the gradient of `y` to that of `x`.
void prepare_backward(bf16* grad, const bf16* y, const float* turn, const float* temperature, const float* rscale,
                      i64 n, i64 heads, i64 kv, i64 c, i64 normed) {
  const i64 rotated_heads = turn ? heads + kv : temperature ? heads : 0, row = (heads + 2 * kv) * c;
#pragma omp parallel for schedule(static)
  for (i64 i = 0; i < n; ++i)
    for (i64 h = 0; h < rotated_heads; ++h) {
      bf16* g = grad + i * row + h * c;
      const bf16* hat = y + i * row + h * c;
      float scale = turn ? 1.f : temperature[i], mean = 0.f;
      if (turn && normed) {
        scale = rscale[i * rotated_heads + h];
        __m512 sum = _mm512_setzero_ps();
        for (i64 j = 0; j < c; j += 16) sum = _mm512_fmadd_ps(load(g + j), load(hat + j), sum);
        mean = _mm512_reduce_add_ps(sum) / c;
      }
      for (i64 j = 0; j < c; j += 16) {
        __m512 a = _mm512_mul_ps(
            _mm512_set1_ps(scale), _mm512_fnmadd_ps(load(hat + j), _mm512_set1_ps(mean), load(g + j)));
        if (turn) a = rotated<true>(a, _mm512_loadu_ps(turn + i * c + j));
        store(g + j, a);
      }
    }
}

// rows[r] = x[order[r] / k] * gate[order[r]], gates fp32 [n * k].
void dispatch_forward(const bf16* x, const float* gate, const i64* order, bf16* rows, i64 count, i64 d, i64 k) {
#pragma omp parallel for schedule(static)
  for (i64 r = 0; r < count; ++r) {
    const bf16* from = x + order[r] / k * d;
    const __m512 scale = _mm512_set1_ps(gate[order[r]]);
    for (i64 j = 0; j < d; j += 16) {
      const __mmask16 mask = first(d - j);
      store(rows + r * d + j, _mm512_mul_ps(load(from + j, mask), scale), mask);
    }
  }
}

// dx[i] = sum over i's k rows of grad[back] * gate; dgate = grad[back] . x[i]
void dispatch_backward(const bf16* grad, const bf16* x, const float* gate, const i64* back, bf16* dx, float* dgate,
                       i64 n, i64 d, i64 k) {
#pragma omp parallel
  {
    float* sum = scratch<float>(1, d + 16);
#pragma omp for schedule(static)
    for (i64 i = 0; i < n; ++i) {
      memset(sum, 0, d * sizeof(float));
      for (i64 s = i * k; s < (i + 1) * k; ++s) {
        const bf16* g = grad + back[s] * d;
        __m512 dot = _mm512_setzero_ps();
        for (i64 j = 0; j < d; j += 16) {
          const __m512 a = load(g + j, first(d - j));
          dot = _mm512_fmadd_ps(a, load(x + i * d + j, first(d - j)), dot);
          _mm512_store_ps(sum + j, _mm512_fmadd_ps(a, _mm512_set1_ps(gate[s]), _mm512_load_ps(sum + j)));
        }
        dgate[s] = _mm512_reduce_add_ps(dot);
      }
      for (i64 j = 0; j < d; j += 16) store(dx + i * d + j, _mm512_load_ps(sum + j), first(d - j));
    }
  }
}

// out[i] = base[i] + sum over i's k rows of rows[back]
void combine(const bf16* base, const bf16* rows, const i64* back, bf16* out, i64 n, i64 d, i64 k) {
#pragma omp parallel for schedule(static)
  for (i64 i = 0; i < n; ++i)
    for (i64 j = 0; j < d; j += 16) {
      const __mmask16 mask = first(d - j);
      __m512 sum = load(base + i * d + j, mask);
      for (i64 s = i * k; s < (i + 1) * k; ++s) sum = _mm512_add_ps(sum, load(rows + back[s] * d + j, mask));
      store(out + i * d + j, sum, mask);
    }
}

// loss[i] = log sum exp x[i] - x[i, target]; x becomes softmax(x) - onehot(target).
void softmax_gradient(bf16* x, const i64* target, float* loss, i64 n, i64 v) {
#pragma omp parallel for schedule(static)
  for (i64 i = 0; i < n; ++i) {
    bf16* row = x + i * v;
    const __m512 lowest = _mm512_set1_ps(-INFINITY);
    __m512 top = lowest, sum = _mm512_setzero_ps();
    for (i64 j = 0; j < v; j += 16)
      top = _mm512_max_ps(top, _mm512_mask_mov_ps(lowest, first(v - j), load(row + j, first(v - j))));
    const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(top));
    for (i64 j = 0; j < v; j += 16)
      sum = _mm512_add_ps(sum, _mm512_maskz_mov_ps(
                                   first(v - j), exponential(_mm512_sub_ps(load(row + j, first(v - j)), most))));
    const float total = _mm512_reduce_add_ps(sum);
    const float log_total = _mm512_cvtss_f32(most) + std::log(total);
    const float own = _mm512_cvtss_f32(load(row + target[i], 1)), share = std::exp(own - log_total);
    loss[i] = log_total - own;
    const __m512 inverse = _mm512_set1_ps(1.f / total);
    for (i64 j = 0; j < v; j += 16) {
      const __m512 e = exponential(_mm512_sub_ps(load(row + j, first(v - j)), most));
      store(row + j, _mm512_mul_ps(e, inverse), first(v - j));
    }
    store(row + target[i], _mm512_set1_ps(share - 1.f), 1);
  }
}
}

}  // namespace herd
