// The table of one instruction set, see kernels.h.
#include "kernels.h"

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define JOIN_OF(a, b) a##b
#define JOIN(a, b) JOIN_OF(a, b)

namespace VARIANT {

int64_t weight_bytes(int32_t kind, int64_t outputs, int64_t inputs);
int64_t scale_bytes(int32_t kind, int64_t group, int64_t outputs, int64_t inputs);
void pack(const Weight*, int64_t first, int64_t count, const void* piece, int32_t from);
void unpack(const Weight*, int64_t output, float* to);
int64_t ready_bytes(const Weight*, int64_t rows);
void make_ready(const Weight*, const float* x, int64_t stride, int64_t first, int64_t count, int64_t rows, void* ready);
void product(const Weight*, const void* ready, int64_t rows, int64_t from, int64_t to, const float* bias, float* y,
             int64_t stride, float* scratch);
int64_t product_scratch(const Weight*, int64_t rows);
int64_t attention_tasks(const Attention*);
void attend(const Attention*, int64_t task, float* scratch);
int64_t attention_merges(const Attention*);
void merge(const Attention*, int64_t merge);
int64_t partial_floats(const Attention*);
int64_t attention_scratch(const Attention*);
void rowwise(const RowOp*, int64_t first, int64_t last, float* scratch);

static const Kernels table = {
    TEXT(VARIANT),     weight_bytes,    scale_bytes,     pack,   unpack,           ready_bytes, make_ready,
    product,           product_scratch, attention_tasks, attend, attention_merges, merge,       partial_floats,
    attention_scratch, rowwise,
};

}  // namespace VARIANT

const Kernels* JOIN(kernels_, VARIANT)() { return &VARIANT::table; }
