// Linear products y = x . w^T + bias on packed weights; the weights' layout is in kernels.h.
//
// A product goes panel by panel; a panel (or, of many inputs, a block that stays in the second-level cache) meets the
// rows tile by tile, a tile's sums staying in registers. Each sum runs over the inputs in their order, in one chain
// whatever the number of rows: a row's result is the same in any company.
//
// Activations are made ready once for all panels, as words of 4 bytes that a register is filled with. A step of a
// product takes one input of float32, or the pair of inputs that one dot-product instruction takes. A row's words go by
// cache lines, [line][rows of the tile][16 words]: threads that make different rows ready share no line, and the rows
// of a tile are found at constant distances.
#include "kernels.h"
#include "linear4.h"
#include "linear8.h"
#include "linear_half.h"
#include "rounding.h"
#include "vectors.h"

namespace VARIANT {

#if defined(__AVX512F__)
constexpr int MOST_ROWS = 14;  // of a tile: 28 sums, 2 weights and 1 activation in 32 registers
constexpr int64_t BLOCK_BYTES = 256 << 10;  // of a panel, which all tiles visit: a part of the second-level cache
constexpr int64_t MOST_TILES = INT32_MAX, WORDS_BYTES = INT64_MAX;  // rows are not divided
#else
constexpr int MOST_ROWS = 6;  // 12 sums, 2 weights and 1 activation in 16 registers
constexpr int64_t BLOCK_BYTES = 16 << 10;  // strips visit it too: a part of the first-level cache
constexpr int64_t MOST_TILES = 12;  // that go from panel to panel together
constexpr int64_t WORDS_BYTES = 288 << 10;  // of their rows: a part of the second-level cache
#endif
constexpr int STRIP = 2 * LANES;  // outputs of a tile
constexpr int64_t AHEAD = 8 << 10;  // bytes; how far ahead of its use memory is asked for, where each byte is used once
constexpr int64_t LINE = 16;  // words
constexpr int64_t PIECE = 64;  // inputs that are packed, or made ready, at a time

// Inputs with their padding.
static int64_t padded(int32_t kind, int64_t inputs) { return kind == FLOAT32 ? inputs : up(inputs, 2) * 2; }

static int64_t number_bytes(int32_t kind) { return kind == FLOAT32 ? 4 : 2; }

static int64_t panel_bytes(int32_t kind, int64_t inputs) { return padded(kind, inputs) * PANEL * number_bytes(kind); }

int64_t weight_bytes(int32_t kind, int64_t outputs, int64_t inputs) {
    if (kind == INT4) return weight_bytes_4(outputs, inputs);
    if (kind == INT8) return weight_bytes_8(outputs, inputs);
    if (half_or_less(kind)) return weight_bytes_half(kind, outputs, inputs);
    return up(outputs, PANEL) * panel_bytes(kind, inputs);
}

int64_t scale_bytes(int32_t kind, int64_t group, int64_t outputs, int64_t inputs) {
    if (kind == INT4) return scale_bytes_4(group, outputs, inputs);
    return kind == INT8 ? scale_bytes_8(group, outputs, inputs) : scale_bytes_half(kind, group, outputs, inputs);
}

// Where in the weight output `output`'s input `input` lies, in numbers; the first of a pair has the second behind it.
static int64_t place(const Weight* w, int64_t output, int64_t input) {
    const int64_t lane = output % PANEL, panel = output / PANEL * padded(w->kind, w->inputs) * PANEL;
    if (w->kind == FLOAT32) return panel + input * PANEL + lane;
    return panel + input / 2 * 2 * PANEL + lane * 2 + input % 2;
}

// One output's inputs from `input` on, a piece or what the weight's padding leaves of it.
static void pack_piece(const Weight* w, int64_t output, int64_t input, const float* x) {
    const int64_t count = least(padded(w->kind, w->inputs) - input, PIECE);
    const int64_t step = w->kind == FLOAT32 ? PANEL : 2 * PANEL;
    if (w->kind == FLOAT32) {
        float* to = static_cast<float*>(w->data) + place(w, output, input);
        for (int64_t i = 0; i < count; i++) to[i * step] = x[i];
    } else {
        uint16_t* to = static_cast<uint16_t*>(w->data) + place(w, output, input);
        for (int64_t i = 0; i < count; i++) to[i / 2 * step + i % 2] = narrow(x[i]);
    }
}

void pack(const Weight* w, int64_t first, int64_t count, const void* piece, int32_t from) {
    if (w->kind == INT4) return pack_4(w, first, count, piece, from);
    if (w->kind == INT8) return pack_8(w, first, count, piece, from);
    if (half_or_less(w->kind)) return pack_half(w, first, count, piece, from);
    float x[PIECE];
    for (int64_t i = 0; i < count; i++) {
        for (int64_t k = 0; k < w->inputs; k += PIECE) {
            read<PIECE>(piece, from, i * w->inputs + k, w->inputs - k, x);
            pack_piece(w, first + i, k, x);
        }
    }
    if (first + count < w->outputs) return;
    std::memset(x, 0, sizeof x);
    for (int64_t output = w->outputs; output % PANEL; output++) {
        for (int64_t k = 0; k < w->inputs; k += PIECE) pack_piece(w, output, k, x);
    }
}

void unpack(const Weight* w, int64_t output, float* to) {
    if (w->kind == INT4) return unpack_4(w, output, to);
    if (w->kind == INT8) return unpack_8(w, output, to);
    if (half_or_less(w->kind)) return unpack_half(w, output, to);
    for (int64_t k = 0; k < w->inputs; k++) {
        const int64_t at = place(w, output, k);
        to[k] = w->kind == FLOAT32 ? static_cast<const float*>(w->data)[at]
                                   : widen(static_cast<const uint16_t*>(w->data)[at]);
    }
}

static int64_t tile_count(int64_t rows) { return up(rows, MOST_ROWS); }

static int64_t tile_start(int64_t rows, int64_t tile) { return part_start(rows, tile_count(rows), tile); }

// Words that a step reads of each row, and steps.
#ifdef __AVX512BF16__
constexpr int BFLOAT16_WORDS = 1;  // a pair of bfloat16
#else
constexpr int BFLOAT16_WORDS = 2;  // two float32
#endif

static int64_t step_words(int32_t kind) { return kind == BFLOAT16 ? BFLOAT16_WORDS : 1; }

static int64_t step_count(const Weight* w) { return padded(w->kind, w->inputs) / (w->kind == FLOAT32 ? 1 : 2); }

static int64_t step_bytes(int32_t kind) { return PANEL * number_bytes(kind) * (kind == FLOAT32 ? 1 : 2); }

// Of a row, in whole lines.
static int64_t row_words(const Weight* w) { return up(step_count(w) * step_words(w->kind), LINE) * LINE; }

int64_t ready_bytes(const Weight* w, int64_t rows) {
    if (w->kind == INT4) return ready_bytes_4(w, rows);
    if (w->kind == INT8) return ready_bytes_8(w, rows);
    if (half_or_less(w->kind)) return ready_bytes_half(w, rows);
    return up(rows * row_words(w) * 4, 64) * 64;
}

// A piece of a row as words; answers how many, in whole lines.
static int64_t ready_piece(int32_t kind, const float* x, int64_t count, uint32_t* words) {
    if (step_words(kind) == 2 || kind == FLOAT32) {
        std::memcpy(words, x, sizeof(float) * PIECE);
        return up(count, LINE);
    }
    uint16_t halves[PIECE];
#ifdef __AVX512BF16__
    for (int i = 0; i < PIECE; i += 32) {
        store(halves + i, _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i)));
    }
