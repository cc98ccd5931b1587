"""BATON (Cong et al., arXiv 2410.18701): prefill apart, embed, insert into the running batch at once."""

from __future__ import annotations

from baton.policy.port import Chunk, Plan, Standing, View

SMALLEST_CHUNK = 16
LARGEST_CHUNK = 512
READY_AHEAD = 1


class Baton:
    """Keeps rows full: prompts are prefilled ahead of the row that will be free, in chunks that bound the stall.

    `ready_ahead`: how many prefilled queries wait for a row while none is free, so that a row that becomes free is
    taken in the same iteration. More would only hold memory: prefill runs on the same device as the batch.
    `fused`: while rows run, chunks ride in their step, so that the weights are read once for both.
    """

    def __init__(self, *, ready_ahead: int = READY_AHEAD, fused: bool = True) -> None:
        self.ready_ahead = ready_ahead
        self.fused = fused

    def plan(self, view: View) -> Plan:
        wanted = min(view.max_rows, len(view.running) + len(view.ready) + len(view.prefilling) + len(view.waiting))
        # Grows to the crowd at once; shrinks only to half or less, because rows that stay may have to move for it.
        rows = max(wanted, 1) if wanted > view.rows or wanted <= view.rows // 2 else view.rows
        free = rows - len(view.running)
        chunks, made_ready = self._prefill(view, free)
        ready = [query.id for query in view.ready]
        # A row that is inserted now runs in this step: there must be one to ride in.
        fused = self.fused and bool(view.running or ready)
        arrivals = (ready if fused else [*ready, *made_ready])[:free]
        return Plan(
            resize=rows if rows != view.rows else None,
            prefill=tuple(chunks),
            insert=tuple(arrivals),
            fused=fused,
            why=_why(view, arrivals, chunks),
        )

    def _prefill(self, view: View, free: int) -> tuple[list[Chunk], list[str]]:
        """Chunks within this iteration's tokens, oldest query first, and the queries that they make ready."""
        places = min(free + self.ready_ahead - len(view.ready) - len(view.prefilling), view.prefill_room)
        queue: list[Standing] = [*view.prefilling, *view.fitting(view.waiting, places)]
        left = chunk_tokens(view)
        chunks: list[Chunk] = []
        made_ready: list[str] = []
        for query in queue:
            tokens = min(query.pending, left)
            if tokens == 0:
                break
            chunks.append(Chunk(query.id, tokens))
            left -= tokens
            if tokens == query.pending:
                made_ready.append(query.id)
        return chunks, made_ready


def chunk_tokens(view: View) -> int:
    """Prompt tokens that may be fed this iteration: few enough that running rows wait no longer than the bound."""
    if not view.running:
        return LARGEST_CHUNK
    if view.prefill_chunk is not None:
        return view.prefill_chunk
    if not view.costs.fill_token_seconds:
        return SMALLEST_CHUNK
    affordable = int(view.max_stall_seconds / view.costs.fill_token_seconds)
    return max(SMALLEST_CHUNK, min(affordable, LARGEST_CHUNK))


def _why(view: View, arrivals: list[str], chunks: list[Chunk]) -> str:
    parts = [f"{len(view.running)} run"]
    if arrivals:
        parts.append(f"{len(arrivals)} inserted")
    if chunks:
        parts.append(f"{sum(chunk.tokens for chunk in chunks)} prompt tokens prefilled beside")
    return ", ".join(parts)
