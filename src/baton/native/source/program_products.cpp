// A program's products, with all of a weight or with the experts that tokens chose, and its attention: shared out among
// threads.
#include "program_body.h"

#include <cstring>
#include <limits>

void Program::multiply(const Instruction& one, Counter* counters, int thread, int64_t n, const char* ready,
                       float* scratch) {
    const Weight& weight = tables_[one.weight].weight;
    const Operand out = placed(one.op.out, one.out_space);
    // A thread's panels lie one behind the other: memory is fastest so.
    shared(counters, thread, panels_of(weight), share_of(weight), [&](int64_t from, int64_t to) {
        k_->product(&weight, ready, n, from, to, one.bias, out.data, out.row_stride, scratch);
    });
}

// Products with the experts that tokens chose, and with no others. Each thread sorts for itself, which is cheaper
// than to hand over; the experts' weights are read in their order. A row's sums do not depend on its group.
void Program::choose(const Instruction& one, Counter* counters, int thread, int64_t n, float* scratch) {
    const Weight& weight = tables_[one.weight].weight;
    const Operand x = placed(one.op.in[0], one.in_space[0]), index = placed(one.op.in[1], one.in_space[1]);
    const Operand out = placed(one.op.out, one.out_space);
    const int64_t slots = one.op.sizes[2], outputs = one.op.sizes[3], pairs = n * slots;
    Chosen& chosen = chosen_[thread];
    chosen.sort(index, n, slots, one.op.sizes[1]);
    const int64_t row_bytes = k_->ready_bytes(&weight, 1);
    char* const ready = pairs > FEW ? ready_.chars() : own_[thread].chars();
    const int64_t first = pairs > FEW ? pairs * thread / pool_->threads() : 0;
    const int64_t last = pairs > FEW ? pairs * (thread + 1) / pool_->threads() : pairs;
    for (size_t g = 0; g < chosen.groups.size(); g++) {
        const Chosen::Group& group = chosen.groups[g];
        for (int64_t i = std::max(first, group.first); i < std::min(last, group.last); i++) {
            // The stride is 0: the row is the only one that is read.
            const float* row = x.data + chosen.pairs[i] / slots * x.row_stride + chosen.pairs[i] % slots * x.strides[2];
            k_->make_ready(&weight, row, 0, i - group.first, 1, group.last - group.first,
                           ready + group.first * row_bytes);
        }
    }
    if (pairs > FEW) pool_->barrier();
    const auto slot_of = [&](int64_t pair) {
        return out.data + pair / slots * out.row_stride + pair % slots * out.strides[2];
    };
    const int64_t panels = panels_of(weight), share = share_of(weight);
    const auto multiply = [&](const Chosen::Group& group, int64_t from, int64_t to) {
        const int64_t rows = group.last - group.first, stride = (to - from) * PANEL;
        const int64_t numbers = std::min(stride, outputs - from * PANEL);
        // Rows of a group lie anywhere, so they are computed side by side and then go to their slots.
        k_->product(&tables_[one.weight + group.expert].weight, ready + group.first * row_bytes, rows, from, to,
                    nullptr, scratch - from * PANEL, stride, scratch + rows * stride);
        for (int64_t i = 0; i < rows; i++) {
            std::memcpy(slot_of(chosen.pairs[group.first + i]) + from * PANEL, scratch + i * stride, numbers * 4);
        }
    };
    shared(counters, thread, int64_t(chosen.groups.size()) * panels, share, [&](int64_t from, int64_t to) {
        while (from < to) {
            const int64_t end = std::min(to, (from / panels + 1) * panels);
            multiply(chosen.groups[from / panels], from % panels, from % panels + end - from);
            from = end;
        }
    });
    // Slots without an expert: -1 stands for none, whose result is zeros; other numbers are no expert's.
    for (int64_t i = chosen.sorted; thread == 0 && i < pairs; i++) {
        const int64_t pair = chosen.pairs[i];
        const bool none = index.data[pair / slots * index.row_stride + pair % slots * index.strides[2]] == -1.0f;
        std::fill_n(slot_of(pair), outputs, none ? 0.0f : std::numeric_limits<float>::quiet_NaN());
    }
}

Attention Program::attention(const Instruction& one) {
    const Visibility& visibility = visibilities_[one.visibility];
    const Layer& layer = layers_[visibility.layer];
    const Operand queries = placed(one.op.in[0], one.in_space[0]);
    Attention call = {};
    call.heads = visibility.heads;
    call.kv_heads = layer.kv_heads;
    call.key_dim = layer.key_dim;
    call.value_dim = layer.value_dim;
    call.scale = visibility.scale;
    call.softcap = visibility.softcap;
    call.window = visibility.window;
    call.chunk = visibility.chunk;
    call.ring = step_->rings[visibility.layer];
    call.sinks = visibility.sinks;
    call.kind = ir_.kind;
    call.keys = step_->keys[visibility.layer];
    call.values = step_->values[visibility.layer];
    call.fresh_keys = fresh(*step_, visibility.layer).keys.chars();
    call.fresh_values = fresh(*step_, visibility.layer).values.chars();
    call.queries = queries.data;
    call.query_stride = queries.row_stride;
    call.query_head_stride = queries.strides[2];
    call.out = reinterpret_cast<float*>(attended_.chars());
    call.spans = step_->spans;
    call.span_count = step_->span_count;
    call.partial = reinterpret_cast<float*>(partial_.chars());
    return call;
}

void Program::attend(const Instruction& one, Counter* counters, int thread, float* scratch) {
    const Attention call = attention(one);
    const int64_t tasks = k_->attention_tasks(&call), merges = k_->attention_merges(&call);
    shared(counters, thread, tasks, 1, [&](int64_t from, int64_t) { k_->attend(&call, from, scratch); });
    if (!merges) return;
    pool_->barrier();
    shared(counters + pool_->threads(), thread, merges, 1, [&](int64_t from, int64_t) { k_->merge(&call, from); });
}
