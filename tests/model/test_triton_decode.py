"""Triton's kernels equal a plain float64 reference: through its interpreter here, and on a GPU if there is one.

If Triton is installed, they are also compiled for Hopper, which takes no GPU.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from baton.cuda.decode_steps import Steps
from baton.cuda.mapped_rectangle import MappedRectangle
from baton.cuda.page_layout import PageLayout
from baton.cuda.ragged_attention import InTorch, InTriton, TokenRows
from baton.cuda.slots import Slot, follows
from baton.kv.rectangle import Rectangle
from baton.model.forward import TorchForward
from baton.model.visibility import EVERYTHING, Visibility
from baton.testing.host_driver import HostDriver
from families import shallow
from forked import forked
from random_batch import torch_forward_of

triton = pytest.importorskip("triton", reason="Triton is not installed")

from triton.runtime import interpreter  # noqa: E402

from baton.cuda import float8, triton_decode  # noqa: E402

COLUMNS, CAPACITY = 200, 6
# A row that ends in the first block, one that fills all columns, padding, one in between, a first token.
STOPS, ROWS = (9, COLUMNS, 0, 131, 1), (3, 0, 5, 1, 2)


@pytest.fixture(scope="module")
def interpreted() -> Iterator[ModuleType]:
    """The kernels as Triton's interpreter runs them; see conftest.py."""
    if not triton.knobs.runtime.interpret:
        pytest.skip("kernels run on the GPU here")
    patch = pytest.MonkeyPatch()
    scalars, product = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def patched(tensor: Any, scope: Any) -> None:
        # Newer numpy takes no array of one number for that number.
        scalars(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        # It multiplies the bits of bfloat16 as if they were integers.
        a, b = (self.create_fp_ext(x, triton.language.float32) if x.dtype.name == "bf16" else x for x in (a, b))
        return product(self, a, b, *others)

    patch.setattr(interpreter, "_patch_lang_tensor", patched)
    patch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
    patch_once_for_a_kernel(patch)
    yield triton_decode
    patch.undo()


def patch_once_for_a_kernel(patch: pytest.MonkeyPatch) -> None:
    """Or the interpreter replaces the language's functions for each call in a kernel, which takes half of its time."""
    language, run = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[frozenset[int]] = set()

    def once(function: Any) -> Any:
        modules = (triton.language, triton.language.core)
        seen = frozenset(id(one) for one in function.__globals__.values() if any(one is module for module in modules))
        if seen in patched:
            return interpreter._LangPatchScope()
        patched.add(seen)
        return language(function)

    def kernel(self: Any, *args: Any, **kwargs: Any) -> None:
        patched.clear()
        run(self, *args, **kwargs)

    patch.setattr(interpreter, "_patch_lang", once)
    patch.setattr(interpreter.GridExecutor, "__call__", kernel)


@dataclass(frozen=True)
class Case:
    """Rows full of numbers, and what is asked of them. `ring`: buffers have so many columns, token p is in p % C."""

    dim: int = 64
    value_dim: int = 64
    group: int = 2
    visibility: Visibility = EVERYTHING
    ring: int = 0
    sinks: bool = False
    scale: float | None = None
    dtype: torch.dtype = torch.float32
    splits: int | None = 4
    device: str = "cpu"
    stops: tuple[int, ...] = STOPS

    heads = 2

    def numbers(self, *shape: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator).to(self.dtype).to(self.device)

    def run(self, module: ModuleType) -> tuple[Tensor, Tensor]:
        """The kernel's result, and the right one."""
        columns = self.ring or COLUMNS
        # More columns than are in use, as buffers have that begin each row on a page.
        keys = self.numbers(CAPACITY, columns + 3, self.heads, self.dim, seed=0)[:, :columns]
        values = self.numbers(CAPACITY, columns + 3, self.heads, self.value_dim, seed=1)[:, :columns]
        q = self.numbers(len(self.stops), 1, self.heads * self.group, self.dim, seed=2).transpose(1, 2)[:, :, 0]
        rows, stops = (torch.tensor(some, device=self.device) for some in (ROWS[: len(self.stops)], self.stops))
        sinks = self.numbers(self.heads * self.group, seed=3) if self.sinks else None
        scale = 1 / math.sqrt(self.dim) if self.scale is None else self.scale
        out = module.attend(
            q, keys, values, rows, stops, scale=scale, visibility=self.visibility, ring=self.ring > 0, sinks=sinks,
            splits=self.splits, least=64,
        )  # fmt: skip
        expected = [
            self.reference(q[at], keys[row], values[row], stop, scale, sinks)
            for at, (row, stop) in enumerate(zip(ROWS, self.stops, strict=False))
        ]
        return out.double().cpu(), torch.stack(expected).cpu()

    def reference(
        self, q: Tensor, keys: Tensor, values: Tensor, stop: int, scale: float, sinks: Tensor | None
    ) -> Tensor:
        """One token, `[Hq, Dv]`, head by head in float64."""
        if not stop:
            return torch.zeros(q.shape[0], values.shape[2], dtype=torch.float64, device=q.device)
        columns = [token % self.ring if self.ring else token for token in range(self.visibility.lowest(stop - 1), stop)]
        out = []
        for head in range(q.shape[0]):
            k, v = keys[columns, head // self.group].double(), values[columns, head // self.group].double()
            scores = k @ q[head].double() * scale
            if self.visibility.softcap:
                scores = self.visibility.softcap * (scores / self.visibility.softcap).tanh()
            if sinks is not None:
                scores = torch.cat([scores, sinks[head : head + 1].double()])
            out.append(scores.softmax(0)[: len(columns)] @ v)
        return torch.stack(out)


CASES = [
    Case(),
    Case(group=1, splits=1),
    Case(group=8, splits=8, scale=0.3),
    Case(dim=80, value_dim=80, group=4),
    Case(dim=96, value_dim=96),
    Case(dim=128, value_dim=128, group=4, sinks=True),
    Case(dim=256, value_dim=256, group=1, visibility=Visibility(softcap=5.0)),
    Case(dim=16, value_dim=24, group=3),
    Case(visibility=Visibility(window=37)),
    Case(visibility=Visibility(window=130, softcap=2.0), sinks=True),
    Case(visibility=Visibility(chunk=50)),
    Case(visibility=Visibility(window=150), ring=150),
    Case(visibility=Visibility(chunk=90), ring=90, sinks=True),
    Case(visibility=Visibility(window=33, softcap=3.0), ring=33, group=4),
    Case(splits=None),
]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_reference_in_float32(case: Case, interpreted: ModuleType) -> None:
    check(case, interpreted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES[5:14:4], ids=str)
def test_it_is_the_reference_in_fewer_bits(case: Case, dtype: torch.dtype, interpreted: ModuleType) -> None:
    check(replace(case, dtype=dtype), interpreted)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_reference_on_a_gpu(case: Case, dtype: torch.dtype) -> None:
    check(replace(case, dtype=dtype, device="cuda"), triton_decode)


def check(case: Case, module: ModuleType) -> None:
    out, expected = case.run(module)
    assert bool(out.isfinite().all())
    assert float((out - expected).norm() / expected.norm()) < TOLERANCE[case.dtype]
    assert not out[case.stops.index(0)].any()


def test_the_comparison_notices_a_window_that_is_wrong_by_one(interpreted: ModuleType) -> None:
    right = Case(visibility=Visibility(window=37))
    out, _ = right.run(interpreted)
    _, wider = replace(right, visibility=Visibility(window=38)).run(interpreted)
    assert float((out - wider).norm() / wider.norm()) > 100 * TOLERANCE[torch.float32]


def test_how_a_row_is_cut_does_not_depend_on_others(interpreted: ModuleType) -> None:
    """To the bit: the same row beside a long one and beside short ones."""
    beside_long, _ = Case(stops=(77, COLUMNS, 3)).run(interpreted)
    beside_short, _ = Case(stops=(77, 1, 2)).run(interpreted)
    assert torch.equal(beside_long[0], beside_short[0])


def test_the_number_of_splits_follows_from_shapes() -> None:
    assert [triton_decode.splits_of(rows, 8) for rows in (1, 8, 32, 128, 512)] == [64, 64, 16, 4, 1]
    assert triton_decode.splits_of(3, 5) == 64


@pytest.mark.parametrize("ring", [0, 50])
def test_tokens_go_where_torch_puts_them(ring: int, interpreted: ModuleType) -> None:
    case = Case(dim=80, value_dim=16)
    # The first is a real token: torch lets padding write what the first one writes.
    rows, stops = torch.tensor(ROWS), torch.tensor(STOPS)
    new = (case.numbers(5, 2, 80, seed=4), case.numbers(5, 2, 1, 16, seed=5)[:, :, 0])
    layers = []
    for body in (InTorch(), InTriton()):
        kept = (torch.zeros(CAPACITY, ring or COLUMNS, 2, 80), torch.zeros(CAPACITY, ring or COLUMNS, 2, 16))
        body.keep(new, kept, TokenRows(rows, stops, ring, COLUMNS))
        layers.append(kept)
    assert all(torch.equal(a, b) and bool(a.any()) for a, b in zip(*layers, strict=True))


@pytest.mark.parametrize("family", ["mistral_window", "gpt_oss", "gemma2"])
def test_steps_through_it_give_what_torch_gives(
    family: str, interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Interpreted programs are slow: two splits are enough to be merged.
    monkeypatch.setattr(interpreted, "MOST_SPLITS", 2)
    forward = torch_forward_of(shallow(family))
    outputs = []
    for body in (InTorch(), InTriton()):
        rectangle = Rectangle(
            forward.geometry.shapes, capacity=4, columns=64, dtype=torch.float32, device=torch.device("cpu")
        )
        for buffer in (*rectangle.keys, *rectangle.values):
            buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(0)))
        steps, logits = Steps(forward.hooked, rectangle, body, capture=False), []
        # To beyond a window.
        for step in range(11, 14):
            tokens = [7, 30, 99] if step == 11 else [follows(at) for at in range(3)]
            slots = [Slot(place, token, step + 1) for place, token in zip((3, 0, 2), tokens, strict=True)]
            logits.append(steps.launch(slots).logits.clone())
        outputs.append(torch.stack(logits))
    assert float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max()) < 1e-5


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
@pytest.mark.parametrize("family", ["mistral_window", "gemma2"])
def test_kernels_touch_nothing_that_rows_did_not_reach(
    family: str, interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a child, which ends if they do: memory is mapped as far as rows are reserved, and full of NaN."""
    monkeypatch.setattr(interpreted, "MOST_SPLITS", 2)
    # It would copy all memory that a kernel gets back to where it is already.
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *args: None)
    forward = torch_forward_of(shallow(family))
    status, lines = forked(lambda: _kernels_on_mapped_memory(forward))
    assert status == 0, lines


def _kernels_on_mapped_memory(forward: TorchForward) -> list[str]:
    """Raises AssertionError if a step gives other than torch gives on memory that is there at once."""
    shapes, cpu = forward.geometry.shapes, torch.device("cpu")
    layout = PageLayout(shapes, 64, torch.float32, HostDriver().granularity, page_tokens=5)
    of: dict[str, Any] = {"capacity": 4, "columns": 64, "dtype": torch.float32, "device": cpu}
    plain, mapped = Rectangle(shapes, **of), MappedRectangle(shapes, driver=HostDriver(), layout=layout, **of)
    lengths = (11, 1, 30)
    for place, length in zip((3, 0, 2), lengths, strict=True):
        plain.lens[place] = length
        parts = [torch.randn_like(part) for part in plain.view(place)]
        for rectangle in (plain, mapped):
            rectangle.write(place, parts, length)
    outputs = []
    for rectangle, body in ((plain, InTorch()), (mapped, InTriton())):
        steps, logits = Steps(forward.hooked, rectangle, body, capture=False), []
        for step in range(1, 4):
            tokens = [7, 30, 99] if step == 1 else [follows(at) for at in range(3)]
            told = zip((3, 0, 2), tokens, lengths, strict=True)
            logits.append(steps.launch([Slot(place, token, length + step) for place, token, length in told]).logits)
        outputs.append(torch.stack(logits))
    assert float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max()) < 1e-5
    return []


def test_it_compiles_for_hopper_without_spills() -> None:
    """In a process of its own, in which kernels are not interpreted."""
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.triton_resources", "--capability", "90"],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    ).stdout
    compiled = [json.loads(line) for line in said.splitlines()]
    assert {one["kernel"] for one in compiled} == {"attend_split", "merge_splits", "keep_tokens", "float8_rows"}
    for one in compiled:
        assert one["stack"] == 0, one
        # At least two programs on a multiprocessor, which has 64 Ki registers.
        assert one["shared"] <= 114 * 1024 and one["registers"] * one["warps"] * 32 <= 32 * 1024, one


WIDTHS = [16, 80, 3000, 14336]


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_in_float8_are_those_of_torch(width: int, interpreted: ModuleType) -> None:
    numbers, scales, right, right_scales = both_rows(width, "cpu")
    assert torch.allclose(scales, right_scales, rtol=1e-6)
    # The interpreter rounds halves up, and forgets to carry into the exponent.
    near = (numbers.float() - right.float()).abs() <= right.float().abs() / 8 + 2**-6
    assert float(near.double().mean()) > 0.9


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("width", WIDTHS)
def test_rows_in_float8_are_those_of_torch_on_a_gpu(width: int) -> None:
    numbers, scales, right, right_scales = both_rows(width, "cuda")
    assert torch.allclose(scales, right_scales, rtol=1e-6)
    # A quotient that is off by one bit of float32 may be rounded to the neighbour.
    differ = (numbers.view(torch.uint8).int() - right.view(torch.uint8).int()).abs()
    assert int(differ.max()) <= 1 and float((differ > 0).double().mean()) < 1e-3


def both_rows(width: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numbers and scales of the kernel, and of torch."""
    rows = torch.randn(5, width, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 5)[:, None]
    rows[3] = 0
    rows = rows.bfloat16().to(device)
    return (*float8._rows(rows), *float8.in_torch(rows))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("tokens", [1, 7, 32, 500])
def test_a_layer_in_float8_multiplies_the_numbers_it_has(tokens: int) -> None:
    linear = torch.nn.Linear(512, 1536, bias=True, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    layer = float8.Float8Linear(linear, torch.device("cuda"))
    inputs = torch.randn(tokens, 512, device="cuda").bfloat16()
    numbers, scales = float8.in_torch(inputs)
    out, expected = layer(inputs).double(), numbers.double() @ layer.weight.double().t() * scales * layer.scale
    expected += linear.bias.double()
    assert float((out - expected).norm() / expected.norm()) < 1e-2
