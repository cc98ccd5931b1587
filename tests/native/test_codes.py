"""Weights that a checkpoint has as codes: packed without a loss, and multiplied as float64 has it, in every variant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from baton.core.errors import LoadError
from baton.model.packed import Codes, PackedWeight
from baton.native.codes import bytes_of_codes, form_of, pack_codes, reads
from baton.native.library import FLOAT8, INT4, INT8, library, variants
from baton.native.library import kernels as kernels_of
from baton.native.structs import Weight
from packed_weight import Array, aligned

ALL = 1 << 20
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
IQ4 = torch.tensor([-127.0, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])


class Made(PackedWeight):
    """A weight that is there as a whole."""

    def __init__(self, codes: Codes, bits: int, group: int, order: Tensor | None = None, table: Tensor | None = None):
        self.outputs, self.inputs = codes.codes.shape
        self.codes, self.bits, self.group, self.order, self.table = codes, bits, group, order, table
        self.bytes = codes.codes.numel() * bits // 8

    def piece(self, first: int, last: int) -> Codes:
        parts = (self.codes.codes, self.codes.scales, self.codes.zeros, self.codes.mins)
        return Codes(*(None if part is None else part[first:last].clone() for part in parts))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """What a drawn weight has. `zero`: of all; `zeros`: between these; `digits`: of scales."""

    bits: int = 4
    group: int = 32
    zero: int | None = None
    zeros: tuple[int, int] | None = None
    mins: bool = False
    order: bool = False
    table: Tensor | None = None
    digits: int = 11
    most: int | None = None
    kind: int = INT4
    wide: bool = False
    float8: bool = False

    def drawn(self, outputs: int, inputs: int, seed: int = 0) -> Made:
        random = np.random.default_rng(seed + outputs * inputs)
        groups = -(-inputs // self.group)
        codes = random.integers(0, (self.most or (1 << self.bits) - 1) + 1, (outputs, inputs), np.uint8)
        scales = random.integers(1 << (self.digits - 1), 1 << self.digits, (outputs, groups)) * 2.0**-18
        scales = scales * random.choice([-1, 1, 0.125], (outputs, groups))
        zeros = mins = None
        if self.zero is not None:
            zeros = np.full((outputs, groups), self.zero)
        if self.zeros is not None:
            zeros = random.integers(self.zeros[0], self.zeros[1] + 1, (outputs, groups))
            zeros.flat[0] = self.zeros[0]
        if self.mins:
            mins = random.integers(0, 1 << self.digits, (outputs, groups)) * 2.0**-16
        floats = [None if one is None else torch.from_numpy(one.astype(np.float32)) for one in (scales, zeros, mins)]
        assert floats[0] is not None
        if self.float8:
            codes[codes & 127 == 127] ^= 1  # never NaN
        order = torch.from_numpy(random.permutation(inputs)) if self.order else None
        made = Made(Codes(torch.from_numpy(codes), floats[0], *floats[1:]), self.bits, self.group, order, self.table)
        made.float8 = self.float8
        return made


CASES = {
    "symmetric": Case(zero=8),
    "gptq g128": Case(group=128, zeros=(0, 16), order=True),
    "awq g64": Case(group=64, zeros=(0, 15)),
    "zero 7": Case(zero=7, group=64),
    "unsigned": Case(),
    "all inputs": Case(group=ALL, zeros=(1, 15)),
    "q4_1": Case(mins=True),
    "q4_k": Case(mins=True, digits=17, wide=True),
    "mins and order": Case(mins=True, order=True, group=96),
    "mxfp4": Case(table=E2M1, digits=1),
    "table and mins": Case(table=E2M1, mins=True, order=True),
    "nvfp4": Case(table=E2M1, group=16, kind=INT8),
    "iq4_nl": Case(table=IQ4, kind=INT8),
    "groups of 16 in 4 bits": Case(group=16, zero=8, kind=INT8),
    "q8_0": Case(8, zero=128, kind=INT8),
    "q6_k": Case(8, group=16, zero=32, most=63, kind=INT8),
    "q5_k": Case(8, mins=True, most=31, digits=17, kind=INT8, wide=True),
    "zero 127": Case(8, group=64, zero=127, kind=INT8),
    "8 bits with zeros": Case(8, group=128, zeros=(0, 255), order=True, kind=INT8),
    "8 bits with mins": Case(8, group=48, mins=True, kind=INT8),
    "8 bits, all inputs": Case(8, group=ALL, zero=128, digits=24, kind=INT8, wide=True),
    "float8": Case(8, group=128, digits=24, kind=FLOAT8, wide=True, float8=True),
    "float8, all inputs": Case(8, group=ALL, digits=24, kind=FLOAT8, wide=True, float8=True),
    "8 bits, all inputs, zeros": Case(8, group=ALL, zeros=(3, 200), digits=24, kind=INT8, wide=True),
}
SIZES = [(1, 1), (33, 31), (64, 257), (31, 100), (95, 384), (5, 2049), (40, 1056)]

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


class Packed:
    """A packed weight in memory that held rubbish; nothing else is written to."""

    def __init__(self, kernels: int, weight: PackedWeight, planes: int = 1) -> None:
        assert library is not None
        self.kernels, self.weight = kernels, weight
        size = bytes_of_codes(library, kernels, weight)
        self.room = aligned(size + 64)
        self.struct: Weight = pack_codes(library, kernels, weight, planes, self.room.ctypes.data)
        assert (self.room[size:] == 0xFF).all(), "written beyond its bytes"

    def unpacked(self) -> Tensor:
        assert library is not None
        numbers = torch.full((self.weight.outputs, self.weight.inputs), torch.nan)
        library.baton_unpack(self.kernels, self.struct, 0, len(numbers), numbers.data_ptr())
        return numbers

    def product(self, x: Array, bias: Array | None = None) -> Array:
        assert library is not None
        x = np.ascontiguousarray(x)
        y = np.full((len(x) + 1, self.weight.outputs), -7, np.float32)
        address = None if bias is None else bias.ctypes.data
        library.baton_product(self.kernels, self.struct, x.ctypes.data, len(x), address, y.ctypes.data)
        assert (y[-1] == -7).all(), "written beyond the last output"
        return y[:-1]


def rows_of(count: int, inputs: int, seed: int) -> Array:
    """Heavy tails, and rows of different sizes."""
    random = np.random.default_rng(seed)
    return (random.standard_t(3, (count, inputs)) * np.exp(random.standard_normal((count, 1)))).astype(np.float32)


def placed(x: Array, weight: PackedWeight, planes: int) -> tuple[Array, int]:
    """Rows as products round them, in the weight's order, and how many inputs of a row are rounded together."""
    kind, _, kept, _ = reads(weight, planes)
    if kind == FLOAT8:
        return x, 1
    size, most = (32, 127 if planes == 1 else 32639) if kind == INT4 else (kept, 32767)
    x = x if weight.order is None else x[:, weight.order.numpy()]
    chunks = np.zeros((len(x), -(-x.shape[1] // size) * size), np.float32)
    chunks[:, : x.shape[1]] = x
    chunks = chunks.reshape(len(x), -1, size)
    top = np.abs(chunks).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(most), top, out=np.zeros_like(top), where=top > 0)
    whole = np.rint(chunks.astype(np.float64) * inverse.astype(np.float64))
    scaled = whole * (top / np.float32(most)).astype(np.float64)
    return scaled.reshape(len(x), -1)[:, : x.shape[1]], size


@each_case
def test_a_weight_unpacks_to_the_numbers_of_its_checkpoint(kernels: int, case: Case) -> None:
    for outputs, inputs in SIZES:
        weight = case.drawn(outputs, inputs)
        packed = Packed(kernels, weight)
        assert torch.equal(packed.unpacked(), weight.unpacked(0, outputs)), (outputs, inputs)
    assert packed.struct.kind == case.kind and packed.struct.wide == case.wide


@each_case
@pytest.mark.parametrize("planes", [1, 2])
def test_products_are_those_of_float64(kernels: int, case: Case, planes: int) -> None:
    """With the rows' rounding taken over, what is left is the rounding of float32 sums."""
    for outputs, inputs in SIZES:
        weight = case.drawn(outputs, inputs)
        packed, x = Packed(kernels, weight, planes), rows_of(5, inputs, seed=inputs)
        bias = np.random.default_rng(1).standard_normal(outputs).astype(np.float32)
        numbers = weight.unpacked(0, outputs).double().numpy()
        numbers = numbers if weight.order is None else numbers[:, weight.order.numpy()]
        near, _ = placed(x, weight, planes)
        want = near @ numbers.T + bias
        # Codes, zeros and mins by themselves: what they cancel counts too.
        whole = replace(weight.codes, codes=torch.full_like(weight.codes.codes, 255 if weight.bits == 8 else 15))
        apart = Made(replace(whole, zeros=None, mins=None), weight.bits, weight.group).unpacked(0, outputs)
        if weight.float8:
            apart = weight.unpacked(0, outputs).abs()
        table = 1 if weight.table is None else float(weight.table.abs().max())
        size = np.abs(near) @ np.abs(apart.numpy().T * table) + np.abs(bias)
        if weight.codes.mins is not None:
            size += np.abs(near) @ np.abs(weight._spread(weight.codes.mins).numpy().T)
        error = np.abs(packed.product(x, bias) - want)
        assert (error <= 2.0**-24 * (4 + 2 * np.sqrt(inputs)) * size).all(), (outputs, inputs, (error / size).max())


@each_case
@pytest.mark.parametrize("planes", [1, 2])
def test_a_row_is_the_same_bits_in_any_company(kernels: int, case: Case, planes: int) -> None:
    packed, x = Packed(kernels, case.drawn(70, 1056), planes), rows_of(29, 1056, seed=2)
    bias = np.arange(70, dtype=np.float32)
    alone = np.concatenate([packed.product(row[None], bias) for row in x])
    for rows in (*range(2, 18), 29):
        assert np.array_equal(packed.product(x[-rows:], bias), alone[-rows:]), rows


@pytest.mark.parametrize("case", [case for case in CASES.values() if not case.float8])
@pytest.mark.parametrize("planes", [1, 2])
def test_the_bits_are_the_same_in_all_variants(case: Case, planes: int) -> None:
    weight, x = case.drawn(70, 1153), rows_of(9, 1153, seed=3)
    products = [
        Packed(address, weight, planes).product(x) for address in map(kernels_of, variants()) if address is not None
    ]
    for other in products[1:]:
        assert np.array_equal(other, products[0])


@each_case
def test_what_is_not_finite_shows_in_its_row_and_in_no_other(kernels: int, case: Case) -> None:
    packed, x = Packed(kernels, case.drawn(40, 130)), rows_of(19, 130, seed=4)
    sound = packed.product(x)
    x[7, 100] = np.inf
    product = packed.product(x)
    assert not np.isfinite(product[7]).any()
    others = np.arange(19) != 7
    assert np.array_equal(product[others], sound[others])


def test_every_float8_number_is_kept(kernels: int) -> None:
    every = torch.tensor([code for code in range(256) if code & 127 != 127], dtype=torch.uint8)
    weight = Made(Codes(every.repeat(3, 1), torch.tensor([[1.0], [3e-3], [2.0**90]])), 8, ALL)
    weight.float8 = True
    packed = Packed(kernels, weight)
    numbers = every.view(torch.float8_e4m3fn).float() * weight.codes.scales
    assert packed.unpacked().equal(numbers)
    # By products too: each input alone, so that nothing else is summed.
    assert np.array_equal(packed.product(np.eye(254, dtype=np.float32)), numbers.t().numpy())
    weight.codes.codes[1, 7] = 255
    del vars(weight)["_native_form"]
    with pytest.raises(LoadError, match="NaN"):
        Packed(kernels, weight)


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("entries", [[24] * 16, [0] * 16, list(range(9, 25))], ids=["24", "0", "rising"])
def test_a_table_s_greatest_numbers_do_not_overflow(kernels: int, planes: int, entries: list[int]) -> None:
    codes = torch.full((33, 96), 15, dtype=torch.uint8)
    codes[::2] = 14
    table = torch.tensor(entries, dtype=torch.float32) - 12
    table[0] = -12
    weight = Made(Codes(codes, torch.ones(33, 3)), 4, 32, table=table)
    packed = Packed(kernels, weight, planes)
    assert packed.struct.kind == INT4 and packed.struct.table
    for number in (3.0, -3.0):
        x = np.full((4, 96), number, np.float32)
        right = x.astype(np.float64) @ weight.unpacked(0, 33).double().numpy().T
        assert np.allclose(packed.product(x), right, rtol=1e-5)


@pytest.mark.parametrize("zero", [0, 255])
def test_the_greatest_sums_in_8_bits_do_not_overflow(kernels: int, zero: int) -> None:
    codes = torch.full((33, 256), 255 - zero, dtype=torch.uint8)
    zeros = torch.full((33, 1), float(zero))
    zeros[1::2] = 128
    weight = Made(Codes(codes, torch.ones(33, 1), zeros), 8, 256)
    x = np.full((3, 256), -5, np.float32)
    right = x.astype(np.float64) @ weight.unpacked(0, 33).double().numpy().T
    assert np.allclose(Packed(kernels, weight).product(x), right, rtol=1e-5)


def test_scales_far_apart_are_kept(kernels: int) -> None:
    """float16 has 39 powers of two; with more, scales are float32."""
    codes = torch.randint(0, 16, (4, 64), dtype=torch.uint8)
    for low, wide in ((-24, 0), (-25, 1), (-60, 1)):
        scales = torch.tensor([2.0**14, 2.0**low]).repeat(4, 1)
        packed = Packed(kernels, weight := Made(Codes(codes, scales, torch.full((4, 2), 8.0)), 4, 32))
        assert torch.equal(packed.unpacked(), weight.unpacked(0, 4))
        assert packed.struct.wide == wide


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf"), 1e-44, 3e38])
def test_scales_of_any_size_are_kept(kernels: int, scale: float) -> None:
    codes = torch.arange(64, dtype=torch.uint8).reshape(2, 32) % 16
    weight = Made(Codes(codes, torch.tensor([[1.0], [scale]]), torch.full((2, 1), 9.0)), 4, 32)
    assert torch.allclose(Packed(kernels, weight).unpacked(), weight.unpacked(0, 2), rtol=0, atol=0, equal_nan=True)


def test_weights_that_read_the_same_rows_say_so() -> None:
    one, other = CASES["gptq g128"].drawn(33, 64), CASES["gptq g128"].drawn(40, 64)
    assert reads(one, 1) == reads(one, 1) != reads(one, 2)
    assert reads(one, 1) != reads(other, 1)  # another order
    assert reads(CASES["symmetric"].drawn(33, 64), 1) == reads(CASES["mxfp4"].drawn(9, 64), 1)
    assert reads(CASES["q8_0"].drawn(33, 64), 1) == reads(Case(8, group=32, mins=True).drawn(9, 64), 2) != reads(one, 1)
    assert reads(CASES["float8"].drawn(33, 64), 1) == reads(CASES["float8, all inputs"].drawn(9, 64), 2)
    assert reads(CASES["q6_k"].drawn(33, 64), 1) != reads(CASES["q8_0"].drawn(33, 64), 1)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (Case(zero=8, group=24), "groups of 24 inputs"),
        (Case(zeros=(0, 300)), "zeros from 0 to 300"),
        (Case(table=E2M1, zero=3), "both a table and zeros"),
        (Case(table=torch.linspace(-1, 1, 16)), "a table of numbers"),
        (Case(table=E2M1 * 1000), "a table of numbers"),
        (Case(most=17), "a code of 17 in 4 bits"),
    ],
)
def test_what_has_no_products_is_refused_by_name(kernels: int, broken: Case, said: str) -> None:
    assert library is not None
    with pytest.raises(LoadError, match=said):
        bytes_of_codes(library, kernels, broken.drawn(33, 640))


def test_zeros_and_orders_that_make_no_sense_are_refused(kernels: int) -> None:
    weight: Any = Case(zero=8, order=True).drawn(33, 64)
    weight.order[3] = weight.order[4]
    assert library is not None
    with pytest.raises(LoadError, match="each input once"):
        bytes_of_codes(library, kernels, weight)
    weight = Case(zero=8).drawn(33, 64)
    weight.codes.zeros[2, 1] = 7.5
    with pytest.raises(LoadError, match="not whole"):
        form_of(weight)
