"""Native linear products against float64, at shapes drawn by a seed; a row's result is the same in any company."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from baton.native.library import BFLOAT16, CHUNK, FLOAT16, FLOAT32, GROUP, INT4, INT8, library, variants
from baton.native.library import kernels as kernels_of
from packed_weight import Array, Packed

KINDS = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16, "int8": INT8, "int4": INT4}
ROUNDING = 2.0**-24  # of one float32 operation, relative

each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def bits(x: Array) -> Array:
    """As bfloat16, to the nearest, ties to even."""
    whole = x.view(np.uint32)
    return ((whole + 0x7FFF + (whole >> 16 & 1)) >> 16).astype(np.uint16)


def rounded(x: Array) -> Array:
    return (bits(x).astype(np.uint32) << 16).view(np.float32)


def draws(count: int, inputs: int = 300) -> Iterator[tuple[Array, Array, Array]]:
    """Rows x [rows, inputs], a weight [outputs, inputs] and a bias, of odd shapes, the first of one number each."""
    random = np.random.default_rng(4)
    for i in range(count):
        rows, outputs, width = (1, 1, 1) if i == 0 else (int(random.integers(1, n + 1)) for n in (40, 100, inputs))
        x = random.standard_normal((rows, width), np.float32) * np.exp(random.standard_normal((rows, 1), np.float32))
        yield x, random.standard_normal((outputs, width), np.float32), random.standard_normal(outputs, np.float32)


def reference(x: Array, weight: Array, bias: Array) -> tuple[Array, Array]:
    """The float64 product, and the sum of the magnitudes that went into it."""
    x, weight, bias = x.astype(np.float64), weight.astype(np.float64), bias.astype(np.float64)
    return x @ weight.T + bias, np.abs(x) @ np.abs(weight).T + np.abs(bias)


def accumulation(x: Array) -> float:
    """A bound on float32 summing's error, relative to the sum of magnitudes: far below the worst case, K roundings."""
    return ROUNDING * (4 + 2 * float(np.sqrt(x.shape[1])))


def activations(kernels: int, kind: int, x: Array) -> Array:
    assert library is not None
    return rounded(x) if kind == BFLOAT16 and library.baton_name(kernels) == b"avx512bf16" else x


@each_kind
def test_products_are_those_of_the_packed_numbers(kernels: int, kind: int) -> None:
    for x, weight, bias in draws(60):
        packed = Packed(kernels, kind, weight)
        want, size = reference(activations(kernels, kind, x), packed.unpacked(), bias)
        bound = accumulation(x) * size
        if kind == INT8:  # an activation is rounded to a 32767th of its group's greatest, by half of that at most
            greatest = np.abs(x).max(axis=1, keepdims=True).astype(np.float64)
            bound += greatest / 32767 * 0.51 * np.abs(packed.unpacked()).astype(np.float64).sum(axis=1)
        if kind == INT4:
            bound += np.abs(x).max(axis=1, keepdims=True) / 127 * 0.51 * np.abs(packed.unpacked()).sum(axis=1)
        assert (np.abs(packed.product(x, bias) - want) <= bound).all(), (x.shape, weight.shape)
        plain = want - bias.astype(np.float64)
        assert (np.abs(packed.product(x) - plain) <= bound).all(), (x.shape, weight.shape)


@each_kind
def test_packing_keeps_or_rounds_as_the_kind_says(kernels: int, kind: int) -> None:
    for _, weight, _ in draws(20):
        unpacked = Packed(kernels, kind, weight).unpacked()
        if kind == FLOAT32:
            assert np.array_equal(unpacked, weight)
        elif kind == BFLOAT16:
            assert np.array_equal(unpacked, rounded(weight))
        elif kind == FLOAT16:
            assert np.array_equal(unpacked, weight.astype(np.float16).astype(np.float32))
        else:
            # In 4 bits the greatest number is -8 steps, and one just as great of the other sign 7.
            size, steps, most = (GROUP, 127, 0.5001) if kind == INT8 else (CHUNK, 8, 1.01)
            for start in range(0, weight.shape[1], size):
                group = weight[:, start : start + size]
                step = np.abs(group).max(axis=1, keepdims=True) / steps
                assert (np.abs(unpacked[:, start : start + size] - group) <= step * np.float32(most)).all()


