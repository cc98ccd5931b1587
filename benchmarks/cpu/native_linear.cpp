// Times linear.cpp's products as an engine's step runs them, next to the machine's limits; see native_linear.py.
//
// Its threads (two, if the compiler is not told otherwise) share each product's panels and wait for each other after it, spinning. Weights are more than the caches
// hold, and are gone through in turn. Activations are made ready before, untimed. Each product counts with the best of
// its passes.
#include <sys/mman.h>
#include <time.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <thread>
#include <vector>

#include "kernels.h"
#include "vectors.h"

namespace VARIANT {
int64_t weight_bytes(int32_t, int64_t, int64_t);
int64_t scale_bytes(int32_t, int64_t, int64_t, int64_t);
void pack(const Weight*, int64_t, int64_t, const void*, int32_t);
int64_t ready_bytes(const Weight*, int64_t);
void make_ready(const Weight*, const float*, int64_t, int64_t, int64_t, int64_t, void*);
void product(const Weight*, const void*, int64_t, int64_t, int64_t, const float*, float*, int64_t, float*);
int64_t product_scratch(const Weight*, int64_t);
}  // namespace VARIANT

using namespace VARIANT;

namespace {

#ifndef THREADS
#define THREADS 2
#endif
#ifndef PASSES
#define PASSES 30
#endif
// Inputs that share a weight's scale.
int32_t group_of(int32_t kind) { return kind == INT4 ? 32 : int32_t(GROUP); }

constexpr size_t COLD = 128 << 20;  // bytes of weights that no cache holds

std::atomic<int64_t> arrived{0};

void meet() {
    const int64_t round = arrived.fetch_add(1) / THREADS;
    while (arrived.load(std::memory_order_acquire) < (round + 1) * THREADS) {
    }
}

// A thread by itself counts its own processor time, which neighbours take nothing of; several count until all have met.
double now() {
    timespec time;
    clock_gettime(THREADS == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
    return double(time.tv_sec) + double(time.tv_nsec) * 1e-9;
}

// Seconds of all `items` together, each at the best of its passes: a neighbour on the machine spoils few of them.
template <typename Work>
double best_seconds(int passes, int64_t items, Work work) {
    std::vector<double> best(items, 1e9);
    auto run = [&](int thread) {
        for (int64_t i = 0; i < passes * items; i++) {
            meet();
            const double start = now();
            work(thread, i % items);
            meet();
            const double took = now() - start;
            if (thread == 0 && took < best[i % items]) best[i % items] = took;
        }
    };
    std::vector<std::thread> others;
    for (int thread = 1; thread < THREADS; thread++) others.emplace_back(run, thread);
    run(0);
    for (auto& other : others) other.join();
    return std::accumulate(best.begin(), best.end(), 0.0);
}

void* space(size_t bytes) {
    const size_t page = 2 << 20, whole = (bytes + page - 1) / page * page;
    void* found = std::aligned_alloc(page, whole);
    if (!found) std::abort();
    if (!std::getenv("SMALL_PAGES")) madvise(found, whole, MADV_HUGEPAGE);
    return found;
}

float noise() { return float(std::rand()) / float(RAND_MAX) - 0.5f; }

double read_rate() {
    char* memory = static_cast<char*>(space(COLD));
    for (size_t i = 0; i < COLD; i++) memory[i] = char(i);
    volatile int32_t sink = 0;
    const size_t part = 2 << 20;
    const double seconds = best_seconds(20, COLD / part, [&](int thread, int64_t item) {
        vint sum[4] = {};
        const char* from = memory + item * part + thread * (part / THREADS);
        for (size_t i = 0; i < part / THREADS; i += sizeof sum) {
            __builtin_prefetch(from + i + 4096);
            for (int j = 0; j < 4; j++) sum[j] += load<vint>(from + i + j * sizeof(vint));
        }
        sink = sink + (sum[0] + sum[1] + sum[2] + sum[3])[0];
    });
    std::free(memory);
    return double(COLD) / seconds;
}

template <typename Step>
double rate(double per_step, Step step) {
    const int64_t steps = 20000;
    const double seconds = best_seconds(200, 1, [&](int, int64_t) { step(steps); });
    return per_step * double(steps) * THREADS / seconds;
}

// Products of 4 bytes each, as weights in 4 bits take them.
double peak_of_bytes() {
#if defined(__AVX512VNNI__)
    constexpr int CHAINS = 16;
    return rate(CHAINS * LANES * 8, [](int64_t steps) {
        __m512i sum[CHAINS] = {}, x = {};
        for (int64_t i = 0; i < steps; i++) {
            for (auto& s : sum) asm volatile("vpdpbusd %1, %1, %0" : "+v"(s) : "v"(x));
        }
    });
#elif defined(__AVX2__)
    constexpr int CHAINS = 12;
    return rate(CHAINS * LANES * 8, [](int64_t steps) {
        vshort sum[CHAINS] = {};
        vint x = {};
        for (int64_t i = 0; i < steps; i++) {
            for (auto& s : sum) {
                vint found;
                asm volatile("vpmaddubsw %1, %1, %0" : "=v"(found) : "v"(x));
                s += (vshort)found;
            }
            for (auto& s : sum) asm volatile("" : "+v"(s));
        }
    });
#else
    return 0;
#endif
}

// Multiply-adds in sixteen (or as many as there are registers for) chains.
double peak(int32_t kind) {
    if (kind == INT4) return peak_of_bytes();
#if defined(__AVX512F__)
    constexpr int CHAINS = 16;
#else
    constexpr int CHAINS = 12;
#endif
#ifdef __AVX512BF16__
    if (kind == BFLOAT16) {
        return rate(CHAINS * LANES * 4, [](int64_t steps) {
            __m512 sum[CHAINS] = {};
            __m512bh x = {};
            for (int64_t i = 0; i < steps; i++) {
                for (auto& s : sum) asm volatile("vdpbf16ps %1, %1, %0" : "+v"(s) : "v"(x));
            }
        });
    }
#endif
#ifdef __AVX512VNNI__
    if (kind == INT8) {
        return rate(CHAINS * LANES * 4, [](int64_t steps) {
            __m512i sum[CHAINS] = {}, x = {};
            for (int64_t i = 0; i < steps; i++) {
                for (auto& s : sum) asm volatile("vpdpwssd %1, %1, %0" : "+v"(s) : "v"(x));
            }
        });
    }
#endif
#if defined(__FMA__) && !defined(__AVX512F__)
    // By name: an array of sums GCC 12 keeps in memory, and finds a third of the rate.
    return rate(CHAINS * LANES * 2, [](int64_t steps) {
        vfloat a{}, b{}, c{}, d{}, e{}, f{}, g{}, h{}, i{}, j{}, k{}, l{}, x{};
        for (int64_t step = 0; step < steps; step++) {
            asm volatile(
                "vfmadd231ps %12, %12, %0\n"
                "vfmadd231ps %12, %12, %1\n"
                "vfmadd231ps %12, %12, %2\n"
                "vfmadd231ps %12, %12, %3\n"
                "vfmadd231ps %12, %12, %4\n"
                "vfmadd231ps %12, %12, %5\n"
                "vfmadd231ps %12, %12, %6\n"
                "vfmadd231ps %12, %12, %7\n"
                "vfmadd231ps %12, %12, %8\n"
                "vfmadd231ps %12, %12, %9\n"
                "vfmadd231ps %12, %12, %10\n"
                "vfmadd231ps %12, %12, %11\n"
                : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f), "+v"(g), "+v"(h), "+v"(i), "+v"(j), "+v"(k),
                  "+v"(l)
                : "v"(x));
        }
    });
#else
    return rate(CHAINS * LANES * 2, [](int64_t steps) {
        vfloat sum[CHAINS] = {}, x = {};
        for (int64_t i = 0; i < steps; i++) {
            for (auto& s : sum) s = s * x + x;
            for (auto& s : sum) asm volatile("" : "+v"(s));
        }
    });
#endif
}

struct Bench {
    int32_t kind;
    int64_t outputs, inputs;
    std::vector<Weight> weights;

