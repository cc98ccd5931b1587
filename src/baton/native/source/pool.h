// Threads that run one function together, and a barrier among them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

// Between calls the threads sleep; within a call they wait for one another by spinning for a little while and then
// sleeping, so that a busy neighbour on a core costs its share of time, not a scheduler's quantum per barrier.
class Pool {
  public:
    // Throws std::system_error if a thread cannot be started; those that were have ended then.
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return threads_; }
    // Runs `work(thread)` on all threads, the caller's own as thread 0; answers when all are done. Several engines of a
    // process may call it at once: one waits for the other.
    void run(const std::function<void(int)>& work);
    // Waits until all threads are here. Only within `run`.
    void barrier();

  private:
    void loop(int thread);
    void end();
    void wait_while(std::atomic<uint32_t>& word, uint32_t old);
    void change(std::atomic<uint32_t>& word, uint32_t now);

    const int threads_;
    std::vector<std::thread> others_;
    std::mutex running_;  // held for a whole run
    std::mutex mutex_;
    std::condition_variable wake_;
    const std::function<void(int)>* work_ = nullptr;
    uint64_t call_ = 0;
    bool stop_ = false;
    alignas(64) std::atomic<int> left_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> round_{0};
    alignas(64) std::atomic<uint32_t> done_{0};
    alignas(64) std::atomic<int> sleepers_{0};
};
