// What is asked of a kernel by itself must make sense: a size that is negative, or a product of sizes that overflows,
// would have it read or write somewhere else. Throws std::invalid_argument, which becomes INVALID.
#pragma once

#include "kernels.h"

#include <stdexcept>

// With these no number of bytes is above 2^62.
constexpr int64_t MOST_SIZE = int64_t(1) << 42, MOST_NUMBERS = int64_t(1) << 44, MOST_WIDTH = int64_t(1) << 14;
constexpr int MOST_IN_TABLE = 24;  // 8 x 24 x 128 fit 16 bits
constexpr int64_t MOST_COLUMNS = int64_t(1) << 40;

inline void need(bool sound) {
    if (!sound) throw std::invalid_argument("shapes");
}

inline bool within(int64_t x, int64_t low, int64_t high) { return low <= x && x <= high; }

// A matrix [a, b], with at least one number in each row.
inline void check_sizes(int64_t a, int64_t b) {
    need(within(a, 0, MOST_SIZE) && within(b, 1, MOST_SIZE) && (a == 0 || b <= MOST_NUMBERS / a));
}

inline void check_sizes(int32_t kind, int64_t outputs, int64_t inputs) {
    need(within(kind, FLOAT32, FLOAT8) && outputs > 0);
    check_sizes(outputs, inputs);
}

// `group`: inputs that share a scale; where they do.
inline void check_sizes(int32_t kind, int64_t group, int64_t outputs, int64_t inputs) {
    check_sizes(kind, outputs, inputs);
    const int64_t unit = kind == INT4 ? CHUNK : UNIT;
    need(of_numbers(kind) || (within(group, unit, MOST_SIZE) && group % unit == 0));
}

inline void check(const Weight& weight) {
    check_sizes(weight.kind, weight.group, weight.outputs, weight.inputs);
    if (!weight.data) need(false);
    if (!of_integers(weight.kind)) {
        need(!weight.order && !weight.zeros && !weight.mins && !weight.table && !weight.zero);
        return need(of_numbers(weight.kind) || (weight.scales && weight.wide));
    }
    need(weight.scales && (weight.wide || weight.power > 0) && within(weight.zero, INT8_MIN, INT8_MAX));
    need(weight.kind != INT4 || within(weight.planes, 1, 2));
    for (int i = 0; weight.table && i < 16; i++) need(weight.kind == INT4 && weight.table[i] <= MOST_IN_TABLE);
}

// That numbers can be rounded to its codes.
inline void check_rounded(const Weight& weight) {
    if (of_numbers(weight.kind)) return;
    need(!weight.zeros && !weight.mins && !weight.table && !weight.order);
    need(of_integers(weight.kind));
    need(weight.kind == INT4 ? weight.zero == 8 && !weight.wide : !weight.zero && weight.wide && weight.group == GROUP);
}

// Outputs [first, first + count) of a weight.
inline void check(const Weight& weight, int64_t first, int64_t count) {
    check(weight);
    need(within(first, 0, weight.outputs) && within(count, 0, weight.outputs - first));
}

inline void check(const Attention& call) {
    need(within(call.heads, 1, MOST_WIDTH) && within(call.kv_heads, 1, call.heads) && call.heads % call.kv_heads == 0);
    need(within(call.key_dim, 1, MOST_WIDTH) && within(call.value_dim, 1, MOST_WIDTH));
    need(within(call.window, 0, MOST_COLUMNS) && within(call.chunk, 0, MOST_COLUMNS));
    need(within(call.ring, 0, MOST_COLUMNS) && of_numbers(call.kind));
    need(within(call.span_count, 0, MOST_COLUMNS) && (call.spans || !call.span_count));
    int64_t columns = 0;
    for (int64_t i = 0; i < call.span_count; i++) {
        const Span& span = call.spans[i];
        need(within(span.row, -1, MOST_COLUMNS) && within(span.first, 0, MOST_COLUMNS));
        need(within(span.start, 0, MOST_COLUMNS) && within(span.count, 0, MOST_COLUMNS));
        need((columns += span.start + span.count) <= MOST_COLUMNS);
        need(!span.count || (call.out && (span.row < 0 || (call.queries && call.fresh_keys && call.fresh_values))));
        need(!span.count || !span.start || span.row < 0 || (call.keys.data && call.values.data));
    }
}
