// GGUF's commonest quantisations to float32, number by number as the package `gguf` does: every
// product is exact in float32, so one rounding is left, that of the sum.
#pragma once
#include <cstdint>
#include <cstring>
#include <immintrin.h>

namespace {

inline float half_at(const uint8_t* at) {
  uint16_t bits;
  memcpy(&bits, at, sizeof bits);
  return _cvtsh_ss(bits);
}

void unpack_q4_0(const uint8_t* b, float* to) {  // half scale, 16 bytes of two numbers each
  float d = half_at(b);
  for (int i = 0; i < 16; i++) {
    to[i] = d * ((b[2 + i] & 15) - 8);
    to[16 + i] = d * ((b[2 + i] >> 4) - 8);
  }
}

void unpack_q4_1(const uint8_t* b, float* to) {  // half scale, half least number, 16 bytes
  float d = half_at(b), least = half_at(b + 2);
  for (int i = 0; i < 16; i++) {
    to[i] = d * (b[4 + i] & 15) + least;
    to[16 + i] = d * (b[4 + i] >> 4) + least;
  }
}

void unpack_q8_0(const uint8_t* b, float* to) {  // half scale, 32 signed bytes
  float d = half_at(b);
  for (int i = 0; i < 32; i++) to[i] = d * (int8_t)b[2 + i];
}

// Two halves, 12 bytes of eight 6-bit scales and least numbers, 128 bytes of two numbers each.
void unpack_q4_k(const uint8_t* b, float* to) {
  float d = half_at(b), dmin = half_at(b + 2);
  const uint8_t *s = b + 4, *q = b + 16;
  for (int g = 0; g < 8; g++) {
    int scale = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | (s[g - 4] >> 6 << 4);
    int least = g < 4 ? s[g + 4] & 63 : (s[g + 4] >> 4) | (s[g] >> 6 << 4);
    float by = d * scale, off = dmin * least;
    for (int i = 0; i < 32; i++)
      to[32 * g + i] = by * (q[32 * (g / 2) + i] >> 4 * (g % 2) & 15) - off;
  }
}

// 128 bytes of low halves, 64 of two high bits each, 16 signed scales, a half.
void unpack_q6_k(const uint8_t* b, float* to) {
  float d = half_at(b + 208);
  for (int g = 0; g < 8; g++) {
    const uint8_t *low = b + 64 * (g / 4) + 32 * (g % 2), *high = b + 128 + 32 * (g / 4);
    const int8_t* scale = (const int8_t*)b + 192 + 2 * g;
    int up = 4 * (g / 2 % 2), at = 2 * (g % 4);
    for (int i = 0; i < 32; i++) {
      int number = (low[i] >> up & 15) | (high[i] >> at & 3) << 4;
      to[32 * g + i] = d * scale[i / 16] * (number - 32);
    }
  }
}

template <void One(const uint8_t*, float*)>
void unpack_all(const uint8_t* from, int64_t bytes, int64_t numbers, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i++) One(from + i * bytes, to + i * numbers);
}

}  // namespace

// Unpacks `count` blocks of ggml's type `kind`; returns whether it is one of those above.
extern "C" int32_t llmos_unpack(int32_t kind, const uint8_t* from, int64_t count, float* to) {
  switch (kind) {
    case 2: unpack_all<unpack_q4_0>(from, 18, 32, count, to); return 1;
    case 3: unpack_all<unpack_q4_1>(from, 20, 32, count, to); return 1;
    case 8: unpack_all<unpack_q8_0>(from, 34, 32, count, to); return 1;
    case 12: unpack_all<unpack_q4_k>(from, 144, 256, count, to); return 1;
    case 14: unpack_all<unpack_q6_k>(from, 210, 256, count, to); return 1;
  }
  return 0;
}
