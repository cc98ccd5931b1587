"""Attention over latents as they are kept, in place of the keys and values that layers expand them to.

A layer of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) keeps one latent c and one rotated
key r for a token, and expands all of them at each step: the keys of head h are K_h c and r, its values V_h c. As
q . (K_h c) = (K_h' q) . c, a step need not expand: the query goes to the latents, which all heads share, and V_h is
applied to what they attended to. No family is named: the maps are found by running the recorded expansion on the
latents' unit vectors, and tried on random ones.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from baton.model.probe import Geometry
from baton.native import graph as native_graph
from baton.native.graph import refuse
from baton.native.nodes import ancestors
from baton.native.record import ATTEND, EXPERT, KEEP, ROWS, Recorded

aten = torch.ops.aten
_TRIES = 3
# Of the largest number: maps that are found in this number format are applied in it, too.
_NEAR = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def absorbed(recorded: Recorded) -> Recorded:
    """Returns the step with attention over what layers keep. One that does not expand is returned as it is.

    Raises LoadError for an expansion of another form.
    """
    if not _expanding(recorded.graph):
        return recorded
    module = _copied(recorded.graph)
    expanding = _expanding(module)
    slots = _Slots(module)
    weights = [weight for node in expanding for weight in _absorb(module, node, slots)]
    module.recompile()
    return replace(recorded, graph=module, as_saved=frozenset(weight.data_ptr() for weight in weights))


def kept_by(geometry: Geometry, graph: native_graph.Graph) -> Geometry:
    """What layers keep for this step: absorbed latents are keys together with the rotated ones, and values."""
    shapes = list(geometry.shapes)
    for layer, (heads, key_dim, value_dim) in graph.layers.items():
        shapes[layer] = replace(shapes[layer], heads=heads, key_dim=key_dim, value_dim=value_dim)
    return replace(geometry, shapes=tuple(shapes))


@dataclass(frozen=True, slots=True)
class _Maps:
    """`keys` `[heads, dims, latents]` of the key's `dims`, `values` `[heads, value dims, latents]`.

    `first`: where in a head's key these dims begin; `rotated`: where the shared rotated ones do, and how many.
    """

    keys: Tensor
    values: Tensor
    first: int
    rotated: tuple[int, int]


class _Slots:
    """The numbers of heads as choices of experts: each token goes to each head's weight."""

    def __init__(self, module: GraphModule) -> None:
        self._module = module
        self._made: dict[int, Node] = {}

    def of(self, heads: int) -> Node:
        """`[ROWS, heads]`."""
        if heads not in self._made:
            graph = self._module.graph
            positions = [node for node in graph.nodes if node.op == "placeholder"][-1]
            with graph.inserting_after(positions):
                numbers = _constant(self._module, torch.arange(heads, dtype=torch.float32))
            with graph.inserting_after(numbers):
                nothing = graph.call_function(aten.mul.Tensor, (positions, 0.0))
            with graph.inserting_after(nothing):
                self._made[heads] = graph.call_function(aten.add.Tensor, (nothing, numbers))
        return self._made[heads]


def _absorb(module: GraphModule, call: Node, slots: _Slots) -> tuple[Tensor, Tensor]:
    """Rewrites one call of attention. Returns the weights that it multiplies with."""
    graph = module.graph
    q, keys, values, *rest = cast(tuple[Any, ...], call.args)
    keep, expansion = _expansion(module, keys, values)
    maps = _maps(module, keep, expansion, keys, values)
    heads, dims, _ = maps.keys.shape
    latents, rotated, layer = cast(tuple[Any, ...], keep.args)
    with graph.inserting_before(keep):
        both = graph.call_function(aten.cat.default, ([latents, rotated], 3))
    keep.args = (both, latents, layer)
    with graph.inserting_before(call):
        index = slots.of(heads)
        to_latents, to_values = (_constant(module, one) for one in (maps.keys.transpose(1, 2), maps.values))
        part = graph.call_function(aten.slice.Tensor, (q, 3, maps.first, maps.first + dims))
        part = graph.call_function(aten.select.int, (part, 2, 0))
        part = graph.call_function(EXPERT, (part, index, to_latents))
        part = graph.call_function(aten.unsqueeze.default, (part, 2))
        at, count = maps.rotated
        turned = graph.call_function(aten.slice.Tensor, (q, 3, at, at + count))
        query = graph.call_function(aten.cat.default, ([part, turned], 3))
        kept = [_kept(module, keep, which) for which in (0, 1)]
        attended = graph.call_function(ATTEND, (query, *kept, *rest))
        out = graph.call_function(aten.select.int, (attended, 1, 0))
        out = graph.call_function(EXPERT, (out, index, to_values))
        out = graph.call_function(aten.unsqueeze.default, (out, 1))
    out.meta = dict(call.meta)
    call.replace_all_uses_with(out)
    for node in [call, *reversed(expansion)]:
        if not node.users:
            graph.erase_node(node)
    return getattr(module, str(to_latents.target)), getattr(module, str(to_values.target))


