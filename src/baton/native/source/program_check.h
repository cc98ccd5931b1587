// What a program is made of must make sense before anything of it is carried out.
#pragma once

#include "program.h"

// That each instruction is one, and names what is there. Throws std::invalid_argument.
void check(const Instruction* code, int64_t count, const Table* table, int64_t tables, int64_t layers,
           int64_t visibilities, const int64_t* sizes, int64_t states);
