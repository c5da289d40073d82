// The whole forward of a text model in one call, from token ids to hidden states: for a few tokens of running requests and
// for long pieces of prompts. Its twin is the Transformer's forward with a cache (herd/model: transformer.py, attention.py,
// moe.py): a change here must be made there too, and herd/model/agreement.py compares the two whenever an engine is started
// on a model. The structs below are those of herd/native/forward.py.
//
// One team of threads goes through the stages of each layer; between them, values are fp32. Rows are split among the
// threads where a stage works on each by itself, products are cut by columns. In the last layer only the rows whose outputs
// are wanted go on after their keys and values are stored.

#include <omp.h>
#include <sys/mman.h>

#include <utility>

#include "matrices.h"

namespace herd {

namespace {

struct Layer {
  const void *attention_norm, *ffn_norm, *router;  // no router: a dense layer, whose feed-forward is `gate_up`, `down`
  const float* router_bias;  // added to the logits where experts are chosen, if not null
  Matrix qkv, out, gate_up, down, expert_gate_up, expert_down;
  void *keys, *values;
  i64 is_global;
};

struct Model {
  const void *embedding, *norm;
  const float* frequencies;
  const Layer* layers;
  Matrix unembedding;
  i64 narrow, num_layers, dim, heads, kv, c, experts, top_k, qk_norm, temperature, page_tokens, narrow_pages;
  double eps, temperature_floor, temperature_scale;
};

struct Batch {
  const i64* tokens;
  const void* embedded;  // rows in place of tokens' embeddings, if not null
  const i64* positions;
  const int32_t* starts;
  const int32_t* tables[2];  // of local layers, of global ones
  const i64* seen[2];
  i64 blocks[2];
  const i64* wanted;  // ascending
  float* hidden;  // [num_wanted, dim], normed
  uint8_t* routes;  // [rows, mixture layers, top_k], the experts of each row that goes through the layer, if not null
  i64 rows, sequences, num_wanted;
};

// `count` values at `p + at` of bf16 or fp32.
inline __m512 any(const void* p, i64 narrow, i64 at, __mmask16 mask = 0xffff) {
  return narrow ? load((const bf16*)p + at, mask) : _mm512_maskz_loadu_ps(mask, (const float*)p + at);
}

inline float square_sum(const float* x, i64 count) {
  __m512 sum = _mm512_setzero_ps();
  for (i64 j = 0; j < count; j += 16) {
    const __m512 a = _mm512_maskz_loadu_ps(first(count - j), x + j);
    sum = _mm512_fmadd_ps(a, a, sum);
  }
  return _mm512_reduce_add_ps(sum);
}

// Memory of one call, laid out before the team begins.
struct Arena {
  char* base = nullptr;
  i64 used = 0;
  template <class T>
  void take(T*& p, i64 count) {
    p = (T*)(base + used);
    used += (count * sizeof(T) + 127) / 64 * 64;
  }
};

// Rows [begin, end) of a product's input, each made by `fill` in `row`.
template <class F>
void prepare(const Matrix& w, i64 rows, char* memory, float* row, i64 begin, i64 end, F fill) {
  w.with_scheme(rows, memory, [&](const auto& scheme) {
    for (i64 i = begin; i < end; ++i) {
      fill(i);
      memset(row + w.in, 0, BLOCK * sizeof(float));
      scheme.prepare(i, row);
    }
  });
}

template <class T>
struct Forward {
  using Value = typename T::Value;
  const Model& m;
  const Batch& b;
  Team team;

  // Which rows are attended to in local and in global layers, and in the last one, where only the wanted ones are.
  struct View {
    std::vector<i64> last;
    std::vector<int32_t> starts;
    pages::Plan plan;
  };
  std::vector<View> views;
  std::vector<i64> sequence;
  i64 mixtures = 0;

  float *x, *chosen_x, *normed, *qkv, *attended, *out, *hidden, *routed_hidden, *routed_out, *turns, *gates, *slots;
  Value* q;
  char *prepared, *routed;
  i64* picked;

