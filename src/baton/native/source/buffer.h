// Memory for one call's numbers.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

// 64-byte aligned memory that grows and is never copied.
class Memory {
  public:
    ~Memory() { std::free(data_); }
    void* need(int64_t bytes) {
        if (bytes > size_) {
            std::free(data_);
            size_ = 0;
            data_ = std::aligned_alloc(64, (bytes + 127) / 64 * 64);
            if (!data_) throw std::bad_alloc();
            size_ = bytes;
        }
        return data_;
    }
    float* floats(int64_t count) { return static_cast<float*>(need(count * 4)); }
    char* chars() const { return static_cast<char*>(data_); }

  private:
    void* data_ = nullptr;
    int64_t size_ = 0;
};
