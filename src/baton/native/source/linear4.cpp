// Linear products on weights in 4 bits: y = x . w^T + bias, kind INT4 of kernels.h.
//
// Activations are rounded to 8 bits for each CHUNK of 32 inputs of a row (or to 16 bits, as two planes of 8). What the
// codes of a chunk and of a row give is an integer, which is exact; to an output's sum in float32 it is added by one
// fused multiply-add. Sums run over the chunks in their order, in one chain whatever the number of rows: a row's
// result is the same bits in any company, and on any instruction set.
//
// Codes are unsigned, 8 more than what they mean: sum (q - 8) x = sum q x - 8 sum x, and the latter belongs to the row.
// That makes them operands of vpdpbusd (VNNI), sdot (Arm) and vpmaddubsw; without dot products of 4 bytes, sums of a
// chunk are kept in 16 bits, which hold them: 8 pairs of 15 x 128 are 30,720.
#include "linear4.h"
#include "dots.h"
#include "grouped.h"

namespace VARIANT {

#if defined(__AVX512F__)
constexpr int MOST_ROWS = 6;  // of a tile: 12 sums, 12 of a chunk, 4 vectors of codes and the mask in 32 registers
#elif defined(__AVX2__)
constexpr int MOST_ROWS = 8;
#else
constexpr int MOST_ROWS = 4;
#endif
constexpr int VECTORS = PANEL / LANES;  // of a panel's outputs
constexpr int STEPS = 4;  // of a chunk, each of 8 inputs
constexpr int64_t STEP_BYTES = 4 * PANEL;
constexpr int64_t CHUNK_BYTES = STEPS * STEP_BYTES;
constexpr int64_t AHEAD = 8 << 10;  // bytes; how far ahead of its use memory is asked for, where each byte is used once

// Vectors of outputs that R rows meet at once: few rows take all of a panel's, so that memory is read once and in order.
constexpr int vectors_of(int rows) {
#if defined(__AVX512F__)
    return VECTORS;
#elif defined(__AVX2__)
    return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
#else
    return rows == 1 ? 4 : rows == 2 ? 2 : 1;
#endif
}

static int64_t chunks_of(int64_t inputs) { return up(inputs, CHUNK); }

int64_t weight_bytes_4(int64_t outputs, int64_t inputs) { return up(outputs, PANEL) * chunks_of(inputs) * CHUNK_BYTES; }

int64_t scale_bytes_4(int64_t group, int64_t outputs, int64_t inputs) {
    return up(outputs, PANEL) * up(inputs, group) * PANEL * int64_t(sizeof(uint16_t));
}

// Packing

// An output's first byte of a chunk; those of the next step are STEP_BYTES further.
static uint8_t* codes_of(const Weight* w, int64_t output, int64_t chunk) {
    return static_cast<uint8_t*>(w->data) + (output / PANEL * chunks_of(w->inputs) + chunk) * CHUNK_BYTES +
           output % PANEL * 4;
}

// The number of greatest magnitude in a group (the positive one of two), which NaN and infinity are.
static float peak_of(const void* piece, int32_t from, int64_t at, int64_t count) {
    float peak = 0, x[CHUNK];
    for (int64_t k = 0; k < count; k += CHUNK) {
        read<CHUNK>(piece, from, at + k, count - k, x);
        const float top = greatest<CHUNK>(x);
        if (!(top <= MOST_FINITE)) return top;
        bool positive = false;
        for (int i = 0; i < CHUNK; i++) positive |= x[i] == top;
        if (top > std::fabs(peak) || (top == std::fabs(peak) && positive)) peak = positive ? top : -top;
    }
    return peak;
}

static uint8_t code_of(int whole) { return uint8_t(least(most(whole + 8, 0), 15)); }

// One output's group. Its number of greatest magnitude gets the code 0, which means -8: the only one so far out.
static void pack_group(const Weight* w, int64_t output, int64_t group, const void* piece, int32_t from, int64_t at) {
    const int64_t begin = group * w->group, count = least(w->inputs - begin, w->group);
    const float peak = piece ? peak_of(piece, from, at + begin, count) : 0.0f;
    const bool finite = std::fabs(peak) <= MOST_FINITE;
    const uint16_t half = to_half(!finite ? NAN : std::fabs(peak) < LEAST ? 0.0f : peak / -8 / w->power);
    static_cast<uint16_t*>(w->scales)[group_place(w, output, group)] = half;
    const float scale = finite ? from_half(half) * w->power : 0.0f, inverse = scale != 0 ? 1 / scale : 0.0f;
    float x[CHUNK] = {};
    int16_t whole[CHUNK] = {};
    for (int64_t k = 0; k < count; k += CHUNK) {
        if (inverse != 0) {
            read<CHUNK>(piece, from, at + begin + k, count - k, x);
            round_to<CHUNK>(x, inverse, whole);
        }
        uint8_t* to = codes_of(w, output, (begin + k) / CHUNK);
        for (int i = 0; i < CHUNK; i += 8, to += STEP_BYTES) {
            for (int j = 0; j < 4; j++) {
                to[j] = uint8_t(code_of(whole[i + j]) | code_of(whole[i + 4 + j]) << 4);
            }
        }
    }
}

void pack_4(const Weight* w, int64_t first, int64_t count, const void* piece, int32_t from) {
    const bool last = first + count == w->outputs;
    for (int64_t i = 0; i < (last ? up(w->outputs, PANEL) * PANEL - first : count); i++) {
        for (int64_t group = 0; group < groups_of(w); group++) {
            pack_group(w, first + i, group, i < count ? piece : nullptr, from, i * w->inputs);
        }
    }
}

void unpack_4(const Weight* w, int64_t output, float* to) {
    for (int64_t k = 0; k < w->inputs; k++) {
        const uint8_t both = codes_of(w, output, k / CHUNK)[k % CHUNK / 8 * STEP_BYTES + k % 4];
        const int code = k % 8 < 4 ? both & 15 : both >> 4;
        to[input_of(w, k)] = number_of(w, w->table ? w->table[code] : code, group_place(w, output, k / w->group));
    }
}

// Rows

// A row's chunk as products read it. It lies by tiles, [chunk][rows of the tile]: rows are at constant distances.
template <int PLANES>
struct Ready {
    int32_t words[PLANES * 8];  // 4 inputs each; of two planes the upper bytes first, x = 256 upper + lower
    float scale;
    int32_t correction;  // -8 times the sum of the integers
};

static int64_t ready_size(const Weight* w) { return w->planes == 1 ? sizeof(Ready<1>) : sizeof(Ready<2>); }

static int64_t tile_count(int64_t rows) { return up(rows, MOST_ROWS); }

int64_t ready_bytes_4(const Weight* w, int64_t rows) {
    return up(rows * chunks_of(w->inputs) * ready_size(w), 64) * 64;
}

template <int PLANES>
static void ready_chunk(const float* x, Ready<PLANES>* to) {
    int16_t whole[CHUNK];
    to->scale = quantise<CHUNK>(x, PLANES == 1 ? 127 : 32639, whole);  // 32639 = 127 x 256 + 127
    int32_t sum = 0;
    int8_t bytes[PLANES * CHUNK];
    for (int i = 0; i < CHUNK; i++) {
        sum += whole[i];
        const int upper = (whole[i] + 128) >> 8;
        bytes[i] = int8_t(PLANES == 1 ? whole[i] : upper);
        if constexpr (PLANES == 2) bytes[CHUNK + i] = int8_t(whole[i] - 256 * upper);
    }
    to->correction = -8 * sum;
    std::memcpy(to->words, bytes, sizeof bytes);
}

template <int PLANES>
static void ready_row(const Weight* w, const float* x, Ready<PLANES>* to, int64_t of) {
    float chunk[CHUNK];
    int64_t k = 0;
    for (; !w->order && k + CHUNK <= w->inputs; k += CHUNK, to += of) ready_chunk<PLANES>(x + k, to);
    for (; k < w->inputs; k += CHUNK, to += of) {
        read_row<CHUNK>(w, x, k, w->inputs - k, chunk);
        ready_chunk<PLANES>(chunk, to);
    }
}

template <int PLANES>
static void ready_rows(const Weight* w, const float* x, int64_t stride, int64_t first, int64_t count, int64_t rows,
                       Ready<PLANES>* ready) {
    const int64_t tiles = tile_count(rows), chunks = chunks_of(w->inputs);
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t start = part_start(rows, tiles, tile), end = part_start(rows, tiles, tile + 1);
        for (int64_t row = most(start, first); row < least(end, first + count); row++) {
            ready_row<PLANES>(w, x + row * stride, ready + start * chunks + row - start, end - start);
        }
    }
}