  Forward(const Model& m, const Batch& b) : m(m), b(b) {
    team.size = omp_get_max_threads();
    for (i64 l = 0; l < m.num_layers; ++l) mixtures += m.layers[l].router != nullptr;
    sequence.resize(b.rows);
    for (i64 s = 0; s < b.sequences; ++s) std::fill(&sequence[b.starts[s]], &sequence[0] + b.starts[s + 1], s);
    for (i64 kind = 0; kind < 2; ++kind) views.push_back(view(kind, nullptr));
    views.push_back(view(m.layers[m.num_layers - 1].is_global, b.wanted));
    Arena arena;
    lay_out(arena);
    arena.base = scratch<char>(14, arena.used);
    arena.used = 0;
    lay_out(arena);
  }

  i64 spot(i64 kind, i64 row) const { return b.seen[kind][sequence[row]] + row - b.starts[sequence[row]]; }

  View view(i64 kind, const i64* only) const {
    View v{{}, std::vector<int32_t>(b.sequences + 1), {}};
    for (i64 i = 0; i < (only ? b.num_wanted : b.rows); ++i) {
      const i64 row = only ? only[i] : i;
      v.last.push_back(spot(kind, row));
      ++v.starts[sequence[row] + 1];
    }
    for (i64 s = 0; s < b.sequences; ++s) v.starts[s + 1] += v.starts[s];
    v.plan = pages::Plan(v.last.data(), v.starts.data(), b.sequences, m.heads, m.kv, m.c, team.size);
    return v;
  }

  void lay_out(Arena& arena) {
    const i64 rows = b.rows, many = rows * m.top_k, num_wanted = b.num_wanted;
    i64 ffn = 0, expert_ffn = 0, bytes = 0, routed_bytes = 0, floats = 0;
    for (i64 l = 0; l < m.num_layers; ++l) {
      const Layer& layer = m.layers[l];
      for (const Matrix* w : {&layer.qkv, &layer.out, &layer.gate_up, &layer.down}) bytes = std::max(bytes, w->bytes(rows));
      ffn = std::max(ffn, layer.down.in);
      if (!layer.router) continue;
      for (const Matrix* w : {&layer.expert_gate_up, &layer.expert_down})
        routed_bytes = std::max(routed_bytes, w->bytes(many));
      expert_ffn = std::max(expert_ffn, layer.expert_down.in);
    }
    for (const View& v : views) floats = std::max(floats, v.plan.slots * v.plan.slot_floats());
    arena.take(x, rows * m.dim);
    arena.take(chosen_x, num_wanted * m.dim);
    arena.take(normed, rows * m.dim);
    arena.take(qkv, rows * (m.heads + 2 * m.kv) * m.c);
    arena.take(attended, rows * m.heads * m.c);
    arena.take(out, rows * m.dim);
    arena.take(hidden, rows * ffn);
    arena.take(routed_hidden, many * expert_ffn);
    arena.take(routed_out, many * m.dim * (expert_ffn > 0));
    arena.take(turns, rows * (m.c + 16));
    arena.take(gates, many);
    arena.take(slots, floats);
    arena.take(q, rows * m.heads * m.c);
    arena.take(picked, many);
    arena.take(prepared, bytes);
    arena.take(routed, routed_bytes);
  }

  // Of each thread: which rows go to which expert.
  struct Routing {
    std::vector<i64> ends, order, back;
  };

