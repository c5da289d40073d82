// Attention of new tokens over keys and values in pages, as one call; herd/native/pages.h has the method.

#include <omp.h>

#include "pages.h"

namespace herd {

namespace {

template <class T>
void attend_all(const typename T::Value* q, const pages::Pages& p, const i64* last, const pages::Plan& plan,
                typename T::Value* out) {
  float* slots = scratch<float>(0, plan.slots * plan.slot_floats());
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 1)
    for (size_t t = 0; t < plan.tasks.size(); ++t) plan.run<T>(plan.tasks[t], p, q, last, slots, out);
#pragma omp for schedule(dynamic, 1)
    for (size_t t = 0; t < plan.joins.size(); ++t) plan.join_pieces(plan.joins[t], slots, out);
  }
}

}  // namespace

extern "C" {

// out[n, heads, c] = softmax(q . keys^T / sqrt(c)) values: token n of sequence s sees places 0 .. seen[s] + n - starts[s] of
// its span, which is in pages table[s, 0 ..]. Keys and values are [pages, kv, tokens, c]. All bf16 if `narrow`, else fp32.
void attend_pages(const void* q, void* keys, void* values, const int32_t* table, const i64* seen, const int32_t* starts,
                  void* out, i64 sequences, i64 blocks, i64 tokens, i64 heads, i64 kv, i64 c, i64 narrow) {
  const pages::Pages p{keys, values, table, blocks, tokens, kv, c};
  std::vector<i64> last(starts[sequences]);
  for (i64 s = 0; s < sequences; ++s)
    for (i64 n = starts[s]; n < starts[s + 1]; ++n) last[n] = seen[s] + n - starts[s];
  const pages::Plan plan(last.data(), starts, sequences, heads, kv, c, omp_get_max_threads());
  if (narrow)
    attend_all<pages::Narrow>((const bf16*)q, p, last.data(), plan, (bf16*)out);
  else
    attend_all<pages::Wide>((const float*)q, p, last.data(), plan, (float*)out);
}
}

}  // namespace herd
