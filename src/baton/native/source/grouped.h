// What inputs of a group have in common in weights of few bits (scale, zero, min), and rows in the order of a weight.
#pragma once

#include "half.h"
#include "kernels.h"
#include "rounding.h"
#include "vectors.h"

namespace VARIANT {

typedef int8_t vtiny __attribute__((vector_size(LANES)));

static inline int64_t groups_of(const Weight* w) { return up(w->inputs, w->group); }

// Where an output's scale, zero and min of a group lie.
static inline int64_t group_place(const Weight* w, int64_t output, int64_t group) {
    return (output / PANEL * groups_of(w) + group) * PANEL + output % PANEL;
}

// Whether a number is no more than (code - zero) x scale with a zero that all share.
static inline bool symmetric(const Weight* w) { return !w->zeros && !w->mins && !w->table; }

// Scales or mins of as many outputs as a vector has lanes, from the place `at` on.
static inline vfloat scales_at(const Weight* w, const void* of, int64_t at) {
    if (w->wide) return load<vfloat>(static_cast<const float*>(of) + at);
    return from_half(load<vhalf>(static_cast<const uint16_t*>(of) + at)) * w->power;
}

static inline float scale_at(const Weight* w, const void* of, int64_t at) {
    return w->wide ? static_cast<const float*>(of)[at] : from_half(static_cast<const uint16_t*>(of)[at]) * w->power;
}

static inline vint zeros_at(const Weight* w, int64_t at) {
    const vint zero = vint{} + w->zero;
    return w->zeros ? zero + __builtin_convertvector(load<vtiny>(w->zeros + at), vint) : zero;
}

// What a code means. The product is exact in float64, so that it is rounded apart from taking the min off.
static inline float number_of(const Weight* w, int code, int64_t at) {
    const int whole = code - w->zero - (w->zeros ? w->zeros[at] : 0);
    const float number = float(double(whole) * double(scale_at(w, w->scales, at)));
    return w->mins ? number - scale_at(w, w->mins, at) : number;
}

static inline int64_t input_of(const Weight* w, int64_t place) { return w->order ? w->order[place] : place; }

// N numbers of a row, `count` at most, as they stand in the weight from place `k` on; zeros behind them.
template <int N>
static inline void read_row(const Weight* w, const float* x, int64_t k, int64_t count, float* to) {
    if (!w->order) return read<N>(x, FLOAT32, k, count, to);
    for (int64_t i = 0; i < N; i++) to[i] = i < count ? x[w->order[k + i]] : 0.0f;
}

// a * b + c, rounded once.
#if defined(__AVX512F__)
static inline vfloat fused(vfloat a, vfloat b, vfloat c) {
    return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
#elif defined(__FMA__)
static inline vfloat fused(vfloat a, vfloat b, vfloat c) {
    return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
#else
static inline float fused(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
    return __builtin_fmaf(a, b, c);
#else
    // In double the product is exact. A sum that is not is moved to its neighbour with an odd last bit, so that rounding
    // it to float32 decides as the exact sum would (Boldo and Melquiond 2008, emulation of a FMA and correctly rounded
    // sums).
    const double product = double(a) * double(b), sum = product + double(c), part = sum - product;
    const double lost = (product - (sum - part)) + (double(c) - part);
    uint64_t bits;
    std::memcpy(&bits, &sum, sizeof bits);
    if ((lost > 0 || lost < 0) && !(bits & 1)) bits += (lost > 0) == (sum > 0) ? 1 : -1;
    double odd;
    std::memcpy(&odd, &bits, sizeof odd);
    return float(odd);
#endif
}

static inline vfloat fused(vfloat a, vfloat b, vfloat c) {
    vfloat result;
    for (int i = 0; i < LANES; i++) result[i] = fused(a[i], b[i], c[i]);
    return result;
}
#endif

}  // namespace VARIANT
