"""Products with weights in 4 bits against numpy that rounds and sums the same way: the same bits in every variant."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baton.native.library import CHUNK, INT4, library
from baton.native.packing import INT4 as INT4_ROUNDED
from baton.native.packing import INT8 as INT8_ROUNDED
from baton.native.packing import Packing, power_of
from packed_weight import Array, Packed

PLANES = {1: 127, 2: 32639}
"""Bytes of an activation, and the greatest integer that it becomes."""

each_precision = pytest.mark.parametrize("planes", PLANES, ids=["8 bits", "16 bits"])


def whole_chunks(x: Array, size: int = CHUNK) -> Array:
    """`[rows, inputs]` as `[rows, chunks, size]`, zeros behind the last input."""
    padded = np.zeros((len(x), -(-x.shape[1] // size) * size), np.float32)
    padded[:, : x.shape[1]] = x
    return padded.reshape(len(x), -1, size)


def codes(weight: Array, group: int, power: float) -> tuple[Array, Array]:
    """Each number's code less 8, `[outputs, groups, group]`, and the groups' scales `[outputs, groups]`."""
    groups = whole_chunks(weight, group)
    at = np.abs(groups)
    top = at.max(axis=2)
    positive = ((groups == top[..., None]).any(axis=2)).astype(np.float32) * 2 - 1
    peak = np.where(top < np.float32(1e-30), np.float32(0), top * positive)
    halves = (peak / np.float32(-8) / np.float32(power)).astype(np.float16)
    scales = halves.astype(np.float32) * np.float32(power)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    whole = np.rint(groups.astype(np.float64) * inverse[..., None].astype(np.float64))
    return np.clip(whole, -8, 7), scales


def rounded(x: Array, most: int) -> tuple[Array, Array]:
    """Rows as integers `[rows, chunks, CHUNK]` and their scales `[rows, chunks]`."""
    chunks = whole_chunks(x)
    top = np.abs(chunks).max(axis=2)
    top = np.where(top < np.float32(1e-30), np.float32(0), top)
    inverse = np.divide(np.float32(most), top, out=np.zeros_like(top), where=top > 0)
    return np.rint(chunks.astype(np.float64) * inverse[..., None].astype(np.float64)), top / np.float32(most)


def reference(x: Array, weight: Array, group: int, planes: int, power: float, bias: Array) -> Array:
    """Integer sums by chunk, each added to a float32 sum by a multiply-add that rounds once."""
    weights, scales = codes(weight, group, power)
    rows, row_scales = rounded(x, PLANES[planes])
    weights = whole_chunks(weights.reshape(len(weight), -1))
    total = np.zeros((len(x), len(weight)), np.float32)
    for chunk in range(rows.shape[1]):
        sums = rows[:, chunk] @ weights[:, chunk].T
        assert np.abs(sums).max() < 2**24
        scale = scales[None, :, chunk * CHUNK // group] * row_scales[:, chunk, None]
        # The product is exact in float64, and the sum so near that rounding it again changes nothing.
        total = (sums * scale.astype(np.float64) + total.astype(np.float64)).astype(np.float32)
    return total + bias


@each_precision
@pytest.mark.parametrize("group", [32, 64, 128])
def test_products_are_the_reference_to_the_bit(kernels: int, planes: int, group: int) -> None:
    random = np.random.default_rng(group + planes)
    for rows, outputs, inputs in [(1, 1, 1), (3, 33, 31), (7, 64, 257), (13, 95, 384), (29, 31, 100), (2, 5, 2049)]:
        x = random.standard_t(3, (rows, inputs)).astype(np.float32)
        weight = (random.standard_normal((outputs, inputs)) * 0.02).astype(np.float32)
        bias, power = random.standard_normal(outputs, np.float32), power_of(torch.from_numpy(weight))
        packed = Packed(kernels, INT4, weight, group, planes, power)
        right = reference(x, weight, group, planes, power, bias)
        assert np.array_equal(packed.product(x, bias), right), (rows, outputs, inputs)


@pytest.mark.parametrize("group", [32, 96])
def test_a_weight_unpacks_to_its_codes_times_its_scales(kernels: int, group: int) -> None:
    weight = np.random.default_rng(1).standard_normal((67, 301)).astype(np.float32)
    power = power_of(torch.from_numpy(weight))
    whole, scales = codes(weight, group, power)
    right = (whole * scales[..., None]).astype(np.float32).reshape(67, -1)[:, :301]
    unpacked = Packed(kernels, INT4, weight, group, 1, power).unpacked()
    assert np.array_equal(unpacked, right)
    # Rounding what was rounded changes nothing.
    assert np.array_equal(Packed(kernels, INT4, right, group, 1, power).unpacked(), right)


@each_precision
def test_the_greatest_integers_do_not_overflow(kernels: int, planes: int) -> None:
    """All codes 15 or 0 against activations that are all the greatest: the longest sums in 16 bits there are."""
    weight = np.full((32, 96), 7, np.float32)
    weight[:, ::32] = -8
    weight[1::2] *= -1
    x = np.stack([np.full(96, 3.0, np.float32), np.full(96, -3.0, np.float32)])
    x[:, 40:80:3] *= -1
    packed = Packed(kernels, INT4, weight, 32, planes, 1.0)
    assert np.array_equal(packed.unpacked(), weight)
    assert np.allclose(packed.product(x), x @ weight.T, rtol=1e-5)


def test_numbers_that_are_all_the_same_are_kept(kernels: int) -> None:
    for number in (1.0, -2.0, 0.5, -0.001953125):
        weight = np.full((40, 70), number, np.float32)
        packed = Packed(kernels, INT4, weight, 32, 1, power_of(torch.from_numpy(weight)))
        assert np.array_equal(packed.unpacked(), weight)
        assert np.allclose(packed.product(np.ones((2, 70), np.float32)), 70 * number, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-38, 1e-29, 1e-6, 1.0, 1e20, 3e37])
def test_weights_of_any_size_keep_their_digits(kernels: int, size: float) -> None:
    """Below 1e-30 a group is zeros; above it, its scale has float16's eleven bits."""
    weight = (np.random.default_rng(2).uniform(-1, 1, (33, 64)) * size).astype(np.float32)
    power = power_of(torch.from_numpy(weight))
    unpacked = Packed(kernels, INT4, weight, 32, 1, power).unpacked()
    if size < 1e-30:
        assert not unpacked.any()
        return
    step = np.abs(weight).reshape(33, 2, 32).max(axis=2, keepdims=True) / 8
    assert (np.abs(unpacked - weight).reshape(33, 2, 32) <= step * np.float32(1.01)).all()
    near = np.abs(unpacked).reshape(33, 2, 32).max(axis=2, keepdims=True) / step / 8
    assert (np.abs(near - 1) <= 2**-11 + 2**-20).all()


