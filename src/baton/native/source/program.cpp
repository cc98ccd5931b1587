// Carries out a program's instructions, on all threads together.
//
// Runs of instructions that act on tokens are carried out by each thread for tokens of its own, without waiting: a
// token's values lie in a row of its own. Products and attention are shared out by panels and tasks; before and after
// them threads wait for one another.
#include "program.h"

#include "buffer.h"
#include "check.h"
#include "guard.h"
#include "pool.h"
#include "rowwise.h"

#define VARIANT portable  // what is compiled once has no instructions of its own
#include "half.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <new>
#include <vector>

namespace {

constexpr int64_t BLOCK = 8;  // tokens that go through a run of instructions together: they stay in L1
constexpr int64_t FEW = 16;  // tokens that each thread makes ready for itself: cheaper than to hand them over
constexpr int64_t SHARE_BYTES = 64 << 10;  // of a weight, that a thread takes at a time

int64_t element(int32_t kind) { return kind == FLOAT32 ? 4 : 2; }

void convert(const float* from, int64_t stride, int64_t count, int32_t kind, char* to) {
    if (kind == FLOAT32) {
        float* out = reinterpret_cast<float*>(to);
        for (int64_t i = 0; i < count; i++) out[i] = from[i * stride];
    } else if (kind == FLOAT16) {
        uint16_t* out = reinterpret_cast<uint16_t*>(to);
        for (int64_t i = 0; i < count; i++) out[i] = portable::to_half(from[i * stride]);
    } else {
        uint16_t* out = reinterpret_cast<uint16_t*>(to);
        for (int64_t i = 0; i < count; i++) out[i] = portable::narrow(from[i * stride]);
    }
}

// What is left of a thread's own part of some work; others help themselves when theirs is done.
struct alignas(64) Counter {
    std::atomic<int64_t> next{0};
};

void check_lengths(std::initializer_list<int64_t> all) {
    for (int64_t one : all) need(within(one, 0, MOST_WIDTH * MOST_WIDTH));
}

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

// Calls what(operand, space, step) for each operand of an instruction.
template <typename What>
void each_operand(const Instruction& one, What what) {
    what(one.op.out, one.out_space, one.steps[0]);
    for (int j = 0; j < one.op.operands; j++) what(one.op.in[j], one.in_space[j], one.steps[1 + j]);
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

// That each instruction is one, and names what is there.
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

bool by_token(const Instruction& one) {
    return one.does != PRODUCT && one.does != ATTEND && one.does != EXPERT && one.does != SCAN && one.does != PICK;
}

}  // namespace

// What tokens chose: pairs (token x slots + slot), sorted by expert. Each thread has its own.
struct Chosen {
    struct Group {
        int64_t expert, first, last;  // its pairs
    };
    std::vector<int64_t> pairs, begins;
    std::vector<Group> groups;
    int64_t sorted = 0;  // pairs with an expert; the others come behind them

    void need(int64_t experts, int64_t count) {
        pairs.reserve(count);
        begins.reserve(experts + 2);
        groups.reserve(std::min(experts, count));
    }

    void sort(const Operand& index, int64_t tokens, int64_t slots, int64_t experts) {
        const auto of = [&](int64_t pair) {
            const float number = index.data[pair / slots * index.row_stride + pair % slots * index.strides[2]];
            return number >= 0 && number < float(experts) ? int64_t(number) : experts;
        };
        begins.assign(experts + 2, 0);
        for (int64_t i = 0; i < tokens * slots; i++) begins[of(i) + 1]++;
        groups.clear();
        for (int64_t e = 0; e < experts; e++) {
            const int64_t first = begins[e], count = begins[e + 1];
            begins[e + 1] += first;
            if (count) groups.push_back({e, first, first + count});
        }
        sorted = begins[experts];
        pairs.resize(tokens * slots);
        for (int64_t i = 0; i < tokens * slots; i++) pairs[begins[of(i)]++] = i;
    }
};

class Program {
  public:
    Program(const Kernels* kernels, Pool* pool, const ProgramIR& ir, const Instruction* first, int64_t count,
            const Table* tables, int64_t table_count, const Layer* layers, int64_t layer_count,
            const Visibility* visibilities, int64_t visibility_count, const int64_t* state_sizes, int64_t state_count)
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

    void run(const Step& step) {
        step_ = &step;
        prepare();
        pool_->run([this](int thread) { work(thread); });
    }

