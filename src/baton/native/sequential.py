"""Which of a step's operations are carried out token after token: each reads what the one before it wrote.

For each state these are the operations between the state and its new value, and those that read or make numbers of its
size, so that these are there for one token at a time. Everything else of a step acts on each token by itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch.fx import Node

from baton.native.graph import refuse
from baton.native.nodes import ancestors, reached
from baton.native.record import KEEP_STATE, STATE

_MUL = torch.ops.aten.mul.Tensor


def scans(nodes: Sequence[Node], apart: Collection[object]) -> dict[Node, int]:
    """The number of the scan that each such operation belongs to. `apart`: operations that no scan can have.

    Raises LoadError if one must.
    """
    order = {node: at for at, node in enumerate(nodes)}
    writes = {node.args[1:3]: node for node in nodes if node.target is KEEP_STATE}
    together: list[set[Node]] = []
    for read in (node for node in nodes if node.target is STATE):
        members = _of_state(read, writes[read.args[1:3]], apart)
        for other in [one for one in together if not one.isdisjoint(members)]:
            members |= other
            together.remove(other)
        together.append(members)
    together.sort(key=lambda members: min(order[node] for node in members))
    # In the order of the nodes, so that a model's program is always the same.
    numbers = {node: number for number, members in enumerate(together) for node in members}
    return {node: numbers[node] for node in nodes if node in numbers}


def _of_state(read: Node, write: Node, apart: Collection[object]) -> set[Node]:
    size = _size(read)
    members = {read} | (reached([read], lambda node: node.users) & ancestors([write]))
    if any(node.target in apart for node in members):
        raise refuse("a state that depends on itself through a product or attention")

    def allowed(node: Node) -> bool:
        return node.op == "call_function" and node.target not in apart and node not in members

    left = list(members)
    while left:
        node = left.pop()
        more = [user for user in node.users if _size(node) >= size and allowed(user)]
        more += [
            source
            for source in node.all_input_nodes
            if _size(source) >= size and allowed(source) and all(user in members for user in source.users)
        ]
        members.update(more)
        left += more
    return members


def fused(scans: Mapping[Node, int], sums: Collection[object], changing: Collection[Node]) -> dict[Node, Node]:
    """For each sum in a scan that alone reads a product number by number: the product. They become one operation.

    `sums`: operations that can. `changing`: operations that change what others read.
    """
    nodes = list(scans)
    changes = [0]
    for node in nodes:
        changes.append(changes[-1] + (node in changing))
    at = {node: number for number, node in enumerate(nodes)}
    pairs: dict[Node, Node] = {}
    for node in nodes:
        products = [
            one for one in node.args if isinstance(one, Node) and one.target is _MUL and list(one.users) == [node]
        ]
        # What a product reads must still be there when it is carried out with the sum.
        fits = [one for one in products if one in at and changes[at[one]] == changes[at[node]]]
        if node.target in sums and fits and not node.kwargs:
            pairs[node] = fits[-1]
    return pairs


def _size(node: Node) -> int:
    """How many numbers an operation gives."""
    shape = getattr(node.meta.get("tensor_meta"), "shape", None)
    return 0 if shape is None else math.prod(shape)
