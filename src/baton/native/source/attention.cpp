// Attention over rows of different lengths: each span's queries meet the keys and values that they see, and no others.
//
// The queries of a span that share a KV head are rows of a matrix, token by token and head by head. A task takes some of
// them through columns that they see, block by block, with the online softmax of flash attention (Dao 2023). A block's
// keys are turned round first, so that a vector holds one dimension of several columns. Where queries are few, memory is
// the limit: a task then takes several KV heads, which lie side by side, and asks for the next block in memory's order.
//
// A query's result is the same to the bit in any company, on any number of threads and however its prompt was cut:
// blocks and pieces lie at fixed positions, every sum has its order (attention_block.h), what a query does not see adds
// zeros, and the pieces' sums are folded one after another, whether one task had them all or not.
#include "attention_block.h"
#include "attention_cut.h"

namespace VARIANT {

constexpr int64_t FEW = 12;  // queries of a KV head for which values are widened as they are used, not beforehand

// A task: queries [first, first + count) of each of some KV heads; what is kept for each lies [head][query].
struct Tile {
    const Attention* call;
    const Span* span;
    int64_t head, heads, first, count;
    const float* queries[QUERIES];
    int64_t positions[QUERIES];
    float *turned, *widened, *staged, *scores, *totals, *piece, *whole;
};

int64_t attention_tasks(const Attention* call) { return tasks_of(call, plan_of(call)); }

int64_t attention_merges(const Attention* call) {
    const Plan plan = plan_of(call);
    int64_t merges = 0;
    for (int64_t i = 0; i < call->span_count; i++) merges += merges_of(call, cut(call, call->spans[i], plan));
    return merges;
}

int64_t partial_floats(const Attention* call) {
    const Plan plan = plan_of(call);
    int64_t partials = 0;
    for (int64_t i = 0; i < call->span_count; i++) partials += partial_of(call, cut(call, call->spans[i], plan));
    return partials;
}

// Floats of a turned block: dimensions up to whole words.
static int64_t turned_of(const Attention* call) { return up(call->key_dim, 2) * 2 * BLOCK; }

// Floats of a block of keys that are widened beforehand.
static int64_t widened_of(const Attention* call) {
    return call->kind == FLOAT16 ? up(call->key_dim, LANES) * LANES * BLOCK : 0;
}

int64_t attention_scratch(const Attention* call) {
    return turned_of(call) + widened_of(call) + width_of(call) * BLOCK +
           QUERIES * (BLOCK + LANES + 2 * record_of(call));
}

// Where the keys or values of columns [from, to) are, by position from `base` on.
template <typename T>
static void find(const Attention* call, const Span& span, const Columns& kept, const void* fresh, int64_t dim,
                 int64_t head, int64_t base, int64_t from, int64_t to, const T** addresses) {
    const T* row = static_cast<const T*>(kept.data) + span.row * kept.row_stride + head * kept.head_stride;
    int64_t at = from;
    while (at < least(to, span.start)) {
        const int64_t column = call->ring ? at % call->ring : at;
        int64_t stop = least(to, span.start);
        if (call->ring) stop = least(stop, at - column + call->ring);
        const T* next = row + column * kept.column_stride;
        for (; at < stop; at++, next += kept.column_stride) addresses[at - base] = next;
    }
    const int64_t stride = call->kv_heads * dim;
    const T* next = static_cast<const T*>(fresh) + (span.first + at - span.start) * stride + head * dim;
    for (; at < to; at++, next += stride) addresses[at - base] = next;
}

// The keys or values of columns [from, to) of all of a tile's heads, as far as they lie in the rectangle one behind the
// other.
static Lines lines_of(const Tile& tile, const Columns& kept, int64_t dim, int64_t from, int64_t to) {
    const Attention* call = tile.call;
    const int64_t size = bytes_of(call), ring = call->ring, column = ring ? from % ring : from;
    int64_t rows = least(to, tile.span->start) - from;
    if (ring) rows = least(rows, ring - column);
    if (rows <= 0) return {};
    const int64_t at = tile.span->row * kept.row_stride + column * kept.column_stride + tile.head * kept.head_stride;
    const int64_t bytes = ((tile.heads - 1) * kept.head_stride + dim) * size, stride = kept.column_stride * size;
    const char* row = static_cast<const char*>(kept.data) + at * size;
    if (bytes == stride) return {row, 1, rows * bytes, 0, 0};
    return {row, rows, bytes, stride, 0};
}

// Keys or values of a block as float32 in rows that end with zeros.
template <typename T>
static void stage(const T* const* values, int64_t from, int64_t to, int64_t dim, int64_t width, float* staged,
                  const float** rows) {
    for (int64_t c = from; c < to; c++) {
        float* row = staged + c * width;
        int64_t d = 0;
        for (; d + LANES <= dim; d += LANES) store(row + d, fetch(values[c] + d));
        if (d < dim) {
            T last[LANES] = {};
            std::memcpy(last, values[c] + d, (dim - d) * sizeof(T));
            store(row + d, fetch(last));
        }
        rows[c] = row;
    }
}

// Columns [low, high) of the positions from `base` on: a block's, those that queries see, or those of them that one does.
struct Part {
    int64_t base, low, high;
};

// What `count` of a tile's queries see of a part.
static Part seen(const Tile& tile, int64_t at, int64_t count, const Part& part) {
    const int64_t low = lowest(tile.call, tile.positions[at]), high = tile.positions[at + count - 1] + 1;
    return {part.base, most(low - part.base, part.low), least(high - part.base, part.high)};
}

// M queries of a tile, from its query `at` on, take their shares of a part's columns.
template <int M, typename K, typename V>
static void take(const Tile& tile, int64_t at, const Part& part, const K* const* keys, const V* const* values,
                 Ahead& ahead) {
    const Attention* call = tile.call;
    const int64_t width = width_of(call), record = record_of(call);
    const Part ours = seen(tile, at, M, part);
    if (ours.low >= ours.high) return;
    const int64_t from = ours.low / LANES, to = up(ours.high, LANES);
    if (tile.count > MOST_QUERIES) {
        score_tiles<M>(tile.queries + at, tile.turned, call->key_dim, from, to, tile.scores);
    } else {
        for (int64_t i = from * LANES; i < to * LANES; i += LANES) {
            score_turning<M>(tile.queries + at, keys + i, call->key_dim, tile.scores + i, ahead);
        }
    }
    for (int m = 0; m < M; m++) {
        const Part mine = seen(tile, at + m, 1, part);
        float* scores = tile.scores + m * BLOCK;
        if (mine.low < mine.high) {
            soften({call->scale, call->softcap}, scores, from, to, mine.low, mine.high, tile.totals + (at + m) * LANES,
                   tile.piece + (at + m) * record, width);
        } else {
            std::memset(scores + from * LANES, 0, (to - from) * LANES * 4);
        }
    }
    float* sums = tile.piece + at * record + SUMS;
    weigh_tiles<M>(tile.scores, values, ours.low, ours.high, sums, record, width, ahead);
}

// All queries of the tile's KV head `h`.
template <typename K, typename V>
static void take_all(const Tile& tile, int64_t h, const Part& part, const K* const* keys, const V* const* values,
                     Ahead& ahead) {
    int64_t at = h * tile.count;
    const int64_t end = at + tile.count;
    for (int64_t left = up(tile.count, MOST_QUERIES); left > 0; left--) {
        const int64_t count = up(end - at, left);
        switch (count) {
            case 1: take<1>(tile, at, part, keys, values, ahead); break;
            case 2: take<2>(tile, at, part, keys, values, ahead); break;
            case 3: take<3>(tile, at, part, keys, values, ahead); break;
            case 4: take<4>(tile, at, part, keys, values, ahead); break;
            case 5: take<5>(tile, at, part, keys, values, ahead); break;
            default: take<6>(tile, at, part, keys, values, ahead); break;
        }
        at += count;
    }
}

// A block's columns, of which some are seen, for one KV head.
template <typename K, typename V>
static void meet(const Tile& tile, int64_t h, const Part& part, const K** keys, const V** values, Ahead& ahead) {
    const Attention* call = tile.call;
    const int64_t from = part.low, to = part.high;
    // A vector's other columns may not be read: their scores are of no account.
    for (int64_t i = from / LANES * LANES; i < from; i++) keys[i] = keys[from];
    for (int64_t i = to; i < up(to, LANES) * LANES; i++) keys[i] = keys[to - 1];
    if (tile.count > MOST_QUERIES) {
        for (int64_t i = from / LANES * LANES; i < to; i += LANES) turn(keys + i, call->key_dim, tile.turned + i);
    }
    if (tile.count <= FEW && call->value_dim % LANES == 0) {
        take_all(tile, h, part, keys, values, ahead);
    } else {
        const float* rows[BLOCK];
        stage(values, from, to, call->value_dim, width_of(call), tile.staged, rows);
        take_all(tile, h, part, keys, rows, ahead);
    }
}

// Finds them. Keys in float16 are widened first: turned round, two that share a word would not lie as is needed.
template <typename T>
static void block(const Tile& tile, int64_t h, const Part& part, Ahead& ahead) {
    const Attention* call = tile.call;
    const T *keys[BLOCK], *values[BLOCK];
    const int64_t low = part.base + part.low, high = part.base + part.high, head = tile.head + h;
    find(call, *tile.span, call->keys, call->fresh_keys, call->key_dim, head, part.base, low, high, keys);
    find(call, *tile.span, call->values, call->fresh_values, call->value_dim, head, part.base, low, high, values);
    if constexpr (IS_HALF<T>) {
        const float* widened[BLOCK];
        stage(keys, part.low, part.high, call->key_dim, up(call->key_dim, LANES) * LANES, tile.widened, widened);
        meet(tile, h, part, widened, values, ahead);
    } else {
        meet(tile, h, part, keys, values, ahead);
    }
}

// The sums over columns [low, high), which lie in one piece, in tile.piece. The task goes on up to column `end`.
static void sum_piece(const Tile& tile, int64_t low, int64_t high, int64_t end) {
    const Attention* call = tile.call;
    const int64_t record = record_of(call), count = tile.heads * tile.count;
    std::memset(tile.piece, 0, count * record * 4);
    std::memset(tile.totals, 0, count * LANES * 4);
    for (int64_t i = 0; i < count; i++) tile.piece[i * record + TOP] = -INFINITY;
    for (int64_t at = low; at < high;) {
        const int64_t base = at / BLOCK * BLOCK, next = least(base + BLOCK, high), after = least(next + BLOCK, end);
        Ahead ahead = {lines_of(tile, call->keys, call->key_dim, next, after),
                       lines_of(tile, call->values, call->value_dim, next, after)};
        for (int64_t h = 0; h < tile.heads; h++) {
            const Part part = {base, at - base, next - base};
            if (call->kind == FLOAT32) {
                block<float>(tile, h, part, ahead);
            } else if (call->kind == FLOAT16) {
                block<Half>(tile, h, part, ahead);
            } else {
                block<uint16_t>(tile, h, part, ahead);
            }
        }
        at = next;
    }
    for (int64_t i = 0; i < count; i++) tile.piece[i * record + TOTAL] = sum(load<vfloat>(tile.totals + i * LANES));
}

static void answer(const Attention* call, const Span& span, int64_t kv_head, int64_t query, const float* record) {
    const int64_t group = group_of(call), head = kv_head * group + query % group;
    float* out = call->out + ((span.first + query / group) * call->heads + head) * call->value_dim;
    finish(record, call->sinks ? call->sinks + head : nullptr, out, call->value_dim);
}

static void begin(Tile& tile, float* scratch) {
    const Attention* call = tile.call;
    const int64_t group = group_of(call);
    for (int64_t i = 0; i < tile.heads * tile.count; i++) {
        const int64_t query = tile.first + i % tile.count, token = query / group;
        const int64_t head = (tile.head + i / tile.count) * group + query % group;
        tile.positions[i] = tile.span->start + token;
        tile.queries[i] =
            call->queries + (tile.span->first + token) * call->query_stride + head * call->query_head_stride;
    }
    tile.turned = scratch;
    tile.widened = tile.turned + turned_of(call);
    tile.staged = tile.widened + widened_of(call);
    tile.scores = tile.staged + width_of(call) * BLOCK;
    tile.totals = tile.scores + QUERIES * BLOCK;
    tile.piece = tile.totals + QUERIES * LANES;
    tile.whole = tile.piece + QUERIES * record_of(call);
}

// A run of pieces, whose sums are kept for the merge. `partial`: the span's.
static void attend_run(Tile& tile, const Cut& cut, int64_t low, int64_t high, float* partial) {
    const int64_t record = record_of(tile.call);
    for (int64_t at = low; at < high; at = (at / PIECE + 1) * PIECE) {
        sum_piece(tile, at, least(high, (at / PIECE + 1) * PIECE), high);
        for (int64_t i = 0; i < tile.heads * tile.count; i++) {
            const int64_t head = tile.head + i / tile.count, query = tile.first + i % tile.count;
            const int64_t to = (head * cut.queries + query) * cut.pieces + at / PIECE - cut.first_piece;
            std::memcpy(partial + to * record, tile.piece + i * record, record * 4);
        }
    }
}

static void attend_all(Tile& tile, int64_t low, int64_t high) {
    const int64_t record = record_of(tile.call), count = tile.heads * tile.count;
    for (int64_t at = low; at < high; at = (at / PIECE + 1) * PIECE) {
        sum_piece(tile, at, least(high, (at / PIECE + 1) * PIECE), high);
        if (at == low) {
            float* first = tile.piece;
            tile.piece = tile.whole;
            tile.whole = first;
            continue;
        }
        for (int64_t i = 0; i < count; i++) {
            fold(tile.whole + i * record, tile.piece + i * record, width_of(tile.call));
        }
    }
    for (int64_t i = 0; i < count; i++) {
        answer(tile.call, *tile.span, tile.head + i / tile.count, tile.first + i % tile.count, tile.whole + i * record);
    }
}

// Nothing else has asked for a task's first block.
static void ask_first(const Tile& tile, int64_t low, int64_t high) {
    const Attention* call = tile.call;
    const int64_t end = least(high, (low / BLOCK + 1) * BLOCK);
    Ahead first = {lines_of(tile, call->keys, call->key_dim, low, end),
                   lines_of(tile, call->values, call->value_dim, low, end)};
    while (first.keys.rows > 0 || first.values.rows > 0) ask(first);
}

void attend(const Attention* call, int64_t task, float* scratch) {
    const Plan plan = plan_of(call);
    float* partial = call->partial;
    const Span* span = call->spans;
    Cut split = cut(call, *span, plan);
    for (int64_t tasks; task >= (tasks = tasks_of(*span, split)); split = cut(call, *++span, plan)) {
        task -= tasks;
        partial += partial_of(call, split);
    }
    if (span->row < 0) {
        const int64_t floats = call->heads * call->value_dim;
        std::memset(call->out + span->first * floats, 0, span->count * floats * 4);
        return;
    }
    const int64_t head = task % split.parts * split.heads, first = task / split.parts % split.tiles * QUERIES;
    Tile tile;
    tile.call = call;
    tile.span = span;
    tile.head = head;
    tile.heads = least(split.heads, call->kv_heads - head);
    tile.first = first;
    tile.count = least(QUERIES, split.queries - first);
    begin(tile, scratch);
    const int64_t start = (split.first_piece + task / split.parts / split.tiles * split.run) * PIECE;
    const int64_t low = most(lowest(call, tile.positions[0]), start);
    const int64_t high = least(tile.positions[tile.count - 1] + 1, start + split.run * PIECE);
    ask_first(tile, low, high);
    if (split.runs > 1) {
        attend_run(tile, split, low, high, partial);
    } else {
        attend_all(tile, low, high);
    }
}

void merge(const Attention* call, int64_t merge) {
    const Plan plan = plan_of(call);
    float* partial = call->partial;
    const Span* span = call->spans;
    Cut split = cut(call, *span, plan);
    for (int64_t merges; merge >= (merges = merges_of(call, split)); split = cut(call, *++span, plan)) {
        merge -= merges;
        partial += partial_of(call, split);
    }
    const int64_t record = record_of(call);
    for (int64_t i = 0; i < split.queries; i++) {
        float* records = partial + (merge * split.queries + i) * split.pieces * record;
        for (int64_t piece = 1; piece < split.pieces; piece++) {
            fold(records, records + piece * record, width_of(call));
        }
        answer(call, *span, merge, i, records);
    }
}

}  // namespace VARIANT
