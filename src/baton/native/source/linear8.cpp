// Linear products on weights in 8 bits: y = x . w^T + bias, kind INT8 of kernels.h.
//
// Activations are rounded to 16 bits for each chunk of 64 inputs of a row; of 32 or 16, if a scale of the weight is for
// fewer. What a chunk gives is an integer, which is exact (64 x 128 x 32767 and 64 x 256 x 32767 together are below
// 2^31); to an output's sum in float32 it is added by one fused multiply-add, and a min by another. Sums run over the
// chunks in their order, in one chain whatever the number of rows: a row's result is the same bits in any company, and
// on any instruction set.
//
// A row's words, a pair of inputs each, go by cache lines, [line][rows of the tile][16 words]: threads that make
// different rows ready share no line, and the rows of a tile are found at constant distances.
#include "linear8.h"
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
constexpr int64_t LINE = 16;  // words
constexpr int64_t STEP_BYTES = 2 * PANEL;  // of a pair of inputs

typedef int8_t vbyte __attribute__((vector_size(LANES * 2)));

// Vectors of outputs that R rows meet at once: a single row takes all of a panel's, so that memory is read in order.
constexpr int vectors_of(int rows) { return rows == 1 && VECTORS == 4 ? 4 : 2; }

static int64_t padded(int64_t inputs) { return up(inputs, GROUP) * GROUP; }

static int64_t chunk_of(const Weight* w) { return w->group % 64 == 0 ? 64 : w->group % 32 == 0 ? 32 : 16; }

static int64_t chunks_of(const Weight* w) { return padded(w->inputs) / chunk_of(w); }

static int64_t panel_bytes(int64_t inputs) { return padded(inputs) * PANEL; }

int64_t weight_bytes_8(int64_t outputs, int64_t inputs) { return up(outputs, PANEL) * panel_bytes(inputs); }

int64_t scale_bytes_8(int64_t group, int64_t outputs, int64_t inputs) {
    return up(outputs, PANEL) * up(inputs, group) * PANEL * int64_t(sizeof(float));
}

// Packing

// An output's pair that begins with this input.
static int8_t* codes_of(const Weight* w, int64_t output, int64_t input) {
    return static_cast<int8_t*>(w->data) + output / PANEL * panel_bytes(w->inputs) + input / 2 * STEP_BYTES +
           output % PANEL * 2;
}

static void pack_group(const Weight* w, int64_t output, int64_t input, const float* x) {
    int16_t whole[GROUP];
    static_cast<float*>(w->scales)[group_place(w, output, input / GROUP)] = quantise<GROUP>(x, 127, whole);
    for (int64_t i = 0; i < GROUP; i++) codes_of(w, output, input + i)[i % 2] = int8_t(whole[i]);
}

void pack_8(const Weight* w, int64_t first, int64_t count, const void* piece, int32_t from) {
    const bool last = first + count == w->outputs;
    float x[GROUP] = {};
    for (int64_t i = 0; i < (last ? up(w->outputs, PANEL) * PANEL - first : count); i++) {
        for (int64_t k = 0; k < w->inputs; k += GROUP) {
            if (i < count) read<GROUP>(piece, from, i * w->inputs + k, w->inputs - k, x);
            if (i == count) std::memset(x, 0, sizeof x);
            pack_group(w, first + i, k, x);
        }
    }
}

void unpack_8(const Weight* w, int64_t output, float* to) {
    for (int64_t k = 0; k < w->inputs; k++) {
        to[input_of(w, k)] = number_of(w, codes_of(w, output, k)[k % 2], group_place(w, output, k / w->group));
    }
}

// Rows

static int64_t tile_count(int64_t rows) { return up(rows, MOST_ROWS); }

static int64_t tile_start(int64_t rows, int64_t tile) { return part_start(rows, tile_count(rows), tile); }

static int64_t row_words(const Weight* w) { return padded(w->inputs) / 2; }

// What rows have behind their words: a scale and the integers' sum for each chunk.
struct Ends {
    float* scales;
    int32_t* sums;
};

