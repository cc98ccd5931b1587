"""BATON (Cong et al., arXiv 2410.18701): prefill apart, embed, insert into the running batch at once."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from baton.policy.port import Chunk, Costs, Plan, QueryView, View

SMALLEST_CHUNK = 16
"""While prompts wait for prefill, every iteration has at least so many of their tokens, whatever they cost."""
LARGEST_CHUNK = 512
# The part of the bound that is used; the rest is for costs that the measurements do not show.
_AIM = 0.9
READY_AHEAD = 1


class Baton:
    """Keeps rows full: prompts are prefilled ahead of the row that will be free, in chunks that bound the stall.

    `ready_ahead`: how many prefilled queries wait for a row while none is free, so that a freed row is taken in the
    same iteration. More would only hold memory, because prefill runs on the same device as the batch. `fused`: while
    rows run, chunks are fed in their step, so that the weights are read once for both.
    """

    def __init__(self, *, ready_ahead: int = READY_AHEAD, fused: bool = True) -> None:
        self.ready_ahead = ready_ahead
        self.fused = fused

    def plan(self, view: View) -> Plan:
        rows = rows_wanted(view)
        free = rows - len(view.running)
        back, begin = self._admit(view, free)
        chunks, made_ready = prefill_chunks(view, [*view.prefilling, *begin])
        ready = [query.id for query in view.ready if not query.swapped_out or query in back]
        # A row that is inserted now runs in this step, so there is a step for the chunks.
        fused = self.fused and bool(view.running or ready)
        arrivals = (ready if fused else [*ready, *made_ready])[:free]
        return Plan(
            resize=rows if rows != view.rows else None,
            prefill=tuple(chunks),
            insert=tuple(arrivals),
            fused=fused,
            why=_why(view, arrivals, chunks),
        )

    def _admit(self, view: View, free: int) -> tuple[list[QueryView], list[QueryView]]:
        """The queries that may have memory: swapped-out queries come back before others begin."""
        back, ahead = view.swapped_out, [*view.ready, *view.prefilling]
        if view.waiting and not view.waiting[0].background:
            # Background queries take no place from the others.
            ahead = [query for query in ahead if not query.background]
        room = min(free + self.ready_ahead - len(ahead), view.prefill_room)
        chosen = view.admitted([*back, *view.waiting], len(back) + max(room, 0))
        return chosen[: len(back)], chosen[len(back) :]


def rows_wanted(view: View) -> int:
    """Grows at once with the load; shrinks only to half or less, because remaining rows may have to move."""
    crowd = len(view.running) + len(view.ready) + len(view.prefilling) + len(view.waiting)
    wanted = max(1, min(view.max_rows, crowd))
    keep = view.rows // 2 < wanted < view.rows <= view.max_rows
    return view.rows if keep else max(wanted, len(view.running))


def prefill_chunks(view: View, queue: Sequence[QueryView]) -> tuple[list[Chunk], list[str]]:
    """Chunks of these prompts for this iteration, the first prompt first, and the queries that they make ready.

    Two-sided: by the measured costs, running rows wait for them at most `max_stall_seconds`, and every iteration
    prefills at least SMALLEST_CHUNK tokens if so many are pending: fewer, if so many would read most of the experts.
    """
    least = smallest_chunk(view.costs)
    left, seconds = _chunk_bounds(view, least)
    chunks: list[Chunk] = []
    made_ready: list[str] = []
    fed = 0
    for query in queue:
        fits = left if seconds is None else min(left, view.costs.tokens_within(seconds, query.cached, fed))
        tokens = min(query.pending, max(fits, min(left, least - fed)))
        if view.whole_prompts and tokens < query.pending:
            tokens = 0 if chunks else query.pending
        if tokens < 1:
            break
        if seconds is not None:
            seconds -= view.costs.chunk_seconds(tokens, query.cached, fed)
        chunks.append(Chunk(query.id, tokens))
        fed += tokens
        left -= tokens
        # A prompt that cannot be fed in chunks and has begun anyway continues token by token.
        if tokens == query.pending and not (view.whole_prompts and query.cached and tokens > 1):
            made_ready.append(query.id)
    return chunks, made_ready


def smallest_chunk(costs: Costs) -> int:
    """Tokens that every iteration prefills. Those of a mixture choose at most half of its experts.

    Where that is one token, it is one. A dense model is read whole for any number of tokens.
    """
    if not costs.chosen_share:
        return SMALLEST_CHUNK
    half = bisect.bisect_right(range(SMALLEST_CHUNK + 1), 0.5, key=costs.share_chosen) - 1
    return max(1, half)


def _chunk_bounds(view: View, least: int) -> tuple[int, float | None]:
    """The most tokens of all chunks together, at least `least`, and the most seconds if seconds bound them."""
    if not view.running:
        return LARGEST_CHUNK, None
    if view.prefill_chunk is not None:
        return view.prefill_chunk, None
    if view.costs.fill_token_seconds is None:
        return least, None
    # Twice what was measured, because costs may change beyond that.
    most = max(least, min(2 * view.costs.fill_tokens, LARGEST_CHUNK))
    return most, _AIM * view.max_stall_seconds - view.costs.fill_fixed_seconds


def _why(view: View, arrivals: list[str], chunks: list[Chunk]) -> str:
    parts = [f"{len(view.running)} run"]
    if arrivals:
        parts.append(f"{len(arrivals)} inserted")
    if chunks:
        parts.append(f"{sum(chunk.tokens for chunk in chunks)} prompt tokens prefilled beside")
    return ", ".join(parts)
