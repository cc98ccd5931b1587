// Operations that act on each token by itself: everything in a model's step but linear products and attention.
//
// One loop walks an operation's dimensions for a token; its innermost dimension goes by whole vectors, and a rest
// shorter than a vector through a copy, so that a number's value does not depend on where in a vector it lies.
#include "kernels.h"
#include "rowwise.h"
#include "vectors.h"

namespace VARIANT {

static inline vfloat fetch(const float* from, int64_t stride, int64_t count) {
    if (stride == 1 && count >= LANES) return load<vfloat>(from);
    if (stride == 0) return all(*from);
    vfloat values = {};
    for (int64_t i = 0; i < count && i < LANES; i++) values[i] = from[i * stride];
    return values;
}

static inline void put(float* to, int64_t stride, int64_t count, vfloat what) {
    if (stride == 1 && count >= LANES) return store(to, what);
    for (int64_t i = 0; i < count && i < LANES; i++) to[i * stride] = what[i];
}

// Calls line(out, in[0], in[1], in[2]) for each token and each index of the outer dimensions.
template <typename Line>
static inline void lines(const RowOp* op, int64_t first, int64_t last, Line line) {
    const int64_t *n = op->sizes, *o = op->out.strides;
    for (int64_t t = first; t < last; t++) {
        float* out = op->out.data + t * op->out.row_stride;
        const float* in[MOST_OPERANDS] = {};
        for (int j = 0; j < op->operands; j++) in[j] = op->in[j].data + t * op->in[j].row_stride;
        for (int64_t a = 0; a < n[0]; a++) {
            for (int64_t b = 0; b < n[1]; b++) {
                for (int64_t c = 0; c < n[2]; c++) {
                    const float* at[MOST_OPERANDS] = {};
                    for (int j = 0; j < op->operands; j++) {
                        const int64_t* s = op->in[j].strides;
                        at[j] = in[j] + a * s[0] + b * s[1] + c * s[2];
                    }
                    line(out + a * o[0] + b * o[1] + c * o[2], at);
                }
            }
        }
    }
}

template <typename Of>
static void unary(const RowOp* op, int64_t first, int64_t last, Of of) {
    const int64_t n = op->sizes[3], so = op->out.strides[3], s0 = op->in[0].strides[3];
    const int64_t whole = so == 1 && s0 == 1 ? n - n % LANES : 0;
    lines(op, first, last, [&](float* out, const float* const* in) {
        const float* x = in[0];
        for (int64_t i = 0; i < whole; i += LANES) store(out + i, of(load<vfloat>(x + i)));
        for (int64_t i = whole; i < n; i += LANES) put(out + i * so, so, n - i, of(fetch(x + i * s0, s0, n - i)));
    });
}

template <typename Of>
static void binary(const RowOp* op, int64_t first, int64_t last, Of of) {
    const int64_t n = op->sizes[3], so = op->out.strides[3], s0 = op->in[0].strides[3], s1 = op->in[1].strides[3];
    const int64_t whole = so == 1 && s0 == 1 && (s1 == 1 || s1 == 0) ? n - n % LANES : 0;
    lines(op, first, last, [&](float* out, const float* const* in) {
        const float *x = in[0], *y = in[1];
        if (s1 == 0) {
            const vfloat same = all(*y);
            for (int64_t i = 0; i < whole; i += LANES) store(out + i, of(load<vfloat>(x + i), same));
        } else {
            for (int64_t i = 0; i < whole; i += LANES) {
                store(out + i, of(load<vfloat>(x + i), load<vfloat>(y + i)));
            }
        }
        for (int64_t i = whole; i < n; i += LANES) {
            const vfloat a = fetch(x + i * s0, s0, n - i), b = fetch(y + i * s1, s1, n - i);
            put(out + i * so, so, n - i, of(a, b));
        }
    });
}

// Convolutions copy many lines of a few numbers.
static void copy(const RowOp* op, int64_t first, int64_t last) {
    const int64_t n = op->sizes[3], so = op->out.strides[3], s0 = op->in[0].strides[3];
    lines(op, first, last, [&](float* out, const float* const* in) {
        if (so == 1 && s0 == 1 && n >= LANES) {
            std::memmove(out, in[0], n * sizeof(float));
        } else {
            for (int64_t i = 0; i < n; i++) out[i * so] = in[0][i * s0];
        }
    });
}

// By single numbers, for functions that have no vector form here and are rarely on a long line.
template <typename Of>
static void scalar(const RowOp* op, int64_t first, int64_t last, Of of) {
    const int64_t n = op->sizes[3], so = op->out.strides[3], s0 = op->in[0].strides[3];
    lines(op, first, last, [&](float* out, const float* const* in) {
        for (int64_t i = 0; i < n; i++) out[i * so] = of(in[0][i * s0]);
    });
}

static inline vfloat choose(vint which, vfloat yes, vfloat no) { return which ? yes : no; }

static inline vfloat tanh(vfloat x) {
    const vfloat size = x < all(0.0f) ? -x : x, square = x * x;
    // Near 0 its series, for the sake of its relative error.
    vfloat near = all(-0.008863235529902197f);
    near = near * square + all(0.021869488536155203f);
    near = near * square + all(-0.05396825396825397f);
    near = near * square + all(0.13333333333333333f);
    near = near * square + all(-0.3333333333333333f);
    near = near * square * x + x;
    const vfloat far = all(1.0f) - all(2.0f) / (exp(size + size) + all(1.0f));
    return choose(size < all(0.25f), near, x < all(0.0f) ? -far : far);
}

static inline vfloat sigmoid(vfloat x) { return all(1.0f) / (all(1.0f) + exp(-x)); }

// Two polynomials of our own fit: x P(x^2) below 1, 1 - exp(-Q(x)) above; 1.3e-7 at most from the truth.
static inline vfloat erf(vfloat x) {
    const float inner[] = {7.882497117e-05f, -8.018854994e-04f, 5.189311943e-03f, -2.68543288e-02f,
                           1.128359746e-01f, -3.76126269e-01f,  1.128379166f};
    const float outer[] = {-1.614061598e-06f, 4.559062234e-05f, -5.92769537e-04f, 4.740222338e-03f, -2.636471735e-02f,
                           1.099782451e-01f,  6.319370937e-01f, 1.130166675f,     -3.032129671e-04f};
    const vfloat square = x * x, size = x < all(0.0f) ? -x : x;
    const vfloat inside = choose(size > all(4.0f), all(4.0f), size);
    vfloat near = all(inner[0]), far = all(outer[0]);
    for (int i = 1; i < 7; i++) near = near * square + all(inner[i]);
    for (int i = 1; i < 9; i++) far = far * inside + all(outer[i]);
    far = choose(size >= all(4.0f), all(1.0f), all(1.0f) - exp(-far));
    vfloat value = choose(size < all(1.0f), near * x, choose(x < all(0.0f), -far, far));
    return choose(x != x, x, value);
}

static inline vfloat gelu(vfloat x) { return all(0.5f) * x * (all(1.0f) + erf(x * all(0.70710678118654752f))); }

static inline vfloat gelu_tanh(vfloat x) {
    const vfloat inner = all(0.79788456080286536f) * (x + all(0.044715f) * x * x * x);
    return all(0.5f) * x * (all(1.0f) + tanh(inner));
}

// Reductions over the innermost dimension; `out` has one number per line, or as many as `in`.

static inline float total(const float* x, int64_t stride, int64_t n) {
    vfloat sums = {};
    int64_t i = 0;
    if (stride == 1) {
        for (; i + LANES <= n; i += LANES) sums += load<vfloat>(x + i);
    }
    float rest = 0;
    for (; i < n; i++) rest += x[i * stride];
    return sum(sums) + rest;
}

static inline float dot(const float* x, int64_t sx, const float* y, int64_t sy, int64_t n) {
    vfloat sums = {};
    int64_t i = 0;
    if (sx == 1 && sy == 1) {
        for (; i + LANES <= n; i += LANES) sums += load<vfloat>(x + i) * load<vfloat>(y + i);
    }
    const float whole = i ? sum(sums) : 0.0f;
    float rest = 0;
    for (; i < n; i++) rest += x[i * sx] * y[i * sy];
    return whole + rest;
}

// Sums of products over the innermost dimension but one, many of them side by side, each in the dimension's order.
static void dot_across(const RowOp* op, int64_t first, int64_t last) {
    constexpr int WIDE = 4;
    RowOp outer = *op;
    outer.sizes[2] = 1;
    const int64_t n = op->sizes[2], m = op->sizes[3], so = op->out.strides[3];
    const int64_t *s = op->in[0].strides, *r = op->in[1].strides;
    lines(&outer, first, last, [&](float* out, const float* const* in) {
        const auto product = [&](int64_t i, int64_t j, int64_t count) {
            return fetch(in[0] + i * s[2] + j * s[3], s[3], count) * fetch(in[1] + i * r[2] + j * r[3], r[3], count);
        };
        int64_t j = 0;
        for (; so == 1 && j + WIDE * LANES <= m; j += WIDE * LANES) {
            vfloat sums[WIDE] = {};
            for (int64_t i = 0; i < n; i++) {
                for (int w = 0; w < WIDE; w++) sums[w] += product(i, j + w * LANES, LANES);
            }
            for (int w = 0; w < WIDE; w++) store(out + j + w * LANES, sums[w]);
        }
        for (; j < m; j += LANES) {
            vfloat sums = {};
            for (int64_t i = 0; i < n; i++) sums += product(i, j, m - j);
            put(out + j * so, so, m - j, sums);
        }
    });
}

static void multiply_add(const RowOp* op, int64_t first, int64_t last) {
    const int64_t n = op->sizes[3], so = op->out.strides[3];
    const int64_t s0 = op->in[0].strides[3], s1 = op->in[1].strides[3], s2 = op->in[2].strides[3];
    const auto dense = [](int64_t stride) { return stride == 0 || stride == 1; };
    const int64_t whole = so == 1 && dense(s0) && dense(s1) && dense(s2) ? n - n % LANES : 0;
    lines(op, first, last, [&](float* out, const float* const* in) {
        for (int64_t i = 0; i < whole; i += LANES) {
            const vfloat a = s0 ? load<vfloat>(in[0] + i) : all(*in[0]);
            const vfloat b = s1 ? load<vfloat>(in[1] + i) : all(*in[1]);
            const vfloat c = s2 ? load<vfloat>(in[2] + i) : all(*in[2]);
            store(out + i, a * b + c);
        }
        for (int64_t i = whole; i < n; i += LANES) {
            const vfloat a = fetch(in[0] + i * s0, s0, n - i), b = fetch(in[1] + i * s1, s1, n - i);
            put(out + i * so, so, n - i, a * b + fetch(in[2] + i * s2, s2, n - i));
        }
    });
}

static void softmax(const RowOp* op, int64_t first, int64_t last) {
    const int64_t n = op->sizes[3], so = op->out.strides[3], s0 = op->in[0].strides[3];
    lines(op, first, last, [&](float* out, const float* const* in) {
        float most = -INFINITY;
        for (int64_t i = 0; i < n; i++) most = in[0][i * s0] > most ? in[0][i * s0] : most;
        for (int64_t i = 0; i < n; i += LANES) {
            put(out + i * so, so, n - i, exp(fetch(in[0] + i * s0, s0, n - i) - all(most)));
        }
        const vfloat by = all(1.0f / total(out, so, n));
        for (int64_t i = 0; i < n; i += LANES) put(out + i * so, so, n - i, fetch(out + i * so, so, n - i) * by);
    });
}

// in: x, weight, bias; numbers[0]: what is added to the variance.
static void layer_norm(const RowOp* op, int64_t first, int64_t last) {
    const int64_t n = op->sizes[3], so = op->out.strides[3];
    const int64_t s0 = op->in[0].strides[3], s1 = op->in[1].strides[3], s2 = op->in[2].strides[3];
    lines(op, first, last, [&](float* out, const float* const* in) {
        const float mean = total(in[0], s0, n) / float(n);
        vfloat squares = {};
        for (int64_t i = 0; i < n; i += LANES) {
            vfloat d = fetch(in[0] + i * s0, s0, n - i) - all(mean);
            if (n - i < LANES) {
                for (int64_t j = n - i; j < LANES; j++) d[j] = 0;
            }
            squares += d * d;
        }
        const vfloat by = all(1.0f / std::sqrt(sum(squares) / float(n) + op->numbers[0]));
        for (int64_t i = 0; i < n; i += LANES) {
            const vfloat x = (fetch(in[0] + i * s0, s0, n - i) - all(mean)) * by;
            put(out + i * so, so, n - i, x * fetch(in[1] + i * s1, s1, n - i) + fetch(in[2] + i * s2, s2, n - i));
        }
    });
}

// Which numbers are the largest, in order; of equal ones the first. As in torch, a NaN is above all others.
// numbers[0]: how many there are on a line.
static void top_k(const RowOp* op, int64_t first, int64_t last) {
    const int64_t k = op->sizes[3], n = int64_t(op->numbers[0]), so = op->out.strides[3], s0 = op->in[0].strides[3];
    lines(op, first, last, [&](float* out, const float* const* in) {
        const auto number = [&](int64_t i) { return in[0][i * s0] == in[0][i * s0] ? in[0][i * s0] : INFINITY; };
        float bound = INFINITY;
        int64_t at = -1;
        for (int64_t j = 0; j < k; j++) {
            int64_t best = -1;
            float most = 0;
            for (int64_t i = 0; i < n; i++) {
                const float x = number(i);
                if ((best < 0 || x > most) && (x < bound || (x == bound && i > at))) {
                    best = i;
                    most = x;
                }
            }
            out[j * so] = float(best);
            bound = most;
            at = best;
        }
    });
}

// in: x, and which of a line's numbers[0] numbers are taken. One that is not there is NaN.
static void gather(const RowOp* op, int64_t first, int64_t last) {
    const int64_t m = op->sizes[3], n = int64_t(op->numbers[0]), so = op->out.strides[3];
    const int64_t s0 = op->in[0].strides[3], s1 = op->in[1].strides[3];
    lines(op, first, last, [&](float* out, const float* const* in) {
        for (int64_t i = 0; i < m; i++) {
            const float at = in[1][i * s1];
            out[i * so] = at >= 0 && at < float(n) ? in[0][int64_t(at) * s0] : NAN;
        }
    });
}

// in: numbers[1] places on a line of `out`, which has numbers[0], and what is put there. What is not there is left out.
static void scatter(const RowOp* op, int64_t first, int64_t last) {
    const int64_t n = int64_t(op->numbers[0]), m = int64_t(op->numbers[1]), so = op->out.strides[3];
    const int64_t s0 = op->in[0].strides[3], s1 = op->in[1].strides[3];
    lines(op, first, last, [&](float* out, const float* const* in) {
        for (int64_t i = 0; i < m; i++) {
            const float at = in[0][i * s0];
            if (at >= 0 && at < float(n)) out[int64_t(at) * so] = in[1][i * s1];
        }
    });
}

void rowwise(const RowOp* op, int64_t first, int64_t last, float*) {
    const float* number = op->numbers;
    const int64_t n = op->sizes[3], so = op->out.strides[3], s0 = op->in[0].strides[3];
    switch (op->code) {
        case COPY: return copy(op, first, last);
        case NEG: return unary(op, first, last, [](vfloat x) { return -x; });
        case SQUARE: return unary(op, first, last, [](vfloat x) { return x * x; });
        case CUBE: return unary(op, first, last, [](vfloat x) { return x * x * x; });
        case ABS: return unary(op, first, last, [](vfloat x) { return x < all(0.0f) ? -x : x; });
        case EXP: return unary(op, first, last, [](vfloat x) { return exp(x); });
        case SIGMOID: return unary(op, first, last, [](vfloat x) { return sigmoid(x); });
        case SILU: return unary(op, first, last, [](vfloat x) { return x * sigmoid(x); });
        case TANH: return unary(op, first, last, [](vfloat x) { return tanh(x); });
        case GELU: return unary(op, first, last, [](vfloat x) { return gelu(x); });
        case GELU_TANH: return unary(op, first, last, [](vfloat x) { return gelu_tanh(x); });
        // Written so that a NaN stays one.
        case RELU: return unary(op, first, last, [](vfloat x) { return x < all(0.0f) ? all(0.0f) : x; });
        case CLAMP:
            return unary(op, first, last, [&](vfloat x) {
                x = x < all(number[0]) ? all(number[0]) : x;
                return x > all(number[1]) ? all(number[1]) : x;
            });
        case RECIPROCAL: return unary(op, first, last, [](vfloat x) { return all(1.0f) / x; });
        case RSQRT: return scalar(op, first, last, [](float x) { return 1.0f / std::sqrt(x); });
        case SQRT: return scalar(op, first, last, [](float x) { return std::sqrt(x); });
        case COS: return scalar(op, first, last, [](float x) { return std::cos(x); });
        case SIN: return scalar(op, first, last, [](float x) { return std::sin(x); });
        case LOG: return scalar(op, first, last, [](float x) { return std::log(x); });
        case EXPM1: return scalar(op, first, last, [](float x) { return std::expm1(x); });
        case LOG1P: return scalar(op, first, last, [](float x) { return std::log1p(x); });
        case FLOOR: return scalar(op, first, last, [](float x) { return std::floor(x); });
        case TRUNCATE: return scalar(op, first, last, [](float x) { return std::trunc(x); });
        case POWER: return scalar(op, first, last, [&](float x) { return std::pow(x, number[0]); });
        case SOFTPLUS: return scalar(op, first, last, [](float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); });
        case ADD: return binary(op, first, last, [](vfloat x, vfloat y) { return x + y; });
        case SUB: return binary(op, first, last, [](vfloat x, vfloat y) { return x - y; });
        case MUL: return binary(op, first, last, [](vfloat x, vfloat y) { return x * y; });
        case DIV: return binary(op, first, last, [](vfloat x, vfloat y) { return x / y; });
        case GREATER: return binary(op, first, last, [](vfloat x, vfloat y) { return x > y ? all(1.0f) : all(0.0f); });
        case AT_LEAST:
            return binary(op, first, last, [](vfloat x, vfloat y) { return x >= y ? all(1.0f) : all(0.0f); });
        case LESS: return binary(op, first, last, [](vfloat x, vfloat y) { return x < y ? all(1.0f) : all(0.0f); });
        case AT_MOST: return binary(op, first, last, [](vfloat x, vfloat y) { return x <= y ? all(1.0f) : all(0.0f); });
        case LARGER: return binary(op, first, last, [](vfloat x, vfloat y) { return (x > y) | (x != x) ? x : y; });
        case SMALLER: return binary(op, first, last, [](vfloat x, vfloat y) { return (x < y) | (x != x) ? x : y; });
        case WHERE: {
            const int64_t s1 = op->in[1].strides[3], s2 = op->in[2].strides[3];
            return lines(op, first, last, [&](float* out, const float* const* in) {
                for (int64_t i = 0; i < n; i++) out[i * so] = in[0][i * s0] != 0.0f ? in[1][i * s1] : in[2][i * s2];
            });
        }
        case SUM:
            return lines(op, first, last, [&](float* out, const float* const* in) { *out = total(in[0], s0, n); });
        case MEAN:
            return lines(op, first, last,
                         [&](float* out, const float* const* in) { *out = total(in[0], s0, n) / float(n); });
        case MEAN_SQUARE:
            return lines(op, first, last, [&](float* out, const float* const* in) {
                vfloat squares = {};
                int64_t i = 0;
                for (; s0 == 1 && i + LANES <= n; i += LANES) {
                    const vfloat x = load<vfloat>(in[0] + i);
                    squares += x * x;
                }
                float rest = 0;
                for (; i < n; i++) rest += in[0][i * s0] * in[0][i * s0];
                *out = (sum(squares) + rest) / float(n);
            });
        case SOFTMAX: return softmax(op, first, last);
        case LAYER_NORM: return layer_norm(op, first, last);
        case TOPK: return top_k(op, first, last);
        case GATHER: return gather(op, first, last);
        case SCATTER: return scatter(op, first, last);
        case DOT: {
            const int64_t s1 = op->in[1].strides[3];
            return lines(op, first, last,
                         [&](float* out, const float* const* in) { *out = dot(in[0], s0, in[1], s1, n); });
        }
        case DOT_ACROSS: return dot_across(op, first, last);
        case MUL_ADD: return multiply_add(op, first, last);
        default: __builtin_trap();
    }
}

}  // namespace VARIANT
