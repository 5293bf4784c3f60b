// One transformer layer for a step of mixed rows (decoding and prefill) on x86 CPUs with AVX2.
//
// Weights are int8 with a scale per output and 64 inputs, or int4 with a scale and a least weight
// per output and 32 inputs; activations are rounded to 16 bits with one scale per row. Products are
// summed as exact integers within a group and then in float32 in the order of the inputs.
// Attention walks the blocks of a row's sequence in order, in float32. So every number of a row is
// a function of that row and its sequence alone: not of the rows beside it, of how a prompt was
// cut, or of the number of threads.
#include "pool.h"
#include "products.h"
#include "unpack.h"
#include "vectors.h"

namespace {

// Calls f(row) for all rows: little work each, so that a few rows are not worth sharing.
template <class F>
void each_row(const Step& s, int threads, F f) {
  share_out(s.rows, 4, threads, [&](int64_t row, int64_t end, int) {
    for (; row < end; row++) f(row);
  });
}

struct Half {
  typedef uint16_t type;
  static f8 load(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
  static uint16_t store(float v) { return _cvtss_sh(v, 0); }
};
struct Full {
  typedef float type;
  static f8 load(const float* p) { return _mm256_loadu_ps(p); }
  static float store(float v) { return v; }
};

// Rotates the row's queries and keys in place and writes its keys and values into the cache.
// Keys of a block: [kv_heads, head_dim, 32]; values: [kv_heads, 32, head_dim].
template <class T>
void rotate_and_keep(const Shape& c, const Layer& l, const Step& s, int64_t row,
                     typename T::type* keys, typename T::type* values) {
  int64_t d = c.head_dim, at = s.position[row];
  float* qkv = s.wide + row * (c.heads + 2 * c.kv_heads) * d;
  const float* turns = s.turns + row * d;
  for (int64_t h = 0; h < c.heads + c.kv_heads; h++) {
    float* v = qkv + h * d;
    const float* norm = h < c.heads ? l.q_norm : l.k_norm;
    if (norm) normalise(v, norm, d, c.eps, v);
    for (int64_t i = 0; i < d; i += 2) {
      float a = v[i], b = v[i + 1];
      v[i] = a * turns[i] - b * turns[i + 1];
      v[i + 1] = a * turns[i + 1] + b * turns[i];
    }
  }
  int64_t block = s.tables[s.sequence[row] * s.table_width + at / BLOCK];
  for (int64_t h = 0; h < c.kv_heads; h++) {
    typename T::type* k = keys + (block * c.kv_heads + h) * d * BLOCK + at % BLOCK;
    typename T::type* v = values + ((block * c.kv_heads + h) * BLOCK + at % BLOCK) * d;
    const float *from_k = qkv + (c.heads + h) * d, *from_v = from_k + c.kv_heads * d;
    for (int64_t i = 0; i < d; i++) k[i * BLOCK] = T::store(from_k[i]);
    for (int64_t i = 0; i < d; i++) v[i] = T::store(from_v[i]);
  }
}

// Scores of one block for H query heads that share its keys.
template <class T, int H>
inline void score(const float* q, int64_t d, const typename T::type* k, float by, float* out,
                  int64_t stride) {
  f8 total[H][4];
  for (int h = 0; h < H; h++)
    for (int j = 0; j < 4; j++) total[h][j] = _mm256_setzero_ps();
  for (int64_t i = 0; i < d; i++) {
    f8 key[4];
    for (int j = 0; j < 4; j++) key[j] = T::load(k + i * BLOCK + 8 * j);
    for (int h = 0; h < H; h++) {
      f8 one = _mm256_set1_ps(q[h * d + i]);
      for (int j = 0; j < 4; j++) total[h][j] = _mm256_fmadd_ps(one, key[j], total[h][j]);
    }
  }
  for (int h = 0; h < H; h++)
    for (int j = 0; j < 4; j++)
      _mm256_storeu_ps(out + h * stride + 8 * j, _mm256_mul_ps(total[h][j], _mm256_set1_ps(by)));
}

// Adds one block's values, weighted, to J * 8 dimensions of H heads.
template <class T, int H, int J>
inline void blend(const float* weights, int64_t stride, int64_t count, const typename T::type* v,
                  int64_t d, f8 (*total)[4]) {
  for (int64_t p = 0; p < count; p++) {
    f8 value[J];
    for (int j = 0; j < J; j++) value[j] = T::load(v + p * d + 8 * j);
    for (int h = 0; h < H; h++) {
      f8 w = _mm256_set1_ps(weights[h * stride + p]);
      for (int j = 0; j < J; j++) total[h][j] = _mm256_fmadd_ps(w, value[j], total[h][j]);
    }
  }
}

template <class T, int H, int J>
inline void blend_all(const Shape& c, const int32_t* table, int64_t length, int64_t head,
                      const float* scores, int64_t stride, const typename T::type* values,
                      int64_t from, float* out) {
  int64_t d = c.head_dim;
  f8 total[H][4];
  for (int h = 0; h < H; h++)
    for (int j = 0; j < J; j++) total[h][j] = _mm256_setzero_ps();
  for (int64_t p = 0; p < length; p += BLOCK) {
    int64_t count = length - p < BLOCK ? length - p : BLOCK;
    blend<T, H, J>(scores + p, stride, count,
                   values + (table[p / BLOCK] * c.kv_heads + head) * d * BLOCK + from, d, total);
  }
  for (int h = 0; h < H; h++)
    for (int j = 0; j < J; j++) _mm256_storeu_ps(out + h * d + from + 8 * j, total[h][j]);
}

template <class T, int H>
void attend(const Shape& c, const Step& s, int64_t row, int64_t kv_head, int64_t first,
            const typename T::type* keys, const typename T::type* values, float* scores) {
  int64_t d = c.head_dim, length = s.position[row] + 1;
  int64_t stride = (length + BLOCK - 1) / BLOCK * BLOCK;
  const int32_t* table = s.tables + s.sequence[row] * s.table_width;
  const float* q = s.wide + (row * (c.heads + 2 * c.kv_heads) + first) * d;
  float* out = s.seen + (row * c.heads + first) * d;
  float by = 1.0f / std::sqrt((float)d);
  for (int64_t p = 0; p < length; p += BLOCK)
    score<T, H>(q, d, keys + (table[p / BLOCK] * c.kv_heads + kv_head) * d * BLOCK, by, scores + p,
                stride);
  for (int h = 0; h < H; h++) {
    float* line = scores + h * stride;
    for (int64_t p = length; p < stride; p++) line[p] = -INFINITY;
    f8 top = _mm256_set1_ps(-INFINITY), total = _mm256_setzero_ps();
    for (int64_t p = 0; p < stride; p += 8) top = _mm256_max_ps(top, _mm256_loadu_ps(line + p));
    top = _mm256_set1_ps(largest(top));
    for (int64_t p = 0; p < stride; p += 8) {
      f8 v = _mm256_loadu_ps(line + p);
      f8 e = exponential(_mm256_sub_ps(v, top));
      e = _mm256_and_ps(e, _mm256_cmp_ps(v, _mm256_set1_ps(-INFINITY), _CMP_NEQ_UQ));
      total = _mm256_add_ps(total, e);
      _mm256_storeu_ps(line + p, e);
    }
    f8 share = _mm256_set1_ps(1.0f / sum(total));
    for (int64_t p = 0; p < stride; p += 8)
      _mm256_storeu_ps(line + p, _mm256_mul_ps(_mm256_loadu_ps(line + p), share));
  }
  int64_t from = 0;
  for (; from + 32 <= d; from += 32)
    blend_all<T, H, 4>(c, table, length, kv_head, scores, stride, values, from, out);
  for (; from < d; from += 8)
    blend_all<T, H, 1>(c, table, length, kv_head, scores, stride, values, from, out);
}

// Keeps the rows' keys and values and looks back.
template <class T>
void look_back(const Shape& c, const Layer& l, const Step& s, void* k, void* v) {
  auto* keys = (typename T::type*)k;
  auto* values = (typename T::type*)v;
  int64_t group = c.heads / c.kv_heads;
  each_row(s, c.threads, [&](int64_t row) { rotate_and_keep<T>(c, l, s, row, keys, values); });
  share_out(s.rows * c.kv_heads, 1, c.threads, [&](int64_t job, int64_t last, int thread) {
    float* scores = s.scores + thread * s.table_width * BLOCK * 3;
    for (; job < last; job++) {
      int64_t row = job / c.kv_heads, head = job % c.kv_heads, end = (head + 1) * group;
      int64_t h = head * group;
      for (; h + 3 <= end; h += 3) attend<T, 3>(c, s, row, head, h, keys, values, scores);
      if (end - h == 2) attend<T, 2>(c, s, row, head, h, keys, values, scores);
      if (end - h == 1) attend<T, 1>(c, s, row, head, h, keys, values, scores);
    }
  });
}

// Rounds a row of x, normalised by `norm`, to 16 bits for the product with `l`.
inline void round_normalised(const Shape& c, const Step& s, const Linear& l, const float* norm,
                             int64_t row, int64_t width) {
  float* out = s.seen + row * width;
  normalise(s.x + row * c.hidden, norm, c.hidden, c.eps, out);
  round_for(l, s, row, out, c.hidden);
}

template <class T>
void layer(const Shape& c, const Layer& l, const Step& s, void* k, void* v) {
  int64_t seen = c.heads * c.head_dim, qkv = (c.heads + 2 * c.kv_heads) * c.head_dim;
  int64_t widest = seen > c.hidden ? seen : c.hidden;
  int threads = c.threads;
  each_row(s, threads,
           [&](int64_t row) { round_normalised(c, s, l.qkv, l.attn_norm, row, widest); });
  product(l.qkv, s, s.wide, qkv, qkv, false, threads);
  look_back<T>(c, l, s, k, v);
  each_row(s, threads,
           [&](int64_t row) { round_for(l.out, s, row, s.seen + row * seen, seen); });
  product(l.out, s, s.x, c.hidden, c.hidden, true, threads);
  each_row(s, threads,
           [&](int64_t row) { round_normalised(c, s, l.gate_up, l.ffn_norm, row, widest); });
  product(l.gate_up, s, s.wide, 2 * c.ffn, 2 * c.ffn, false, threads);
  each_row(s, threads, [&](int64_t row) {
    float *gate = s.wide + row * 2 * c.ffn, *up = gate + c.ffn;
    for (int64_t i = 0; i < c.ffn; i += 8) {
      f8 g = _mm256_loadu_ps(gate + i);
      f8 e = exponential(_mm256_sub_ps(_mm256_setzero_ps(), g));
      g = _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
      _mm256_storeu_ps(gate + i, _mm256_mul_ps(g, _mm256_loadu_ps(up + i)));
    }
    round_for(l.down, s, row, gate, c.ffn);
  });
  product(l.down, s, s.x, c.hidden, c.hidden, true, threads);
}

}  // namespace

extern "C" {

// Runs layers [from, to) on all rows; returns the first that is left, when `pause` is set meanwhile.
// One call for all of them: each would wait for Python's lock when it is back. `keys` and `values`
// are the cache, so many bytes a layer; `done` counts layers.
int64_t llmos_layers(const Shape* c, const Layer* layers, int64_t from, int64_t to, const Step* s,
                     char* keys, char* values, int64_t key_bytes, int64_t value_bytes,
                     int64_t* done, const int32_t* pause) {
  while (from < to) {
    void *k = keys + from * key_bytes, *v = values + from * value_bytes;
    if (c->half) layer<Half>(*c, layers[from], *s, k, v);
    else layer<Full>(*c, layers[from], *s, k, v);
    from++;
    __atomic_fetch_add(done, 1, __ATOMIC_RELAXED);
    if (pause && __atomic_load_n(pause, __ATOMIC_RELAXED)) break;
  }
  return from;
}

// The attention of one layer alone: from `wide` (queries, keys, values) to `seen`.
void llmos_attention(const Shape* c, const Layer* l, const Step* s, void* keys, void* values) {
  if (c->half) look_back<Half>(*c, *l, *s, keys, values);
  else look_back<Full>(*c, *l, *s, keys, values);
}

// y[rows, width] = (x normalised by `norm`, unless it is null) W^T + b.
void llmos_linear(const Shape* c, const Linear* l, const Step* s, const float* norm, int64_t inputs,
                  float* y, int64_t width) {
  each_row(*s, c->threads, [&](int64_t row) {
    float* in = s->x + row * inputs;
    if (norm) normalise(in, norm, inputs, c->eps, in);
    round_for(*l, *s, row, in, inputs);
  });
  product(*l, *s, y, width, width, false, c->threads);
}

// Rounds a float32 matrix to int8 or int4 and brings it into the layout of Linear.
void llmos_pack(const float* from, int64_t outputs, int64_t inputs, int64_t bits, void* codes,
                void* scales, int32_t threads) {
  int64_t size = bits == 4 ? SMALL : GROUP, tiles = (outputs + TILE - 1) / TILE;
  int64_t groups = (inputs + GROUP - 1) / GROUP * GROUP / size;
  share_out(tiles, 8, threads, [&](int64_t t, int64_t last, int) {
    for (; t < last; t++)
    for (int64_t r = 0; r < TILE; r++) {
      for (int64_t g = 0; g < groups; g++) {
        float values[GROUP] = {0};
        int64_t left = t * TILE + r < outputs ? inputs - g * size : 0, at = t * groups + g;
        left = left < 0 ? 0 : left < size ? left : size;
        if (left) memcpy(values, from + (t * TILE + r) * inputs + g * size, sizeof(float) * left);
        if (bits == 8) {
          pack_group8(values, (float*)scales + at * TILE + r,
                      (int8_t*)codes + (at * (GROUP / 2) * TILE + r) * 2);
          continue;
        }
        Codes c = pack_group4(values, left);
        uint16_t* scale = (uint16_t*)scales + at * 2 * TILE + r;
        scale[0] = _cvtss_sh(c.scale, 0);
        scale[TILE] = _cvtss_sh(c.least, 0);
        uint16_t* to = (uint16_t*)codes + (at * (SMALL / 8) * TILE + r) * 2;
        for (int i = 0; i < SMALL; i++) {
          uint16_t* word = to + i / 8 * TILE * 2 + i % 2;
          if (i % 8 < 2) *word = 0;
          *word |= c.code[i] << i % 8 / 2 * 4;
        }
      }
    }
  });
}

}
