// One transformer layer for a step of mixed rows (decoding and prefill) on x86 CPUs with AVX2.
//
// Weights are int8 with a scale per output and 64 inputs; activations are rounded to 16 bits with
// one scale per row. Products are summed as exact integers within 64 inputs and then in float32 in
// the order of the inputs. Attention walks the blocks of a row's sequence in order, in float32. So
// every number of a row is a function of that row and its sequence alone: not of the rows beside
// it, of how a prompt was cut, or of the number of threads.
#include "pool.h"
#include "unpack.h"
#include "vectors.h"

namespace {

// total += the products of neighbours, summed by twos. In assembly as compilers copy every sum there
// and back, a fourth of all instructions; volatile, or they load all rows first and have too few
// registers.
inline void add_dot2(__m256i& total, __m256i a, __m256i b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  asm volatile("vpdpwssd %2, %1, %0" : "+x"(total) : "x"(a), "x"(b));
#elif defined(__AVXVNNI__)
  asm volatile("%{vex%} vpdpwssd %2, %1, %0" : "+x"(total) : "x"(a), "x"(b));
#else
  __m256i product;
  asm volatile("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
               : "+x"(total), "=&x"(product) : "x"(a), "x"(b));
#endif
}

// out[r][0..15] = the row's 16 outputs, without the row's scale.
template <int R>
inline void tile(const int8_t* weight, const float* scale, const int16_t* x, int64_t stride,
                 int64_t groups, f8 (*out)[2]) {
  for (int r = 0; r < R; r++) out[r][0] = out[r][1] = _mm256_setzero_ps();
  for (int64_t g = 0; g < groups; g++) {
    __m256i total[R][2];
    for (int r = 0; r < R; r++) total[r][0] = total[r][1] = _mm256_setzero_si256();
    for (int pair = 0; pair < GROUP / 2; pair++) {
      __m256i low = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)weight));
      __m256i high = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(weight + 16)));
      // What the processor fetches by itself stops at each tile and comes late.
      _mm_prefetch((const char*)weight + 1536, _MM_HINT_T0);
      weight += 32;
      for (int r = 0; r < R; r++) {
        int32_t two;
        memcpy(&two, x + r * stride + g * GROUP + pair * 2, 4);
        __m256i both = _mm256_set1_epi32(two);
        add_dot2(total[r][0], low, both);
        add_dot2(total[r][1], high, both);
      }
    }
    f8 s0 = _mm256_loadu_ps(scale + g * TILE), s1 = _mm256_loadu_ps(scale + g * TILE + 8);
    for (int r = 0; r < R; r++) {
      out[r][0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total[r][0]), s0, out[r][0]);
      out[r][1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total[r][1]), s1, out[r][1]);
    }
  }
}

template <int R>
inline void rows_of_tile(const Linear& l, int64_t t, const Step& s, int64_t row, float* y,
                         int64_t stride, int64_t width, bool add) {
  f8 out[R][2];
  tile<R>(l.weight + t * TILE * l.inputs, l.scale + t * TILE * (l.inputs / GROUP),
          s.rounded + row * l.inputs, l.inputs, l.inputs / GROUP, out);
  for (int r = 0; r < R; r++) {
    f8 by = _mm256_set1_ps(s.row_scale[row + r]);
    f8 low = _mm256_mul_ps(out[r][0], by), high = _mm256_mul_ps(out[r][1], by);
    asm volatile("" : "+x"(low), "+x"(high));  // rounded here, not fused with the sums below
    float* to = y + (row + r) * stride + t * TILE;
    if (l.bias) {
      low = _mm256_add_ps(low, _mm256_loadu_ps(l.bias + t * TILE));
      high = _mm256_add_ps(high, _mm256_loadu_ps(l.bias + t * TILE + 8));
    }
    if (width - t * TILE >= TILE) {
      if (add) low = _mm256_add_ps(_mm256_loadu_ps(to), low);
      if (add) high = _mm256_add_ps(_mm256_loadu_ps(to + 8), high);
      _mm256_storeu_ps(to, low);
      _mm256_storeu_ps(to + 8, high);
    } else {
      float values[TILE];
      _mm256_storeu_ps(values, low);
      _mm256_storeu_ps(values + 8, high);
      for (int64_t i = 0; i < width - t * TILE; i++) to[i] = add ? to[i] + values[i] : values[i];
    }
  }
}

