// Products of rows, rounded to 16 bits, with matrices of int8 or int4; and rounding both.
#pragma once
#include "pool.h"
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

inline __m256i two_of(const int16_t* x) {
  int32_t two;
  memcpy(&two, x, 4);
  return _mm256_set1_epi32(two);
}

// out[r][0..15] = the row's 16 outputs of tile `t`, without the row's scale.
template <int R>
inline void tile8(const Linear& l, int64_t t, const Step& s, int64_t row, f8 (*out)[2]) {
  int64_t groups = l.inputs / GROUP, stride = l.inputs;
  const int8_t* weight = (const int8_t*)l.weight + t * TILE * l.inputs;
  const float* scale = (const float*)l.scale + t * TILE * groups;
  const int16_t* x = s.rounded + row * stride;
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
        __m256i both = two_of(x + r * stride + g * GROUP + pair * 2);
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

// The same for int4: a code times its group's scale, and the group's least weight times the sum of
// the group's inputs. Words hold the codes of four pairs of inputs, so that a shift and a mask
// make what is multiplied.
template <int R>
inline void tile4(const Linear& l, int64_t t, const Step& s, int64_t row, f8 (*out)[2]) {
  int64_t groups = l.inputs / SMALL, stride = l.inputs;
  const uint16_t* weight = (const uint16_t*)l.weight + t * TILE * l.inputs / 4;
  const uint16_t* scale = (const uint16_t*)l.scale + t * groups * 2 * TILE;
  const int16_t* x = s.rounded + row * stride;
  const float* sums = s.sums + row * groups;
  const __m256i mask = _mm256_set1_epi16(15);
  for (int r = 0; r < R; r++) out[r][0] = out[r][1] = _mm256_setzero_ps();
  for (int64_t g = 0; g < groups; g++) {
    __m256i total[R][2];
    for (int r = 0; r < R; r++) total[r][0] = total[r][1] = _mm256_setzero_si256();
    for (int eight = 0; eight < SMALL / 8; eight++) {
      _mm_prefetch((const char*)weight + 1536, _MM_HINT_T0);
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++) {
        __m256i low = _mm256_loadu_si256((const __m256i*)weight);
        __m256i high = _mm256_loadu_si256((const __m256i*)(weight + 16));
        low = _mm256_and_si256(_mm256_srli_epi16(low, 4 * k), mask);
        high = _mm256_and_si256(_mm256_srli_epi16(high, 4 * k), mask);
        for (int r = 0; r < R; r++) {
          __m256i both = two_of(x + r * stride + g * SMALL + eight * 8 + k * 2);
          add_dot2(total[r][0], low, both);
          add_dot2(total[r][1], high, both);
        }
      }
      weight += 32;
    }
    f8 by[4];
    for (int i = 0; i < 4; i++)
      by[i] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(scale + g * 2 * TILE + 8 * i)));
    for (int r = 0; r < R; r++) {
      f8 sum = _mm256_set1_ps(sums[r * groups + g]);
      for (int i = 0; i < 2; i++) {
        out[r][i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total[r][i]), by[i], out[r][i]);
        out[r][i] = _mm256_fmadd_ps(sum, by[2 + i], out[r][i]);
      }
    }
  }
}

template <int R>
inline void rows_of_tile(const Linear& l, int64_t t, const Step& s, int64_t row, float* y,
                         int64_t stride, int64_t width, bool add) {
  f8 out[R][2];
  if (l.bits == 4) tile4<R>(l, t, s, row, out);
  else tile8<R>(l, t, s, row, out);
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

// Rounds `width` numbers of a row to 16 bits for the product with `l`.
inline void round_for(const Linear& l, const Step& s, int64_t row, const float* x, int64_t width) {
  int16_t* to = s.rounded + row * l.inputs;
  s.row_scale[row] = round_row(x, width, l.inputs, to);
  if (l.bits != 4) return;
  float* sums = s.sums + row * (l.inputs / SMALL);
  for (int64_t g = 0; g < l.inputs / SMALL; g++) {
    int32_t sum = 0;
    for (int i = 0; i < SMALL; i++) sum += to[g * SMALL + i];
    sums[g] = sum;  // exact: less than 2^24
  }
}

// Rounds a group of weights to int8: a scale, and codes `step` apart by pairs.
inline void pack_group8(const float* values, float* scale, int8_t* to) {
  float most = 0;
  for (int i = 0; i < GROUP; i++) most = std::fmax(most, std::fabs(values[i]));
  float by = most > 0 ? 127 / most : 0;
  *scale = most / 127;
  for (int i = 0; i < GROUP; i += 2) {
    to[i * TILE] = (int8_t)std::nearbyint(values[i] * by);
    to[i * TILE + 1] = (int8_t)std::nearbyint(values[i + 1] * by);
  }
}

struct Codes {
  float scale, least, error;
  int code[SMALL];
};

// Rounds `count` weights to codes times a scale and a least weight; both fit a half.
inline Codes codes_by(const float* values, int count, float scale, float least) {
  Codes c;
  c.scale = _cvtsh_ss(_cvtss_sh(scale, 0));
  c.least = _cvtsh_ss(_cvtss_sh(least, 0));
  float by = c.scale > 0 ? 1 / c.scale : 0;
  c.error = 0;
  for (int i = 0; i < count; i++) {
    float code = std::nearbyint((values[i] - c.least) * by);
    c.code[i] = code > 15 ? 15 : code > 0 ? (int)code : 0;
    float off = c.code[i] * c.scale + c.least - values[i];
    c.error += off * off;
  }
  for (int i = count; i < SMALL; i++) c.code[i] = 0;
  return c;
}

// The codes of least squared error of some: from end to end (exact for weights that had four bits
// before, as GGUF's Q4_1), and best lines through the codes of ranges that cut the ends.
inline Codes pack_group4(const float* values, int count) {
  float low = count ? values[0] : 0, high = low;
  for (int i = 1; i < count; i++) {
    low = std::fmin(low, values[i]);
    high = std::fmax(high, values[i]);
  }
  Codes best = codes_by(values, count, (high - low) / 15, low);
  const float cuts[] = {0, 0.05f, 0.1f, 0.15f};
  for (int n = 0; n < 4 && best.error > 1e-10f * (high - low) * (high - low); n++) {
    float cut = cuts[n] * (high - low) / 2;
    Codes c = codes_by(values, count, (high - low - 2 * cut) / 15, low + cut);
    float q = 0, qq = 0, v = 0, qv = 0;
    for (int i = 0; i < count; i++) {
      q += c.code[i];
      qq += c.code[i] * c.code[i];
      v += values[i];
      qv += c.code[i] * values[i];
    }
    float spread = count * qq - q * q;
    if (!(spread > 0)) continue;
    float scale = (count * qv - q * v) / spread;
    c = codes_by(values, count, scale, (v - scale * q) / count);
    if (c.error < best.error) best = c;
  }
  return best;
}

}  // namespace
