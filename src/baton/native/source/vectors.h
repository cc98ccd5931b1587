// Vectors of the instruction set that this translation unit is compiled for, as wide as it has them.
//
// Sources that include this are compiled once per instruction set, each time in a namespace of its own (VARIANT);
// see kernels.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace VARIANT {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vfloat __attribute__((vector_size(LANES * 4)));
typedef int32_t vint __attribute__((vector_size(LANES * 4)));
typedef uint32_t vuint __attribute__((vector_size(LANES * 4)));
typedef int16_t vshort __attribute__((vector_size(LANES * 4)));
typedef uint16_t vhalf __attribute__((vector_size(LANES * 2)));

template <typename V, typename T>
static inline V load(const T* from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <typename V, typename T>
static inline void store(T* to, V what) {
    std::memcpy(to, &what, sizeof what);
}

static inline vfloat all(float x) { return x - vfloat{}; }

// bfloat16 is the upper half of a float32.
static inline vfloat widen(vhalf bits) { return (vfloat)(__builtin_convertvector(bits, vuint) << 16); }

static inline float widen(uint16_t bits) {
    uint32_t whole = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &whole, sizeof value);
    return value;
}

// Rounds to the nearest, ties to even, as torch does; a NaN stays one.
static inline uint16_t narrow(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

static inline float sum(vfloat x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

// e^x to about one unit in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' coefficients).
// Below -87.3 it answers 0, above 88.7 infinity; NaN stays NaN.
static inline vfloat exp(vfloat x) {
    const vfloat high = all(88.72283f), low = all(-87.33654f);
    vfloat inside = x < low ? low : x;
    inside = inside > high ? high : inside;
    const vfloat magic = all(12582912.0f);
    vfloat n = inside * all(1.44269504088896341f) + magic;
    vint exponent = (vint)n << 23;
    n = n - magic;
    vfloat r = inside - n * all(0.693359375f);
    r = r - n * all(-2.12194440e-4f);
    vfloat p = all(1.9875691500e-4f);
    p = p * r + all(1.3981999507e-3f);
    p = p * r + all(8.3334519073e-3f);
    p = p * r + all(4.1665795894e-2f);
    p = p * r + all(1.6666665459e-1f);
    p = p * r + all(5.0000001201e-1f);
    p = p * r * r + r + all(1.0f);
    vfloat power = (vfloat)((vint)p + exponent);
    power = x < low ? all(0.0f) : power;
    power = x > high ? all(INFINITY) : power;
    return x != x ? x : power;
}

}  // namespace VARIANT
