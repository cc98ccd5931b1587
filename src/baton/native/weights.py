"""The weights of a program: packed for products, or as the model has them for what is looked up row by row."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable, Iterator, Sequence
from ctypes import CDLL, byref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging as progress

from baton.core.errors import LoadError
from baton.model.packed_experts import PackedExperts
from baton.model.packed_linear import PackedLinear
from baton.native import library as native
from baton.native import structs
from baton.native.arena import Arena, drop_pages, give_back, trim
from baton.native.codes import bytes_of_codes, pack_codes
from baton.native.graph import PLANES, Graph, TableSpec, head_tables
from baton.native.kept_weights import KeptWeights
from baton.native.mapped_files import MappedFiles
from baton.native.packing import AS_SAVED, Packing, kind_of

_NEAR = 0.15  # of a row's greatest, more than rounding to 4 bits may change a number


def packings(graph: Graph, packing: Packing) -> list[Packing]:
    """How each table of a graph is packed.

    What chooses experts keeps its number format: it is small, and one expert in place of another is another model.
    """
    heads = head_tables(graph)
    return [AS_SAVED if one.chooses else packing.of(head=at in heads) for at, one in enumerate(graph.tables)]


def matrices(weight: Tensor) -> Sequence[Tensor]:
    """A table's weight as matrices `[outputs, inputs]`: one, or one for each expert."""
    return [weight] if weight.dim() == 2 else list(weight)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What was packed. `parameter`: None if the weight was made of some. `turned`: it lies the other way round."""

    parameter: nn.Parameter | None
    packed: tuple[structs.Weight, ...]
    turned: bool
    experts: bool

    @property
    def numbers(self) -> int:
        return sum(int(one.outputs * one.inputs) for one in self.packed)


class Weights:
    """The tables of `graph`, whose own references are dropped. `packing`: how products' weights are kept.

    `tables`: what the native side reads; experts' lie one behind the other. `first[i]`: where those of the graph's
    table i begin. `parameters`: the model's, and whether to `release` their memory once they are packed, so that there
    is never a second copy of all; `restore` undoes it. `kept`: the file of quantised
    weights, which is mapped, or written. Raises LoadError for a number format that is not known.
    """

    def __init__(
        self,
        kernels: Any,
        graph: Graph,
        packing: Packing,
        parameters: Iterable[nn.Parameter],
        *,
        release: bool,
        kept: KeptWeights | None = None,
    ) -> None:
        assert native.library is not None
        self._library: CDLL = native.library
        self._kernels = kernels
        self._packing = packing
        self._release = release
        self._alive: list[Any] = []
        self._kept: list[_Kept] = []
        self._parameters = {parameter.data_ptr(): parameter for parameter in parameters}
        self._files = MappedFiles()
        self.packed_bytes = 0
        self.first: list[int] = []
        chosen = packings(graph, packing)
        size = sum(self._size(one, how) for one, how in zip(graph.tables, chosen, strict=True))
        kept = None if packing.exact else kept
        on_disk = None if kept is None else kept.mapped(size)
        if kept is not None and on_disk is not None and not self._suits(graph, chosen, *on_disk):
            kept.remove("its numbers are not this model's")
            on_disk = None
        self._arena = Arena(size) if on_disk is None else Arena(size, *on_disk[:2])
        # Of what lies packed already, the power of each weight.
        self._powers = None if on_disk is None else iter(on_disk[2])
        tables: list[structs.Table] = []
        layers = [one.layer for one in graph.tables if one.layer is not None]
        for layer in layers if release else ():
            # The check has read all of the file; what of it lies in memory is not to be added to what is packed.
            self._drop(layer)
        # As transformers shows how far it has read a checkpoint: in a terminal, or not at all.
        shown = {"desc": "Packing weights", "unit": "B", "unit_scale": True, "leave": False, "delay": 1}
        with progress.tqdm(total=size, **shown) as bar:
            for one, how in zip(graph.tables, chosen, strict=True):
                self.first.append(len(tables))
                before = self.packed_bytes
                tables += self._table(one, how)
                bar.update(self.packed_bytes - before)
        for parameter in self._parameters.values() if release else ():
            # Parameters that stay must not hold on to the file from which all were loaded.
            if self._files.hold(parameter):
                parameter.data = parameter.data.clone()
        self._parameters.clear()
        if kept is not None and on_disk is None:
            kept.write(self._arena.memory, (float(one.power) for each in self._kept for one in each.packed))
        for start, stop in {part for layer in layers for part in self._around(layer)} if release else ():
            # Beside packed layers lie tensors that were read once, such as an embedding in another number format.
            give_back(start, stop)
        self.tables = (structs.Table * len(tables))(*tables)

    def restore(self) -> None:
        """Gives the model back the parameters that were released. Raises LoadError where they were quantised."""
        if not self._release:
            return
        if self._kept and not self._packing.exact:
            raise LoadError("its weights were quantised and are gone")
        for one in self._kept:
            if one.parameter is not None:
                one.parameter.data = self._unpacked(one, one.parameter.dtype)
        self._kept.clear()

    @property
    def lendable_bytes(self) -> int | None:
        """Of the parameters that `lent` gives, or None if products read weights that are no parameters."""
        size = 0
        for one in self._kept:
            if one.parameter is None:
                return None
            size += one.parameter.element_size() * one.numbers
        return size

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """The model has parameters with the numbers that products read, which may be rounded, for so long."""
        before = [(one.parameter, one.parameter.data) for one in self._kept if one.parameter is not None]
        try:
            for one in self._kept:
                if one.parameter is not None:
                    one.parameter.data = self._unpacked(one, one.parameter.dtype)
            yield
        finally:
            for parameter, data in before:
                parameter.data = data

    def _unpacked(self, one: _Kept, dtype: torch.dtype) -> Tensor:
        """The weight as its parameter lies, `[outputs, inputs]` or, of experts, `[experts, outputs, inputs]`."""
        outputs, inputs = one.packed[0].outputs, one.packed[0].inputs
        shape = (len(one.packed), inputs, outputs) if one.turned else (len(one.packed), outputs, inputs)
        whole, numbers = torch.empty(shape, dtype=dtype), torch.empty(outputs, inputs)
        for to, weight in zip(whole, one.packed, strict=True):
            self._library.baton_unpack(self._kernels, byref(weight), 0, outputs, numbers.data_ptr())
            to.copy_(numbers.t() if one.turned else numbers)
        return whole if one.experts else whole[0]

    def _suits(
        self, graph: Graph, chosen: Sequence[Packing], memory: mmap.mmap, start: int, powers: Sequence[float]
    ) -> bool:
        """Whether a row of each packed weight is near the model's own, so that none is taken for another."""
        at, left = torch.frombuffer(memory, dtype=torch.uint8).data_ptr() + start, iter(powers)
        for table, how in zip(graph.tables, chosen, strict=True):
            if table.layer is not None:
                return False
            for matrix in matrices(table.weight) if table.packed and table.weight is not None else ():
                placed = how.placed(self._library, self._kernels, matrix, at, next(left, 0.0))
                at += how.bytes_of(self._library, self._kernels, matrix)
                row, numbers = len(matrix) // 2, torch.empty(matrix.shape[1])
                if not placed.power > 0 and placed.kind == native.INT4:
                    return False
                self._library.baton_unpack(self._kernels, byref(placed), row, 1, numbers.data_ptr())
                own = matrix[row].detach().float()
                if not (numbers - own).abs().max() <= _NEAR * own.abs().max():
                    return False
        return next(left, None) is None

    def _table(self, table: TableSpec, packing: Packing) -> list[structs.Table]:
        if table.layer is not None:
            return self._with_codes(table.layer)
        weight, table.weight = table.weight, None
        assert weight is not None
        return self._packed(weight, packing) if table.packed else [self._as_is(weight)]

    def _size(self, table: TableSpec, packing: Packing) -> int:
        if table.layer is not None:
            return sum(bytes_of_codes(self._library, self._kernels, one) for one in table.layer.weights)
        if not table.packed or table.weight is None:
            return 0
        return sum(packing.bytes_of(self._library, self._kernels, one) for one in matrices(table.weight))

    def _packed(self, weight: Tensor, packing: Packing) -> list[structs.Table]:
        """Packs a product's weight into the arena, and gives back the model's own memory for it if that is allowed."""
        parameter = self._parameters.get(weight.data_ptr())
        if parameter is not None and parameter.numel() != weight.numel():
            parameter = None
        release = self._release and parameter is not None
        packed = []
        for matrix in matrices(weight):
            size = packing.bytes_of(self._library, self._kernels, matrix)
            address, given_back = self._arena.take(size), drop_pages if release else None
            if self._powers is None:
                packed.append(packing.pack(self._library, self._kernels, matrix, address, given_back))
            else:
                packed.append(packing.placed(self._library, self._kernels, matrix, address, next(self._powers)))
            self.packed_bytes += size
            if release:
                drop_pages(matrix.detach())
        turned = not weight.is_contiguous()
        self._kept.append(_Kept(parameter, tuple(packed), turned, experts=weight.dim() == 3))
        if release and parameter is not None:
            del self._parameters[weight.data_ptr()]
            parameter.data = parameter.data.new_empty(0)
        return [structs.Table(one, 0) for one in packed]

    def _with_codes(self, layer: PackedLinear | PackedExperts) -> list[structs.Table]:
        """Packs a checkpoint's codes into the arena. If that is allowed, the memory of the file's own is given back."""
        tables = []
        for weight in layer.weights:
            size = bytes_of_codes(self._library, self._kernels, weight)
            packed = pack_codes(self._library, self._kernels, weight, PLANES, self._arena.take(size))
            self.packed_bytes += size
            tables.append(structs.Table(packed, 0))
        if self._release:
            self._drop(layer)
        trim()
        return tables

    def _drop(self, layer: PackedLinear | PackedExperts) -> None:
        """Gives back the memory of a layer's mapped tensors. Whoever reads them again reads the file again."""
        for tensor in layer.tensors.values():
            if self._files.hold(tensor):
                drop_pages(tensor)

    def _around(self, layer: PackedLinear | PackedExperts) -> Iterator[tuple[int, int]]:
        """The mapped parts of files in which a layer's tensors are."""
        for tensor in layer.tensors.values():
            if self._files.hold(tensor) and (part := self._files.around(tensor)) is not None:
                yield part

    def _as_is(self, weight: Tensor) -> structs.Table:
        """A weight that is read row by row, such as an embedding's."""
        kind, (outputs, inputs) = kind_of(weight.dtype), weight.shape
        weight = weight.detach().contiguous()
        parameter = self._parameters.pop(weight.data_ptr(), None) if self._release else None
        if parameter is not None and self._files.hold(weight):
            mapped, weight = weight, weight.clone()
            parameter.data = weight
            drop_pages(mapped)
        self._alive.append(weight)
        return structs.Table(structs.Weight(kind, outputs, inputs, weight.data_ptr(), None), 1)
