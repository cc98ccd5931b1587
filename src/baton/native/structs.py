"""The structs that the native library reads: source/kernels.h and source/program.h once more, field by field."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p

_MOST_DIMS = 4
_MOST_OPERANDS = 4


class Weight(Structure):
    """`Weight` of kernels.h: a packed weight."""

    _fields_ = [
        ("kind", c_int32),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("data", c_void_p),
        ("scales", c_void_p),
        ("group", c_int32),
        ("planes", c_int32),
        ("power", c_float),
        ("wide", c_int32),
        ("zero", c_int32),
        ("zeros", c_void_p),
        ("mins", c_void_p),
        ("table", c_void_p),
        ("order", c_void_p),
    ]


class Columns(Structure):
    """`Columns` of kernels.h: keys or values of one layer."""

    _fields_ = [
        ("data", c_void_p),
        ("row_stride", c_int64),
        ("column_stride", c_int64),
        ("head_stride", c_int64),
    ]


class Span(Structure):
    """`Span` of kernels.h: new tokens of one row."""

    _fields_ = [("row", c_int64), ("start", c_int64), ("count", c_int64), ("first", c_int64)]


class Attention(Structure):
    """`Attention` of kernels.h: one layer's attention."""

    _fields_ = [
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("key_dim", c_int64),
        ("value_dim", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
        ("window", c_int64),
        ("chunk", c_int64),
        ("ring", c_int64),
        ("sinks", c_void_p),
        ("kind", c_int32),
        ("keys", Columns),
        ("values", Columns),
        ("fresh_keys", c_void_p),
        ("fresh_values", c_void_p),
        ("queries", c_void_p),
        ("query_stride", c_int64),
        ("query_head_stride", c_int64),
        ("out", c_void_p),
        ("spans", POINTER(Span)),
        ("span_count", c_int64),
        ("partial", c_void_p),
    ]


class Operand(Structure):
    """`Operand` of kernels.h: what a row-wise operation reads or writes."""

    _fields_ = [("data", c_void_p), ("row_stride", c_int64), ("strides", c_int64 * _MOST_DIMS)]


class RowOp(Structure):
    """`RowOp` of kernels.h: an operation on rows, element by element or along them."""

    _fields_ = [
        ("code", c_int32),
        ("dims", c_int32),
        ("sizes", c_int64 * _MOST_DIMS),
        ("operands", c_int32),
        ("out", Operand),
        ("inputs", Operand * _MOST_OPERANDS),
        ("numbers", c_float * 4),
    ]


class Instruction(Structure):
    """`Instruction` of program.h: one step of a program."""

    _fields_ = [
        ("does", c_int32),
        ("weight", c_int32),
        ("layer", c_int32),
        ("visibility", c_int32),
        ("out_space", c_int32),
        ("in_spaces", c_int32 * _MOST_OPERANDS),
        ("op", RowOp),
        ("bias", c_void_p),
        ("steps", c_int64 * (1 + _MOST_OPERANDS)),
    ]


class Table(Structure):
    """`Table` of program.h: an embedding or a product's weight."""

    _fields_ = [("weight", Weight), ("plain", c_int32)]


class Layer(Structure):
    """`Layer` of program.h: the sizes of a layer's keys and values."""

    _fields_ = [("kv_heads", c_int64), ("key_dim", c_int64), ("value_dim", c_int64)]


class Visibility(Structure):
    """`Visibility` of program.h: what a layer's queries may see, and its sinks."""

    _fields_ = [
        ("layer", c_int32),
        ("heads", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
        ("window", c_int64),
        ("chunk", c_int64),
        ("sinks", c_void_p),
    ]


class ProgramIR(Structure):
    """`ProgramIR` of program.h: the sizes that a program's buffers need."""

    _fields_ = [
        ("row_floats", c_int64),
        ("late_floats", c_int64),
        ("attended_floats", c_int64),
        ("vocabulary", c_int64),
        ("scratch_floats", c_int64),
        ("token_at", c_int64),
        ("position_at", c_int64),
        ("kind", c_int32),
    ]


class Step(Structure):
    """`Step` of program.h: the tokens of one forward, and where its logits go."""

    _fields_ = [
        ("tokens", c_int64),
        ("ids", c_void_p),
        ("positions", c_void_p),
        ("spans", c_void_p),
        ("span_count", c_int64),
        ("kept", c_void_p),
        ("kept_count", c_int64),
        ("keys", POINTER(Columns)),
        ("values", POINTER(Columns)),
        ("rings", POINTER(c_int64)),
        ("logits", c_void_p),
        ("states", c_void_p),
        ("state_strides", c_void_p),
        ("read_from", c_void_p),
        ("write_to", c_void_p),
    ]


STRUCTURES = (Weight, Columns, Span, Attention, Operand, RowOp, Instruction, Table, Layer, Visibility, ProgramIR, Step)