  void run(int thread) {
    i64 rows = b.rows, begin, end;
    const auto split = [&](i64 count) { begin = count * thread / team.size, end = count * (thread + 1) / team.size; };
    i64 widest = m.dim;
    for (i64 l = 0; l < m.num_layers; ++l)
      widest = std::max({widest, m.heads * m.c, m.layers[l].down.in, m.layers[l].router ? m.layers[l].expert_down.in : 0});
    float* row = scratch<float>(15, widest + BLOCK);
    Routing routing;
    i64 mixture = 0;

    split(rows);
    for (i64 i = begin; i < end; ++i) start(i);
    for (i64 l = 0; l < m.num_layers; ++l) {
      const Layer& layer = m.layers[l];
      const bool last = l == m.num_layers - 1;
      const View& view = views[last ? 2 : layer.is_global];
      split(rows);
      prepare(layer.qkv, rows, prepared, row, begin, end, [&](i64 i) {
        if (l) add_ffn(m.layers[l - 1], i, routing);
        norm(x + i * m.dim, layer.attention_norm, row);
      });
      team.wait();
      herd::run(team, {Job(layer.qkv, prepared, &rows, 1, qkv, false)});
      for (i64 i = begin; i < end; ++i) store_keys(layer, i);
      if (last) {
        rows = b.num_wanted;
        if (!rows) return;
        split(rows);
      }
      for (i64 i = begin; i < end; ++i) make_queries(layer, last ? b.wanted[i] : i, i);
      team.wait();
      attend(layer, view);
      prepare(layer.out, rows, prepared, row, begin, end,
              [&](i64 i) { memcpy(row, attended + i * m.heads * m.c, m.heads * m.c * sizeof(float)); });
      team.wait();
      herd::run(team, {Job(layer.out, prepared, &rows, 1, out, false)});
      if (last) {
        for (i64 i = begin; i < end; ++i) memcpy(chosen_x + i * m.dim, x + b.wanted[i] * m.dim, m.dim * sizeof(float));
        if (team.size > 1) team.wait();  // before others' rows are overwritten
        for (i64 i = begin; i < end; ++i) memcpy(x + i * m.dim, chosen_x + i * m.dim, m.dim * sizeof(float));
      }
      prepare(layer.gate_up, rows, prepared, row, begin, end, [&](i64 i) {
        add(x + i * m.dim, out + i * m.dim);
        norm(x + i * m.dim, layer.ffn_norm, row);
        if (!layer.router) return;
        route(layer, i, row);
        if (b.routes) record(last ? b.wanted[i] : i, mixture, i);
      });
      mixture += layer.router != nullptr;
      team.wait();
      feed_forward(layer, rows, row, thread, routing);
    }
    for (i64 i = begin; i < end; ++i) {
      add_ffn(m.layers[m.num_layers - 1], i, routing);
      norm(x + i * m.dim, m.norm, b.hidden + i * m.dim);
    }
  }

  void start(i64 i) {
    const i64 from = b.embedded ? i : b.tokens[i];
    const void* table = b.embedded ? b.embedded : m.embedding;
    for (i64 j = 0; j < m.dim; j += 16) {
      const __mmask16 mask = first(m.dim - j);
      _mm512_mask_storeu_ps(x + i * m.dim + j, mask, any(table, m.narrow, from * m.dim + j, mask));
    }
    for (i64 j = 0; j < m.c / 2; ++j) {
      const double rotated = (double)b.positions[i] * m.frequencies[j], whole = 2 * M_PI;
      const float angle = (float)(rotated - whole * std::floor(rotated / whole));
      turns[i * m.c + 2 * j] = std::cos(angle), turns[i * m.c + 2 * j + 1] = std::sin(angle);
    }
  }

  void add(float* to, const float* from) const {
    for (i64 j = 0; j < m.dim; j += 16) {
      const __mmask16 mask = first(m.dim - j);
      _mm512_mask_storeu_ps(to + j, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to + j), _mm512_maskz_loadu_ps(mask, from + j)));
    }
  }

  void add_ffn(const Layer& before, i64 i, const Routing& routing) {
    if (before.router)
      for (i64 s = i * m.top_k; s < (i + 1) * m.top_k; ++s) add(out + i * m.dim, routed_out + routing.back[s] * m.dim);
    add(x + i * m.dim, out + i * m.dim);
  }