static Ends ends_of(const Weight* w, const void* ready, int64_t rows) {
    uint32_t* words = static_cast<uint32_t*>(const_cast<void*>(ready)) + rows * row_words(w);
    return {reinterpret_cast<float*>(words), reinterpret_cast<int32_t*>(words + rows * chunks_of(w))};
}

int64_t ready_bytes_8(const Weight* w, int64_t rows) {
    return up(rows * (row_words(w) + 2 * chunks_of(w)) * 4, 64) * 64;
}

// Of GROUP inputs the chunks of N; `whole` gets the integers.
template <int N>
static void ready_chunks(const float* x, int16_t* whole, float* scales, int32_t* sums) {
    for (int64_t at = 0; at < GROUP; at += N) {
        scales[at / N] = quantise<N>(x + at, 32767, whole + at);
        int32_t sum = 0;
        for (int i = 0; i < N; i++) sum += whole[at + i];
        sums[at / N] = sum;
    }
}

// One row of a tile of `of` rows, from its first line on.
static void ready_row(const Weight* w, const float* x, uint32_t* to, Ends ends, int64_t of) {
    const int64_t chunk = chunk_of(w);
    float group[GROUP];
    int16_t whole[GROUP];
    for (int64_t k = 0; k < w->inputs; k += GROUP) {
        read_row<GROUP>(w, x, k, w->inputs - k, group);
        float* scales = ends.scales + k / chunk;
        int32_t* sums = ends.sums + k / chunk;
        if (chunk == 64) ready_chunks<64>(group, whole, scales, sums);
        if (chunk == 32) ready_chunks<32>(group, whole, scales, sums);
        if (chunk == 16) ready_chunks<16>(group, whole, scales, sums);
        for (int64_t i = 0; i < GROUP; i += 2 * LINE, to += of * LINE) std::memcpy(to, whole + i, 4 * LINE);
    }
}

void make_ready_8(const Weight* w, const float* x, int64_t stride, int64_t first, int64_t count, int64_t rows,
                  void* ready) {
    uint32_t* words = static_cast<uint32_t*>(ready);
    const Ends ends = ends_of(w, ready, rows);
    for (int64_t tile = 0; tile < tile_count(rows); tile++) {
        const int64_t start = tile_start(rows, tile), end = tile_start(rows, tile + 1);
        for (int64_t row = most(start, first); row < least(end, first + count); row++) {
            const int64_t at = row * chunks_of(w);
            ready_row(w, x + row * stride, words + start * row_words(w) + (row - start) * LINE,
                      {ends.scales + at, ends.sums + at}, end - start);
        }
    }
}

// Products

// Adds to each of `sum` the product of its pair of w and its pair of x, int16 each.
static inline vint dot(vint sum, vshort w, vint x) {
#if defined(__AVX512VNNI__)
    return (vint)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif defined(__AVXVNNI__)
    return (vint)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
#elif defined(__AVX512BW__)
    return sum + (vint)_mm512_madd_epi16((__m512i)w, (__m512i)x);
#elif defined(__AVX2__)
    return sum + (vint)_mm256_madd_epi16((__m256i)w, (__m256i)x);
#else
    const vint pairs = (vint)w;
    return sum + (pairs << 16 >> 16) * (x << 16 >> 16) + (pairs >> 16) * (x >> 16);
#endif
}

// Some rows meet outputs of a panel, inputs [from, to); `y` is added to if from > 0, and set otherwise; `bias` comes
// last, or null.
struct Tile {
    const Weight* weight;
    const char* data;  // the first output's pair of the inputs from, from + 1
    const uint32_t* words;  // likewise of the first row
    int64_t from, to, chunk;
    int64_t place;  // the first output's scale of group 0
    const float* row_scales;  // of the first row, and `chunks` further of the next
    const int32_t* row_sums;
    int64_t chunks;
    float* y;
    int64_t stride;
    const float* bias;
    const char* ahead;  // fetched into the cache meanwhile, `advance` bytes in a step
    int64_t advance;
};

