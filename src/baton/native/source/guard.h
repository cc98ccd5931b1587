// No C++ exception may leave a function that Python calls: it would end the process.
#pragma once

#include <cstdint>

// Why a call failed. Functions that return an address return null then, and baton_fault() says why.
enum Fault : int32_t { NONE = 0, NO_MEMORY = 1, NO_THREADS = 2, INVALID = 3, FAILED = 4 };

// Of the exception that is being handled.
int32_t fault_of_exception() noexcept;

// The fault of this thread's last call that should have returned an address.
extern thread_local int32_t last_fault;

template <typename Body>
int32_t guarded(Body body) noexcept {
    try {
        body();
        return NONE;
    } catch (...) {
        return fault_of_exception();
    }
}

template <typename Make>
auto made(Make make) noexcept -> decltype(make()) {
    decltype(make()) result = nullptr;
    last_fault = guarded([&] { result = make(); });
    return result;
}
