// How a call of attention is cut into tasks. No result depends on it: see attention.cpp.
#pragma once

#include "attention_block.h"

namespace VARIANT {

constexpr int64_t PIECE = 256;    // columns that are summed up by themselves
constexpr int64_t LONG = 1024;    // columns of a task where there are tasks enough
constexpr int64_t ENOUGH = 8;     // tasks, so that no thread waits long for another
constexpr int64_t QUERIES = 48;   // of a task
constexpr int64_t NEAR = 1024;    // bytes that lie side by side which a task reads

// How a call is cut: the pieces of a task, and its KV heads.
struct Plan {
    int64_t pieces, heads;
};

// How a span is cut into tasks: [run of pieces][tile of queries][some KV heads]. With more than one run, the sums of
// each piece are kept for the merge.
struct Cut {
    int64_t queries, tiles, pieces, first_piece, run, runs, heads, parts;
};

static int64_t group_of(const Attention* call) { return call->heads / call->kv_heads; }
static int64_t width_of(const Attention* call) { return up(call->value_dim, LANES) * LANES; }
static int64_t record_of(const Attention* call) { return SUMS + width_of(call); }
static int64_t bytes_of(const Attention* call) { return call->kind == FLOAT32 ? 4 : 2; }

static int64_t lowest(const Attention* call, int64_t position) {
    if (call->chunk) return position / call->chunk * call->chunk;
    return call->window ? most(0, position + 1 - call->window) : 0;
}

static Cut cut(const Attention* call, const Span& span, const Plan& plan) {
    Cut split = {};
    if (span.count <= 0 || span.row < 0) return split;
    split.queries = span.count * group_of(call);
    split.tiles = up(split.queries, QUERIES);
    split.first_piece = lowest(call, span.start) / PIECE;
    split.pieces = (span.start + span.count - 1) / PIECE + 1 - split.first_piece;
    // Where there are more tiles there are tasks enough, and there would be many sums to keep.
    split.run = split.tiles == 1 || span.count == 1 ? least(plan.pieces, split.pieces) : split.pieces;
    split.runs = up(split.pieces, split.run);
    split.parts = up(call->kv_heads, least(plan.heads, QUERIES / least(split.queries, QUERIES)));
    split.heads = up(call->kv_heads, split.parts);
    split.parts = up(call->kv_heads, split.heads);
    return split;
}

static int64_t tasks_of(const Span& span, const Cut& cut) {
    return span.row < 0 ? span.count > 0 : cut.runs * cut.tiles * cut.parts;
}

static int64_t tasks_of(const Attention* call, const Plan& plan) {
    int64_t tasks = 0;
    for (int64_t i = 0; i < call->span_count; i++) tasks += tasks_of(call->spans[i], cut(call, call->spans[i], plan));
    return tasks;
}

static Plan plan_of(const Attention* call) {
    Plan plan = {LONG / PIECE, most(1, NEAR / (call->key_dim * bytes_of(call)))};
    if (tasks_of(call, plan) < ENOUGH) plan.pieces = 1;
    if (plan.pieces == 1 && tasks_of(call, plan) < ENOUGH) plan.heads = 1;
    return plan;
}

static int64_t merges_of(const Attention* call, const Cut& cut) { return cut.runs > 1 ? call->kv_heads : 0; }

// Records of a span in several runs: [kv head][query][piece].
static int64_t partial_of(const Attention* call, const Cut& cut) {
    return cut.runs > 1 ? call->kv_heads * cut.queries * cut.pieces * record_of(call) : 0;
}

}  // namespace VARIANT