@each_kind
def test_a_weight_in_bfloat16_packs_as_its_numbers(kernels: int, kind: int) -> None:
    for _, weight, _ in draws(10):
        unpacked = Packed(kernels, kind, bits(weight)).unpacked()
        assert np.array_equal(unpacked, Packed(kernels, kind, rounded(weight)).unpacked())


@each_kind
def test_a_weight_in_float16_packs_as_its_numbers(kernels: int, kind: int) -> None:
    for _, weight, _ in draws(10):
        half = weight.astype(np.float16)
        assert np.array_equal(
            Packed(kernels, kind, half).unpacked(), Packed(kernels, kind, half.astype("f4")).unpacked()
        )


def test_every_number_in_float16_is_kept(kernels: int) -> None:
    every: Array = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)].reshape(62, -1)
    packed = Packed(kernels, FLOAT16, every)
    assert np.array_equal(packed.unpacked(), every.astype(np.float32))
    # By products too: each input alone, so that nothing else is summed.
    inputs = every[:, 100:140].astype(np.float32)
    some = Packed(kernels, FLOAT16, np.ascontiguousarray(every[:, 100:140]))
    assert np.array_equal(some.product(np.eye(40, dtype=np.float32)), inputs.T)


@each_kind
@pytest.mark.parametrize("inputs", [77, 9001])
def test_a_row_is_the_same_bits_in_any_company(kernels: int, kind: int, inputs: int) -> None:
    random = np.random.default_rng(5)
    weight, bias = random.standard_normal((50, inputs), np.float32), random.standard_normal(50, np.float32)
    x = random.standard_normal((40, inputs), np.float32)
    packed = Packed(kernels, kind, weight)
    alone = np.concatenate([packed.product(row[None], bias) for row in x])
    for rows in range(2, 41):
        shift = int(random.integers(0, 41 - rows))
        assert np.array_equal(packed.product(x[shift : shift + rows], bias), alone[shift : shift + rows]), rows


@each_kind
@pytest.mark.parametrize("rows", [73, 150])
def test_a_row_of_a_prompt_is_the_same_bits_as_alone(kernels: int, kind: int, rows: int) -> None:
    """However the prompt's rows and the weight's inputs are divided among the caches."""
    random = np.random.default_rng(6)
    weight, bias = random.standard_normal((70, 2100), np.float32), random.standard_normal(70, np.float32)
    x = random.standard_normal((rows, 2100), np.float32)
    packed = Packed(kernels, kind, weight)
    together = packed.product(x, bias)
    for row in [0, rows // 2, rows - 1, *map(int, random.integers(0, rows, 3))]:
        assert np.array_equal(together[row], packed.product(x[row : row + 1], bias)[0]), row


@each_kind
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_its_row_and_in_no_other(kernels: int, kind: int, bad: float) -> None:
    random = np.random.default_rng(6)
    packed = Packed(kernels, kind, random.standard_normal((40, 130), np.float32))
    x = random.standard_normal((19, 130), np.float32)
    sound = packed.product(x)
    x[7, 100] = bad
    product = packed.product(x)
    assert not np.isfinite(product[7]).any()
    others = np.arange(19) != 7
    assert np.array_equal(product[others], sound[others])


@each_kind
def test_zeros_give_the_bias(kernels: int, kind: int) -> None:
    bias = np.arange(33, dtype=np.float32)
    packed = Packed(kernels, kind, np.zeros((33, 65), np.float32))
    assert np.array_equal(packed.product(np.ones((3, 65), np.float32), bias), np.stack([bias] * 3))
    ones = Packed(kernels, kind, np.ones((33, 65), np.float32))
    assert np.array_equal(ones.product(np.zeros((3, 65), np.float32), bias), np.stack([bias] * 3))


@pytest.mark.parametrize("kind", [INT8, INT4], ids=["int8", "int4"])
def test_quantised_weights_are_the_same_integers_in_all_variants(kind: int) -> None:
    if library is None:
        pytest.skip("no native library here")
    for _, weight, _ in draws(10):
        packed = [Packed(address, kind, weight) for address in map(kernels_of, variants()) if address is not None]
        for other in packed[1:]:
            assert np.array_equal(other.data, packed[0].data)
            assert np.array_equal(other.scales, packed[0].scales)
