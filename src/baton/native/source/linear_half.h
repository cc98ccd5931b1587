// Products on weights of kinds FLOAT16 and FLOAT8; linear.cpp hands over to them. See kernels.h for what each does.
#pragma once

#include "kernels.h"

namespace VARIANT {

static inline bool half_or_less(int32_t kind) { return kind == FLOAT16 || kind == FLOAT8; }

int64_t weight_bytes_half(int32_t kind, int64_t outputs, int64_t inputs);
int64_t scale_bytes_half(int32_t kind, int64_t group, int64_t outputs, int64_t inputs);
void pack_half(const Weight*, int64_t first, int64_t count, const void* piece, int32_t from);
void unpack_half(const Weight*, int64_t output, float* to);
int64_t ready_bytes_half(const Weight*, int64_t rows);
void make_ready_half(const Weight*, const float* x, int64_t stride, int64_t first, int64_t count, int64_t rows,
                     void* ready);
void product_half(const Weight*, const void* ready, int64_t rows, int64_t from, int64_t to, const float* bias, float* y,
                  int64_t stride);

}  // namespace VARIANT