// Steps whose words lie in one line. The loop is not unrolled: GCC would keep all steps' words at once, and has no
// registers for them.
template <int R, int V>
static inline void add_steps(vint (&dots)[R][V], const char* data, const uint32_t* words, int64_t steps,
                             const char* ahead, int64_t advance) {
#pragma GCC unroll 1
    for (int64_t step = 0; step < steps; step++) {
        __builtin_prefetch(ahead + step * advance, 0, 2);  // into the second-level cache
        vshort some[V];
        for (int v = 0; v < V; v++) {
            some[v] = __builtin_convertvector(load<vbyte>(data + step * STEP_BYTES + v * sizeof(vbyte)), vshort);
        }
        for (int r = 0; r < R; r++) {
            const vint x = vint{} + int32_t(words[r * LINE + step]);
            for (int v = 0; v < V; v++) dots[r][v] = dot(dots[r][v], some[v], x);
        }
    }
}

// What V vectors of outputs have in common in a group.
template <int V>
struct Common {
    vfloat scale[V], min[V];
    vint zero[V];

    Common(const Weight* w, int64_t at, bool general) {
        for (int v = 0; v < V; v++) {
            scale[v] = scales_at(w, w->scales, at + v * LANES);
            if (!general) continue;
            zero[v] = zeros_at(w, at + v * LANES);
            if (w->mins) min[v] = scales_at(w, w->mins, at + v * LANES);
        }
    }
};

// Adds a chunk's integers to the sums. GENERAL: with zeros or mins.
template <int R, int V, bool GENERAL>
static inline void add_chunk(vfloat (&sum)[R][V], const vint (&dots)[R][V], const Common<V>& common, const Tile& t,
                             int64_t chunk) {
    for (int r = 0; r < R; r++) {
        const float scale = t.row_scales[r * t.chunks + chunk];
        const int32_t whole = GENERAL ? t.row_sums[r * t.chunks + chunk] : 0;
        for (int v = 0; v < V; v++) {
            vint product = dots[r][v];
            if constexpr (GENERAL) product -= common.zero[v] * whole;
            sum[r][v] = fused(__builtin_convertvector(product, vfloat), common.scale[v] * scale, sum[r][v]);
            if constexpr (GENERAL) {
                if (t.weight->mins) sum[r][v] = fused(common.min[v], all(-(scale * float(whole))), sum[r][v]);
            }
        }
    }
}

template <int R, int V, bool GENERAL>
__attribute__((noinline)) static void multiply(const Tile& t) {
    vfloat sum[R][V] = {};
    for (int r = 0; t.from > 0 && r < R; r++) {
        for (int v = 0; v < V; v++) sum[r][v] = load<vfloat>(t.y + r * t.stride + v * LANES);
    }
    const char *data = t.data, *ahead = t.ahead;
    const uint32_t* words = t.words;
    const int64_t size = t.weight->group, first = t.from / size;
    int64_t k = t.from, chunk = t.from / t.chunk, place = t.place + first * PANEL;
    for (int64_t end = (first + 1) * size; k < t.to; end += size, place += PANEL) {
        const Common<V> common(t.weight, place, GENERAL);
        for (; k < least(end, t.to); chunk++) {
            vint dots[R][V] = {};
            for (const int64_t stop = k + t.chunk, steps = least(t.chunk / 2, LINE); k < stop; k += 2 * steps) {
                add_steps<R, V>(dots, data, words + k / 2 % LINE, steps, ahead, t.advance);
                data += steps * STEP_BYTES;
                ahead += steps * t.advance;
                if ((k / 2 + steps) % LINE == 0) words += R * LINE;
            }
            add_chunk<R, V, GENERAL>(sum, dots, common, t, chunk);
        }
    }
    for (int r = 0; r < R; r++) {
        for (int v = 0; v < V; v++) {
            if (t.bias) sum[r][v] += load<vfloat>(t.bias + v * LANES);
            store(t.y + r * t.stride + v * LANES, sum[r][v]);
        }
    }
}

