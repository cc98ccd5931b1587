// What attention.cpp does with one block of columns: turning keys round, scores, softmax, and weighing values.
//
// What all paths must round alike is in functions that are not inlined (ALONE), for a compiler fuses multiplications and
// additions as it finds them. Sums are one chain each: over the dimensions in their order, over the columns in theirs.
#pragma once

#include "half.h"
#include "kernels.h"
#include "vectors.h"

#if defined(__clang__)
#define ALONE __attribute__((noinline)) static
#else
#define ALONE __attribute__((noinline, noclone)) static
#endif
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#if !defined(SHUFFLE)
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, vint{__VA_ARGS__})
#endif

namespace VARIANT {

constexpr int64_t BLOCK = 64;  // columns that are scored together
#if defined(__AVX512F__)
constexpr int MOST_QUERIES = 6, MOST_VECTORS = 4;  // of a product's tile: 24 sums in 32 registers
#else
constexpr int MOST_QUERIES = 6, MOST_VECTORS = 2;  // 12 sums in 16 registers
#endif

// A query's sums over the columns so far, as an array: the greatest score, the sum of the shares (which are relative to
// that), and behind them the sum of the values by their shares.
constexpr int64_t TOP = 0, TOTAL = 1, SUMS = 2;

static float greatest(vfloat x) {
    typedef float quarter __attribute__((vector_size(16)));
    quarter part[LANES / 4];
    std::memcpy(part, &x, sizeof x);
    for (int i = 1; i < LANES / 4; i++) part[0] = part[i] > part[0] ? part[i] : part[0];
    float top = part[0][0];
    for (int i = 1; i < 4; i++) top = part[0][i] > top ? part[0][i] : top;
    return top;
}

static float exp_of(float x) { return exp(all(x))[0]; }

// Near 0 a polynomial (Cephes' coefficients), elsewhere by the exponential: to about two units in the last place.
static vfloat tanh(vfloat x) {
    const vint sign = (vint)x & INT32_MIN;
    const vfloat size = (vfloat)((vint)x ^ sign), square = x * x;
    vfloat p = all(-5.70498872745e-3f);
    p = p * square + all(2.06390887954e-2f);
    p = p * square + all(-5.37397155531e-2f);
    p = p * square + all(1.33314422036e-1f);
    p = p * square + all(-3.33332819422e-1f);
    const vfloat near = x + x * square * p;
    const vfloat far = all(1.0f) - all(2.0f) / (exp(size + size) + all(1.0f));
    return size < all(0.625f) ? near : (vfloat)((vint)far | sign);
}

// The lanes of two vectors by turns, first those of the lower halves.
static inline void zip(vfloat a, vfloat b, vfloat* to) {
#if defined(__AVX512F__)
    to[0] = SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    to[1] = SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
    to[0] = SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    to[1] = SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    to[0] = SHUFFLE(a, b, 0, 4, 1, 5);
    to[1] = SHUFFLE(a, b, 2, 6, 3, 7);
#endif
}

// x becomes its transpose: each round zips the upper half of the rows into the lower.
static inline void transpose(vfloat* x) {
    for (int round = 1; round < LANES; round *= 2) {
        vfloat y[LANES];
        for (int i = 0; i < LANES / 2; i++) zip(x[i], x[i + LANES / 2], y + 2 * i);
        for (int i = 0; i < LANES; i++) x[i] = y[i];
    }
}

// Memory that is used soon, as rows of some bytes.
struct Lines {
    const char* row;
    int64_t rows, bytes, stride, at;
};

// The next block's keys and values. They are asked for line by line while this block is computed.
struct Ahead {
    Lines keys, values;
};

static inline void ask(Lines& lines) {
    if (lines.rows <= 0) return;
    __builtin_prefetch(lines.row + lines.at, 0, 2);
    lines.at += 64;
    if (lines.at < lines.bytes) return;
    lines.at = 0;
    lines.row += lines.stride;
    lines.rows--;
}

static inline void ask(Ahead& ahead) {
    ask(ahead.keys);
    ask(ahead.values);
}

// Words [word, word + LANES) of LANES columns, turned round: of one word after another, each column's. A word of 4 bytes
// is one float32, or a pair of bfloat16; behind the last are zeros.
template <typename T>
static inline void words_of(const T* const* columns, int64_t bytes, int64_t word, vfloat* x) {
    const int64_t left = bytes - word * 4;
    for (int i = 0; i < LANES; i++) {
        const char* from = reinterpret_cast<const char*>(columns[i]) + word * 4;
        x[i] = vfloat{};
        if (left >= LANES * 4) {
            x[i] = load<vfloat>(from);
        } else {
            std::memcpy(x + i, from, left);
        }
    }
    transpose(x);
}

static inline vfloat first_half(vfloat pair) { return (vfloat)((vuint)pair << 16); }
static inline vfloat second_half(vfloat pair) { return (vfloat)((vuint)pair & 0xffff0000u); }

// The numbers of LANES columns, one dimension after another: turned[d * BLOCK + column].
template <typename T>
static void turn(const T* const* columns, int64_t dims, float* turned) {
    const int64_t bytes = dims * int64_t(sizeof(T)), words = up(bytes, 4);
    for (int64_t word = 0; word < words; word += LANES) {
        vfloat x[LANES];
        words_of(columns, bytes, word, x);
        for (int64_t i = 0; i < LANES && word + i < words; i++) {
            if (sizeof(T) == 4) {
                store(turned + (word + i) * BLOCK, x[i]);
            } else {
                store(turned + 2 * (word + i) * BLOCK, first_half(x[i]));
                store(turned + (2 * (word + i) + 1) * BLOCK, second_half(x[i]));
            }
        }
    }
}

// Scores of M queries and LANES columns, whose numbers are turned round as they are used.
template <int M, typename T>
static void score_turning(const float* const* queries, const T* const* columns, int64_t dims, float* scores,
                          Ahead& ahead) {
    constexpr int64_t each = 4 / sizeof(T);  // numbers of a word
    const int64_t bytes = dims * int64_t(sizeof(T)), whole = bytes / (LANES * 4) * LANES * each;
    const float* q[M];
    for (int m = 0; m < M; m++) q[m] = queries[m];
    vfloat sum[M] = {}, x[LANES];
    for (int64_t d = 0; d < whole; d += LANES * each) {
        words_of(columns, bytes, d / each, x);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) {
            if (each == 1 || i % 2) ask(ahead);  // enough to have it all before the block ends
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) {
                if (each == 1) {
                    sum[m] += all(q[m][d + i]) * x[i];
                } else {
                    sum[m] += all(q[m][d + 2 * i]) * first_half(x[i]);
                    sum[m] += all(q[m][d + 2 * i + 1]) * second_half(x[i]);
                }
            }
        }
    }
    if (whole < dims) words_of(columns, bytes, whole / each, x);
    for (int64_t d = whole; d < dims; d++) {
        const vfloat pair = x[(d - whole) / each];
        const vfloat k = each == 1 ? pair : d % 2 ? second_half(pair) : first_half(pair);
        for (int m = 0; m < M; m++) sum[m] += all(q[m][d]) * k;
    }
    for (int m = 0; m < M; m++) store(scores + m * BLOCK, sum[m]);
}

