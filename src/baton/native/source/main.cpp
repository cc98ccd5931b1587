// What Python calls: the choice of the instruction set, and kernels by themselves for tests.
#include "buffer.h"
#include "check.h"
#include "guard.h"
#include "kernels.h"
#include "program.h"

#include <cstring>
#include <initializer_list>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace {

bool runs(const char* name) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    unsigned a = 0, b = 0, features = 0, d = 0;
    __get_cpuid(1, &a, &b, &features, &d);
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && features & bit_F16C;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (!std::strcmp(name, "avx2")) return avx2;
    if (!std::strcmp(name, "avx512")) return avx512;
    if (!std::strcmp(name, "avx512bf16")) {
        return avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
    }
#endif
    return !std::strcmp(name, "plain");
}

const Kernels* table_of(const char* name) {
#if defined(__x86_64__)
    if (!std::strcmp(name, "avx2")) return kernels_avx2();
    if (!std::strcmp(name, "avx512")) return kernels_avx512();
#if !defined(WITHOUT_AVX512BF16)  // the compiler did not know it
    if (!std::strcmp(name, "avx512bf16")) return kernels_avx512bf16();
#endif
#endif
    return std::strcmp(name, "plain") ? nullptr : kernels_plain();
}

}  // namespace

extern "C" {

#define API __attribute__((visibility("default")))

// Raise it, and ABI in baton/native/library.py, whenever a function's arguments, a struct or what they mean changes:
// a library that was built from other sources than Python's side expects is refused, not called.
API int32_t baton_abi() { return 7; }

// The bytes of each struct, in the order of STRUCTURES in baton/native/library.py; answers how many there are.
API int32_t baton_sizes(int64_t* sizes, int32_t room) {
    const int64_t all[] = {sizeof(Weight),  sizeof(Columns),    sizeof(Span),        sizeof(Attention),
                           sizeof(Operand), sizeof(RowOp),      sizeof(Instruction), sizeof(Table),
                           sizeof(Layer),   sizeof(Visibility), sizeof(ProgramIR),   sizeof(Step)};
    const int32_t count = sizeof all / sizeof *all;
    for (int32_t i = 0; i < count && i < room; i++) sizes[i] = all[i];
    return count;
}

// The table of a name, or of the best that this machine runs where the name is empty; null where it cannot run it.
API const Kernels* baton_kernels(const char* name) {
    if (*name) return table_of(name) && runs(name) ? table_of(name) : nullptr;
    for (const char* best : {"avx512bf16", "avx512", "avx2"}) {
        if (table_of(best) && runs(best)) return table_of(best);
    }
    return kernels_plain();
}

API const char* baton_name(const Kernels* kernels) { return kernels->name; }

// -1 for sizes that no weight has.
API int64_t baton_weight_bytes(const Kernels* k, int32_t kind, int64_t outputs, int64_t inputs) {
    int64_t bytes = -1;
    guarded([&] {
        check_sizes(kind, outputs, inputs);
        bytes = k->weight_bytes(kind, outputs, inputs);
    });
    return bytes;
}

API int64_t baton_scale_bytes(const Kernels* k, int32_t kind, int64_t group, int64_t outputs, int64_t inputs) {
    int64_t bytes = -1;
    guarded([&] {
        check_sizes(kind, group, outputs, inputs);
        bytes = k->scale_bytes(kind, group, outputs, inputs);
    });
    return bytes;
}

API int32_t baton_pack(const Kernels* k, const Weight* weight, int64_t first, int64_t count, const void* piece,
                       int32_t from) {
    return guarded([&] {
        check(*weight, first, count);
        check_rounded(*weight);
        need(of_numbers(from) && (piece || !count));
        k->pack(weight, first, count, piece, from);
    });
}

API int32_t baton_unpack(const Kernels* k, const Weight* weight, int64_t first, int64_t count, float* to) {
    return guarded([&] {
        check(*weight, first, count);
        need(to || !count);
        for (int64_t i = 0; i < count; i++) k->unpack(weight, first + i, to + i * weight->inputs);
    });
}

// A product by itself, on the calling thread.
API int32_t baton_product(const Kernels* k, const Weight* weight, const float* x, int64_t rows, const float* bias,
                          float* y) {
    return guarded([&] {
        check(*weight);
        check_sizes(rows, weight->inputs);
        check_sizes(rows, weight->outputs);
        if (!rows) return;
        need(x && y);
        Memory ready, scratch;
        ready.need(k->ready_bytes(weight, rows));
        scratch.floats(k->product_scratch(weight, rows));
        k->make_ready(weight, x, weight->inputs, 0, rows, rows, ready.chars());
        k->product(weight, ready.chars(), rows, 0, (weight->outputs + PANEL - 1) / PANEL, bias, y, weight->outputs,
                   scratch.floats(0));
    });
}

// One layer's attention by itself, on the calling thread; `partial` is ours.
API int32_t baton_attend(const Kernels* k, const Attention* asked) {
    return guarded([&] {
        check(*asked);
        Attention call = *asked;
        Memory scratch, partial;
        scratch.floats(k->attention_scratch(&call));
        call.partial = partial.floats(k->partial_floats(&call));
        for (int64_t i = 0, n = k->attention_tasks(&call); i < n; i++) k->attend(&call, i, scratch.floats(0));
        for (int64_t i = 0, n = k->attention_merges(&call); i < n; i++) k->merge(&call, i);
    });
}
}