void make_ready_4(const Weight* w, const float* x, int64_t stride, int64_t first, int64_t count, int64_t rows,
                  void* ready) {
    if (w->planes == 1) return ready_rows(w, x, stride, first, count, rows, static_cast<Ready<1>*>(ready));
    ready_rows(w, x, stride, first, count, rows, static_cast<Ready<2>*>(ready));
}

// Products

// How codes become numbers. SYMMETRIC: (code - 8) x scale. ZEROS: any zeros, and mins. TABLE: besides, codes are looked
// up.
enum Mode { SYMMETRIC, ZEROS, TABLE };

// Some rows meet outputs of a panel; `y` is set.
struct Tile {
    const Weight* weight;
    const char* data;
    int64_t place;  // the first output's scale of group 0
    const void* ready;
    int64_t chunks, per_group;  // chunks, and how many of them share a scale
    float* y;
    int64_t stride;
    const float* bias;  // or null
    const char* ahead;  // fetched into the cache meanwhile, `advance` bytes in a step
    int64_t advance;
};

// What a chunk's codes give with R rows for V vectors of outputs, as integers.
template <int R, int V, int PLANES, int MODE>
static inline void multiply_chunk(vint (&product)[R][V], const Tile& t, const char* data, const Ready<PLANES>* ready,
                                  const char* ahead) {
    // Sums of 16 bits hold 16 products with codes, and 8 with numbers of a table, which are up to 24.
    constexpr int PARTS = MODE == TABLE ? 2 : 1;
#pragma GCC unroll 2
    for (int part = 0; part < PARTS; part++) {
        Dots dots[R][V][PLANES] = {};
#pragma GCC unroll 4
        for (int step = part * STEPS / PARTS; step < (part + 1) * STEPS / PARTS; step++) {
            __builtin_prefetch(ahead + step * t.advance, 0, 2);  // into the second-level cache
            __builtin_prefetch(ahead + step * t.advance + 64, 0, 2);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) {
                const vint both = load<vint>(data + step * STEP_BYTES + v * sizeof(vint));
                vint low = both & 0x0f0f0f0f, high = (vint)((vuint)both >> 4) & 0x0f0f0f0f;
                if constexpr (MODE == TABLE) {
                    low = looked_up(t.weight->table, low);
                    high = looked_up(t.weight->table, high);
                }
#pragma GCC unroll 16
                for (int r = 0; r < R; r++) {
#pragma GCC unroll 2
                    for (int p = 0; p < PLANES; p++) {
                        const int32_t* words = ready[r].words + p * 8 + step * 2;
                        Dots& chunk = dots[r][v][p];
                        chunk = dot(dot(chunk, low, vint{} + words[0]), high, vint{} + words[1]);
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
                        asm volatile("" : "+v"(chunk));  // else GCC holds all rows' words at once, and has no
                        // registers left
#endif
                    }
                }
            }
        }
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                vint some = whole(dots[r][v][0]);
                if constexpr (PLANES == 2) some = (some << 8) + whole(dots[r][v][PLANES - 1]);
                product[r][v] = part ? product[r][v] + some : some;
            }
        }
    }
}

