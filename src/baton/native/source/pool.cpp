#include "pool.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// About 20 microseconds of pauses: longer than threads wait for one another where each has a core of its own.
constexpr int SPINS = 600;
constexpr int MOST_THREADS = 1024;  // as in baton/config.py

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

// Waits while `word` is `old`. Whoever has waited for long sleeps: a scheduler runs a thread that was woken before those
// that have been computing, while one that spins, or yields, is charged for it like a neighbour that computes.
void Pool::wait_while(std::atomic<uint32_t>& word, uint32_t old) {
    for (int i = 0; i < SPINS; i++) {
        if (word.load(std::memory_order_acquire) != old) return;
        relax();
    }
#if defined(__linux__)
    sleepers_.fetch_add(1);
    while (word.load() == old) syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
    sleepers_.fetch_sub(1);
#else
    while (word.load(std::memory_order_acquire) == old) std::this_thread::yield();
#endif
}

// Changes a word that others may be waiting on. Sequentially consistent, so that a sleeper either sees the change before
// it sleeps, or is counted and woken.
void Pool::change(std::atomic<uint32_t>& word, uint32_t now) {
    word.store(now);
#if defined(__linux__)
    if (sleepers_.load()) syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#endif
}

Pool::Pool(int threads) : threads_(threads) {
    if (threads < 1 || threads > MOST_THREADS) throw std::invalid_argument("threads");
    others_.reserve(threads - 1);
    try {
        for (int i = 1; i < threads; i++) others_.emplace_back([this, i] { loop(i); });
    } catch (...) {
        end();  // a std::thread that is destroyed before it is joined ends the process
        throw;
    }
}

Pool::~Pool() { end(); }

void Pool::end() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (auto& other : others_) other.join();
}

void Pool::run(const std::function<void(int)>& work) {
    if (threads_ == 1) return work(0);
    std::lock_guard<std::mutex> alone(running_);
    {
        std::lock_guard<std::mutex> lock(mutex_);
        work_ = &work;
        left_.store(threads_ - 1, std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        call_++;
    }
    wake_.notify_all();
    work(0);
    wait_while(done_, 0);
}

void Pool::loop(int thread) {
    for (uint64_t seen = 0;;) {
        const std::function<void(int)>* work;
        {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return stop_ || call_ != seen; });
            if (stop_) return;
            seen = call_;
            work = work_;
        }
        (*work)(thread);
        if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) change(done_, 1);
    }
}

void Pool::barrier() {
    if (threads_ == 1) return;
    const uint32_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        change(round_, round + 1);
        return;
    }
    wait_while(round_, round);
}