#else
    for (int i = 0; i < PIECE; i++) halves[i] = narrow(x[i]);
#endif
    for (int i = 0; i < PIECE / 2; i++) words[i] = halves[2 * i] | uint32_t(halves[2 * i + 1]) << 16;
    return up(count, 2 * LINE);
}

// One row of a tile of `of` rows, from its first line on.
static void ready_row(const Weight* w, const float* x, uint32_t* to, int64_t of) {
    float piece[PIECE];
    uint32_t words[PIECE];
    int64_t k = 0;
#ifdef __AVX512BF16__
    // Whole lines as they lie: two numbers of 16 bits are a word.
    for (; w->kind == BFLOAT16 && k + 2 * LINE <= w->inputs; k += 2 * LINE, to += of * LINE) {
        store(to, _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + k + LINE), _mm512_loadu_ps(x + k)));
    }
#endif
    if (step_words(w->kind) == 2 || w->kind == FLOAT32) {
        for (; k + LINE <= w->inputs; k += LINE, to += of * LINE) std::memcpy(to, x + k, 4 * LINE);
    }
    for (; k < w->inputs; k += PIECE) {
        const int64_t count = least(w->inputs - k, PIECE);
        read<PIECE>(x, FLOAT32, k, count, piece);
        const int64_t lines = ready_piece(w->kind, piece, count, words);
        for (int64_t i = 0; i < lines; i++, to += of * LINE) std::memcpy(to, words + i * LINE, 4 * LINE);
    }
}

