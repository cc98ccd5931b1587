"""Which operations of a recorded step matter, and when."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, cast

import torch
from torch.fx import Node

from baton.model.packed_experts import PACKED_EXPERT
from baton.native.record import EXPERT, KEEP, KEEP_STATE

_SLICE = torch.ops.aten.slice.Tensor


def needed_nodes(nodes: Sequence[Node]) -> set[Node]:
    """Nodes that the logits or the cache depend on, and nodes that change what others read."""
    kept = (KEEP, KEEP_STATE)
    return ancestors([node for node in nodes if node.op == "output" or node.target in kept or changes(node)])


def early_nodes(nodes: Sequence[Node], roots: Iterable[Node], views: Collection[object]) -> set[Node]:
    """The nodes that these depend on: also by what changes their numbers in place. `views`: see `lower`."""
    order = {node: at for at, node in enumerate(nodes)}
    base: dict[Node, Node] = {}
    for node in nodes:
        first = node.args[0] if node.args and (node.target in views or changes(node)) else None
        base[node] = base.get(first, node) if isinstance(first, Node) else node
    early = ancestors(roots)
    while True:
        last = {base[node]: order[node] for node in nodes if node in early}
        more = [
            node for node in nodes if changes(node) and node not in early and last.get(base[node], -1) > order[node]
        ]
        if not more:
            return early
        early |= ancestors(more)


def choosing(nodes: Sequence[Node], products: Collection[Any]) -> set[Node]:
    """What decides which experts a token goes to, back to the next products."""
    chosen = [cast(Node, node.args[1]) for node in nodes if node.target in (EXPERT, PACKED_EXPERT)]
    chosen += [cast(Node, node.args[0]) for node in nodes if node.target is torch.ops.aten.topk.default]
    return ancestors(chosen, products)


def changes(node: Node) -> bool:
    """Whether an operation changes what others read."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def first_read(node: Node) -> int:
    """From which index of the last dimension on somebody reads an operation's result."""
    shape = node.meta["tensor_meta"].shape
    firsts = []
    for user in node.users:
        if user.target is not _SLICE or user.args[1] not in (-1, len(shape) - 1) or len(user.args) < 3:
            return 0
        firsts.append(cast(int, user.args[2] or 0) % shape[-1])
    return min(firsts, default=0)


def ancestors(roots: Iterable[Node], stop: Collection[Any] = ()) -> set[Node]:
    """`stop`: the operations behind which there is no further search."""
    return reached(roots, lambda node: () if node.target in stop else node.all_input_nodes)


def reached(roots: Iterable[Node], following: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """These nodes, and whatever follows them step by step."""
    visited: set[Node] = set()
    left = list(roots)
    while left:
        node = left.pop()
        if node not in visited:
            visited.add(node)
            left.extend(following(node))
    return visited