  void norm(const float* from, const void* weight, float* to) const {
    const __m512 scale = _mm512_set1_ps(1.f / std::sqrt(square_sum(from, m.dim) / m.dim + (float)m.eps));
    for (i64 j = 0; j < m.dim; j += 16) {
      const __mmask16 mask = first(m.dim - j);
      const __m512 a = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, from + j), scale);
      _mm512_mask_storeu_ps(to + j, mask, _mm512_mul_ps(a, any(weight, m.narrow, j, mask)));
    }
  }

  // A head of row i as attention sees it: rotated and normed in local layers; queries of global ones by their temperature.
  void head(const Layer& layer, i64 i, i64 index, float scale, Value* to) const {
    const float* from = qkv + (i * (m.heads + 2 * m.kv) + index) * m.c;
    const bool turn = !layer.is_global && index < m.heads + m.kv;
    if (turn && m.qk_norm) scale = 1.f / std::sqrt(square_sum(from, m.c) / m.c + (float)m.eps);  // turning keeps lengths
    for (i64 j = 0; j < m.c; j += 16) {
      const __mmask16 mask = first(m.c - j);
      __m512 a = _mm512_maskz_loadu_ps(mask, from + j);
      if (turn) a = rotated<false>(a, _mm512_maskz_loadu_ps(mask, turns + i * m.c + j));
      T::put(to + j, _mm512_mul_ps(a, _mm512_set1_ps(scale)), mask);
    }
  }

  pages::Pages pages_of(const Layer& layer) const {
    const i64 kind = layer.is_global;
    return {layer.keys, layer.values, b.tables[kind], b.blocks[kind], m.page_tokens, m.kv, m.c};
  }

  void store_keys(const Layer& layer, i64 i) const {
    const pages::Pages p = pages_of(layer);
    for (i64 h = 0; h < m.kv; ++h) {
      const i64 place = p.place(sequence[i], h, spot(layer.is_global, i), sizeof(Value));
      head(layer, i, m.heads + h, 1.f, (Value*)((char*)p.keys + place));
      head(layer, i, m.heads + m.kv + h, 1.f, (Value*)((char*)p.values + place));
    }
  }

  void make_queries(const Layer& layer, i64 i, i64 to) const {
    float scale = 1.f;
    if (layer.is_global && m.temperature) {
      const float blocks = std::floor(((float)b.positions[i] + 1) / (float)m.temperature_floor);
      scale = 1 + (float)m.temperature_scale * std::log1p(blocks);
    }
    for (i64 h = 0; h < m.heads; ++h) head(layer, i, h, scale, q + (to * m.heads + h) * m.c);
  }

  void attend(const Layer& layer, const View& view) {
    const pages::Pages p = pages_of(layer);
    const i64 tasks = view.plan.tasks.size(), joins = view.plan.joins.size();
    for (i64 t = team.next(); t < tasks; t = team.next())
      view.plan.template run<T>(view.plan.tasks[t], p, q, view.last.data(), slots, attended);
    team.wait();
    if (!joins) return;
    for (i64 t = team.next(); t < joins; t = team.next()) view.plan.join_pieces(view.plan.joins[t], slots, attended);
    team.wait();
  }

  // The experts of row i: those of the largest logits (with the bias), the first among equals, with the sigmoid of the
  // logit (without).
  void route(const Layer& layer, i64 i, const float* row) {
    float *logits = scratch<float>(6, 2 * m.experts), *scores = logits + m.experts;
    for (i64 e = 0; e < m.experts; ++e) {
      __m512 sum = _mm512_setzero_ps();
      for (i64 j = 0; j < m.dim; j += 16) {
        const __mmask16 mask = first(m.dim - j);
        sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, row + j), any(layer.router, m.narrow, e * m.dim + j, mask), sum);
      }
      logits[e] = _mm512_reduce_add_ps(sum);
      scores[e] = layer.router_bias ? logits[e] + layer.router_bias[e] : logits[e];
    }
    for (i64 s = i * m.top_k; s < (i + 1) * m.top_k; ++s) {
      picked[s] = std::max_element(scores, scores + m.experts) - scores;
      gates[s] = 1.f / (1.f + std::exp(-logits[picked[s]]));
      scores[picked[s]] = -INFINITY;
    }
    memcpy(normed + i * m.dim, row, m.dim * sizeof(float));
  }

  // Where the experts of row i, `at` in `picked`, are asked for.
  void record(i64 i, i64 mixture, i64 at) const {
    for (i64 k = 0; k < m.top_k; ++k)
      b.routes[(i * mixtures + mixture) * m.top_k + k] = (uint8_t)picked[at * m.top_k + k];
  }

  void feed_forward(const Layer& layer, i64 rows, float* row, int thread, Routing& routing) {
    const i64 many = rows * m.top_k;
    const auto part = [&](i64 count, int side) { return count * (thread + side) / team.size; };
    std::vector<Job> first, second;
    first.emplace_back(layer.gate_up, prepared, &rows, 1, hidden, true);
    if (layer.router) {
      auto& [ends, order, back] = routing;
      ends.assign(m.experts, 0), order.resize(many), back.resize(many);
      for (i64 s = 0; s < many; ++s) ++ends[picked[s]];
      for (i64 e = 0, at = 0; e < m.experts; ++e) at += std::exchange(ends[e], at);
      for (i64 s = 0; s < many; ++s) order[back[s] = ends[picked[s]]++] = s;
      prepare(layer.expert_gate_up, many, routed, row, part(many, 0), part(many, 1), [&](i64 r) {
        const float* from = normed + order[r] / m.top_k * m.dim;
        for (i64 j = 0; j < m.dim; ++j) row[j] = from[j] * gates[order[r]];
      });
      team.wait();
      first.emplace_back(layer.expert_gate_up, routed, ends.data(), m.experts, routed_hidden, true);
    }
    herd::run(team, first);
    const i64 width = layer.down.in, expert_width = layer.expert_down.in;
    prepare(layer.down, rows, prepared, row, part(rows, 0), part(rows, 1),
            [&](i64 i) { memcpy(row, hidden + i * width, width * sizeof(float)); });
    if (layer.router)
      prepare(layer.expert_down, many, routed, row, part(many, 0), part(many, 1),
              [&](i64 i) { memcpy(row, routed_hidden + i * expert_width, expert_width * sizeof(float)); });
    team.wait();
    second.emplace_back(layer.down, prepared, &rows, 1, out, false);
    if (layer.router)
      second.emplace_back(layer.expert_down, routed, routing.ends.data(), m.experts, routed_out, false);
    herd::run(team, second);
  }
};

