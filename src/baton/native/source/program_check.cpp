#include "program_check.h"

#include "check.h"
#include "program_body.h"
#include "rowwise.h"

#include <algorithm>

namespace {

bool same_order(const Weight& a, const Weight& b) {
    if (!a.order || !b.order) return a.order == b.order;
    return std::equal(a.order, a.order + a.inputs, b.order);
}

// Whether products with one weight read what was made ready for the other.
bool alike(const Weight& a, const Weight& b) {
    if (a.kind != b.kind || a.inputs != b.inputs || !same_order(a, b)) return false;
    if (a.kind == INT4) return a.planes == b.planes;
    return a.kind != INT8 ||
           std::min<int64_t>(a.group & -a.group, GROUP) == std::min<int64_t>(b.group & -b.group, GROUP);
}

// That experts are there, and alike.
void check_experts(const Instruction& one, const Table* table, int64_t tables) {
    const int64_t experts = one.op.sizes[1];
    need(within(experts, 1, tables) && within(one.weight, 0, tables - experts));
    need(within(one.op.sizes[2], 1, MOST_WIDTH) && one.op.sizes[3] == table[one.weight].weight.outputs);
    for (int64_t e = 1; e < experts; e++) {
        const Table &a = table[one.weight], &b = table[one.weight + e];
        need(!b.plain && alike(a.weight, b.weight) && a.weight.outputs == b.weight.outputs);
    }
}

// That a scan's instructions are there, and its states. `left`: instructions behind the scan.
void check_scan(const Instruction* scan, int64_t left, const int64_t* sizes, int64_t states) {
    const int64_t count = scan->op.sizes[2], parts = scan->op.sizes[3];
    need(within(count, 1, left) && within(parts, 1, MOST_SIZE));
    for (int64_t i = 1; i <= count; i++) {
        need(scan[i].does == ROWWISE && within(scan[i].op.operands, 0, MOST_OPERANDS));
        each_operand(scan[i], [&](const Operand& operand, int32_t space, int64_t) {
            need(space != LATE && space != LOGITS);
            if (space == STATE || space == STATE_BEFORE) {
                need(within(operand.row_stride, 0, states - 1) && sizes[operand.row_stride] % parts == 0);
            }
        });
    }
}

}  // namespace

void check(const Instruction* code, int64_t count, const Table* table, int64_t tables, int64_t layers,
           int64_t visibilities, const int64_t* sizes, int64_t states) {
    const Weight* ready = nullptr;
    int64_t scanned = -1;  // the last instruction of the last scan
    for (int64_t i = 0; i < count; i++) {
        const Instruction& one = code[i];
        need(within(one.does, 0, DOES_COUNT - 1) && within(one.op.operands, 0, MOST_OPERANDS));
        if (one.does == ROWWISE) need(within(one.op.code, 0, ROWWISE_COUNT - 1));
        if (one.does == EMBED || one.does == READY || one.does == PRODUCT) need(within(one.weight, 0, tables - 1));
        if (one.does == READY) ready = &table[one.weight].weight;
        if (one.does == PRODUCT) need(ready && alike(*ready, table[one.weight].weight));
        if (one.does == EMBED) need(within(one.op.sizes[2], 0, MOST_WIDTH));
        if (one.does == EXPERT) check_experts(one, table, tables);
        if (one.does == SCAN) {
            check_scan(&one, count - 1 - i, sizes, states);
            scanned = i + one.op.sizes[2];
        } else if (i > scanned) {
            each_operand(one, [](const Operand&, int32_t space, int64_t) { need(space < STATE); });
        }
        if (one.does == KEEP) need(within(one.layer, 0, layers - 1));
        if (one.does == ATTEND) need(within(one.visibility, 0, visibilities - 1));
    }
}
