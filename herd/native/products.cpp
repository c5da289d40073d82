// Grouped matrix products in bf16 with fp32 sums. Every output is summed by one thread in one order: results do not
// depend on the number of threads.

#include <vector>

#include "common.h"

namespace {

struct Block {
  i64 group, begin, end;
};

std::vector<Block> row_blocks(const i64* ends, i64 groups, i64 size) {
  std::vector<Block> blocks;
  for (i64 g = 0, begin = 0; g < groups; begin = ends[g++])
    for (i64 r = begin; r < ends[g]; r += size) blocks.push_back({g, r, std::min(r + size, ends[g])});
  return blocks;
}

}  // namespace

extern "C" {

// c[m, n] = a[m, k] . w[group of m][k, n], or w[group][n, k] when `transposed`. k is even; group g ends at row ends[g].
void product(const bf16* a, const bf16* w, bf16* c, const i64* ends, i64 groups, i64 k, i64 n, i64 transposed) {
  const i64 panels = (n + PANEL - 1) / PANEL, pairs = k / 2, panel_size = pairs * PANEL;
  uint32_t* packed = scratch<uint32_t>(0, groups * panels * panel_size);
  const auto blocks = row_blocks(ends, groups, 16 * ROWS);
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (i64 t = 0; t < groups * panels; ++t) {
      const i64 column = t % panels * PANEL;
      const bf16* from = w + t / panels * k * n;
      if (transposed)
        panel_of_columns(from + column * k, k, pairs, n - column, packed + t * panel_size);
      else
        panel_of_rows(from + column, n, k, n - column, packed + t * panel_size);
    }
#pragma omp for schedule(dynamic)
    for (size_t t = 0; t < blocks.size(); ++t)
      for (i64 p = 0; p < panels; ++p)
        for (i64 m = blocks[t].begin; m < blocks[t].end; m += ROWS)
          with_rows(blocks[t].end - m, [&](auto rows) {
            __m512 acc[rows][4];
            zero<rows>(acc);
            const uint32_t* panel = packed + (blocks[t].group * panels + p) * panel_size;
            multiply<rows>((const uint32_t*)(a + m * k), pairs, 1, panel, pairs, acc);
            bf16* to = c + m * n + p * PANEL;
            for (int r = 0; r < rows; ++r)
              for (int j = 0; j < 4; ++j)
                store(to + r * n + 16 * j, acc[r][j], first(n - p * PANEL - 16 * j));
          });
  }
}

// out[group][k, n] = sum over the group's rows m of x[m, k] * g[m, n].
void outer(const bf16* x, const bf16* g, bf16* out, const i64* ends, i64 groups, i64 k, i64 n) {
  const i64 parts = groups < 4 ? 8 : 2, depth = 256;
  // The longer side is cut: the other one is packed again for each part.
  const i64 grain_k = k >= n ? ROWS : k, grain_n = k >= n ? n : PANEL;
  const i64 grains = k >= n ? (k + ROWS - 1) / ROWS : (n + PANEL - 1) / PANEL;
  const i64 wide = (grains + parts - 1) / parts, part_k = std::min(k, wide * grain_k), part_n = std::min(n, wide * grain_n);
  const i64 cuts_k = (k + part_k - 1) / part_k, cuts_n = (n + part_n - 1) / part_n;
#pragma omp parallel for schedule(dynamic)
  for (i64 t = 0; t < groups * cuts_k * cuts_n; ++t) {
    const i64 group = t / (cuts_k * cuts_n), k0 = t / cuts_n % cuts_k * part_k, n0 = t % cuts_n * part_n;
    const i64 width = std::min(part_k, k - k0), columns = std::min(part_n, n - n0);
    const i64 panels = (columns + PANEL - 1) / PANEL, begin = group ? ends[group - 1] : 0, end = ends[group];
    float* sum = scratch<float>(1, width * panels * PANEL);
    uint32_t* left = scratch<uint32_t>(2, depth / 2 * width);
    uint32_t* right = scratch<uint32_t>(3, panels * depth / 2 * PANEL);
    memset(sum, 0, width * panels * PANEL * sizeof(float));
    for (i64 m = begin; m < end; m += depth) {
      const i64 rows = std::min(depth, end - m), pairs = (rows + 1) / 2;
      interleave(x + m * k + k0, k, rows, width, left, width);
      for (i64 p = 0; p < panels; ++p)
        panel_of_rows(g + m * n + n0 + p * PANEL, n, rows, columns - p * PANEL, right + p * depth / 2 * PANEL);
      for (i64 p = 0; p < panels; ++p)
        for (i64 r0 = 0; r0 < width; r0 += ROWS)
          with_rows(width - r0, [&](auto count) {
            __m512 acc[count][4];
            float* at = sum + (p * width + r0) * PANEL;
            for (int r = 0; r < count; ++r)
              for (int j = 0; j < 4; ++j) acc[r][j] = _mm512_load_ps(at + r * PANEL + 16 * j);
            multiply<count>(left + r0, 1, width, right + p * depth / 2 * PANEL, pairs, acc);
            for (int r = 0; r < count; ++r)
              for (int j = 0; j < 4; ++j) _mm512_store_ps(at + r * PANEL + 16 * j, acc[r][j]);
          });
    }
    for (i64 p = 0; p < panels; ++p)
      for (i64 r = 0; r < width; ++r)
        for (i64 j = 0; j < PANEL; j += 16)
          store(out + (group * k + k0 + r) * n + n0 + p * PANEL + j, _mm512_load_ps(sum + (p * width + r) * PANEL + j),
                first(columns - p * PANEL - j));
  }
}
}