void make_ready(const Weight* w, const float* x, int64_t stride, int64_t first, int64_t count, int64_t rows,
                void* ready) {
    if (w->kind == INT4) return make_ready_4(w, x, stride, first, count, rows, ready);
    if (w->kind == INT8) return make_ready_8(w, x, stride, first, count, rows, ready);
    if (half_or_less(w->kind)) return make_ready_half(w, x, stride, first, count, rows, ready);
    uint32_t* words = static_cast<uint32_t*>(ready);
    for (int64_t tile = 0; tile < tile_count(rows); tile++) {
        const int64_t start = tile_start(rows, tile), end = tile_start(rows, tile + 1);
        for (int64_t row = most(start, first); row < least(end, first + count); row++) {
            ready_row(w, x + row * stride, words + start * row_words(w) + (row - start) * LINE, end - start);
        }
    }
}

// R rows meet STRIP outputs over `steps` steps; `words` are theirs, `y` [R, STRIP] is added to if it `resumes`, and set
// otherwise; `bias` comes last, or null.
struct Tile {
    const char* weight;
    const uint32_t* words;
    int64_t steps;
    float* y;
    int64_t stride;
    bool resumes;
    const float* bias;
    const char* ahead;  // fetched into the cache meanwhile, `advance` bytes in a step
    int64_t advance;
};

template <int R>
static inline void step_float32(vfloat (&sum)[R][2], const char* weight, const uint32_t* words) {
    const vfloat w0 = load<vfloat>(weight), w1 = load<vfloat>(weight + sizeof(vfloat));
    for (int r = 0; r < R; r++) {
        const vfloat x = all(load<float>(words + r * LINE));
        sum[r][0] += w0 * x;
        sum[r][1] += w1 * x;
    }
}

#ifdef __AVX512BF16__
template <int R>
static inline void step_bfloat16(vfloat (&sum)[R][2], const char* weight, const uint32_t* words) {
    const __m512bh w0 = load<__m512bh>(weight), w1 = load<__m512bh>(weight + 64);
    for (int r = 0; r < R; r++) {
        const __m512bh x = (__m512bh)_mm512_set1_epi32(int32_t(words[r * LINE]));
        sum[r][0] = (vfloat)_mm512_dpbf16_ps((__m512)sum[r][0], w0, x);
        sum[r][1] = (vfloat)_mm512_dpbf16_ps((__m512)sum[r][1], w1, x);
    }
}
#else
template <int R>
static inline void step_bfloat16(vfloat (&sum)[R][2], const char* weight, const uint32_t* words) {
    const vuint w0 = load<vuint>(weight), w1 = load<vuint>(weight + sizeof(vuint));
    const vuint upper = vuint{} + 0xffff0000u;
    for (int half = 0; half < 2; half++) {
        const vfloat h0 = (vfloat)(half ? w0 & upper : w0 << 16), h1 = (vfloat)(half ? w1 & upper : w1 << 16);
        for (int r = 0; r < R; r++) {
            const vfloat x = all(load<float>(words + r * LINE + half));
            sum[r][0] += h0 * x;
            sum[r][1] += h1 * x;
        }
    }
}
#endif

