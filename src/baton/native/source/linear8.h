// Products on weights of kind INT8; linear.cpp hands over to them. See kernels.h for what each does.
#pragma once

#include "kernels.h"

namespace VARIANT {

int64_t weight_bytes_8(int64_t outputs, int64_t inputs);
int64_t scale_bytes_8(int64_t group, int64_t outputs, int64_t inputs);
void pack_8(const Weight*, int64_t first, int64_t count, const void* piece, int32_t from);
void unpack_8(const Weight*, int64_t output, float* to);
int64_t ready_bytes_8(const Weight*, int64_t rows);
void make_ready_8(const Weight*, const float* x, int64_t stride, int64_t first, int64_t count, int64_t rows,
                  void* ready);
void product_8(const Weight*, const void* ready, int64_t rows, int64_t from, int64_t to, const float* bias, float* y,
               int64_t stride);

}  // namespace VARIANT
