// Grouped matrix products in bf16 with fp32 sums. Every output is summed by one thread in one order: results do not
// depend on the number of threads.

#include <vector>

#include "common.h"

namespace herd {

namespace {

constexpr i64 PACKED = 4 << 20;  // words
constexpr i64 PARTS = 8;         // of a matrix, packed by one thread each
constexpr i64 STRIP = 8;         // panels of a task
constexpr i64 SKEW = 80;         // words between panels, which else would share their places in the cache

struct Block {
  i64 group, begin, end;
};

std::vector<Block> row_blocks(const i64* ends, i64 groups, i64 size) {
  std::vector<Block> blocks;
  for (i64 g = 0, begin = 0; g < groups; begin = ends[g++])
    for (i64 r = begin; r < ends[g]; r += size) blocks.push_back({g, r, std::min(r + size, ends[g])});
  return blocks;
}

// [pair][ROWS] words of neighbouring rows, from rows [summed][column].
void tile_of_columns(const bf16* from, i64 stride, i64 rows, i64 columns, uint32_t* to) {
  const __mmask8 mask = (1u << std::min(columns, ROWS)) - 1, all = (1u << ROWS) - 1;
  for (i64 r = 0; r < rows; r += 2, to += ROWS) {
    const __m128i a = _mm_maskz_loadu_epi16(mask, from + r * stride);
    const __m128i b = _mm_maskz_loadu_epi16(r + 1 < rows ? mask : 0, from + (r + 1) * stride);
    const __m256i pair = _mm256_or_si256(_mm256_cvtepu16_epi32(a), _mm256_slli_epi32(_mm256_cvtepu16_epi32(b), 16));
    _mm256_mask_storeu_epi32(to, all, pair);
  }
}

}  // namespace

extern "C" {

// c[m, n] = a[m, k] . w[group of m][k, n], or w[group][n, k] when `transposed`. k is even; group g ends at row ends[g].
// As many panels of weights are packed at a time as stay in the cache that the threads share.
void product(const bf16* a, const bf16* w, bf16* c, const i64* ends, i64 groups, i64 k, i64 n, i64 transposed) {
  const i64 panels = (n + PANEL - 1) / PANEL, pairs = k / 2, panel_size = pairs * PANEL + SKEW;
  const i64 at_a_time = std::max<i64>(16, PACKED / panel_size);
  uint32_t* packed = scratch<uint32_t>(0, std::min(groups * panels, at_a_time) * panel_size);
  const auto blocks = row_blocks(ends, groups, 16 * ROWS);
#pragma omp parallel
  for (i64 from = 0; from < groups * panels; from += at_a_time) {
    const i64 to = std::min(groups * panels, from + at_a_time);
#pragma omp for schedule(static) collapse(2)
    for (i64 group = from / panels; group <= (to - 1) / panels; ++group)
      for (i64 part = 0; part < PARTS; ++part) {
        if (ends[group] == (group ? ends[group - 1] : 0)) continue;
        const bf16* matrix = w + group * k * n;
        const i64 first_panel = std::max(from - group * panels, (i64)0), end = std::min(to - group * panels, panels);
        uint32_t* at = packed + (group * panels - from) * panel_size;
        if (transposed) {
          for (i64 p = first_panel + part; p < end; p += PARTS)
            panel_of_columns(matrix + p * PANEL * k, k, pairs, n - p * PANEL, at + p * panel_size);
        } else {  // along the rows, in the order of memory
          for (i64 pair = pairs * part / PARTS; pair < pairs * (part + 1) / PARTS; ++pair)
            for (i64 p = first_panel; p < end; ++p)
              panel_of_rows(matrix + 2 * pair * n + p * PANEL, n, 2, n - p * PANEL, at + p * panel_size + pair * PANEL);
        }
      }
#pragma omp for schedule(dynamic) collapse(2)
    for (size_t t = 0; t < blocks.size(); ++t)
      for (i64 q = 0; q < panels; q += STRIP) {
        const i64 begin = blocks[t].group * panels;
        for (i64 p = std::max(from, begin + q); p < std::min(to, begin + std::min(panels, q + STRIP)); ++p)
          for (i64 m = blocks[t].begin; m < blocks[t].end; m += ROWS)
            with_rows(blocks[t].end - m, [&](auto rows) {
              __m512 acc[rows][4];
              zero(acc);
              multiply<rows>((const uint32_t*)(a + m * k), pairs, 1, packed + (p - from) * panel_size, pairs, acc);
              const i64 column = (p - begin) * PANEL;
              for (int r = 0; r < rows; ++r)
                for (int j = 0; j < 4; ++j)
                  store(c + (m + r) * n + column + 16 * j, acc[r][j], first(n - column - 16 * j));
            });
      }
  }
}

// out[group][k, n] = sum over the group's rows m of x[m, k] * g[m, n].
void outer(const bf16* x, const bf16* g, bf16* out, const i64* ends, i64 groups, i64 k, i64 n) {
  constexpr i64 depth = 1024, enough = 16;
  // Each part of a side packs the other one again: few parts, but enough of them for the threads.
  i64 part_k = 64 * ROWS, part_n = 16 * PANEL;
  const auto cuts = [](i64 size, i64 part) { return (size + part - 1) / part; };
  while (groups * cuts(k, part_k) * cuts(n, part_n) < enough && part_n > 4 * PANEL) part_n /= 2;
  while (groups * cuts(k, part_k) * cuts(n, part_n) < enough && part_k > 16 * ROWS) part_k /= 2;
  const i64 cuts_k = cuts(k, part_k), cuts_n = cuts(n, part_n);
#pragma omp parallel for schedule(dynamic)
  for (i64 t = 0; t < groups * cuts_k * cuts_n; ++t) {
    const i64 group = t / (cuts_k * cuts_n), k0 = t / cuts_n % cuts_k * part_k, n0 = t % cuts_n * part_n;
    const i64 width = std::min(part_k, k - k0), columns = std::min(part_n, n - n0);
    const i64 panels = (columns + PANEL - 1) / PANEL, begin = group ? ends[group - 1] : 0, end = ends[group];
    float* sum = scratch<float>(1, width * panels * PANEL);
    uint32_t* left = scratch<uint32_t>(2, depth / 2 * (width + 2 * ROWS));
    uint32_t* right = scratch<uint32_t>(3, panels * depth / 2 * PANEL);
    for (i64 m = begin; m < end || m == begin; m += depth) {
      const i64 rows = std::min(depth, end - m), pairs = (rows + 1) / 2;
      for (i64 r0 = 0; r0 < width; r0 += ROWS) tile_of_columns(x + m * k + k0 + r0, k, rows, width - r0, left + r0 * pairs);
      for (i64 p = 0; p < panels; ++p)
        panel_of_rows(g + m * n + n0 + p * PANEL, n, rows, columns - p * PANEL, right + p * depth / 2 * PANEL);
      // Few rows: all panels stay near, and the output is written along its rows. Many: one panel stays.
      const i64 tiles = (width + ROWS - 1) / ROWS, shallow = pairs * panels <= 2048;
      for (i64 i = 0; i < tiles * panels; ++i) {
        const i64 r0 = (shallow ? i / panels : i % tiles) * ROWS, p = shallow ? i % panels : i / tiles;
        with_rows(width - r0, [&](auto count) {
          __m512 acc[count][4];
          float* at = sum + (p * width + r0) * PANEL;
          if (m == begin)
            zero(acc);
          else
            for (int r = 0; r < count; ++r)
              for (int j = 0; j < 4; ++j) acc[r][j] = _mm512_load_ps(at + r * PANEL + 16 * j);
          multiply<count>(left + r0 * pairs, 1, ROWS, right + p * depth / 2 * PANEL, pairs, acc);
          bf16* to = out + (group * k + k0 + r0) * n + n0 + p * PANEL;
          for (int r = 0; r < count; ++r)
            for (int j = 0; j < 4; ++j)
              if (m + depth >= end)
                store(to + r * n + 16 * j, acc[r][j], first(columns - p * PANEL - 16 * j));
              else
                _mm512_store_ps(at + r * PANEL + 16 * j, acc[r][j]);
        });
      }
    }
  }
}
}

}  // namespace herd