def test_groups_far_smaller_than_the_greatest_are_zeros_or_near(kernels: int) -> None:
    """float16 has no scale below a 2^39th of the greatest, and few digits just above."""
    weight = np.ones((4, 64), np.float32)
    weight[:, 32:] = np.array([2.0**-20, 2.0**-27, 2.0**-37, 2.0**-60], np.float32)[:, None]
    unpacked = Packed(kernels, INT4, weight, 32, 1, power_of(torch.from_numpy(weight))).unpacked()
    assert np.array_equal(unpacked[:, :32], weight[:, :32])
    assert np.array_equal(unpacked[:2, 32:], weight[:2, 32:])
    assert np.array_equal(unpacked[2, 32:], weight[2, 32:])
    assert not unpacked[3, 32:].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_group_that_is_not_finite_shows_in_its_output_and_in_no_other(kernels: int, bad: float) -> None:
    random = np.random.default_rng(3)
    weight, x = random.standard_normal((40, 100), np.float32), random.standard_normal((3, 100), np.float32)
    sound = Packed(kernels, INT4, weight).product(x)
    weight[17, 40] = bad
    product = Packed(kernels, INT4, weight).product(x)
    assert np.isnan(product[:, 17]).all()
    others = np.arange(40) != 17
    assert np.array_equal(product[:, others], sound[:, others])


def test_activations_below_a_float32_s_digits_are_zeros(kernels: int) -> None:
    packed = Packed(kernels, INT4, np.ones((32, 32), np.float32))
    assert not packed.product(np.full((1, 32), 1e-40, np.float32)).any()
    assert np.isfinite(packed.product(np.full((1, 32), 1e36, np.float32))).all()


def test_the_power_of_a_weight_without_a_greatest_number_is_one() -> None:
    for number in (0.0, float("nan"), float("inf"), float("-inf")):
        assert power_of(torch.tensor([[number, 0.0]])) == 1.0
    assert 2.0**14 <= 1.0 / 8 / power_of(torch.tensor([[-1.0, 0.5]])) < 2.0**15


@pytest.mark.parametrize("packing", [INT4_ROUNDED, INT8_ROUNDED], ids=["int4", "int8"])
def test_a_large_weight_is_packed_by_several_threads_as_by_one(packing: Packing) -> None:
    if library is None:
        pytest.skip("no native library here")
    weight = torch.randn(1000, 1537, generator=torch.Generator().manual_seed(8))
    weight[::50, 0] = 9.0  # each part has the same power of two
    parts = [packing.rounded(part) for part in weight.split(50)]
    assert torch.equal(packing.rounded(weight), torch.cat(parts))
