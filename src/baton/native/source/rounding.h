// Numbers rounded to integers that share a scale: the same integers in every instruction set.
#pragma once

#include "half.h"
#include "kernels.h"
#include "vectors.h"

namespace VARIANT {

// The first of N numbers as float32, `count` at most; zeros behind them. `kind`: one of_numbers.
template <int N>
static inline void read(const void* from, int32_t kind, int64_t at, int64_t count, float* to) {
    for (int64_t i = 0; i < N; i++) {
        to[i] = i >= count         ? 0.0f
                : kind == FLOAT32  ? static_cast<const float*>(from)[at + i]
                : kind == BFLOAT16 ? widen(static_cast<const uint16_t*>(from)[at + i])
                                   : from_half(static_cast<const uint16_t*>(from)[at + i]);
    }
}

// Where part `part` of `count` things begins: the parts' sizes differ by one at most.
static inline int64_t part_start(int64_t count, int64_t parts, int64_t part) {
    return part * (count / parts) + least(part, count % parts);
}

constexpr float LEAST = 1e-30f;  // a group of numbers below this is taken as zeros: its scale would lose digits
constexpr float MOST_FINITE = 3.402823466e38f;

// The greatest magnitude; NaN or infinity where there is one (as bits, a NaN is above infinity).
template <int N>
static inline float greatest(const float* x) {
    uint32_t bits[N], peak = 0;
    std::memcpy(bits, x, sizeof bits);
    for (int i = 0; i < N; i++) {
        const uint32_t magnitude = bits[i] & 0x7fffffff;
        peak = magnitude > peak ? magnitude : peak;
    }
    float answer;
    std::memcpy(&answer, &peak, sizeof answer);
    return answer;
}

// Each x times `factor`, to the nearest integer, ties to even. The product is exact, with and without fused adding.
template <int N>
static inline void round_to(const float* x, float factor, int16_t* to) {
    const double magic = 6755399441055744.0;  // 1.5 x 2^52: adding it rounds
    for (int i = 0; i < N; i++) to[i] = int16_t((double(x[i]) * double(factor) + magic) - magic);
}

// N numbers as integers up to `limit` times the scale that is returned. With a NaN or infinity among them all integers
// are 0 and the scale is NaN, so that products are NaN.
template <int N>
static inline float quantise(const float* x, float limit, int16_t* to) {
    const float top = greatest<N>(x);
    const bool finite = top <= MOST_FINITE;
    if (!finite || top < LEAST) {
        std::memset(to, 0, N * sizeof *to);
        return finite ? 0.0f : NAN;
    }
    round_to<N>(x, limit / top, to);
    return top / limit;
}

}  // namespace VARIANT
