// Carries out a program's instructions, on all threads together: the order of a call.
//
// Runs of instructions that act on tokens are carried out by each thread for tokens of its own, without waiting: a
// token's values lie in a row of its own. Products and attention are shared out by panels and tasks; before and after
// them threads wait for one another.
#include "program_body.h"

#include <chrono>

namespace {

constexpr int64_t BLOCK = 8;  // tokens that go through a run of instructions together: they stay in L1

bool by_token(const Instruction& one) {
    return one.does != PRODUCT && one.does != ATTEND && one.does != EXPERT && one.does != SCAN && one.does != PICK;
}

}  // namespace

Program::Program(const Kernels* kernels, Pool* pool, const ProgramIR& ir, const Instruction* first, int64_t count,
                 const Table* tables, int64_t table_count, const Layer* layers, int64_t layer_count,
                 const Visibility* visibilities, int64_t visibility_count, const int64_t* state_sizes,
                 int64_t state_count)
    : k_(kernels), pool_(pool), ir_(ir), code_(first, first + count), tables_(tables, tables + table_count),
      layers_(layers, layers + layer_count), visibilities_(visibilities, visibilities + visibility_count),
      state_sizes_(state_sizes, state_sizes + state_count), counters_(2 * pool->threads() * count),
      scratch_(pool->threads()), own_(pool->threads()), chosen_(pool->threads()), scans_(pool->threads()),
      fresh_(layer_count), lasting_(layer_count) {
    // Some layers attend to an earlier layer's keys and values.
    int32_t last = -1;
    for (const Instruction& one : code_) {
        if (one.does == KEEP) last = one.layer;
        if (one.does == ATTEND && visibilities_[one.visibility].layer != last)
            lasting_[visibilities_[one.visibility].layer] = true;
    }
}
void Program::run(const Step& step) {
    step_ = &step;
    prepare();
    pool_->run([this](int thread) { work(thread); });
}

// The call went well: rings take their newest tokens.
void Program::commit(const Step& step) {
    for (size_t l = 0; l < layers_.size(); l++) {
        if (!step.rings[l] || !layers_[l].kv_heads) continue;
        for (int64_t s = 0; s < step.span_count; s++) {
            const Span& span = step.spans[s];
            if (span.row < 0) continue;
            const int64_t from = std::max<int64_t>(0, span.count - step.rings[l]);
            for (int64_t i = from; i < span.count; i++) {
                keep(step, l, span.row, (span.start + i) % step.rings[l], span.first + i);
            }
        }
    }
}

void Program::prepare() {
    const Step& step = *step_;
    const int64_t n = step.tokens;
    values_.floats(n * ir_.row_floats);
    late_.floats(step.kept_count * ir_.late_floats);
    attended_.floats(n * ir_.attended_floats);
    row_of_.resize(n);
    for (int64_t s = 0; s < step.span_count; s++) {
        for (int64_t i = 0; i < step.spans[s].count; i++) row_of_[step.spans[s].first + i] = step.spans[s].row;
    }
    for (size_t l = 0; l < layers_.size(); l++) {
        fresh(step, l).keys.need(n * layers_[l].kv_heads * layers_[l].key_dim * element(ir_.kind));
        fresh(step, l).values.need(n * layers_[l].kv_heads * layers_[l].value_dim * element(ir_.kind));
    }
    int64_t scratch = 0, partial = 0;
    for (const Instruction& one : code_) {
        if (one.does == READY) {
            const Weight& weight = tables_[one.weight].weight;
            ready_.need(k_->ready_bytes(&weight, n));
            for (Memory& mine : own_) mine.need(k_->ready_bytes(&weight, std::min(n, FEW)));
        }
        if (one.does == PRODUCT) scratch = std::max(scratch, k_->product_scratch(&tables_[one.weight].weight, n));
        if (one.does == EXPERT) {
            const Weight& weight = tables_[one.weight].weight;
            const int64_t pairs = n * one.op.sizes[2];
            ready_.need(pairs * k_->ready_bytes(&weight, 1));
            for (Memory& mine : own_) mine.need(std::min(pairs, FEW) * k_->ready_bytes(&weight, 1));
            for (Chosen& mine : chosen_) mine.need(one.op.sizes[1], pairs);
            const int64_t numbers = pairs * share_of(weight) * PANEL;
            scratch = std::max(scratch, numbers + k_->product_scratch(&weight, pairs));
        }
        if (one.does == SCAN) scratch = std::max(scratch, ir_.scratch_floats + prepare_scan(&one));
        if (one.does == ATTEND) {
            const Attention call = attention(one);
            scratch = std::max(scratch, k_->attention_scratch(&call));
            partial = std::max(partial, k_->partial_floats(&call));
        }
    }
    for (Memory& mine : scratch_) mine.floats(scratch);
    partial_.floats(partial);
    for (Counter& counter : counters_) counter.next.store(0, std::memory_order_relaxed);
}

void Program::work(int thread) {
    const Step& step = *step_;
    int64_t n = step.tokens;
    const auto mine = [&](int64_t& first, int64_t& last) {
        first = n * thread / pool_->threads();
        last = n * (thread + 1) / pool_->threads();
    };
    int64_t first, last;
    mine(first, last);
    float* row = values_.floats(0) + first * ir_.row_floats;
    for (int64_t t = first; t < last; t++, row += ir_.row_floats) {
        row[ir_.token_at] = float(step.ids[t]);
        row[ir_.position_at] = float(step.positions[t]);
    }
    float* scratch = scratch_[thread].floats(0);
    auto since = std::chrono::steady_clock::now();
    for (size_t at = 0; at < code_.size();) {
        const Instruction& one = code_[at];
        size_t next = at + 1;
        if (by_token(one)) {
            while (next < code_.size() && by_token(code_[next])) next++;
            for (int64_t t = first; t < last; t += BLOCK) {
                for (size_t i = at; i < next; i++) tokens(code_[i], t, std::min(t + BLOCK, last), n, scratch);
            }
        } else {
            // A product that follows a product reads what the first one read.
            Counter* const counters = &counters_[2 * pool_->threads() * at];
            if (at && code_[at - 1].does != PRODUCT) pool_->barrier();
            if (one.does == PRODUCT) {
                char* ready = n > FEW ? ready_.chars() : own_[thread].chars();
                if (n <= FEW && code_[at - 1].does == READY) make_ready(code_[at - 1], 0, n, n, ready);
                multiply(one, counters, thread, n, ready, scratch);
            } else if (one.does == ATTEND) {
                attend(one, counters, thread, scratch);
            } else if (one.does == EXPERT) {
                choose(one, counters, thread, n, scratch);
            } else if (one.does == SCAN) {
                scan(&one, counters, thread, scratch);
                next += one.op.sizes[2];
            } else {
                // All values that go on are picked before any of them is overwritten.
                while (next < code_.size() && code_[next].does == PICK) next++;
                n = step.kept_count;
                if (!n) return;
                mine(first, last);
                for (size_t i = at; i < next; i++) pick(code_[i], first, last);
            }
            if (next < code_.size() && code_[next].does != PRODUCT) pool_->barrier();
        }
        if (thread == 0 && !seconds_.empty()) {
            const auto now = std::chrono::steady_clock::now();
            seconds_[at] += std::chrono::duration<double>(now - since).count();
            since = now;
        }
        at = next;
    }
}
