// What Python calls: the choice of the instruction set, and kernels by themselves for tests.
#include "buffer.h"
#include "check.h"
#include "guard.h"
#include "kernels.h"
#include "program.h"

#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace {

#if defined(__x86_64__)
bool avx2() {
    __builtin_cpu_init();
    unsigned a = 0, b = 0, features = 0, d = 0;
    __get_cpuid(1, &a, &b, &features, &d);
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && features & bit_F16C;
}

// Not by the compiler's own word for it, which old ones do not have.
bool avxvnni() {
    unsigned features = 0, b = 0, c = 0, d = 0;
    return avx2() && __get_cpuid_count(7, 1, &features, &b, &c, &d) && features >> 4 & 1;
}

bool avx512() {
    return avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool avx512vnni() { return avx512() && __builtin_cpu_supports("avx512vnni"); }

bool avx512bf16() { return avx512vnni() && __builtin_cpu_supports("avx512bf16"); }
#endif

#if defined(__aarch64__)
bool neondot() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return true;  // all of Apple's have it
#endif
}
#endif

struct Variant {
    const char* name;
    const Kernels* (*table)();
    bool (*runs)();
};

// The best first; without those that the compiler did not know.
constexpr Variant VARIANTS[] = {
#if !defined(WITHOUT_AVX512BF16)
    {"avx512bf16", kernels_avx512bf16, avx512bf16},
#endif
#if !defined(WITHOUT_AVX512VNNI)
    {"avx512vnni", kernels_avx512vnni, avx512vnni},
#endif
#if !defined(WITHOUT_AVX512)
    {"avx512", kernels_avx512, avx512},
#endif
#if !defined(WITHOUT_AVXVNNI)
    {"avxvnni", kernels_avxvnni, avxvnni},
#endif
#if !defined(WITHOUT_AVX2)
    {"avx2", kernels_avx2, avx2},
#endif
#if !defined(WITHOUT_NEONDOT)
    {"neondot", kernels_neondot, neondot},
#endif
    {"plain", kernels_plain, [] { return true; }},
};

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
    for (const Variant& one : VARIANTS) {
        if ((!*name || !std::strcmp(name, one.name)) && one.runs()) return one.table();
    }
    return nullptr;
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