// What V vectors of outputs have in common in a group; zeros and mins where numbers are not symmetric.
template <int V>
struct Common {
    vfloat scale[V], min[V];
    vint zero[V];
};

template <int V, int MODE>
static inline Common<V> common_of(const Weight* w, int64_t place) {
    Common<V> common;
    for (int v = 0; v < V; v++) {
        common.scale[v] = scales_at(w, w->scales, place + v * LANES);
        if constexpr (MODE != SYMMETRIC) {
            common.zero[v] = zeros_at(w, place + v * LANES);
            common.min[v] = w->mins ? scales_at(w, w->mins, place + v * LANES) : vfloat{};
        }
    }
    return common;
}

// Adds a chunk of R rows to the sums of V vectors of outputs.
template <int R, int V, int PLANES, int MODE>
static inline void add_chunk(vfloat (&sum)[R][V], const Common<V>& common, const Tile& t, const char* data,
                             const Ready<PLANES>* ready, const char* ahead) {
    vint product[R][V];
    multiply_chunk<R, V, PLANES, MODE>(product, t, data, ready, ahead);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            if constexpr (MODE == SYMMETRIC) {
                product[r][v] += ready[r].correction;
            } else {
                product[r][v] += common.zero[v] * ready[r].correction >> 3;  // exact: it is a multiple of 8
            }
            sum[r][v] =
                fused(__builtin_convertvector(product[r][v], vfloat), common.scale[v] * ready[r].scale, sum[r][v]);
            if constexpr (MODE != SYMMETRIC) {
                const float all_of_it = ready[r].scale * float(ready[r].correction >> 3);
                if (t.weight->mins) sum[r][v] = fused(common.min[v], all(all_of_it), sum[r][v]);
            }
        }
    }
}