template <class T>
void run_forward(const Model& model, const Batch& batch) {
  Forward<T> forward(model, batch);
#pragma omp parallel num_threads(forward.team.size)
  {
#pragma omp single
    forward.team.size = omp_get_num_threads();
    forward.run(omp_get_thread_num());
  }
}

}  // namespace

extern "C" {

// Asks for huge pages under weights: streams through small ones wait for the table of pages. Where the system has none to
// give, nothing changes.
void huge_pages(const void* data, i64 bytes) {
  constexpr uintptr_t SIZE = 2 << 20;
  const uintptr_t begin = ((uintptr_t)data + SIZE - 1) / SIZE * SIZE, end = ((uintptr_t)data + bytes) / SIZE * SIZE;
  if (begin >= end) return;
  madvise((void*)begin, end - begin, MADV_HUGEPAGE);
  madvise((void*)begin, end - begin, 25);  // MADV_COLLAPSE, from Linux 6.1 on; glibc names it from 2.37 on
}

void forward(const Model* model, const Batch* batch) {
  if (model->narrow_pages)
    run_forward<pages::Narrow>(*model, *batch);
  else
    run_forward<pages::Wide>(*model, *batch);
}

// logits[rows, vocabulary] = hidden[rows, dim] . unembedding^T
void unembed(const Model* model, const float* hidden, float* logits, i64 rows) {
  const Matrix& w = model->unembedding;
  char* prepared = scratch<char>(14, w.bytes(rows));
  Team team;
#pragma omp parallel
  {
#pragma omp single
    team.size = omp_get_num_threads();
    const i64 thread = omp_get_thread_num();
    float* row = scratch<float>(15, w.in + BLOCK);
    prepare(w, rows, prepared, row, rows * thread / team.size, rows * (thread + 1) / team.size,
            [&](i64 i) { memcpy(row, hidden + i * w.in, w.in * sizeof(float)); });
    team.wait();
    run(team, {Job(w, prepared, &rows, 1, logits, false)});
  }
}
}

}  // namespace herd
