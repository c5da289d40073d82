// Causal attention of runs of tokens of any length, forward and backward, by blocks (Dao, FlashAttention-2, 2307.08691):
// scores exist for one block of queries and one of keys, the backward computes them again from the log-sum-exp. bf16
// products, fp32 sums and softmax. A task is one block of queries of a run with the query heads of one key head.
//
// Each sum has one order, whatever the number of threads. A block of keys takes its gradients from the blocks of queries
// from the last to the first: tasks begin in that order, and one that is early waits for the one before it.

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "common.h"

namespace herd {

namespace {

// Of queries and keys, multiples of ROWS and PANEL; the forward's keys come in multiples of its queries.
constexpr i64 QUERIES = 384, KEYS = 768, BLOCK = 192;

// Row-major sizes, in bf16: a token's row [heads | kv | kv] of width c, and of the output [heads].
struct Shape {
  i64 heads, kv, c;
  i64 row() const { return (heads + 2 * kv) * c; }
  i64 wide() const { return heads * c; }
  i64 panels() const { return (c + PANEL - 1) / PANEL; }
};

inline i64 up(i64 x, i64 to) { return (x + to - 1) / to * to; }

// A block of queries and a key head of a run. `first` numbers the blocks of all runs that have more than one, else -1.
struct Task {
  i64 begin, length, block, group, first;
};

// The longest runs first, their last blocks first: these have the most keys.
std::vector<Task> tasks_of(const i64* begins, i64 runs, i64 kv, i64 size, i64& shared) {
  std::vector<i64> order(runs);
  for (i64 r = 0; r < runs; ++r) order[r] = r;
  std::stable_sort(order.begin(), order.end(),
                   [&](i64 a, i64 b) { return begins[a + 1] - begins[a] > begins[b + 1] - begins[b]; });
  std::vector<Task> tasks;
  shared = 0;
  for (i64 r : order) {
    const i64 length = begins[r + 1] - begins[r], blocks = (length + size - 1) / size;
    for (i64 block = blocks - 1; block >= 0; --block)
      for (i64 group = 0; group < kv; ++group)
        tasks.push_back({begins[r], length, block, group, blocks > 1 ? shared : -1});
    if (blocks > 1) shared += blocks;
  }
  return tasks;
}

template <int R>
void load_rows(const float* from, i64 stride, __m512 (&acc)[R][4]) {
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < 4; ++j) acc[r][j] = _mm512_load_ps(from + r * stride + 16 * j);
}

template <int R>
void keep_rows(const __m512 (&acc)[R][4], float* to, i64 stride) {
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < 4; ++j) _mm512_store_ps(to + r * stride + 16 * j, acc[r][j]);
}

// In bf16, row r times scale[r].
template <int R>
void store_rows(const __m512 (&acc)[R][4], const float* scale, bf16* to, i64 stride, i64 columns) {
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < 4; ++j)
      store(to + r * stride + 16 * j, _mm512_mul_ps(acc[r][j], _mm512_set1_ps(scale[r])), first(columns - 16 * j));
}

// sum[keys, c] += left[pairs of queries, keys]^T . right; key k is seen from query k - ahead on.
void add_transposed(const uint32_t* left, i64 stride, const uint32_t* right, i64 panel_words, i64 queries, i64 keys,
                    i64 ahead, i64 c, float* sum) {
  const i64 pairs = (queries + 1) / 2;
  for (i64 p = 0; p * PANEL < c; ++p)
    for (i64 k = 0; k < std::min(keys, queries + ahead); k += ROWS)
      with_rows(keys - k, [&](auto rows) {
        __m512 acc[rows][4];
        float* at = sum + (p * BLOCK + k) * PANEL;
        load_rows<rows>(at, PANEL, acc);
        const i64 begin = std::max<i64>(0, k - ahead) / 2;
        multiply<rows>(left + begin * stride + k, 1, stride, right + p * panel_words + begin * PANEL, pairs - begin,
                       acc);
        keep_rows<rows>(acc, at, PANEL);
      });
}

void store_sum(const float* sum, i64 keys, i64 c, bf16* out, i64 stride) {
  for (i64 p = 0; p * PANEL < c; ++p)
    for (i64 k = 0; k < keys; ++k)
      for (i64 j = 0; j < PANEL; j += 16)
        store(out + k * stride + p * PANEL + j, _mm512_load_ps(sum + (p * BLOCK + k) * PANEL + j),
              first(c - p * PANEL - j));
}

