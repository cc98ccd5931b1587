// Linear products on weights in float16 and in float8 (e4m3): y = x . w^T + bias, kinds FLOAT16 and FLOAT8 of kernels.h.
//
// Numbers are widened to float32 as they are used, and meet the activations as they are: nothing is rounded but sums.
// The bits of a float8 number, moved to where float16 has them, are a 256th of it, because the exponents' biases differ
// by 8; that holds for its subnormal numbers too, which float16 has as such.
//
// A panel's inputs go in segments: to the end of a group that shares a scale, or of a block that stays in the cache. A
// segment's sums stay in registers, and are added to y at its end. Each sum runs over the inputs in their order, in one
// chain whatever the number of rows: a row's result is the same in any company.
//
// A row's numbers go by cache lines, [line][rows of the tile][16 words]: threads that make different rows ready share no
// line, and the rows of a tile are found at constant distances.
#include "linear_half.h"
#include "grouped.h"

namespace VARIANT {

#if defined(__AVX512F__)
constexpr int MOST_ROWS = 14;  // of a tile: 28 sums, 2 weights and 1 activation in 32 registers
constexpr int64_t BLOCK_BYTES = 256 << 10;  // of a panel, which all tiles visit: a part of the second-level cache
#else
constexpr int MOST_ROWS = 6;  // 12 sums, 2 weights and 1 activation in 16 registers
constexpr int64_t BLOCK_BYTES = 16 << 10;  // strips visit it too: a part of the first-level cache
#endif
constexpr int VECTORS = PANEL / LANES;  // of a panel's outputs
constexpr int64_t AHEAD = 8 << 10;  // bytes; how far ahead of its use memory is asked for, where each byte is used once
constexpr int64_t LINE = 16;  // words, and the inputs to whose multiple weights are padded
constexpr float FLOAT8_STEP = 256;

typedef uint8_t vcode __attribute__((vector_size(LANES * 2)));

// Vectors of outputs that R rows meet at once: a single row takes all of a panel's, so that memory is read in order.
constexpr int vectors_of(int rows) { return rows == 1 && VECTORS == 4 ? 4 : 2; }

static int64_t padded(int64_t inputs) { return up(inputs, LINE) * LINE; }

constexpr int64_t bytes_of(int32_t kind) { return kind == FLOAT16 ? 2 : 1; }

static int64_t panel_bytes(int32_t kind, int64_t inputs) { return padded(inputs) * PANEL * bytes_of(kind); }

int64_t weight_bytes_half(int32_t kind, int64_t outputs, int64_t inputs) {
    return up(outputs, PANEL) * panel_bytes(kind, inputs);
}

int64_t scale_bytes_half(int32_t kind, int64_t group, int64_t outputs, int64_t inputs) {
    return kind == FLOAT8 ? up(outputs, PANEL) * up(inputs, group) * PANEL * int64_t(sizeof(float)) : 0;
}

// Packing

// In numbers; the next input's are PANEL further.
static int64_t place(const Weight* w, int64_t output, int64_t input) {
    return (output / PANEL * padded(w->inputs) + input) * PANEL + output % PANEL;
}

void pack_half(const Weight* w, int64_t first, int64_t count, const void* piece, int32_t from) {
    const bool last = first + count == w->outputs;
    float x[LINE] = {};
    for (int64_t i = 0; i < (last ? up(w->outputs, PANEL) * PANEL - first : count); i++) {
        for (int64_t k = 0; k < w->inputs; k += LINE) {
            if (i < count) read<LINE>(piece, from, i * w->inputs + k, w->inputs - k, x);
            if (i == count) std::memset(x, 0, sizeof x);
            uint16_t* to = static_cast<uint16_t*>(w->data) + place(w, first + i, k);
            for (int64_t j = 0; j < LINE; j++) to[j * PANEL] = to_half(x[j]);
        }
    }
}

static uint16_t half_of(uint8_t code) { return uint16_t((code & 0x80) << 8 | (code & 0x7f) << 7); }

void unpack_half(const Weight* w, int64_t output, float* to) {
    for (int64_t k = 0; k < w->inputs; k++) {
        const int64_t at = place(w, output, k);
        if (w->kind == FLOAT16) {
            to[k] = from_half(static_cast<const uint16_t*>(w->data)[at]);
        } else {
            const float number = from_half(half_of(static_cast<const uint8_t*>(w->data)[at])) * FLOAT8_STEP;
            to[k] = number * static_cast<const float*>(w->scales)[group_place(w, output, k / w->group)];
        }
    }
}

// Rows

static int64_t tile_count(int64_t rows) { return up(rows, MOST_ROWS); }

static int64_t tile_start(int64_t rows, int64_t tile) { return part_start(rows, tile_count(rows), tile); }

int64_t ready_bytes_half(const Weight* w, int64_t rows) { return up(rows * padded(w->inputs) * 4, 64) * 64; }

void make_ready_half(const Weight* w, const float* x, int64_t stride, int64_t first, int64_t count, int64_t rows,
                     void* ready) {
    float* words = static_cast<float*>(ready);
    for (int64_t tile = 0; tile < tile_count(rows); tile++) {
        const int64_t start = tile_start(rows, tile), end = tile_start(rows, tile + 1);
        for (int64_t row = most(start, first); row < least(end, first + count); row++) {
            float* to = words + start * padded(w->inputs) + (row - start) * LINE;
            for (int64_t k = 0; k < w->inputs; k += LINE, to += (end - start) * LINE) {
                read<LINE>(x + row * stride, FLOAT32, k, w->inputs - k, to);
            }
        }
    }
}

// Products

// One input's numbers for two vectors of outputs; of float8, a 256th of each.
template <int KIND>
static inline void numbers(const char* from, vfloat* to) {
    if constexpr (KIND == FLOAT16) {
        to[0] = from_half(load<vhalf>(from));
        to[1] = from_half(load<vhalf>(from + sizeof(vhalf)));
    } else {
        const vshort bits = ((__builtin_convertvector(load<vcode>(from), vshort) << 8) >> 1) & int16_t(0xbf80);
#if defined(__AVX512F__)
        to[0] = from_half((vhalf)_mm512_castsi512_si256((__m512i)bits));
        to[1] = from_half((vhalf)_mm512_extracti64x4_epi64((__m512i)bits, 1));
#elif defined(__AVX2__)
        to[0] = from_half((vhalf)_mm256_castsi256_si128((__m256i)bits));
        to[1] = from_half((vhalf)_mm256_extracti128_si256((__m256i)bits, 1));
#else
        vhalf parts[2];
        std::memcpy(parts, &bits, sizeof parts);
        to[0] = from_half(parts[0]);
        to[1] = from_half(parts[1]);
#endif
    }
}

// Some rows meet outputs of a panel over a segment of inputs; `y` is added to if it `resumes`, and set otherwise.
struct Tile {
    const char* weight;
    const float* words;
    int64_t inputs;  // of the segment
    const float* scales;  // of the first output, or null
    float* y;
    int64_t stride;
    bool resumes;
    const float* bias;  // comes last, or null
    const char* ahead;  // fetched into the cache meanwhile, `advance` bytes with an input
    int64_t advance;
};

template <int KIND, int R, int V>
__attribute__((noinline)) static void multiply(const Tile& t) {
    constexpr int64_t BYTES = PANEL * bytes_of(KIND);
    vfloat sum[R][V] = {};
    const char *weight = t.weight, *ahead = t.ahead;
    const float* words = t.words;
    for (int64_t left = t.inputs; left > 0; left -= LINE, words += R * LINE) {
        const int64_t count = least(left, LINE);
        for (int64_t i = 0; i < count; i++, weight += BYTES, ahead += t.advance) {
            __builtin_prefetch(ahead, 0, 2);  // into the second-level cache
            vfloat w[V];
            for (int v = 0; v < V; v += 2) numbers<KIND>(weight + v * LANES * bytes_of(KIND), w + v);
            for (int r = 0; r < R; r++) {
                const vfloat x = all(words[r * LINE + i]);
                for (int v = 0; v < V; v++) sum[r][v] += w[v] * x;
            }
        }
    }
    for (int v = 0; v < V; v++) {
        const vfloat scale = KIND == FLOAT8 ? load<vfloat>(t.scales + v * LANES) * FLOAT8_STEP : vfloat{};
        for (int r = 0; r < R; r++) {
            float* y = t.y + r * t.stride + v * LANES;
            const vfloat before = t.resumes ? load<vfloat>(y) : vfloat{};
            vfloat total = KIND == FLOAT8 ? fused(sum[r][v], scale, before) : before + sum[r][v];
            if (t.bias) total += load<vfloat>(t.bias + v * LANES);
            store(y, total);
        }
    }
}

// R rows meet all of a panel's outputs.
template <int KIND, int R>
static void multiply_panel(Tile t) {
    constexpr int V = vectors_of(R);
    for (int v = 0; v < VECTORS; v += V) {
        multiply<KIND, R, V>(t);
        t.weight += V * LANES * bytes_of(KIND);
        t.y += V * LANES;
        if (t.scales) t.scales += V * LANES;
        if (t.bias) t.bias += V * LANES;
    }
}

template <int KIND, int R = MOST_ROWS>
static void choose(int64_t rows, const Tile& t) {
    if (rows == R) return multiply_panel<KIND, R>(t);
    if constexpr (R > 1) choose<KIND, R - 1>(rows, t);
}

// Where the panel has fewer outputs than PANEL, by way of a copy.
static void multiply_some(int32_t kind, int64_t rows, int64_t outputs, Tile t) {
    float copy[MOST_ROWS * PANEL] = {};
    float* const y = t.y;
    const int64_t stride = t.stride;
    if (outputs < PANEL) {
        t.y = copy;
        t.stride = PANEL;
        for (int64_t r = 0; t.resumes && r < rows; r++) std::memcpy(copy + r * PANEL, y + r * stride, outputs * 4);
    }
    kind == FLOAT16 ? choose<FLOAT16>(rows, t) : choose<FLOAT8>(rows, t);
    for (int64_t r = 0; outputs < PANEL && r < rows; r++) std::memcpy(y + r * stride, copy + r * PANEL, outputs * 4);
}

// A panel's inputs [from, to), which share a scale, with all rows. A single tile asks for memory AHEAD of its use; of
// several, each asks for its share of what lies behind the segment, so that memory is not idle while later tiles read
// the segment from the cache.
static void multiply_segment(const Weight* w, const void* ready, int64_t rows, int64_t panel, int64_t from, int64_t to,
                             const float* bias, float* y, int64_t stride) {
    const int64_t bytes = PANEL * bytes_of(w->kind), tiles = tile_count(rows), segment = (to - from) * bytes;
    Tile t = {};
    t.weight = static_cast<const char*>(w->data) + panel * panel_bytes(w->kind, w->inputs) + from * bytes;
    t.inputs = to - from;
    if (w->kind == FLOAT8) {
        t.scales = static_cast<const float*>(w->scales) + group_place(w, panel * PANEL, from / w->group);
    }
    t.stride = stride;
    t.resumes = from > 0;
    t.bias = to == padded(w->inputs) ? bias : nullptr;
    t.advance = bytes / tiles;
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t start = tile_start(rows, tile), count = tile_start(rows, tile + 1) - start;
        t.ahead = t.weight + (tiles > 1 ? segment + tile * (segment / tiles) : AHEAD);
        t.words = static_cast<const float*>(ready) + start * padded(w->inputs) + from * count;
        t.y = y + start * stride + panel * PANEL;
        multiply_some(w->kind, count, least(w->outputs - panel * PANEL, PANEL), t);
    }
}

void product_half(const Weight* w, const void* ready, int64_t rows, int64_t from, int64_t to, const float* bias,
                  float* y, int64_t stride) {
    const int64_t inputs = padded(w->inputs), block = BLOCK_BYTES / PANEL / bytes_of(w->kind);
    const int64_t group = w->kind == FLOAT8 ? w->group : inputs;
    for (int64_t panel = from; panel < to; panel++) {
        float offset[PANEL] = {};
        const int64_t outputs = least(w->outputs - panel * PANEL, PANEL);
        if (bias) std::memcpy(offset, bias + panel * PANEL, outputs * 4);
        for (int64_t k = 0, end; k < inputs; k = end) {
            end = least(least((k / group + 1) * group, (k / block + 1) * block), inputs);
            multiply_segment(w, ready, rows, panel, k, end, bias ? offset : nullptr, y, stride);
        }
    }
}

}  // namespace VARIANT
