// What one instruction set offers, as a table of functions; main.cpp takes the best table that the machine can run.
//
// linear*.cpp, attention.cpp, rowwise.cpp and variant.cpp are compiled once per instruction set, each time in a
// namespace of its own (VARIANT) and with flags of its own. So they use no templates or inline functions of the
// standard library: a linker may keep the copy with the wrong instructions.
#pragma once

#include <cstdint>

constexpr int64_t PANEL = 32;  // outputs that lie side by side in a packed weight
constexpr int64_t GROUP = 64;  // inputs that share an int8 weight's scale, per output, if it is rounded here
constexpr int64_t CHUNK = 32;  // inputs of a row that share a scale in products with int4 weights
constexpr int64_t UNIT = 16;  // the fewest inputs that may share an int8 weight's scale

enum Kind : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3, FLOAT16 = 4, FLOAT8 = 5 };

constexpr bool of_integers(int32_t kind) { return kind == INT8 || kind == INT4; }

// Of activations, keys and values too.
constexpr bool of_numbers(int32_t kind) { return kind == FLOAT32 || kind == BFLOAT16 || kind == FLOAT16; }

// A weight w[outputs, inputs] as products read it: y[M, outputs] = x[M, inputs] . w^T.
//
// It lies in panels of 32 outputs. In a panel inputs go by pairs: for the pair (k, k + 1) the 32 outputs' two numbers
// each lie side by side, so that one load gives the operands of a two-step dot product (dpbf16, dpwssd), and widening
// bfloat16 is a shift and a mask. Weights in float32, float16 and float8 go input by input, 32 outputs each. Outputs are
// padded to whole panels, inputs to whole pairs or groups, in FLOAT16 and FLOAT8 to multiples of 16, with zeros.
//
// FLOAT8: e4m3 without infinities, and never NaN; a number is that times its group's float32 scale. It is packed in
// baton/native/codes.py alone.
//
// INT8: signed codes, inputs padded to a multiple of GROUP. INT4: codes 0 to 15. In a panel inputs go by steps of 8:
// 4 bytes of each of the 32 outputs lie side by side, byte j with the code of input j in its low half and of input 4 + j
// in its high one. So a register of low or high halves is an operand of a dot product of 4 bytes. Inputs are padded to
// whole chunks.
//
// In both a number is (code - zero - its group's of `zeros`) x its group's scale, rounded, less its group's min. `pack`
// rounds numbers to codes with scales alone: float32 ones for each GROUP in INT8, in INT4 float16 ones and zero 8. All
// else is packed elsewhere, in baton/native/codes.py.
struct Weight {
    int32_t kind;
    int64_t outputs, inputs;
    void* data;  // 64-byte aligned
    void* scales;  // INT8, INT4, FLOAT8: [panels][groups][PANEL]; else null
    int32_t group;  // inputs that share a scale: in INT8 and FLOAT8 a multiple of UNIT, in INT4 of CHUNK
    int32_t planes;  // INT4: bytes of an activation in products, 1 or 2
    float power;  // a power of two that all float16 scales and mins are multiplied with
    int32_t wide;  // whether scales and mins are float32 instead
    int32_t zero;  // taken off all codes
    const int8_t* zeros;  // [panels][groups][PANEL], taken off besides; or null
    const void* mins;  // as scales; or null
    const uint8_t* table;  // INT4: [16], up to 24 each, what stands for the codes; or null
    const int32_t* order;  // [inputs], the row's input that meets the weight's place 0, 1, ...; or null
};

// Keys or values of one layer, [rows, columns, heads, dim], the last dimension dense; strides in elements.
struct Columns {
    const void* data;
    int64_t row_stride, column_stride, head_stride;
};

// `count` new tokens of one row, at positions start, start + 1, ...; they are the call's tokens first, first + 1, ...
// Row -1: nobody's (padding that is computed all the same); its output is 0.
struct Span {
    int64_t row, start, count, first;
};

