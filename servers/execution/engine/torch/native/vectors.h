// What kernels.cpp works on, as layout.py describes it, and arithmetic on vectors of 8 numbers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <immintrin.h>

namespace {

constexpr int BLOCK = 32;  // positions in a block of the KV cache
constexpr int GROUP = 64;  // inputs that share a weight scale (int8)
constexpr int SMALL = 32;  // inputs that share a scale and a least weight (int4)
constexpr int TILE = 16;   // outputs computed together
constexpr int ROWS = 6;    // rows computed together: 12 accumulators of 16 registers
constexpr int SLICE = 96;  // rows whose activations stay in the cache while weights pass by

struct Linear {
  const void* weight;  // int8 [outputs / 16, inputs / 2, 16, 2]; int4: words of four codes
                       // [outputs / 16, inputs / 8, 16, 2], of inputs 0 or 1, 2 or 3, ... of eight
  const void* scale;   // float [outputs / 16, inputs / 64, 16]; int4: half
                       // [outputs / 16, inputs / 32, 2, 16], scales and least weights
  const float* bias;   // [outputs] or null
  int64_t outputs, inputs;  // padded to 16 and 64
  int64_t bits;        // 8 or 4
};

struct Shape {
  int64_t hidden, heads, kv_heads, head_dim, ffn, half;  // half: the cache holds float16
  float eps;
  int32_t threads;
};

struct Layer {
  const float *attn_norm, *ffn_norm, *q_norm, *k_norm;  // the last two may be null
  Linear qkv, out, gate_up, down;
};

struct Step {
  int64_t rows, table_width;
  float* x;                // [rows, hidden], updated
  const float* turns;      // [rows, head_dim]: cosine and sine by pairs
  const int64_t* sequence; // [rows]: line of `tables`
  const int64_t* position; // [rows]
  const int32_t* tables;   // [sequences, table_width]: blocks
  int16_t* rounded;        // [rows, widest input]
  float* row_scale;        // [rows]
  float* sums;             // [rows, widest input / 32], for int4
  float* wide;             // [rows, widest output]
  float* seen;             // [rows, heads * head_dim]
  float* scores;           // [threads, 3, table_width * 32]
};

typedef __m256 f8;

inline float sum(f8 v) {
  __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  a = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps(a, a, 1)));
}

inline float largest(f8 v) {
  __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  a = _mm_max_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps(a, a, 1)));
}

inline f8 absolute(f8 v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }

// exp() as in the Cephes library: 2^n times a polynomial of the rest; 2 ulp.
inline f8 exponential(f8 x) {
  x = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(88.3f)), _mm256_set1_ps(-87.3f));
  f8 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), 8);
  x = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  x = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), x);
  f8 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, x, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, x, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, x, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, x, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, x, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(x, x), _mm256_add_ps(x, _mm256_set1_ps(1.0f)));
  __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(e, 23)));
}

// Rounds `width` numbers (a multiple of 8) to 16 bits; fills up to `padded` with zeros.
inline float round_row(const float* x, int64_t width, int64_t padded, int16_t* out) {
  f8 top = _mm256_setzero_ps(), poison = top;
  for (int64_t i = 0; i < width; i += 8) {
    f8 v = _mm256_loadu_ps(x + i);
    top = _mm256_max_ps(top, absolute(v));
    poison = _mm256_fmadd_ps(v, _mm256_setzero_ps(), poison);  // not finite, once any is not
  }
  float most = largest(top);
  if (!(most > 0)) most = 1;  // all zeros
  f8 by = _mm256_set1_ps(32767.0f / most);
  for (int64_t i = 0; i < width; i += 8) {
    __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), by));
    v = _mm256_permute4x64_epi64(_mm256_packs_epi32(v, v), 0xD8);
    _mm_storeu_si128((__m128i*)(out + i), _mm256_castsi256_si128(v));
  }
  memset(out + width, 0, (padded - width) * sizeof(int16_t));
  return most / 32767.0f + sum(poison);
}

inline void normalise(const float* x, const float* weight, int64_t width, float eps, float* out) {
  f8 squares = _mm256_setzero_ps();
  for (int64_t i = 0; i < width; i += 8) {
    f8 v = _mm256_loadu_ps(x + i);
    squares = _mm256_fmadd_ps(v, v, squares);
  }
  f8 by = _mm256_set1_ps(1.0f / std::sqrt(sum(squares) / width + eps));
  for (int64_t i = 0; i < width; i += 8)
    _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), by),
                                            _mm256_loadu_ps(weight + i)));
}

}  // namespace