    // The call went well: rings take their newest tokens.
    void commit(const Step& step) {
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

    // Seconds of each instruction's part in the last call, as thread 0 saw them; for profiles.
    const std::vector<double>& seconds() const { return seconds_; }
    void time_parts(bool on) { seconds_.assign(on ? code_.size() : 0, 0.0); }

  private:
    void prepare() {
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

    // Returns the floats of one part's states.
    int64_t prepare_scan(const Instruction* scan) {
        int64_t floats = 0;
        for (Scan& mine : scans_) {
            mine.ops.reserve(scan->op.sizes[2]);
            mine.states.resize(state_sizes_.size());
            floats = find_states(scan, mine);
        }
        return floats;
    }

    void work(int thread) {
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

    float* base(int32_t space, int64_t& stride) const {
        switch (space) {
            case VALUES: stride = ir_.row_floats; return reinterpret_cast<float*>(values_.chars());
            case LATE: stride = ir_.late_floats; return reinterpret_cast<float*>(late_.chars());
            case ATTENDED: return reinterpret_cast<float*>(attended_.chars());
            case LOGITS: stride = ir_.vocabulary; return step_->logits;
            default: return nullptr;
        }
    }

    // An operand's data is an address if it is a constant, else an offset; of what was attended it says the stride.
    Operand placed(const Operand& operand, int32_t space) const {
        Operand bound = operand;
        char* start = reinterpret_cast<char*>(base(space, bound.row_stride));
        if (start) bound.data = reinterpret_cast<float*>(start + reinterpret_cast<intptr_t>(operand.data));
        return bound;
    }

    void tokens(const Instruction& one, int64_t first, int64_t last, int64_t all, float* scratch) {
        RowOp op = one.op;
        op.out = placed(op.out, one.out_space);
        for (int j = 0; j < op.operands; j++) op.in[j] = placed(op.in[j], one.in_space[j]);
        switch (one.does) {
            case ROWWISE: k_->rowwise(&op, first, last, scratch); break;
            case EMBED:
                for (int64_t t = first; t < last; t++) embed(one, op, t);
                break;
            case READY:
                if (all > FEW) make_ready(one, first, last, all, ready_.chars());
                break;
            case KEEP:
                for (int64_t t = first; t < last; t++) keep_token(one, op, t);
                break;
            default: break;
        }
    }

    void make_ready(const Instruction& one, int64_t first, int64_t last, int64_t all, char* ready) {
        const Operand x = placed(one.op.in[0], one.in_space[0]);
        k_->make_ready(&tables_[one.weight].weight, x.data, x.row_stride, first, last - first, all, ready);
    }

    void embed(const Instruction& one, const RowOp& op, int64_t t) {
        const float* at = op.in[0].data + t * op.in[0].row_stride;
        float* out = op.out.data + t * op.out.row_stride;
        for (int64_t i = 0; i < op.sizes[2]; i++) {
            embed_row(tables_[one.weight], int64_t(at[i * op.in[0].strides[2]]), out + i * op.out.strides[2]);
        }
    }

    void embed_row(const Table& table, int64_t row, float* out) {
        const int64_t width = table.weight.inputs;
        if (row < 0 || row >= table.weight.outputs) {
            // Never so for a token of the vocabulary; positions may be beyond what the model was made for.
            std::fill(out, out + width, std::numeric_limits<float>::quiet_NaN());
        } else if (!table.plain) {
            k_->unpack(&table.weight, row, out);
        } else if (table.weight.kind == FLOAT32) {
            std::memcpy(out, static_cast<const float*>(table.weight.data) + row * width, width * 4);
        } else {
            const uint16_t* from = static_cast<const uint16_t*>(table.weight.data) + row * width;
            const bool half = table.weight.kind == FLOAT16;
            for (int64_t i = 0; i < width; i++) out[i] = half ? portable::from_half(from[i]) : portable::widen(from[i]);
        }
    }

    struct Fresh {
        Memory keys, values;
    };

    // A layer's new keys and values. Most layers have put theirs into the rectangle, and attended, when the next one
    // needs the room; those of a ring wait for the commit.
    Fresh& fresh(const Step& step, int64_t layer) {
        return step.rings[layer] || lasting_[layer] ? fresh_[layer] : shared_;
    }

    void keep_token(const Instruction& one, const RowOp& op, int64_t t) {
        const Layer& layer = layers_[one.layer];
        const int64_t dims[] = {layer.key_dim, layer.value_dim}, size = element(ir_.kind);
        char* to[] = {fresh(*step_, one.layer).keys.chars(), fresh(*step_, one.layer).values.chars()};
        for (int j = 0; j < 2; j++) {
            const Operand& in = op.in[j];
            for (int64_t h = 0; h < layer.kv_heads; h++) {
                convert(in.data + t * in.row_stride + h * in.strides[2], in.strides[3], dims[j], ir_.kind,
                        to[j] + (t * layer.kv_heads + h) * dims[j] * size);
            }
        }
        if (row_of_[t] >= 0 && !step_->rings[one.layer]) {
            keep(*step_, one.layer, row_of_[t], step_->positions[t], t);
        }
    }

    // A token's fresh keys and values go into their column of the rectangle.
    void keep(const Step& step, int64_t l, int64_t row, int64_t column, int64_t t) {
        const Layer& layer = layers_[l];
        Fresh& from = fresh(step, l);
        const Columns* to[] = {&step.keys[l], &step.values[l]};
        const char* start[] = {from.keys.chars(), from.values.chars()};
        const int64_t dims[] = {layer.key_dim, layer.value_dim}, size = element(ir_.kind);
        for (int j = 0; j < 2; j++) {
            for (int64_t h = 0; h < layer.kv_heads; h++) {
                const int64_t at = row * to[j]->row_stride + column * to[j]->column_stride + h * to[j]->head_stride;
                std::memcpy(static_cast<char*>(const_cast<void*>(to[j]->data)) + at * size,
                            start[j] + (t * layer.kv_heads + h) * dims[j] * size, dims[j] * size);
            }
        }
    }

    void multiply(const Instruction& one, Counter* counters, int thread, int64_t n, const char* ready, float* scratch) {
        const Weight& weight = tables_[one.weight].weight;
        const Operand out = placed(one.op.out, one.out_space);
        // A thread's panels lie one behind the other: memory is fastest so.
        shared(counters, thread, panels_of(weight), share_of(weight), [&](int64_t from, int64_t to) {
            k_->product(&weight, ready, n, from, to, one.bias, out.data, out.row_stride, scratch);
        });
    }

    static int64_t panels_of(const Weight& weight) { return (weight.outputs + PANEL - 1) / PANEL; }

    // Panels that a thread takes at a time.
    int64_t share_of(const Weight& weight) const {
        const int64_t panel_bytes = std::max<int64_t>(1, k_->weight_bytes(weight.kind, PANEL, weight.inputs));
        return std::max<int64_t>(1, SHARE_BYTES / panel_bytes);
    }

    // Products with the experts that tokens chose, and with no others. Each thread sorts for itself, which is cheaper
    // than to hand over; the experts' weights are read in their order. A row's sums do not depend on its group.
    void choose(const Instruction& one, Counter* counters, int thread, int64_t n, float* scratch) {
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
                const float* row =
                    x.data + chosen.pairs[i] / slots * x.row_stride + chosen.pairs[i] % slots * x.strides[2];
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
        // Slots without an expert; there are none where numbers come from a choice of the largest.
        for (int64_t i = chosen.sorted; thread == 0 && i < pairs; i++) {
            std::fill_n(slot_of(chosen.pairs[i]), outputs, std::numeric_limits<float>::quiet_NaN());
        }
    }

    // Divides [0, count) into a part for each thread; each takes `share` at a time, of its own part first.
    template <typename Work>
    void shared(Counter* counters, int thread, int64_t count, int64_t share, Work work) {
        const int threads = pool_->threads();
        for (int i = 0; i < threads; i++) {
            const int whose = (thread + i) % threads;
            const int64_t first = count * whose / threads, last = count * (whose + 1) / threads;
            for (;;) {
                const int64_t from = first + counters[whose].next.fetch_add(share, std::memory_order_relaxed);
                if (from >= last) break;
                work(from, std::min(from + share, last));
            }
        }
    }

    Attention attention(const Instruction& one) {
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

    void attend(const Instruction& one, Counter* counters, int thread, float* scratch) {
        const Attention call = attention(one);
        const int64_t tasks = k_->attention_tasks(&call), merges = k_->attention_merges(&call);
        shared(counters, thread, tasks, 1, [&](int64_t from, int64_t) { k_->attend(&call, from, scratch); });
        if (!merges) return;
        pool_->barrier();
        shared(counters + pool_->threads(), thread, merges, 1, [&](int64_t from, int64_t) { k_->merge(&call, from); });
    }

    // A thread's part of a scan: its instructions with their addresses, and where each state is: as the token before
    // left it, and as this token leaves it.
    struct Scan {
        struct State {
            bool used, apart;  // apart: `before` is read, so that it need not be copied to `here`
            float *before, *here;
        };
        std::vector<RowOp> ops;
        std::vector<State> states;
    };

    // Finds the states that a scan reads or writes; returns the floats of one part of them.
    int64_t find_states(const Instruction* scan, Scan& mine) const {
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

    void scan(const Instruction* scan, Counter* counters, int thread, float* scratch) {
        const int64_t parts = scan->op.sizes[3];
        find_states(scan, scans_[thread]);
        shared(counters, thread, step_->span_count * parts, 1,
               [&](int64_t from, int64_t) { scan_part(scan, from / parts, from % parts, scans_[thread], scratch); });
    }

    // One part of one span's states.
    void scan_part(const Instruction* scan, int64_t s, int64_t part, Scan& mine, float* scratch) {
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

    void bind_scan(const Instruction* scan, int64_t part, Scan& mine, float* scratch) {
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

    Operand in_scan(const Operand& operand, int32_t space, int64_t step, const Scan& mine, float* scratch) const {
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

    void pick(const Instruction& one, int64_t first, int64_t last) {
        const Operand in = placed(one.op.in[0], one.in_space[0]), out = placed(one.op.out, one.out_space);
        for (int64_t t = first; t < last; t++) {
            std::memcpy(out.data + t * out.row_stride, in.data + step_->kept[t] * in.row_stride, one.op.sizes[3] * 4);
        }
    }

    const Kernels* k_;
    Pool* pool_;
    const ProgramIR ir_;
    const std::vector<Instruction> code_;
    const std::vector<Table> tables_;
    const std::vector<Layer> layers_;
    const std::vector<Visibility> visibilities_;
    const std::vector<int64_t> state_sizes_;
    std::vector<Counter> counters_;
    std::vector<Memory> scratch_;
    std::vector<Memory> own_;
    std::vector<Chosen> chosen_;
    std::vector<Scan> scans_;
    std::vector<Fresh> fresh_;
    std::vector<bool> lasting_;
    Fresh shared_;
    Memory values_, late_, attended_, ready_, partial_;
    std::vector<int64_t> row_of_;
    std::vector<double> seconds_;
    const Step* step_ = nullptr;
};

extern "C" {

#define API __attribute__((visibility("default")))

// Null if not all of them can be started; see baton_fault.
API Pool* baton_pool_new(int32_t threads) {
    return made([&] { return new Pool(threads); });
}

API int32_t baton_pool_free(Pool* pool) {
    return guarded([&] { delete pool; });
}

// Null if there is no memory; see baton_fault. What the instructions point to is the caller's to keep.
API Program* baton_program_new(const Kernels* kernels, Pool* pool, const ProgramIR* ir, const Instruction* code,
                               int64_t count, const Table* tables, int64_t table_count, const Layer* layers,
                               int64_t layer_count, const Visibility* visibilities, int64_t visibility_count,
                               const int64_t* state_sizes, int64_t state_count) {
    return made([&] {
        check_lengths({count, table_count, layer_count, visibility_count, state_count});
        check(code, count, tables, table_count, layer_count, visibility_count, state_sizes, state_count);
        for (int64_t i = 0; i < visibility_count; i++) need(within(visibilities[i].layer, 0, layer_count - 1));
        return new Program(kernels, pool, *ir, code, count, tables, table_count, layers, layer_count, visibilities,
                           visibility_count, state_sizes, state_count);
    });
}

API int32_t baton_program_free(Program* program) {
    return guarded([&] { delete program; });
}

// If it fails, nothing but columns behind the rows' ends, and places of states that are not read, was written.
API int32_t baton_run(Program* program, const Step* step) {
    return guarded([&] { program->run(*step); });
}

API int32_t baton_commit(Program* program, const Step* step) {
    return guarded([&] { program->commit(*step); });
}

API int32_t baton_time_parts(Program* program, int32_t on) {
    return guarded([&] { program->time_parts(on); });
}

// Seconds since time_parts(1), by instruction, where a run of instructions counts as its first one.
API int32_t baton_parts(const Program* program, double* seconds) {
    return guarded([&] { std::copy(program->seconds().begin(), program->seconds().end(), seconds); });
}

// The number of a row-wise operation's or an instruction's name, -1 where there is none.
API int32_t baton_code(const char* name) {
#define IF_NAMED(code) \
    if (!std::strcmp(name, #code)) return code;
    ROWWISE_CODES(IF_NAMED)
    // clang-format off
    IF_NAMED(ROWWISE) IF_NAMED(EMBED) IF_NAMED(READY) IF_NAMED(PRODUCT) IF_NAMED(KEEP) IF_NAMED(ATTEND) IF_NAMED(EXPERT) IF_NAMED(SCAN) IF_NAMED(PICK)
    return -1;
    // clang-format on
}
}
