// Dot products of bytes, and bytes that stand for 4-bit codes, in the instruction set that this is compiled for.
#pragma once

#include "vectors.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace VARIANT {

// The sums of some inputs for as many outputs as a vector has lanes; `codes` and `x`: 4 bytes of each, of which `codes`
// are 0 to 127.
#if defined(__AVX512VNNI__)
typedef vint Dots;

static inline Dots dot(Dots sum, vint codes, vint x) {
    return (vint)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)x);
}

static inline vint whole(Dots sum) { return sum; }
#elif defined(__AVXVNNI__)
typedef vint Dots;

static inline Dots dot(Dots sum, vint codes, vint x) {
    return (vint)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, (__m256i)x);
}

static inline vint whole(Dots sum) { return sum; }
#elif defined(__ARM_FEATURE_DOTPROD)
typedef vint Dots;

static inline Dots dot(Dots sum, vint codes, vint x) {
    return (vint)vdotq_s32((int32x4_t)sum, (int8x16_t)codes, (int8x16_t)x);
}

static inline vint whole(Dots sum) { return sum; }
#elif defined(__AVX512BW__)
typedef vshort Dots;

static inline Dots dot(Dots sum, vint codes, vint x) {
    return sum + (vshort)_mm512_maddubs_epi16((__m512i)codes, (__m512i)x);
}

static inline vint whole(Dots sum) { return (vint)_mm512_madd_epi16((__m512i)sum, _mm512_set1_epi16(1)); }
#elif defined(__AVX2__)
typedef vshort Dots;

static inline Dots dot(Dots sum, vint codes, vint x) {
    return sum + (vshort)_mm256_maddubs_epi16((__m256i)codes, (__m256i)x);
}

static inline vint whole(Dots sum) { return (vint)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1)); }
#else
typedef vshort Dots;

static inline Dots dot(Dots sum, vint codes, vint x) {
    const vshort even = (vshort)x << 8 >> 8, odd = (vshort)x >> 8;
    return sum + ((vshort)codes & 0xff) * even + ((vshort)codes >> 8) * odd;
}

static inline vint whole(Dots sum) {
    const vint pairs = (vint)sum;
    return (pairs << 16 >> 16) + (pairs >> 16);
}
#endif

// Bytes of a table in place of 4-bit codes.
#if defined(__AVX512BW__)
static inline vint looked_up(const uint8_t* table, vint codes) {
    return (vint)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table)), (__m512i)codes);
}
#elif defined(__AVX2__)
static inline vint looked_up(const uint8_t* table, vint codes) {
    const __m256i all = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    return (vint)_mm256_shuffle_epi8(all, (__m256i)codes);
}
#elif defined(__aarch64__)
static inline vint looked_up(const uint8_t* table, vint codes) {
    return (vint)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)codes);
}
#else
static inline vint looked_up(const uint8_t* table, vint codes) {
    uint8_t bytes[sizeof codes];
    store(bytes, codes);
    for (uint8_t& byte : bytes) byte = table[byte];
    return load<vint>(bytes);
}
#endif

}  // namespace VARIANT