def _expansion(module: GraphModule, keys: Node, values: Node) -> tuple[Node, list[Node]]:
    """The keep from which keys and values come, and what is computed of it alone, in order."""
    keeps = {node for node in ancestors((keys, values), (KEEP,)) if node.target is KEEP}
    if len(keeps) != 1:
        raise refuse("attention over something other than what a layer keeps")
    keep = keeps.pop()
    known, made = {keep}, []
    for node in module.graph.nodes:
        inputs = node.all_input_nodes
        if node is keep or node.op in ("placeholder", "output") or not all(one in known for one in inputs):
            continue
        known.add(node)
        if any(one is keep or one in made for one in inputs):
            made.append(node)
    if keys not in made or values not in made:
        raise refuse("keys and values that are made of more than what a layer keeps")
    return keep, made


def _maps(module: GraphModule, keep: Node, expansion: Sequence[Node], keys: Node, values: Node) -> _Maps:
    shapes = [cast(Node, one).meta["tensor_meta"] for one in keep.args[:2]]
    counts = [one.shape[-1] for one in shapes]
    dtype = shapes[0].dtype
    if any(tuple(one.shape[:-1]) != (ROWS, 1, 1) for one in shapes):
        raise refuse("latents that are not one per token")

    def run(kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Latents and rotated keys `[n, numbers]` -> keys and values `[n, heads, dims]`."""
        pieces = []
        for first in range(0, len(kept[0]), ROWS):
            given = [torch.zeros(ROWS, 1, 1, count, dtype=dtype) for count in counts]
            for one, numbers in zip(given, kept, strict=True):
                here = numbers[first : first + ROWS]
                one[: len(here), 0, 0] = here
            pieces.append(_run(module, keep, expansion, given, (keys, values)))
        made = [torch.cat([piece[at] for piece in pieces])[: len(kept[0]), :, 0] for at in range(2)]
        return made[0], made[1]

    unit = torch.eye(sum(counts), dtype=dtype)
    made_keys, made_values = run(unit.split(counts, dim=1))
    # By other numbers: that it is these maps, and no number is added.
    dice = torch.Generator().manual_seed(0)
    given = [torch.randn(_TRIES * ROWS, count, generator=dice).to(dtype) for count in counts]
    both = torch.cat(given, 1)
    for made, maps in zip(run(given), (made_keys, made_values), strict=True):
        expected = torch.einsum("nl,lhd->nhd", both.float(), maps.float())
        if not (made.float() - expected).abs().max() <= _NEAR.get(dtype, 0.0) * expected.abs().max():
            raise refuse("keys and values that are no linear map of what a layer keeps")
    return _parted(made_keys.permute(1, 2, 0), made_values.permute(1, 2, 0), counts[0])


def _parted(keys: Tensor, values: Tensor, latents: int) -> _Maps:
    """Parts the maps `[heads, dims, latents and rotated]` into what is of latents, and what is the rotated key."""
    rotated = keys.shape[2] - latents
    of_rotated = keys[:, :, latents:].any(2).any(0).nonzero().flatten().tolist()
    others = [at for at in range(keys.shape[1]) if at not in of_rotated]
    one_piece = all(part == list(range(part[0], part[0] + len(part))) for part in (of_rotated, others) if part)
    if len(of_rotated) != rotated or not others or not one_piece or values[:, :, latents:].any():
        raise refuse("keys that are not parted into latent and rotated ones")
    same = torch.eye(rotated, dtype=keys.dtype).expand(keys.shape[0], -1, -1)
    turned = keys[:, of_rotated]
    if not torch.equal(turned[:, :, latents:], same) or turned[:, :, :latents].any():
        raise refuse("rotated keys that differ by head")
    of_latents, of_values = keys[:, others, :latents], values[:, :, :latents]
    return _Maps(of_latents.contiguous(), of_values.contiguous(), others[0], (of_rotated[0], rotated))


def _run(
    module: GraphModule, keep: Node, expansion: Sequence[Node], kept: Sequence[Tensor], wanted: Sequence[Node]
) -> list[Tensor]:
    """Carries out what the step computes of what a layer keeps."""
    values: dict[Node, Any] = {keep: tuple(kept)}

    def value(node: Node) -> Any:
        if node not in values:
            if node.op == "get_attr":
                values[node] = getattr(module, str(node.target))
            else:
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), value)
                values[node] = cast(Any, node.target)(*args, **kwargs)
        return values[node]

    with torch.no_grad():
        for node in expansion:
            value(node)
    return [values[node] for node in wanted]


def _copied(module: GraphModule) -> GraphModule:
    """Another graph over the same tensors."""
    graph = Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    names = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    return GraphModule({name: getattr(module, name) for name in names}, graph)


def _expanding(module: GraphModule) -> list[Node]:
    """The calls of attention whose keys and values are not those that a layer keeps."""
    calls = [node for node in module.graph.nodes if node.target is ATTEND]
    return [node for node in calls if not _is_kept(node.args[1]) or not _is_kept(node.args[2])]


def _is_kept(node: Any) -> bool:
    return isinstance(node, Node) and bool(node.args) and getattr(node.args[0], "target", None) is KEEP


def _kept(module: GraphModule, keep: Node, which: int) -> Node:
    return module.graph.call_function(operator.getitem, (keep, which))


def _constant(module: GraphModule, tensor: Tensor) -> Node:
    name = f"_absorbed_{sum(str(known).startswith('_absorbed_') for known, _ in module.named_buffers())}"
    module.register_buffer(name, tensor.contiguous())
    return module.graph.get_attr(name)