// y[row][0..width] (+)= the rounded rows times the weights.
void product(const Linear& l, const Step& s, float* y, int64_t stride, int64_t width, bool add,
             int threads) {
  int64_t tiles = l.outputs / TILE, slices = (s.rows + SLICE - 1) / SLICE;
  int64_t shares = (s.rows < 4 ? 4 : 8) * threads;  // longer runs of memory where that is all
  share_out(tiles * slices, tiles * slices / shares, threads,
            [&](int64_t job, int64_t last, int) {
    for (; job < last; job++) {
      int64_t t = job % tiles, row = job / tiles * SLICE;
      int64_t end = row + SLICE < s.rows ? row + SLICE : s.rows;
      for (; row + ROWS <= end; row += ROWS)
        rows_of_tile<ROWS>(l, t, s, row, y, stride, width, add);
      switch (end - row) {
        case 5: rows_of_tile<5>(l, t, s, row, y, stride, width, add); break;
        case 4: rows_of_tile<4>(l, t, s, row, y, stride, width, add); break;
        case 3: rows_of_tile<3>(l, t, s, row, y, stride, width, add); break;
        case 2: rows_of_tile<2>(l, t, s, row, y, stride, width, add); break;
        case 1: rows_of_tile<1>(l, t, s, row, y, stride, width, add); break;
      }
    }
  });
}

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
  s.row_scale[row] = round_row(out, c.hidden, l.inputs, s.rounded + row * l.inputs);
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
  each_row(s, threads, [&](int64_t row) {
    int16_t* to = s.rounded + row * l.out.inputs;
    s.row_scale[row] = round_row(s.seen + row * seen, seen, l.out.inputs, to);
  });
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
    s.row_scale[row] = round_row(gate, c.ffn, l.down.inputs, s.rounded + row * l.down.inputs);
  });
  product(l.down, s, s.x, c.hidden, c.hidden, true, threads);
}

}  // namespace

extern "C" {

// Runs one layer on all rows. `keys` and `values` are the layer's part of the cache.
void llmos_layer(const Shape* c, const Layer* l, const Step* s, void* keys, void* values) {
  if (c->half) layer<Half>(*c, *l, *s, keys, values);
  else layer<Full>(*c, *l, *s, keys, values);
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
    s->row_scale[row] = round_row(in, inputs, l->inputs, s->rounded + row * l->inputs);
  });
  product(*l, *s, y, width, width, false, c->threads);
}

// Rounds a float32 matrix to int8, nearest, and brings it into the layout of Linear.
void llmos_pack(const float* from, int64_t outputs, int64_t inputs, int8_t* codes, float* scales,
                int32_t threads) {
  int64_t groups = (inputs + GROUP - 1) / GROUP, tiles = (outputs + TILE - 1) / TILE;
  share_out(tiles, 8, threads, [&](int64_t t, int64_t last, int) {
    for (; t < last; t++)
    for (int64_t r = 0; r < TILE; r++) {
      for (int64_t g = 0; g < groups; g++) {
        float values[GROUP] = {0}, most = 0;
        int64_t left = inputs - g * GROUP;
        if (t * TILE + r < outputs)
          memcpy(values, from + (t * TILE + r) * inputs + g * GROUP,
                 sizeof(float) * (left < GROUP ? left : GROUP));
        for (int i = 0; i < GROUP; i++) most = std::fmax(most, std::fabs(values[i]));
        float scale = most / 127, by = most > 0 ? 127 / most : 0;
        scales[(t * groups + g) * TILE + r] = scale;
        int8_t* to = codes + ((t * groups + g) * (GROUP / 2) * TILE + r) * 2;
        for (int i = 0; i < GROUP; i += 2) {
          to[i * TILE] = (int8_t)std::nearbyint(values[i] * by);
          to[i * TILE + 1] = (int8_t)std::nearbyint(values[i + 1] * by);
        }
      }
    }
  });
}

}