// Steps whose words begin with a line.
template <int KIND, int R>
static inline void run(vfloat (&sum)[R][2], const char* weight, const uint32_t* words, int64_t steps, const char* ahead,
                       int64_t advance) {
    constexpr int64_t WORDS = KIND == BFLOAT16 ? BFLOAT16_WORDS : 1, BYTES = PANEL * 4;
    for (; steps > 0; steps -= LINE / WORDS, words += R * LINE) {
        const int64_t count = least(steps, LINE / WORDS);
        for (int64_t step = 0; step < count; step++, weight += BYTES, ahead += advance) {
            __builtin_prefetch(ahead, 0, 2);  // into the second-level cache
            __builtin_prefetch(ahead + 64, 0, 2);
            if constexpr (KIND == FLOAT32) step_float32<R>(sum, weight, words + step);
            if constexpr (KIND == BFLOAT16) step_bfloat16<R>(sum, weight, words + step * WORDS);
        }
    }
}

template <int KIND, int R>
__attribute__((noinline)) static void multiply(const Tile& t) {
    vfloat sum[R][2] = {};
    run<KIND, R>(sum, t.weight, t.words, t.steps, t.ahead, t.advance);
    for (int r = 0; r < R; r++) {
        for (int i = 0; i < 2; i++) {
            float* y = t.y + r * t.stride + i * LANES;
            if (t.resumes) sum[r][i] = load<vfloat>(y) + sum[r][i];
            if (t.bias) sum[r][i] += load<vfloat>(t.bias + i * LANES);
            store(y, sum[r][i]);
        }
    }
}

template <int KIND, int R = MOST_ROWS>
static void choose(int64_t rows, const Tile& t) {
    if (rows == R) return multiply<KIND, R>(t);
    if constexpr (R > 1) choose<KIND, R - 1>(rows, t);
}

static void multiply(int32_t kind, int64_t rows, const Tile& t) {
    if (kind == FLOAT32) return choose<FLOAT32>(rows, t);
    choose<BFLOAT16>(rows, t);
}

// A tile with all of a panel's outputs. Where the panel has fewer than PANEL, by way of a copy.
static void multiply_panel(int32_t kind, int64_t rows, int64_t outputs, Tile t) {
    float copy[MOST_ROWS * PANEL];
    float* const y = t.y;
    const int64_t stride = t.stride, strip_bytes = step_bytes(kind) / (PANEL / STRIP);
    if (outputs < PANEL) {
        t.y = copy;
        t.stride = PANEL;
        std::memset(copy, 0, sizeof copy);
        for (int64_t r = 0; t.resumes && r < rows; r++) std::memcpy(copy + r * PANEL, y + r * stride, outputs * 4);
    }
    for (int64_t strip = 0; strip < PANEL / STRIP; strip++) {
        multiply(kind, rows, t);
        t.weight += strip_bytes;
        t.y += STRIP;
        if (t.bias) t.bias += STRIP;
    }
    for (int64_t r = 0; outputs < PANEL && r < rows; r++) std::memcpy(y + r * stride, copy + r * PANEL, outputs * 4);
}

// Tiles [first, last) of the rows meet a panel's steps [from, to). A single tile asks for memory AHEAD of its use; of
// several, each asks for its share of `next`, a block that is read then, so that memory is not idle while later tiles
// read this one from the cache.
struct Part {
    int64_t first, last, panel, from, to;
};

