"""Triton's kernels of one token per row over rows of different lengths; `triton_decode.py` describes and launches them.

Shapes as there. The grid follows from shapes alone, and lengths are read on the device.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _extent(stop, WINDOW: tl.constexpr, CHUNK: tl.constexpr, RING: tl.constexpr):
    """First column that a row's newest token sees, and how many it sees; see `Visibility.lowest`."""
    low = stop * 0
    if WINDOW > 0:
        low = tl.maximum(stop - WINDOW, 0)
    if CHUNK > 0:
        low = tl.maximum(stop - 1, 0) // CHUNK * CHUNK
    count = stop - low
    if RING:
        # Everything that a ring holds up to there is seen, in any order.
        low = low * 0
    return low, count


@triton.jit
def _share(count, SPLITS: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr):
    """Columns of each of a row's splits but the last."""
    blocks = tl.cdiv(tl.cdiv(count, BLOCK), SPLITS)
    return tl.maximum(blocks * BLOCK, LEAST)


@triton.jit
def attend_split(
    q,
    keys,
    values,
    rows,
    stops,
    parts,
    peaks,
    masses,
    scale,
    softcap,
    q_token,
    q_head,
    k_row,
    k_column,
    k_head,
    v_row,
    v_column,
    v_head,
    heads,
    GROUP: tl.constexpr,
    PAD_GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PAD_VALUE: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    RING: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One split of one row's columns for one group of query heads: unmerged output, its peak score, its mass."""
    head = tl.program_id(0)
    split = tl.program_id(1)
    token = tl.program_id(2).to(tl.int64)
    low, count = _extent(tl.load(stops + token).to(tl.int32), WINDOW, CHUNK, RING)
    share = _share(count, SPLITS, LEAST, BLOCK)
    first = split * share
    last = tl.minimum(first + share, count)
    if first < last:
        row = tl.load(rows + token).to(tl.int64)
        group = tl.arange(0, PAD_GROUP)
        dims = tl.arange(0, PAD_DIM)
        value_dims = tl.arange(0, PAD_VALUE)
        query = head * GROUP + group
        ask = tl.load(
            q + token * q_token + query[:, None] * q_head + dims[None, :],
            mask=(group < GROUP)[:, None] & (dims < DIM)[None, :],
            other=0.0,
        )
        key = keys + row * k_row + head * k_head + dims[:, None]
        value = values + row * v_row + head * v_head + value_dims[None, :]
        peak = tl.full([PAD_GROUP], float("-inf"), tl.float32)
        mass = tl.zeros([PAD_GROUP], tl.float32)
        out = tl.zeros([PAD_GROUP, PAD_VALUE], tl.float32)
        for at in range(first, last, BLOCK):
            columns = at + tl.arange(0, BLOCK)
            inside = columns < last
            in_row = (low + columns).to(tl.int64)
            k = tl.load(key + in_row[None, :] * k_column, mask=inside[None, :] & (dims < DIM)[:, None], other=0.0)
            v = tl.load(
                value + in_row[:, None] * v_column, mask=inside[:, None] & (value_dims < VALUE_DIM)[None, :], other=0.0
            )
            scores = tl.dot(ask, k, input_precision=PRECISION) * scale
            if SOFTCAP:
                scores = softcap * (1 - 2 / (tl.exp(2 * scores / softcap) + 1))
            scores = tl.where(inside[None, :], scores * LOG2_E, float("-inf"))
            higher = tl.maximum(peak, tl.max(scores, 1))
            shares = tl.exp2(scores - higher[:, None])
            fade = tl.exp2(peak - higher)
            mass = mass * fade + tl.sum(shares, 1)
            out = out * fade[:, None] + tl.dot(shares.to(v.dtype), v, input_precision=PRECISION)
            peak = higher
        # [n, Hq, SPLITS]
        slot = (token * heads * GROUP + query) * SPLITS + split
        tl.store(peaks + slot, peak, mask=group < GROUP)
        tl.store(masses + slot, mass, mask=group < GROUP)
        tl.store(
            parts + slot[:, None] * VALUE_DIM + value_dims[None, :],
            out,
            mask=(group < GROUP)[:, None] & (value_dims < VALUE_DIM)[None, :],
        )


@triton.jit
def merge_splits(
    parts,
    peaks,
    masses,
    stops,
    sinks,
    out,
    VALUE_DIM: tl.constexpr,
    PAD_VALUE: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    RING: tl.constexpr,
    SINKS: tl.constexpr,
    SPLITS: tl.constexpr,
    LEAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One query head of one token: its splits weighed by their masses, and a sink's share taken off."""
    query = tl.program_id(0)
    token = tl.program_id(1).to(tl.int64)
    _, count = _extent(tl.load(stops + token).to(tl.int32), WINDOW, CHUNK, RING)
    used = tl.cdiv(count, _share(count, SPLITS, LEAST, BLOCK))
    splits = tl.arange(0, SPLITS)
    dims = tl.arange(0, PAD_VALUE)
    slot = (token * tl.num_programs(0) + query) * SPLITS + splits
    there = splits < used
    peak = tl.load(peaks + slot, mask=there, other=float("-inf"))
    top = tl.max(peak, 0)
    if SINKS:
        sink = tl.load(sinks + query).to(tl.float32) * LOG2_E
        top = tl.maximum(top, sink)
    # Padding has no split.
    top = tl.where(count > 0, top, 0.0)
    weight = tl.exp2(peak - top)
    mass = tl.sum(weight * tl.load(masses + slot, mask=there, other=0.0), 0)
    if SINKS:
        mass += tl.exp2(sink - top)
    output = tl.load(
        parts + slot[:, None] * VALUE_DIM + dims[None, :], mask=there[:, None] & (dims < VALUE_DIM)[None, :], other=0.0
    )
    whole = tl.sum(output * weight[:, None], 0) / tl.where(count > 0, mass, 1.0)
    tl.store(
        out + (token * tl.num_programs(0) + query) * VALUE_DIM + dims,
        whole.to(out.dtype.element_ty),
        mask=dims < VALUE_DIM,
    )


@triton.jit
def keep_tokens(
    new_keys,
    new_values,
    keys,
    values,
    rows,
    stops,
    nk_token,
    nk_head,
    nv_token,
    nv_head,
    k_row,
    k_column,
    k_head,
    v_row,
    v_column,
    v_head,
    DIM: tl.constexpr,
    PAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PAD_VALUE: tl.constexpr,
    RING_COLUMNS: tl.constexpr,
):
    """Writes one token's key and value of one head to its column of its row; padding is not written."""
    head = tl.program_id(0)
    token = tl.program_id(1).to(tl.int64)
    stop = tl.load(stops + token).to(tl.int64)
    if stop > 0:
        row = tl.load(rows + token).to(tl.int64)
        column = stop - 1
        if RING_COLUMNS > 0:
            column = column % RING_COLUMNS
        dims = tl.arange(0, PAD_DIM)
        key = tl.load(new_keys + token * nk_token + head * nk_head + dims, mask=dims < DIM)
        tl.store(keys + row * k_row + column * k_column + head * k_head + dims, key, mask=dims < DIM)
        value_dims = tl.arange(0, PAD_VALUE)
        inside = value_dims < VALUE_DIM
        value = tl.load(new_values + token * nv_token + head * nv_head + value_dims, mask=inside)
        tl.store(values + row * v_row + column * v_column + head * v_head + value_dims, value, mask=inside)


@triton.jit
def float8_rows(inputs, numbers, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr, LEAST: tl.constexpr):
    """One dense row as float8 numbers, and their factors; see `float8.py`."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.float32)
    for at in range(0, WIDTH, BLOCK):
        there = at + columns < WIDTH
        some = tl.load(inputs + row * WIDTH + at + columns, mask=there, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(some))
    scale = tl.maximum(tl.max(largest, 0) / 448.0, LEAST)
    tl.store(scales + row, scale)
    # The second read comes from the cache.
    for at in range(0, WIDTH, BLOCK):
        there = at + columns < WIDTH
        some = tl.load(inputs + row * WIDTH + at + columns, mask=there, other=0.0).to(tl.float32) / scale
        some = tl.minimum(tl.maximum(some, -448.0), 448.0)
        tl.store(numbers + row * WIDTH + at + columns, some.to(tl.float8e4nv), mask=there)