// R rows meet all of a panel's outputs.
template <int R>
static void multiply_panel(Tile t) {
    constexpr int V = vectors_of(R);
    const bool general = !symmetric(t.weight) || t.weight->zero;
    for (int v = 0; v < VECTORS; v += V) {
        general ? multiply<R, V, true>(t) : multiply<R, V, false>(t);
        t.data += V * sizeof(vbyte);
        t.place += V * LANES;
        t.y += V * LANES;
        if (t.bias) t.bias += V * LANES;
    }
}

template <int R = MOST_ROWS>
static void choose(int64_t rows, const Tile& t) {
    if (rows == R) return multiply_panel<R>(t);
    if constexpr (R > 1) choose<R - 1>(rows, t);
}

// Where the panel has fewer outputs than PANEL, by way of a copy.
static void multiply_some(int64_t rows, int64_t outputs, Tile t) {
    if (outputs == PANEL) return choose(rows, t);
    float copy[MOST_ROWS * PANEL] = {};
    float* const y = t.y;
    const int64_t stride = t.stride;
    t.y = copy;
    t.stride = PANEL;
    for (int64_t r = 0; t.from > 0 && r < rows; r++) std::memcpy(copy + r * PANEL, y + r * stride, outputs * 4);
    choose(rows, t);
    for (int64_t r = 0; r < rows; r++) std::memcpy(y + r * stride, copy + r * PANEL, outputs * 4);
}

// A panel's inputs [from, to) with all rows. A single tile asks for memory AHEAD of its use; of several, each asks for
// its share of what lies behind the block, so that memory is not idle while later tiles read the block from the cache.
static void multiply_block(const Weight* w, const void* ready, int64_t rows, int64_t panel, int64_t from, int64_t to,
                           const float* bias, float* y, int64_t stride) {
    const Ends ends = ends_of(w, ready, rows);
    const int64_t tiles = tile_count(rows), block = (to - from) / 2 * STEP_BYTES;
    Tile t = {};
    t.weight = w;
    t.data = static_cast<const char*>(w->data) + panel * panel_bytes(w->inputs) + from / 2 * STEP_BYTES;
    t.from = from;
    t.to = to;
    t.chunk = chunk_of(w);
    t.place = group_place(w, panel * PANEL, 0);
    t.chunks = chunks_of(w);
    t.stride = stride;
    t.bias = bias;
    t.advance = STEP_BYTES / tiles;
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t start = tile_start(rows, tile), count = tile_start(rows, tile + 1) - start;
        t.ahead = t.data + (tiles > 1 ? block + tile * (block / tiles) : AHEAD);
        t.words = static_cast<const uint32_t*>(ready) + start * row_words(w) + from / 2 * count;
        t.row_scales = ends.scales + start * t.chunks;
        t.row_sums = ends.sums + start * t.chunks;
        t.y = y + start * stride + panel * PANEL;
        multiply_some(count, least(w->outputs - panel * PANEL, PANEL), t);
    }
}

void product_8(const Weight* w, const void* ready, int64_t rows, int64_t from, int64_t to, const float* bias, float* y,
               int64_t stride) {
    const int64_t inputs = up(w->inputs, chunk_of(w)) * chunk_of(w);
    const int64_t block = rows == 1 ? inputs : BLOCK_BYTES / PANEL;
    for (int64_t panel = from; panel < to; panel++) {
        float offset[PANEL] = {};
        const int64_t outputs = least(w->outputs - panel * PANEL, PANEL);
        if (bias) std::memcpy(offset, bias + panel * PANEL, outputs * 4);
        for (int64_t k = 0; k < inputs; k += block) {
            const int64_t end = least(k + block, inputs);
            multiply_block(w, ready, rows, panel, k, end, bias && end == inputs ? offset : nullptr, y, stride);
        }
    }
}

}  // namespace VARIANT
