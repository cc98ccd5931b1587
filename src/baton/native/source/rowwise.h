// The codes of row-wise operations. Python asks for them by name (baton_code), so that there is one list.
#pragma once

// clang-format off
#define ROWWISE_CODES(code)                                                                                       \
    code(COPY) code(NEG) code(SQUARE) code(CUBE) code(ABS) code(EXP) code(SIGMOID) code(SILU) code(TANH)         \
    code(GELU) code(GELU_TANH) code(RELU) code(CLAMP) code(RECIPROCAL) code(RSQRT) code(SQRT) code(COS) code(SIN) \
    code(LOG) code(LOG1P) code(FLOOR) code(TRUNCATE) code(POWER) code(SOFTPLUS) code(ADD) code(SUB) code(MUL)     \
    code(DIV) code(GREATER) code(AT_LEAST) code(LESS) code(AT_MOST) code(LARGER) code(SMALLER) code(WHERE)        \
    code(SUM) code(MEAN) code(MEAN_SQUARE) code(SOFTMAX) code(LAYER_NORM) code(TOPK) code(GATHER)    \
    code(SCATTER) code(DOT) code(DOT_ACROSS) code(MUL_ADD) code(EXPM1)
// clang-format on

#define AS_ENUM(name) name,
enum RowwiseCode : int { ROWWISE_CODES(AS_ENUM) ROWWISE_COUNT };
#undef AS_ENUM
