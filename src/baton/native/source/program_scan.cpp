// A program's scans: states that go from token to token of a row.
#include "program_body.h"

#include <cstring>

// Returns the floats of one part's states.
int64_t Program::prepare_scan(const Instruction* scan) {
    int64_t floats = 0;
    for (Scan& mine : scans_) {
        mine.ops.reserve(scan->op.sizes[2]);
        mine.states.resize(state_sizes_.size());
        floats = find_states(scan, mine);
    }
    return floats;
}

// Finds the states that a scan reads or writes; returns the floats of one part of them.
int64_t Program::find_states(const Instruction* scan, Scan& mine) const {
    std::fill(mine.states.begin(), mine.states.end(), Scan::State{});
    int64_t floats = 0;
    for (int64_t i = 1; i <= scan->op.sizes[2]; i++) {
        each_operand(scan[i], [&](const Operand& operand, int32_t space, int64_t) {
            if (space != STATE && space != STATE_BEFORE) return;
            Scan::State& state = mine.states[operand.row_stride];
            if (!state.used) floats += state_sizes_[operand.row_stride] / scan->op.sizes[3];
            state.used = true;
            state.apart |= space == STATE_BEFORE;
        });
    }
    return floats;
}

void Program::scan(const Instruction* scan, Counter* counters, int thread, float* scratch) {
    const int64_t parts = scan->op.sizes[3];
    find_states(scan, scans_[thread]);
    shared(counters, thread, step_->span_count * parts, 1,
           [&](int64_t from, int64_t) { scan_part(scan, from / parts, from % parts, scans_[thread], scratch); });
}

// One part of one span's states.
void Program::scan_part(const Instruction* scan, int64_t s, int64_t part, Scan& mine, float* scratch) {
    const Span& span = step_->spans[s];
    const int64_t from = step_->read_from[s], to = step_->write_to[s];
    float* nobody = scratch + ir_.scratch_floats;
    for (size_t i = 0; i < mine.states.size(); i++) {
        Scan::State& state = mine.states[i];
        if (!state.used) continue;
        const int64_t size = state_sizes_[i] / scan->op.sizes[3], stride = step_->state_strides[i];
        state.here = to < 0 ? nobody : step_->states[i] + to * stride + part * size;
        if (to < 0) nobody += size;
        state.before = from < 0 ? state.here : step_->states[i] + from * stride + part * size;
        if (from < 0) std::fill_n(state.here, size, 0.0f);
        if (!state.apart && state.before != state.here) std::memcpy(state.here, state.before, size * 4);
    }
    for (int64_t t = span.first; t < span.first + span.count; t++) {
        if (t <= span.first + 1) bind_scan(scan, part, mine, scratch);
        for (const RowOp& op : mine.ops) k_->rowwise(&op, t, t + 1, scratch);
        // From the second token on, the token before is one of this call.
        for (Scan::State& state : mine.states) state.before = state.here;
    }
}

void Program::bind_scan(const Instruction* scan, int64_t part, Scan& mine, float* scratch) {
    mine.ops.clear();
    for (int64_t i = 1; i <= scan->op.sizes[2]; i++) {
        RowOp op = scan[i].op;
        op.out = in_scan(op.out, scan[i].out_space, part * scan[i].steps[0], mine, scratch);
        for (int j = 0; j < op.operands; j++) {
            op.in[j] = in_scan(op.in[j], scan[i].in_space[j], part * scan[i].steps[1 + j], mine, scratch);
        }
        mine.ops.push_back(op);
    }
}

Operand Program::in_scan(const Operand& operand, int32_t space, int64_t step, const Scan& mine, float* scratch) const {
    if (space < STATE) {
        Operand bound = placed(operand, space);
        bound.data += step;
        return bound;
    }
    Operand bound = operand;
    float* start = scratch;
    if (space == STATE) start = mine.states[operand.row_stride].here;
    if (space == STATE_BEFORE) start = mine.states[operand.row_stride].before;
    bound.data = start + reinterpret_cast<intptr_t>(operand.data) / 4;
    bound.row_stride = 0;
    return bound;
}
