// What a program does for each token by itself: row-wise operations, embeddings, keys and values that are kept.
#include "program_body.h"
#include "rowwise.h"

#define VARIANT portable  // what is compiled once has no instructions of its own
#include "half.h"

#include <cstring>
#include <limits>

namespace {

void convert(const float* from, int64_t stride, int64_t count, int32_t kind, char* to) {
    if (kind == FLOAT32) {
        float* out = reinterpret_cast<float*>(to);
        for (int64_t i = 0; i < count; i++) out[i] = from[i * stride];
    } else if (kind == FLOAT16) {
        uint16_t* out = reinterpret_cast<uint16_t*>(to);
        for (int64_t i = 0; i < count; i++) out[i] = portable::to_half(from[i * stride]);
    } else {
        uint16_t* out = reinterpret_cast<uint16_t*>(to);
        for (int64_t i = 0; i < count; i++) out[i] = portable::narrow(from[i * stride]);
    }
}

}  // namespace

void Program::tokens(const Instruction& one, int64_t first, int64_t last, int64_t all, float* scratch) {
    RowOp op = one.op;
    op.out = placed(op.out, one.out_space);
    for (int j = 0; j < op.operands; j++) op.in[j] = placed(op.in[j], one.in_space[j]);
    switch (one.does) {
        case ROWWISE: k_->rowwise(&op, first, last, scratch); break;
        case EMBED:
            for (int64_t t = first; t < last; t++) embed(one, op, t);
            break;
        case READY:
            if (all > FEW) make_ready(one, first, last, all, ready_.chars());
            break;
        case KEEP:
            for (int64_t t = first; t < last; t++) keep_token(one, op, t);
            break;
        default: break;
    }
}

void Program::make_ready(const Instruction& one, int64_t first, int64_t last, int64_t all, char* ready) {
    const Operand x = placed(one.op.in[0], one.in_space[0]);
    k_->make_ready(&tables_[one.weight].weight, x.data, x.row_stride, first, last - first, all, ready);
}

void Program::embed(const Instruction& one, const RowOp& op, int64_t t) {
    const float* at = op.in[0].data + t * op.in[0].row_stride;
    float* out = op.out.data + t * op.out.row_stride;
    for (int64_t i = 0; i < op.sizes[2]; i++) {
        embed_row(tables_[one.weight], int64_t(at[i * op.in[0].strides[2]]), out + i * op.out.strides[2]);
    }
}

void Program::embed_row(const Table& table, int64_t row, float* out) {
    const int64_t width = table.weight.inputs;
    if (row < 0 || row >= table.weight.outputs) {
        // Never so for a token of the vocabulary; positions may be beyond what the model was made for.
        std::fill(out, out + width, std::numeric_limits<float>::quiet_NaN());
    } else if (!table.plain) {
        k_->unpack(&table.weight, row, out);
    } else if (table.weight.kind == FLOAT32) {
        std::memcpy(out, static_cast<const float*>(table.weight.data) + row * width, width * 4);
    } else {
        const uint16_t* from = static_cast<const uint16_t*>(table.weight.data) + row * width;
        const bool half = table.weight.kind == FLOAT16;
        for (int64_t i = 0; i < width; i++) out[i] = half ? portable::from_half(from[i]) : portable::widen(from[i]);
    }
}

void Program::keep_token(const Instruction& one, const RowOp& op, int64_t t) {
    const Layer& layer = layers_[one.layer];
    const int64_t dims[] = {layer.key_dim, layer.value_dim}, size = element(ir_.kind);
    char* to[] = {fresh(*step_, one.layer).keys.chars(), fresh(*step_, one.layer).values.chars()};
    for (int j = 0; j < 2; j++) {
        const Operand& in = op.in[j];
        for (int64_t h = 0; h < layer.kv_heads; h++) {
            convert(in.data + t * in.row_stride + h * in.strides[2], in.strides[3], dims[j], ir_.kind,
                    to[j] + (t * layer.kv_heads + h) * dims[j] * size);
        }
    }
    if (row_of_[t] >= 0 && !step_->rings[one.layer]) {
        keep(*step_, one.layer, row_of_[t], step_->positions[t], t);
    }
}

// A token's fresh keys and values go into their column of the rectangle.
void Program::keep(const Step& step, int64_t l, int64_t row, int64_t column, int64_t t) {
    const Layer& layer = layers_[l];
    Fresh& from = fresh(step, l);
    const Columns* to[] = {&step.keys[l], &step.values[l]};
    const char* start[] = {from.keys.chars(), from.values.chars()};
    const int64_t dims[] = {layer.key_dim, layer.value_dim}, size = element(ir_.kind);
    for (int j = 0; j < 2; j++) {
        for (int64_t h = 0; h < layer.kv_heads; h++) {
            const int64_t at = row * to[j]->row_stride + column * to[j]->column_stride + h * to[j]->head_stride;
            std::memcpy(static_cast<char*>(const_cast<void*>(to[j]->data)) + at * size,
                        start[j] + (t * layer.kv_heads + h) * dims[j] * size, dims[j] * size);
        }
    }
}

void Program::pick(const Instruction& one, int64_t first, int64_t last) {
    const Operand in = placed(one.op.in[0], one.in_space[0]), out = placed(one.op.out, one.out_space);
    for (int64_t t = first; t < last; t++) {
        std::memcpy(out.data + t * out.row_stride, in.data + step_->kept[t] * in.row_stride, one.op.sizes[3] * 4);
    }
}
