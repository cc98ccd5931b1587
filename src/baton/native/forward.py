"""A stock model over rows of a rectangle, run by the native library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from baton.core.errors import LoadError
from baton.kv.rectangle import LayerShape, Rectangle
from baton.model.execution import AttentionBackend
from baton.model.forward import TorchForward
from baton.model.port import ForwardStats
from baton.model.visibility import Span, cut, wanted_tokens, with_padding
from baton.native.program import Program

# A native call takes at most so many tokens if it can be divided, so that their values stay in the cache.
PASS = 512


def check_native(torch_forward: TorchForward) -> None:
    """Raises LoadError if native calls cannot give the same results as this forward."""
    if torch_forward.device.type != "cpu":
        raise LoadError(f"native steps are for the CPU, not for {torch_forward.device.type}")
    if torch_forward.backend is AttentionBackend.FLAT:
        raise LoadError("it counts positions by the length of its cache, one for all rows of a call")
    if torch_forward.backend not in (AttentionBackend.RAGGED, AttentionBackend.MLA):
        raise LoadError("its attention is its own, outside of transformers' interface")
    if torch_forward.long_rope_limit is not None:
        raise LoadError("its rotation depends on a text's length")


def with_copies(shapes: Sequence[LayerShape]) -> tuple[LayerShape, ...]:
    """What layers keep natively: states in float32, twice, so that a step writes another copy than it reads."""
    return tuple(
        replace(shape, states=tuple(replace(one, dtype=torch.float32, copies=2) for one in shape.states))
        for shape in shapes
    )


class NativeForward:
    """A `Forward` over a `Program`. `torch_forward`: the same model in torch, whose layout it takes over.

    Kernels compute each token by itself, to the bit, however a prompt is cut.
    """

    swaps_rows = True
    whole_prompts = False
    long_rope_limit = None
    grid = 0

    def __init__(self, program: Program, torch_forward: TorchForward) -> None:
        check_native(torch_forward)
        self.program = program
        self.geometry = replace(program.geometry, shapes=with_copies(program.geometry.shapes))
        self.backend = torch_forward.backend
        self.recompute_limit = torch_forward.recompute_limit
        self._parts = torch_forward.parts(apart=False)
        if torch_forward.backend is AttentionBackend.MLA:
            self._parts[0] = "our attention over latents as they are kept"

    def parts(self) -> list[str]:
        return [*self._parts, self.program.description]

    def fixed(self, rows: int) -> NativeForward:
        """Returns itself; see `Forward.fixed`."""
        return self

    def decode(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        return self._run(rectangle, spans, tokens)

    fill = decode

    def padded(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        return self._run(rectangle, spans, tokens, pad=True)

    def _run(
        self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int], *, pad: bool = False
    ) -> tuple[Tensor, ForwardStats]:
        """Feeds all tokens of all spans, one after the other; with `pad`, shorter rows are filled up with padding."""
        program = self.program
        wanted = list(wanted_tokens(spans))
        longest = max(span.count for span in spans) if pad else 0
        if pad:
            spans, tokens, wanted = with_padding(spans, tokens, longest)
        needed = sum(span.stop for span in spans if span.row >= 0)
        commit = partial(program.commit, rectangle, spans)
        if len(tokens) <= PASS or any(rectangle.rings):
            logits, ran = program.run(rectangle, spans, tokens, wanted)
            return logits, ForwardStats(needed, longest, 0, partial(commit, ran))
        # Without rings a pass may be repeated, because columns after a row's end are not used.
        parts = []
        begun: set[int] = set()
        for first in range(0, len(tokens), PASS):
            last = min(first + PASS, len(tokens))
            kept = [at - first for at in wanted if first <= at < last]
            fed = cut(spans, first, last)
            parts.append(program.run(rectangle, fed, tokens[first:last], kept, begun)[0])
            begun.update(span.row for span in fed)
        return torch.cat(parts), ForwardStats(needed, longest, 0, commit)