static const char* weights_at(const Weight* w, int64_t panel, int64_t step) {
    return static_cast<const char*>(w->data) + panel * panel_bytes(w->kind, w->inputs) + step * step_bytes(w->kind);
}

static void multiply_block(const Weight* w, const void* ready, int64_t rows, const Part& part, const char* next,
                           const float* bias, float* y, int64_t stride) {
    const uint32_t* words = static_cast<const uint32_t*>(ready);
    Tile t = {};
    t.weight = weights_at(w, part.panel, part.from);
    t.steps = part.to - part.from;
    t.stride = stride;
    t.resumes = part.from > 0;
    t.bias = part.to == step_count(w) ? bias : nullptr;
    const int64_t tiles = part.last - part.first, block = t.steps * step_bytes(w->kind);
    t.advance = step_bytes(w->kind) / tiles;
    for (int64_t tile = part.first; tile < part.last; tile++) {
        const int64_t start = tile_start(rows, tile), count = tile_start(rows, tile + 1) - start;
        t.ahead = tiles > 1 ? next + (tile - part.first) * (block / tiles) : t.weight + AHEAD;
        t.words = words + start * row_words(w) + part.from * step_words(w->kind) * count;
        t.y = y + start * stride + part.panel * PANEL;
        multiply_panel(w->kind, count, least(w->outputs - part.panel * PANEL, PANEL), t);
    }
}

// Tiles [first, last) meet panels [from, to), of each the blocks [begin, end) of `block` steps.
struct Share {
    int64_t first, last, from, to, begin, end, block;
};

static void multiply_share(const Weight* w, const void* ready, int64_t rows, const Share& share, const float* bias,
                           float* y, int64_t stride) {
    const int64_t steps = step_count(w);
    for (int64_t panel = share.from; panel < share.to; panel++) {
        float offset[PANEL] = {};
        const int64_t outputs = least(w->outputs - panel * PANEL, PANEL);
        if (bias) std::memcpy(offset, bias + panel * PANEL, outputs * 4);
        for (int64_t i = share.begin; i < share.end; i++) {
            const Part part = {share.first, share.last, panel, i * share.block, least((i + 1) * share.block, steps)};
            const char* next =
                i + 1 < share.end ? weights_at(w, panel, part.to) : weights_at(w, panel + 1, share.begin * share.block);
            multiply_block(w, ready, rows, part, next, bias ? offset : nullptr, y, stride);
        }
    }
}

// Many rows, or inputs, go by shares whose words stay in the second-level cache while panel after panel meets them. A
// sum's blocks and their order are the same in every division.
void product(const Weight* w, const void* ready, int64_t rows, int64_t from, int64_t to, const float* bias, float* y,
             int64_t stride, float*) {
    if (w->kind == INT4) return product_4(w, ready, rows, from, to, bias, y, stride);
    if (w->kind == INT8) return product_8(w, ready, rows, from, to, bias, y, stride);
    if (half_or_less(w->kind)) return product_half(w, ready, rows, from, to, bias, y, stride);
    const int64_t block = BLOCK_BYTES / step_bytes(w->kind), blocks = up(step_count(w), block);
    const int64_t tiles = tile_count(rows), runs = up(tiles, MOST_TILES), run = up(tiles, runs);
    const int64_t bytes = least(rows, run * MOST_ROWS) * block * step_words(w->kind) * 4;
    const int64_t slices = up(blocks, most(WORDS_BYTES / bytes, 1));
    for (int64_t slice = 0; slice < slices; slice++) {
        const int64_t begin = part_start(blocks, slices, slice), end = part_start(blocks, slices, slice + 1);
        for (int64_t i = 0; i < runs; i++) {
            const Share share = {
                part_start(tiles, runs, i), part_start(tiles, runs, i + 1), from, to, begin, end, block};
            multiply_share(w, ready, rows, share, bias, y, stride);
        }
    }
}

int64_t product_scratch(const Weight*, int64_t) { return 0; }

}  // namespace VARIANT
