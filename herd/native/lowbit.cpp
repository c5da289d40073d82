// Products with weights of 8 and 4 bits, rows [out, in] as they are in the file: nothing is packed again at load.
// Activations are quantised here, token by token. Every output is summed by one thread in one order.

#include <vector>

#include "schemes.h"

namespace herd {

namespace {

struct Task {
  i64 group, begin, end;
};

template <class S>
void run(const S& scheme, const void* x, i64 narrow, const uint8_t* w, const bf16* ws, void* out, const i64* ends,
         i64 groups, i64 k, i64 n) {
  const i64 tokens = ends[groups - 1], wide = (k + BLOCK - 1) / BLOCK * BLOCK, part = 64, parts = (n + part - 1) / part;
  // As many tokens at a time as stay in the first cache while the weights pass by.
  const i64 block = std::clamp<i64>(32768 / wide / TOKENS * TOKENS, 2 * TOKENS, 24 * TOKENS);
  std::vector<Task> tasks;
  for (i64 g = 0, begin = 0; g < groups; begin = ends[g++])
    for (i64 r = begin; r < ends[g]; r += block) tasks.push_back({g, r, std::min(r + block, ends[g])});
#pragma omp parallel
  {
    float* row = scratch<float>(3, wide);
    memset(row + k, 0, (wide - k) * sizeof(float));
#pragma omp for schedule(static)
    for (i64 m = 0; m < tokens; ++m) {
      if (narrow)
        for (i64 i = 0; i < k; i += 16) {
          const __mmask16 mask = first(k - i);
          _mm512_mask_storeu_ps(row + i, mask, load((const bf16*)x + m * k + i, mask));
        }
      else
        memcpy(row, (const float*)x + m * k, k * sizeof(float));
      scheme.prepare(m, row);
    }
#pragma omp for schedule(dynamic)
    for (i64 t = 0; t < (i64)tasks.size() * parts; ++t) {
      const Task& task = tasks[t / parts];
      const i64 last = std::min(n, (t % parts + 1) * part);
      for (i64 c = t % parts * part; c < last; c += COLUMNS) {
        const uint8_t* rows[COLUMNS];
        const bf16* scales[COLUMNS];
        for (i64 j = 0; j < COLUMNS; ++j) {  // past the last column, the last one again
          const i64 at = task.group * n + std::min(c + j, n - 1);
          rows[j] = w + at * scheme.row_bytes();
          scales[j] = ws + at * scheme.row_scales();
        }
        for (i64 m = task.begin; m < task.end; m += TOKENS)
          with_rows(std::min(TOKENS, task.end - m), [&](auto count) {
            __m128 found[count];
            scheme.template dots<count>(m, rows, scales, found);
            for (int r = 0; r < count; ++r) {
              const i64 at = (m + r) * n + c, size = std::min(COLUMNS, n - c);
              if (narrow) {
                const __m128i words = _mm256_castsi256_si128(rounded(_mm512_castps128_ps512(found[r])));
                memcpy((bf16*)out + at, &words, size * 2);
              } else {
                memcpy((float*)out + at, &found[r], size * 4);
              }
            }
          });
      }
    }
  }
}

}  // namespace

extern "C" {

// out[m, n] = x[m, k] . w[group of m][n, k], x and out in bf16 if `narrow`, else fp32; group g ends at row ends[g].
// `bits` 8 with `detail` 0: int8. 4: int4, `detail` columns a scale. 8 with `detail` > 0: fp8, activations capped there.
void lowbit_product(const void* x, i64 narrow, const uint8_t* w, const bf16* scales, void* out, const i64* ends,
                    i64 groups, i64 k, i64 n, i64 bits, i64 detail) {
  const i64 tokens = ends[groups - 1];
  if (bits == 4)
    run(Int4(tokens, k, detail, scratch<char>(0, Int4::bytes(tokens, k))), x, narrow, w, scales, out, ends, groups, k, n);
  else if (detail)
    run(Fp8(tokens, k, detail, scratch<char>(0, Fp8::bytes(tokens, k))), x, narrow, w, scales, out, ends, groups, k, n);
  else
    run(Int8(tokens, k, scratch<char>(0, Int8::bytes(tokens, k))), x, narrow, w, scales, out, ends, groups, k, n);
}
}

}  // namespace herd
