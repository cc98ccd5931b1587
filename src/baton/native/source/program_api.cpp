// Programs and pools of threads, as Python calls them.
#include "check.h"
#include "guard.h"
#include "program_body.h"
#include "program_check.h"
#include "rowwise.h"

#include <cstring>
#include <initializer_list>

namespace {

void check_lengths(std::initializer_list<int64_t> all) {
    for (int64_t one : all) need(within(one, 0, MOST_WIDTH * MOST_WIDTH));
}

}  // namespace

extern "C" {

#define API __attribute__((visibility("default")))

// Null if not all of them can be started; see baton_fault.
API Pool* baton_pool_new(int32_t threads) {
    return made([&] { return new Pool(threads); });
}

API int32_t baton_pool_free(Pool* pool) {
    return guarded([&] { delete pool; });
}

// Null if there is no memory; see baton_fault. What the instructions point to is the caller's to keep.
API Program* baton_program_new(const Kernels* kernels, Pool* pool, const ProgramIR* ir, const Instruction* code,
                               int64_t count, const Table* tables, int64_t table_count, const Layer* layers,
                               int64_t layer_count, const Visibility* visibilities, int64_t visibility_count,
                               const int64_t* state_sizes, int64_t state_count) {
    return made([&] {
        check_lengths({count, table_count, layer_count, visibility_count, state_count});
        check(code, count, tables, table_count, layer_count, visibility_count, state_sizes, state_count);
        for (int64_t i = 0; i < visibility_count; i++) need(within(visibilities[i].layer, 0, layer_count - 1));
        return new Program(kernels, pool, *ir, code, count, tables, table_count, layers, layer_count, visibilities,
                           visibility_count, state_sizes, state_count);
    });
}

API int32_t baton_program_free(Program* program) {
    return guarded([&] { delete program; });
}

// If it fails, nothing but columns behind the rows' ends, and places of states that are not read, was written.
API int32_t baton_run(Program* program, const Step* step) {
    return guarded([&] { program->run(*step); });
}

API int32_t baton_commit(Program* program, const Step* step) {
    return guarded([&] { program->commit(*step); });
}

API int32_t baton_time_parts(Program* program, int32_t on) {
    return guarded([&] { program->time_parts(on); });
}

// Seconds since time_parts(1), by instruction, where a run of instructions counts as its first one.
API int32_t baton_parts(const Program* program, double* seconds) {
    return guarded([&] { std::copy(program->seconds().begin(), program->seconds().end(), seconds); });
}

// The number of a row-wise operation's or an instruction's name, -1 where there is none.
API int32_t baton_code(const char* name) {
#define IF_NAMED(code) \
    if (!std::strcmp(name, #code)) return code;
    ROWWISE_CODES(IF_NAMED)
    // clang-format off
    IF_NAMED(ROWWISE) IF_NAMED(EMBED) IF_NAMED(READY) IF_NAMED(PRODUCT) IF_NAMED(KEEP) IF_NAMED(ATTEND) IF_NAMED(EXPERT) IF_NAMED(SCAN) IF_NAMED(PICK)
    return -1;
    // clang-format on
}
}
