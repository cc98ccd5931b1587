// A model's step, recorded: instructions over rows of numbers, one row per token.
#pragma once

#include "kernels.h"

// Where an operand's numbers are. CONSTANT: at an address. VALUES: at an offset in the token's own row of values; LATE:
// likewise, in a row of those values that only tokens have whose logits are wanted. ATTENDED: in what the last attention
// answered for the token. LOGITS: in the token's row of the result. STATE: in a state of the token's row; the operand's
// `row_stride` is the state's number; STATE_BEFORE: likewise, as the row's token before left it, wherever that is.
// SCRATCH: at an offset in what a thread needs within a scan, for one token at a time.
enum Space : int32_t {
    CONSTANT = 0,
    VALUES = 1,
    LATE = 2,
    ATTENDED = 3,
    LOGITS = 4,
    STATE = 5,
    SCRATCH = 6,
    STATE_BEFORE = 7
};

// What an instruction does; Python asks for the numbers by name (baton_code), like for row-wise operations.
//
// ROWWISE: `op`, whose operands' `data` are addresses (CONSTANT) or offsets in bytes of their space.
// EMBED: in[0] has op.sizes[2] numbers of rows of the table `weight`, which may be packed, or row-major (`plain`).
// READY: in[0] is made ready for products.  PRODUCT: out = what is ready . weight^T + bias.
// KEEP: in[0] and in[1] are layer's new keys and values.  ATTEND: in[0] are queries for layer's keys and values.
// EXPERT: the tables from `weight` on are op.sizes[1] experts' of the same shape. out has op.sizes[2] slots, each with
// op.sizes[3] numbers: a slot of in[0], or the only one (a stride of 0), times the weight of the expert that in[1] names.
// SCAN: the next op.sizes[2] instructions, all of them ROWWISE, are carried out for the tokens of a span one after the
// other, so that each reads the states that the one before it wrote. They are the instructions of one of op.sizes[3]
// parts, which have nothing to do with one another: part p begins p x `steps` floats further (out, in[0], in[1], ...).
// PICK: from here on only the tokens whose logits are wanted go on; op.sizes[3] numbers from in[0] to out.
enum Does : int32_t { ROWWISE, EMBED, READY, PRODUCT, KEEP, ATTEND, EXPERT, SCAN, PICK, DOES_COUNT };

struct Instruction {
    int32_t does;
    int32_t weight;
    int32_t layer;
    int32_t visibility;
    int32_t out_space;
    int32_t in_space[MOST_OPERANDS];
    RowOp op;
    const float* bias;
    int64_t steps[1 + MOST_OPERANDS];
};

// A table [outputs, inputs] of a product or an embedding; `plain`: row-major, as the model has it.
struct Table {
    Weight weight;
    int32_t plain;
};

struct Layer {
    int64_t kv_heads, key_dim, value_dim;
};

// One attention: which layer's keys and values its queries see, and how.
struct Visibility {
    int32_t layer;
    int64_t heads;
    float scale, softcap;
    int64_t window, chunk;
    const float* sinks;
};

struct ProgramIR {
    int64_t row_floats;       // of values, per token
    int64_t late_floats;      // of late values
    int64_t attended_floats;  // of the widest attention, per token
    int64_t vocabulary;
    int64_t scratch_floats;  // of values within a scan
    int64_t token_at, position_at;  // offsets of the inputs in a token's row of values, in floats
    int32_t kind;                   // of keys and values
};

// One call: N tokens of some spans, in the spans' order; logits [kept_count, vocabulary] of the tokens `kept`.
// keys, values, rings: of each layer in the rectangle.
//
// States lie in places, `state_strides` floats from one to the next; a row has two of each, so that what a call reads is
// never what it writes. read_from, write_to: each span's places, which may be the same; -1: it begins with zeros, or its
// states are kept for nobody.
struct Step {
    int64_t tokens;
    const int64_t *ids, *positions;
    const Span* spans;
    int64_t span_count;
    const int64_t* kept;
    int64_t kept_count;
    const Columns *keys, *values;
    const int64_t* rings;
    float* logits;
    float* const* states;
    const int64_t *state_strides, *read_from, *write_to;
};