// Scores of M queries and N vectors of columns, [query][column of the block].
template <int M, int N>
static void score(const float* const* queries, const float* turned, int64_t dims, float* scores) {
    const float* q[M];
    for (int m = 0; m < M; m++) q[m] = queries[m];
    vfloat sum[M][N] = {};
    for (int64_t d = 0; d < dims; d++, turned += BLOCK) {
        vfloat k[N];
        for (int n = 0; n < N; n++) k[n] = load<vfloat>(turned + n * LANES);
        for (int m = 0; m < M; m++) {
            const vfloat x = all(q[m][d]);
            for (int n = 0; n < N; n++) sum[m][n] += x * k[n];
        }
    }
    for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) store(scores + m * BLOCK + n * LANES, sum[m][n]);
    }
}

// A number in float16; what is uint16_t here is bfloat16.
struct Half {
    uint16_t bits;
};

template <typename T>
constexpr bool IS_HALF = false;
template <>
constexpr bool IS_HALF<Half> = true;

static inline vfloat fetch(const float* from) { return load<vfloat>(from); }
static inline vfloat fetch(const Half* from) { return from_half(load<vhalf>(from)); }
static inline vfloat fetch(const uint16_t* from) {
#if defined(__AVX512F__)  // gcc 12 takes four instructions to widen by itself
    return (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)load<vhalf>(from)), 16);
#else
    return widen(load<vhalf>(from));
#endif
}

// Adds N vectors of the values of columns [from, to), by the shares of M queries, to the queries' sums.
template <int M, int N, typename T>
static void weigh(const float* shares, const T* const* values, int64_t d, int64_t from, int64_t to, float* sums,
                  int64_t stride, Ahead& ahead) {
    vfloat sum[M][N];
    for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) sum[m][n] = load<vfloat>(sums + m * stride + d + n * LANES);
    }
    for (int64_t c = from; c < to; c++) {
        ask(ahead);
        vfloat v[N];
        for (int n = 0; n < N; n++) v[n] = fetch(values[c] + d + n * LANES);
        for (int m = 0; m < M; m++) {
            const vfloat x = all(shares[m * BLOCK + c]);
            for (int n = 0; n < N; n++) sum[m][n] += x * v[n];
        }
    }
    for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) store(sums + m * stride + d + n * LANES, sum[m][n]);
    }
}

