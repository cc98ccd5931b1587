// The body of a program: what a call carries out, on all threads together. Its parts are in a file each: program.cpp has
// the order of a call, program_tokens.cpp what acts on tokens, program_products.cpp products and attention, and
// program_scan.cpp what goes from token to token.
#pragma once

#include "buffer.h"
#include "pool.h"
#include "program.h"

#include <algorithm>
#include <atomic>
#include <vector>

constexpr int64_t FEW = 16;  // tokens that each thread makes ready for itself: cheaper than to hand them over
constexpr int64_t SHARE_BYTES = 64 << 10;  // of a weight, that a thread takes at a time

inline int64_t element(int32_t kind) { return kind == FLOAT32 ? 4 : 2; }

// What is left of a thread's own part of some work; others help themselves when theirs is done.
struct alignas(64) Counter {
    std::atomic<int64_t> next{0};
};

// Calls what(operand, space, step) for each operand of an instruction.
template <typename What>
void each_operand(const Instruction& one, What what) {
    what(one.op.out, one.out_space, one.steps[0]);
    for (int j = 0; j < one.op.operands; j++) what(one.op.in[j], one.in_space[j], one.steps[1 + j]);
}

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
            const Visibility* visibilities, int64_t visibility_count, const int64_t* state_sizes, int64_t state_count);

    void run(const Step& step);

    // The call went well: rings take their newest tokens.
    void commit(const Step& step);

    // Seconds of each instruction's part in the last call, as thread 0 saw them; for profiles.
    const std::vector<double>& seconds() const { return seconds_; }
    void time_parts(bool on) { seconds_.assign(on ? code_.size() : 0, 0.0); }

  private:
    struct Fresh {
        Memory keys, values;
    };

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

    void prepare();
    void work(int thread);

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

    // A layer's new keys and values. Most layers have put theirs into the rectangle, and attended, when the next one
    // needs the room; those of a ring wait for the commit.
    Fresh& fresh(const Step& step, int64_t layer) {
        return step.rings[layer] || lasting_[layer] ? fresh_[layer] : shared_;
    }

    // What acts on tokens [first, last) of `all`.
    void tokens(const Instruction& one, int64_t first, int64_t last, int64_t all, float* scratch);
    void make_ready(const Instruction& one, int64_t first, int64_t last, int64_t all, char* ready);
    void embed(const Instruction& one, const RowOp& op, int64_t t);
    void embed_row(const Table& table, int64_t row, float* out);
    void keep_token(const Instruction& one, const RowOp& op, int64_t t);
    // A token's fresh keys and values go into their column of the rectangle.
    void keep(const Step& step, int64_t l, int64_t row, int64_t column, int64_t t);
    void pick(const Instruction& one, int64_t first, int64_t last);

    void multiply(const Instruction& one, Counter* counters, int thread, int64_t n, const char* ready, float* scratch);
    void choose(const Instruction& one, Counter* counters, int thread, int64_t n, float* scratch);
    Attention attention(const Instruction& one);
    void attend(const Instruction& one, Counter* counters, int thread, float* scratch);

    static int64_t panels_of(const Weight& weight) { return (weight.outputs + PANEL - 1) / PANEL; }

    // Panels that a thread takes at a time.
    int64_t share_of(const Weight& weight) const {
        const int64_t panel_bytes = std::max<int64_t>(1, k_->weight_bytes(weight.kind, PANEL, weight.inputs));
        return std::max<int64_t>(1, SHARE_BYTES / panel_bytes);
    }

    // Returns the floats of one part's states.
    int64_t prepare_scan(const Instruction* scan);
    // Finds the states that a scan reads or writes; returns the floats of one part of them.
    int64_t find_states(const Instruction* scan, Scan& mine) const;
    void scan(const Instruction* scan, Counter* counters, int thread, float* scratch);
    void scan_part(const Instruction* scan, int64_t s, int64_t part, Scan& mine, float* scratch);
    void bind_scan(const Instruction* scan, int64_t part, Scan& mine, float* scratch);
    Operand in_scan(const Operand& operand, int32_t space, int64_t step, const Scan& mine, float* scratch) const;

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