// One layer's attention. Positions before a span's start are read from the rectangle, in column p, or p % ring of a
// ring; those from its start on from `fresh_keys` and `fresh_values`, [tokens, kv_heads, dim] dense, of the same kind.
struct Attention {
    int64_t heads, kv_heads, key_dim, value_dim;
    float scale, softcap;  // softcap 0: none
    int64_t window, chunk, ring;  // 0: none. window, chunk: as `Visibility` in baton/model/visibility.py
    const float* sinks;  // [heads], or null
    int32_t kind;  // of keys and values: FLOAT32, BFLOAT16 or FLOAT16
    Columns keys, values;
    const void *fresh_keys, *fresh_values;
    const float* queries;  // [tokens, heads, key_dim], the last dimension dense; strides in floats
    int64_t query_stride, query_head_stride;
    float* out;  // [tokens, heads, value_dim], dense
    const Span* spans;
    int64_t span_count;
    float* partial;  // partial_floats of them, shared by all threads
};

// One operand of a row-wise operation: token t's number at index (i, j, k, ...) is at
// data[t * row_stride + i * strides[0] + j * strides[1] + ...]; a constant's row_stride is 0.
constexpr int MOST_DIMS = 4;
constexpr int MOST_OPERANDS = 4;

struct Operand {
    float* data;
    int64_t row_stride;
    int64_t strides[MOST_DIMS];
};

// An operation that acts on each token by itself; `code` as in rowwise.cpp and baton/native/program.py.
struct RowOp {
    int32_t code;
    int32_t dims;
    int64_t sizes[MOST_DIMS];
    int32_t operands;
    Operand out, in[MOST_OPERANDS];
    float numbers[4];
};

struct Kernels {
    const char* name;

    // Weights. Bytes are multiples of 64.
    int64_t (*weight_bytes)(int32_t kind, int64_t outputs, int64_t inputs);
    int64_t (*scale_bytes)(int32_t kind, int64_t group, int64_t outputs, int64_t inputs);
    // Packs outputs [first, first + count) from a row-major piece [count, inputs] in the numbers of a kind (`from`).
    // Outputs behind the weight's last, up to a whole panel, are set to zero by whoever packs the last one.
    void (*pack)(const Weight*, int64_t first, int64_t count, const void* piece, int32_t from);
    // One output's inputs as float32: embeddings that are tied to the output layer, and restoring what was packed.
    void (*unpack)(const Weight*, int64_t output, float* to);

    // What products read of rows [first, first + count) of x [rows, inputs] (float32, `stride` floats from row to row).
    // Rows may be made ready by several threads, `ready` has ready_bytes(weight, rows) and is 64-byte aligned.
    int64_t (*ready_bytes)(const Weight*, int64_t rows);
    void (*make_ready)(const Weight*, const float* x, int64_t stride, int64_t first, int64_t count, int64_t rows,
                       void* ready);
    // y[0:rows, outputs of panels [from, to)], plus bias where it is not null. `scratch`: product_scratch floats.
    void (*product)(const Weight*, const void* ready, int64_t rows, int64_t from, int64_t to, const float* bias,
                    float* y, int64_t stride, float* scratch);
    int64_t (*product_scratch)(const Weight*, int64_t rows);

    // Attention as tasks, in any order on any thread; then, when all have ended, as many merges (0 where no row was
    // split). What is split, and the order of merging, follow from each span alone: a row's result is the same in any
    // company and on any number of threads.
    int64_t (*attention_tasks)(const Attention*);
    void (*attend)(const Attention*, int64_t task, float* scratch);
    int64_t (*attention_merges)(const Attention*);
    void (*merge)(const Attention*, int64_t merge);
    int64_t (*partial_floats)(const Attention*);
    int64_t (*attention_scratch)(const Attention*);

    // Tokens [first, last) of a row-wise operation.
    void (*rowwise)(const RowOp*, int64_t first, int64_t last, float* scratch);
};

const Kernels* kernels_avx512bf16();
const Kernels* kernels_avx512vnni();
const Kernels* kernels_avx512();
const Kernels* kernels_avxvnni();
const Kernels* kernels_avx2();
const Kernels* kernels_neondot();
const Kernels* kernels_plain();