    Bench(int32_t kind, int32_t planes, int64_t outputs, int64_t inputs)
        : kind(kind), outputs(outputs), inputs(inputs) {
        std::vector<float> piece(outputs * inputs);
        for (auto& x : piece) x = noise();
        for (size_t held = 0; weights.empty() || held < COLD; held += bytes()) {
            Weight w{kind,
                     outputs,
                     inputs,
                     space(weight_bytes(kind, outputs, inputs)),
                     space(scale_bytes(kind, group_of(kind), outputs, inputs) + 64),
                     group_of(kind),
                     planes,
                     0x1p-16f,
                     kind == INT8,
                     kind == INT4 ? 8 : 0};
            if (!weights.empty()) {
                std::memcpy(w.data, weights[0].data, weight_bytes(kind, outputs, inputs));
                std::memcpy(w.scales, weights[0].scales, scale_bytes(kind, group_of(kind), outputs, inputs));
                weights.push_back(w);
                continue;
            }
            pack(&w, 0, outputs, piece.data(), FLOAT32);
            weights.push_back(w);
        }
    }

    ~Bench() {
        for (auto& w : weights) {
            std::free(w.data);
            std::free(w.scales);
        }
    }

    size_t bytes() const {
        return size_t(weight_bytes(kind, outputs, inputs)) + size_t(scale_bytes(kind, group_of(kind), outputs, inputs));
    }

    double seconds(int64_t rows) {
        const int64_t stride = outputs + 16;  // as in a step: rows do not share the sets of a cache
        std::vector<float> x(rows * inputs), y(rows * stride);
        for (auto& v : x) v = noise();
        void* ready = space(ready_bytes(&weights[0], rows) + 64);
        make_ready(&weights[0], x.data(), inputs, 0, rows, rows, ready);
        const int64_t panels = (outputs + PANEL - 1) / PANEL;
        const int passes = rows > 64 ? (PASSES + 3) / 4 : PASSES;
        const double found = best_seconds(passes, int64_t(weights.size()), [&](int thread, int64_t item) {
            const Weight& w = weights[item];
            product(&w, ready, rows, panels * thread / THREADS, panels * (thread + 1) / THREADS, nullptr, y.data(),
                    stride, nullptr);
        });
        std::free(ready);
        return found / double(weights.size());
    }
};

}  // namespace

// Arguments: kind, bytes of an activation (of int4), outputs, inputs, then numbers of rows.
int main(int count, char** arguments) {
    const int32_t kind = std::atoi(arguments[1]);
    const double bandwidth = read_rate(), most = peak(kind);
    std::printf("limits %.2f %.1f\n", bandwidth * 1e-9, most * 1e-9);
    Bench bench(kind, std::atoi(arguments[2]), std::atoll(arguments[3]), std::atoll(arguments[4]));
    for (int i = 5; i < count; i++) {
        const int64_t rows = std::atoll(arguments[i]);
        const double seconds = bench.seconds(rows);
        const double flops = 2.0 * double(rows) * double(bench.outputs) * double(bench.inputs) / seconds;
        const double read = double(bench.bytes()) / seconds;
        std::printf("%lld %.1f %.2f %.1f\n", static_cast<long long>(rows), seconds * 1e6, read * 1e-9, flops * 1e-9);
        std::fflush(stdout);
    }
}