// Panels of keys, [panel of keys][pair of channels][PANEL].
void pack_keys(const bf16* k, i64 stride, i64 keys, i64 c, uint32_t* to) {
  for (i64 j = 0; j < keys; j += PANEL, to += c / 2 * PANEL)
    panel_of_columns(k + j * stride, stride, c / 2, keys - j, to);
}

// Panels of channels, [panel of channels][pair of tokens][PANEL].
void pack_values(const bf16* v, i64 stride, i64 tokens, i64 c, i64 panel_words, uint32_t* to) {
  for (i64 j = 0; j < c; j += PANEL, to += panel_words) panel_of_rows(v + j, stride, tokens, c - j, to);
}

}  // namespace

extern "C" {

// out[n, heads * c] = softmax(q . k^T / sqrt(c)) v within each run; lse[n, heads] = log sum exp of the scaled scores.
// Run i is the tokens begins[i] .. begins[i + 1]. c is even.
void attention_forward(const bf16* qkv, bf16* out, float* lse, const i64* begins, i64 runs, i64 heads, i64 kv, i64 c) {
  const Shape shape{heads, kv, c};
  const i64 row = shape.row(), ratio = heads / kv, panels = shape.panels(), panel_words = KEYS / 2 * PANEL;
  const float scale = 1.f / std::sqrt((float)c);
  i64 shared;
  const auto tasks = tasks_of(begins, runs, kv, QUERIES, shared);
#pragma omp parallel for schedule(dynamic)
  for (size_t t = 0; t < tasks.size(); ++t) {
    const auto [begin, length, block, group, unused] = tasks[t];
    const i64 from = block * QUERIES, to = std::min(length, from + QUERIES);
    const bf16 *q = qkv + begin * row + group * ratio * c, *k = qkv + begin * row + (heads + group) * c;
    uint32_t* keys = scratch<uint32_t>(4, KEYS * c / 2);
    uint32_t* values = scratch<uint32_t>(5, panels * panel_words);
    float* score = scratch<float>(6, ROWS * KEYS);
    bf16* weight = scratch<bf16>(7, ROWS * KEYS);
    // Of each head and query so far: the sum of weights times values, the largest score, the sum of weights.
    float* sums = scratch<float>(8, ratio * panels * QUERIES * PANEL);
    float* mosts = scratch<float>(9, ratio * QUERIES);
    float* totals = scratch<float>(10, ratio * QUERIES);
    for (i64 k0 = 0; k0 < to; k0 += KEYS) {
      const i64 count = std::min(KEYS, to - k0);
      const bool begun = k0 > 0, done = k0 + count == to;
      pack_keys(k + k0 * row, row, count, c, keys);
      pack_values(k + k0 * row + kv * c, row, count, c, panel_words, values);
      for (i64 h = 0; h < ratio; ++h)
        for (i64 r0 = from; r0 < to; r0 += ROWS)
          with_rows(to - r0, [&](auto rows) {
            const i64 seen = std::min(count, r0 + rows - k0), at = h * QUERIES + r0 - from;
            for (i64 j = 0; j < seen; j += PANEL) {
              __m512 acc[rows][4];
              zero(acc);
              multiply<rows>((const uint32_t*)(q + r0 * row + h * c), row / 2, 1, keys + j * c / 2, c / 2, acc);
              keep_rows<rows>(acc, score + j, KEYS);
            }
            float factor[rows], inverse[rows];
            for (int r = 0; r < rows; ++r) {
              const i64 valid = std::min(count, r0 + r + 1 - k0);
              const __m512 lowest = _mm512_set1_ps(-INFINITY);
              __m512 top = lowest, sum = _mm512_setzero_ps();
              for (i64 j = 0; j < valid; j += 16)
                top = _mm512_max_ps(top, _mm512_mask_loadu_ps(lowest, first(valid - j), score + r * KEYS + j));
              const float before = begun ? mosts[at + r] : -INFINITY;
              const float most = std::max(before, scale * _mm512_reduce_max_ps(top));
              for (i64 j = 0; j < seen; j += 16) {
                const __m512 x = _mm512_fmsub_ps(_mm512_load_ps(score + r * KEYS + j), _mm512_set1_ps(scale),
                                                 _mm512_set1_ps(most));
                const __m512 e = _mm512_maskz_mov_ps(first(valid - j), exponential(x));
                sum = _mm512_add_ps(sum, e);
                store(weight + r * KEYS + j, e);
              }
              factor[r] = std::exp(before - most);
              const float total = _mm512_reduce_add_ps(sum) + (begun ? factor[r] * totals[at + r] : 0.f);
              inverse[r] = 1.f / total;
              mosts[at + r] = most;
              totals[at + r] = total;
              if (done) lse[(begin + r0 + r) * heads + group * ratio + h] = most + std::log(total);
            }
            for (i64 p = 0; p < panels; ++p) {
              __m512 acc[rows][4];
              float* kept = sums + ((h * panels + p) * QUERIES + r0 - from) * PANEL;
              if (begun) {
                load_rows<rows>(kept, PANEL, acc);
                for (int r = 0; r < rows; ++r)
                  for (int j = 0; j < 4; ++j) acc[r][j] = _mm512_mul_ps(acc[r][j], _mm512_set1_ps(factor[r]));
              } else {
                zero(acc);
              }
              multiply<rows>((uint32_t*)weight, KEYS / 2, 1, values + p * panel_words, (seen + 1) / 2, acc);
              if (done)
                store_rows<rows>(acc, inverse, out + (begin + r0) * shape.wide() + (group * ratio + h) * c + p * PANEL,
                                 shape.wide(), c - p * PANEL);
              else
                keep_rows<rows>(acc, kept, PANEL);
            }
          });
    }
  }
}

// The gradient of `qkv`, in its layout, from that of `out`.
void attention_backward(const bf16* dout, const bf16* qkv, const bf16* out, const float* lse, bf16* dqkv,
                        const i64* begins, i64 runs, i64 heads, i64 kv, i64 c) {
  const Shape shape{heads, kv, c};
  const i64 row = shape.row(), wide = shape.wide(), ratio = heads / kv, panels = shape.panels();
  const i64 panel_words = BLOCK / 2 * PANEL, sum_floats = panels * BLOCK * PANEL;
  const i64 stride = BLOCK + 16;  // not a power of two: neighbours in a column would share a cache set
  const float scale = 1.f / std::sqrt((float)c), ones[ROWS] = {1, 1, 1, 1, 1, 1};
  i64 shared;
  const auto tasks = tasks_of(begins, runs, kv, BLOCK, shared);
  // Of each shared block of keys and key head: the gradients so far, and the block of queries that may add next.
  const std::unique_ptr<float, void (*)(void*)> sums(
      (float*)aligned_alloc(4096, up(std::max<i64>(1, shared * kv * 2 * sum_floats * sizeof(float)), 4096)), free);
  std::vector<std::atomic<i64>> next(shared * kv);
  for (const Task& task : tasks)
    if (task.first >= 0) next[(task.first + task.block) * kv + task.group] = (task.length - 1) / BLOCK;
#pragma omp parallel for schedule(monotonic : dynamic)
  for (size_t t = 0; t < tasks.size(); ++t) {
    const auto [begin, length, block, group, shared_from] = tasks[t];
    const i64 q0 = block * BLOCK, queries = std::min(BLOCK, length - q0), last = (length - 1) / BLOCK;
    const bf16* k = qkv + begin * row + (heads + group) * c;
    uint32_t* keys = scratch<uint32_t>(4, BLOCK * c / 2);
    uint32_t* values = scratch<uint32_t>(5, BLOCK * c / 2);
    uint32_t* key_rows = scratch<uint32_t>(6, panels * panel_words);
    uint32_t* query_rows = scratch<uint32_t>(7, ratio * panels * panel_words);
    uint32_t* grad_rows = scratch<uint32_t>(8, ratio * panels * panel_words);
    bf16* weight = scratch<bf16>(9, (ROWS + 1) * BLOCK);
    bf16* slope = scratch<bf16>(10, (ROWS + 1) * BLOCK);
    uint32_t* weights = scratch<uint32_t>(11, BLOCK / 2 * stride);
    uint32_t* slopes = scratch<uint32_t>(12, BLOCK / 2 * stride);
    float* dq = scratch<float>(13, ratio * sum_floats);
    float* delta = scratch<float>(14, ratio * BLOCK);
    float* alone = scratch<float>(15, 2 * sum_floats);
    for (i64 h = 0; h < ratio; ++h) {
      const bf16* q = qkv + (begin + q0) * row + (group * ratio + h) * c;
      const i64 at = (begin + q0) * wide + (group * ratio + h) * c;
      pack_values(q, row, queries, c, panel_words, query_rows + h * panels * panel_words);
      pack_values(dout + at, wide, queries, c, panel_words, grad_rows + h * panels * panel_words);
      for (i64 r = 0; r < queries; ++r) {
        __m512 sum = _mm512_setzero_ps();
        for (i64 j = 0; j < c; j += 16)
          sum = _mm512_fmadd_ps(load(dout + at + r * wide + j, first(c - j)), load(out + at + r * wide + j, first(c - j)),
                                sum);
        delta[h * BLOCK + r] = _mm512_reduce_add_ps(sum);
      }
    }
    for (i64 other = 0; other <= block; ++other) {
      const i64 k0 = other * BLOCK, count = std::min(BLOCK, length - k0);
      pack_keys(k + k0 * row, row, count, c, keys);
      pack_keys(k + k0 * row + kv * c, row, count, c, values);
      pack_values(k + k0 * row, row, count, c, panel_words, key_rows);
      const i64 place = (shared_from + other) * kv + group;
      float* dk = shared_from < 0 ? alone : sums.get() + place * 2 * sum_floats;
      float* dv = dk + sum_floats;
      if (shared_from >= 0)
        while (next[place].load(std::memory_order_acquire) != block) std::this_thread::yield();
      if (block == last) memset(dk, 0, 2 * sum_floats * sizeof(float));
      for (i64 h = 0; h < ratio; ++h) {
        const i64 head = group * ratio + h;
        for (i64 r0 = 0; r0 < queries; r0 += ROWS)
          with_rows(queries - r0, [&](auto rows) {
            const i64 token = begin + q0 + r0, seen = std::min(count, q0 + r0 + rows - k0);
            for (i64 j = 0; j < seen; j += PANEL) {
              __m512 s[rows][4], d[rows][4];
              zero(s);
              multiply<rows>((const uint32_t*)(qkv + token * row + head * c), row / 2, 1, keys + j * c / 2, c / 2, s);
              alignas(64) float kept[ROWS * PANEL];
              keep_rows<rows>(s, kept, PANEL);
              zero(d);
              multiply<rows>((const uint32_t*)(dout + token * wide + head * c), wide / 2, 1, values + j * c / 2, c / 2,
                             d);
              for (int r = 0; r < rows; ++r) {
                const __m512 less = _mm512_set1_ps(lse[(token + r) * heads + head]);
                const __m512 mean = _mm512_set1_ps(delta[h * BLOCK + r0 + r]);
                for (int i = 0; i < 4; ++i) {
                  const __m512 score = _mm512_load_ps(kept + r * PANEL + 16 * i);
                  const __m512 p = _mm512_maskz_mov_ps(
                      first(q0 + r0 + r + 1 - k0 - j - 16 * i),
                      exponential(_mm512_fmsub_ps(score, _mm512_set1_ps(scale), less)));
                  const __m512 ds = _mm512_mul_ps(_mm512_mul_ps(p, _mm512_set1_ps(scale)), _mm512_sub_ps(d[r][i], mean));
                  store(weight + r * BLOCK + j + 16 * i, p);
                  store(slope + r * BLOCK + j + 16 * i, ds);
                }
              }
            }
            for (i64 p = 0; p < panels; ++p) {
              __m512 acc[rows][4];
              float* kept = dq + ((h * panels + p) * BLOCK + r0) * PANEL;
              if (other)
                load_rows<rows>(kept, PANEL, acc);
              else
                zero(acc);
              multiply<rows>((uint32_t*)slope, BLOCK / 2, 1, key_rows + p * panel_words, (seen + 1) / 2, acc);
              if (other == block)
                store_rows<rows>(acc, ones, dqkv + token * row + head * c + p * PANEL, row, c - p * PANEL);
              else
                keep_rows<rows>(acc, kept, PANEL);
            }
            // A tile of keys reads up to its own end, which may be past what these queries see.
            const i64 columns = std::min(up(count, PANEL), up(seen, PANEL));
            interleave(weight, BLOCK, rows, columns, weights + r0 / 2 * stride, stride);
            interleave(slope, BLOCK, rows, columns, slopes + r0 / 2 * stride, stride);
          });
        add_transposed(weights, stride, grad_rows + h * panels * panel_words, panel_words, queries, count, q0 - k0, c, dv);
        add_transposed(slopes, stride, query_rows + h * panels * panel_words, panel_words, queries, count, q0 - k0, c, dk);
      }
      if (other == block) {
        store_sum(dk, count, c, dqkv + (begin + k0) * row + (heads + group) * c, row);
        store_sum(dv, count, c, dqkv + (begin + k0) * row + (heads + kv + group) * c, row);
      } else {
        next[place].store(block - 1, std::memory_order_release);
      }
    }
  }
}
}

}  // namespace herd
