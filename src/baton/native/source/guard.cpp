#include "guard.h"

#include <new>
#include <stdexcept>
#include <system_error>

thread_local int32_t last_fault = NONE;

int32_t fault_of_exception() noexcept {
    try {
        throw;
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    } catch (const std::system_error&) {
        return NO_THREADS;  // nothing else here asks the system for anything
    } catch (const std::logic_error&) {  // of an argument: std::invalid_argument, std::length_error
        return INVALID;
    } catch (...) {
        return FAILED;
    }
}

extern "C" __attribute__((visibility("default"))) int32_t baton_fault() { return last_fault; }