template <int R, int V, int PLANES, int MODE>
__attribute__((noinline)) static void multiply(const Tile& t) {
    vfloat sum[R][V] = {};
    const Ready<PLANES>* ready = static_cast<const Ready<PLANES>*>(t.ready);
    const char *data = t.data, *ahead = t.ahead;
    int64_t place = t.place;
    for (int64_t chunk = 0; chunk < t.chunks; place += PANEL) {
        const Common<V> common = common_of<V, MODE>(t.weight, place);
        for (const int64_t end = least(chunk + t.per_group, t.chunks); chunk < end; chunk++) {
            add_chunk<R, V, PLANES, MODE>(sum, common, t, data, ready, ahead);
            data += CHUNK_BYTES;
            ahead += STEPS * t.advance;
            ready += R;
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
template <int PLANES, int MODE, int R>
static void multiply_panel(const Tile& t) {
    constexpr int V = vectors_of(R);
    for (int v = 0; v < VECTORS; v += V) {
        Tile part = t;
        part.data += v * sizeof(vint);
        part.place += v * LANES;
        part.y += v * LANES;
        if (t.bias) part.bias += v * LANES;
        multiply<R, V, PLANES, MODE>(part);
    }
}

template <int PLANES, int MODE, int R = MOST_ROWS>
static void choose(int64_t rows, const Tile& t) {
    if (rows == R) return multiply_panel<PLANES, MODE, R>(t);
    if constexpr (R > 1) choose<PLANES, MODE, R - 1>(rows, t);
}

template <int PLANES>
static void choose_mode(int64_t rows, const Tile& t) {
    if (t.weight->table) return choose<PLANES, TABLE>(rows, t);
    if (!symmetric(t.weight) || t.weight->zero != 8) return choose<PLANES, ZEROS>(rows, t);
    choose<PLANES, SYMMETRIC>(rows, t);
}

// Where the panel has fewer outputs than PANEL, by way of a copy.
static void multiply_some(int64_t rows, int64_t outputs, Tile t) {
    float copy[MOST_ROWS * PANEL];
    float* const y = t.y;
    const int64_t stride = t.stride;
    if (outputs < PANEL) {
        t.y = copy;
        t.stride = PANEL;
    }
    t.weight->planes == 1 ? choose_mode<1>(rows, t) : choose_mode<2>(rows, t);
    for (int64_t r = 0; outputs < PANEL && r < rows; r++) std::memcpy(y + r * stride, copy + r * PANEL, outputs * 4);
}

void product_4(const Weight* w, const void* ready, int64_t rows, int64_t from, int64_t to, const float* bias, float* y,
               int64_t stride) {
    const int64_t tiles = tile_count(rows), panel_bytes = chunks_of(w->inputs) * CHUNK_BYTES;
    Tile t = {};
    t.weight = w;
    t.chunks = chunks_of(w->inputs);
    t.per_group = w->group / CHUNK;
    t.stride = stride;
    // A single tile asks for memory AHEAD of its use; of several, each asks for its share of the next panel, so that
    // memory is not idle while later tiles read this one from the cache.
    t.advance = STEP_BYTES / tiles;
    for (int64_t panel = from; panel < to; panel++) {
        float offset[PANEL] = {};
        const int64_t outputs = least(w->outputs - panel * PANEL, PANEL);
        if (bias) std::memcpy(offset, bias + panel * PANEL, outputs * 4);
        t.bias = bias ? offset : nullptr;
        t.data = static_cast<const char*>(w->data) + panel * panel_bytes;
        t.place = group_place(w, panel * PANEL, 0);
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t start = part_start(rows, tiles, tile), count = part_start(rows, tiles, tile + 1) - start;
            t.ahead = t.data + (tiles > 1 ? panel_bytes + tile * (panel_bytes / tiles) : AHEAD);
            t.ready = static_cast<const char*>(ready) + start * t.chunks * ready_size(w);
            t.y = y + start * stride + panel * PANEL;
            multiply_some(count, outputs, t);
        }
    }
}

}  // namespace VARIANT