// Tiles over vectors [from, to) of a block's columns.
template <int M>
static void score_tiles(const float* const* queries, const float* turned, int64_t dims, int64_t from, int64_t to,
                        float* scores) {
    while (from < to) {
        const int64_t at = from * LANES;
        if (MOST_VECTORS >= 4 && to - from >= 3) {  // the block's last vector may be scored in vain
            from = least(from, BLOCK / LANES - 4);
            score<M, 4>(queries, turned + from * LANES, dims, scores + from * LANES);
            from += 4;
        } else if (to - from >= 2) {
            score<M, 2>(queries, turned + at, dims, scores + at);
            from += 2;
        } else {
            score<M, 1>(queries, turned + at, dims, scores + at);
            from++;
        }
    }
}

template <int M, typename T>
static void weigh_tiles(const float* shares, const T* const* values, int64_t from, int64_t to, float* sums,
                        int64_t stride, int64_t dims, Ahead& ahead) {
    for (int64_t d = 0; d < dims;) {
        if (MOST_VECTORS >= 4 && dims - d >= 4 * LANES) {
            weigh<M, 4>(shares, values, d, from, to, sums, stride, ahead);
            d += 4 * LANES;
        } else if (dims - d >= 2 * LANES) {
            weigh<M, 2>(shares, values, d, from, to, sums, stride, ahead);
            d += 2 * LANES;
        } else {
            weigh<M, 1>(shares, values, d, from, to, sums, stride, ahead);
            d += LANES;
        }
    }
}

// How scores become shares.
struct Bend {
    float scale, softcap;
};

// A query's scores of a block become its shares, relative to the greatest score so far; sums so far are scaled to that.
// It sees columns [low, high) of the block; vectors [from, to) are written. `totals`: the shares' sum, lane by lane.
ALONE void soften(Bend bend, float* scores, int64_t from, int64_t to, int64_t low, int64_t high, float* totals,
                  float* record, int64_t dims) {
    vint column;
    for (int i = 0; i < LANES; i++) column[i] = int32_t(from) * LANES + i;
    vfloat greater = all(-INFINITY);
    for (int64_t v = from; v < to; v++, column += LANES) {
        vfloat x = load<vfloat>(scores + v * LANES) * all(bend.scale);
        if (bend.softcap != 0) x = tanh(x / all(bend.softcap)) * all(bend.softcap);
        x = (column >= int32_t(low)) & (column < int32_t(high)) ? x : all(-INFINITY);
        store(scores + v * LANES, x);
        greater = x > greater ? x : greater;
    }
    const float before = record[TOP], peak = greatest(greater), top = peak > before ? peak : before;
    const float zero = top == -INFINITY ? 0.0f : top;  // scores of -infinity have no share
    if (top > before && before != -INFINITY) {
        const vfloat fade = all(exp_of(before - zero));
        store(totals, load<vfloat>(totals) * fade);
        for (int64_t d = 0; d < dims; d += LANES) store(record + SUMS + d, load<vfloat>(record + SUMS + d) * fade);
    }
    record[TOP] = top;
    vfloat total = load<vfloat>(totals);
    for (int64_t v = from; v < to; v++) {
        const vfloat share = exp(load<vfloat>(scores + v * LANES) - all(zero));
        store(scores + v * LANES, share);
        total += share;
    }
    store(totals, total);
}

static bool nothing(const float* record) { return record[TOP] == -INFINITY && record[TOTAL] == 0; }

// Adds the sums of the next piece of the columns to those of all before.
ALONE void fold(float* record, const float* next, int64_t dims) {
    if (nothing(next)) return;
    if (nothing(record)) {
        std::memcpy(record, next, (SUMS + dims) * 4);
        return;
    }
    const float top = next[TOP] > record[TOP] ? next[TOP] : record[TOP];
    const float fade = exp_of(record[TOP] - top), weight = exp_of(next[TOP] - top);
    record[TOP] = top;
    record[TOTAL] = record[TOTAL] * fade + next[TOTAL] * weight;
    for (int64_t d = 0; d < dims; d += LANES) {
        const vfloat more = load<vfloat>(next + SUMS + d) * all(weight);
        store(record + SUMS + d, load<vfloat>(record + SUMS + d) * all(fade) + more);
    }
}

// A query's output from the sums of all columns. `sink`: a score that takes its share and brings no value, or null.
ALONE void finish(const float* record, const float* sink, float* out, int64_t dims) {
    float total = record[TOTAL], fade = 1;
    if (sink) {
        const float top = *sink > record[TOP] ? *sink : record[TOP];
        fade = exp_of(record[TOP] - top);
        total = total * fade + exp_of(*sink - top);
    }
    for (int64_t d = 0; d < dims; d++) out[d] = record[SUMS + d] * fade / total;
}

}  // namespace VARIANT
