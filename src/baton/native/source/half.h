// float16, to and from float32, without instructions of its own where there are none.
#pragma once

#include "vectors.h"

namespace VARIANT {

// Rounds to the nearest, ties to even; a NaN stays one.
static inline uint16_t to_half(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000;
    uint32_t size = bits & 0x7fffffff;
    if (size > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (size >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65520 and more
    if (size < 0x38800000) {
        // Below 2^-14 its last place is 2^-24, as that of float32 between 0.5 and 1.
        float shifted;
        std::memcpy(&shifted, &size, sizeof shifted);
        shifted += 0.5f;
        std::memcpy(&size, &shifted, sizeof size);
        return uint16_t(sign | (size - 0x3f000000));
    }
    size += 0xfff + (size >> 13 & 1);
    return uint16_t(sign | (size - 0x38000000) >> 13);
}

static inline vfloat from_half(vhalf bits) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_cvtph_ps((__m256i)bits);
#elif defined(__F16C__)
    return (vfloat)_mm256_cvtph_ps((__m128i)bits);
#else
    const vuint all = __builtin_convertvector(bits, vuint), size = all & 0x7fff;
    const vuint normal = (size << 13) + 0x38000000, infinite = (size << 13) + 0x70000000;
    // A number without a leading 1: give it one, and take it away again.
    const vuint small = (vuint)((vfloat)((size << 13) + 0x38800000) - (vfloat)(vuint{} + 0x38800000));
    vuint bits32 = size < 0x400 ? small : normal;
    bits32 = size >= 0x7c00 ? infinite : bits32;
    return (vfloat)(bits32 | (all & 0x8000) << 16);
#endif
}

static inline float from_half(uint16_t bits) {
    vhalf some = {};
    some[0] = bits;
    return from_half(some)[0];
}

}  // namespace VARIANT
