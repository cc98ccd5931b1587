"""Runs queries in a batch on a tiny model, without a thread: random arrivals, and a policy that shakes the batch."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from baton.batch.batch import RectangleBatch
from baton.batch.feeder import RowFeeder
from baton.batch.prefill import PrefillHere
from baton.batch.rows import Rows
from baton.core.events import Update
from baton.core.query import Query, SamplingParams
from baton.core.settings import Settings
from baton.core.text import TextStream
from baton.cuda.async_stepper import AsyncStepper
from baton.cuda.forward import CudaForward
from baton.cuda.mapped_rectangle import MappedRectangle
from baton.cuda.offload import HostOffload
from baton.cuda.page_layout import PageLayout
from baton.cuda.pinned_memory import Extent, HostMemory
from baton.cuda.prefill_stream import PrefillStreamStepper, Side
from baton.cuda.ragged_attention import InTorch, Ragged, TokenRows
from baton.cuda.varlen_prefill import Varlen
from baton.cuda.virtual_memory import Driver
from baton.engine.engine import Engine
from baton.engine.output import OutputProcessor
from baton.kv.aligned import AlignedRectangle, keeping_all
from baton.kv.budget import Budget
from baton.kv.prefix import BLOCK_TOKENS, prefix_store
from baton.kv.rectangle import LayerShape, Rectangle
from baton.loader.choose import choose
from baton.model.aligned import AlignedForward
from baton.model.execution import PrefillPlacement
from baton.model.forward import TorchForward
from baton.model.port import Forward
from baton.model.visibility import Visibility
from baton.policy.memory_guard import MemoryGuard
from baton.policy.port import GUARANTEED_TOKENS, Plan, Policy, View
from baton.sampling.sampler import Draw, Sampler
from baton.testing.clock import ManualClock
from baton.testing.late_lane import LateLane
from delayed import DelayedStream
from families import CONTEXT, VOCABULARY, model_of
from varlen import varlen_attn

# Of rectangles whose memory is mapped.
TOKENS_OF_A_PAGE = 5


class NoText:
    """A decoder for models that have no words."""

    def step(self, token_id: int) -> str:
        return f"<{token_id}>"

    def flush(self) -> str:
        return ""


class Recorder(Sampler):
    """Keeps every row of logits that was drawn from, by (seed, position): seeds identify queries here."""

    sees_logits = True

    def __init__(self) -> None:
        super().__init__(end_ids=())
        self.logits: dict[tuple[int, int], Tensor] = {}

    def __call__(self, logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
        for row, draw in zip(logits, draws, strict=True):
            self.logits[draw.seed, len(draw.tokens)] = row.clone()
        return super().__call__(logits, draws)


@dataclass
class Shaken:
    """A policy whose plans are disturbed: rows are detached, forgotten, and their number changed, at random."""

    inner: Policy
    dice: random.Random
    moves: dict[str, int] = field(default_factory=lambda: {"detach": 0, "forget": 0, "resize": 0})

    def plan(self, view: View) -> Plan:
        plan = self.inner.plan(view)
        chosen = [q.id for q in view.running if q.id not in plan.detach and self.dice.random() < 0.12]
        # Every third one that is detached is forgotten at once, the others keep their keys and values.
        forget = [name for at, name in enumerate(chosen, self.moves["detach"]) if at % 3 == 0]
        detach = [*plan.detach, *chosen]
        staying = len(view.running) - len(detach) + view.held_rows
        need = max(1, staying + len(plan.insert))
        resize = plan.resize
        if self.dice.random() < 0.3 or (resize or view.rows) < need:
            resize = self.dice.randint(need, max(need, view.max_rows))
        self.moves["detach"] += len(chosen)
        self.moves["forget"] += len(forget)
        self.moves["resize"] += resize is not None and resize != view.rows
        return replace(plan, detach=tuple(detach), forget=(*plan.forget, *forget), resize=resize)


def _spoil(memory: Tensor) -> None:
    memory.fill_(255)


class Spoiled(HostMemory):
    """Memory of the host in which there is no number before something was copied there."""

    def __init__(self, lane: LateLane, most: int) -> None:
        super().__init__(most, pin=lambda size: torch.empty(size, dtype=torch.uint8))
        self._lane = lane

    def take(self, count: int, size: int) -> list[Extent]:
        extents = super().take(count, size)
        for extent in extents:
            # In the lane: whatever was begun before may still read what was there.
            self._lane.begin(partial(_spoil, extent.bytes), behind=True)
        return extents


def late_offload(polls: int = 2, *, most: int = 2**24, staged: int = 2**20) -> HostOffload:
    """As a device with memory of its own has them; copies happen when they are asked for the third time."""
    lane = LateLane(polls)
    return HostOffload(lane, Spoiled(lane, most), staged)


def as_on_a_gpu(dice: random.Random) -> dict[str, Any]:
    """For `random_batch`: all that a GPU does beside the host, done at any later moment."""
    side = DelayedStream(dice)
    return {
        "ahead": True,
        "side": lambda _: side,
        "offload": late_offload(dice.choice([0, 1, 3])),
        "varlen": Varlen(varlen_attn),
    }


@dataclass
class RandomBatch:
    """An engine on a tiny model and what came out of it."""

    engine: Engine
    recorder: Recorder
    rows: Rows | None = None
    updates: dict[str, list[Update]] = field(default_factory=dict)

    def hear(self, updates: list[Update]) -> None:
        for update in updates:
            self.updates.setdefault(update.query_id, []).append(update)

    def tokens(self, query_id: str) -> list[int]:
        return [token for update in self.updates.get(query_id, []) for token in update.token_ids]

    def reason(self, query_id: str) -> str | None:
        return self.updates[query_id][-1].finish_reason

    def run(self, queries: Sequence[Query], dice: random.Random | None = None, most: int = 4000) -> None:
        """Runs all queries, each arriving at a random iteration if there are dice."""
        later = sorted((dice.randint(0, 60) if dice else 0, query.id, query) for query in queries)
        for turn in range(most):
            while later and later[0][0] <= turn:
                self.engine.accept(later.pop(0)[2], self.hear)
            if not later and not self.engine.busy:
                return
            self.engine.iterate()
            self.engine.flush()
        raise AssertionError(f"not done after {most} iterations: {self.engine.lifecycle.live}")


@cache
def chosen(family: str, native: bool) -> tuple[PreTrainedModel, Forward]:
    """Engines follow each other on it, as on a loaded model."""
    model = model_of(family)
    return model, choose(model, native=native).forward


def random_batch(
    model: PreTrainedModel | str,
    policy: Policy,
    *,
    rows: int = 4,
    chunk: int | None = 5,
    end_ids: Sequence[int] = (),
    kv_bytes: int = 2**30,
    swap_bytes: int = 2**30,
    guaranteed_tokens: int = GUARANTEED_TOKENS,
    sinks: Sequence[object] = (),
    prefix_cache: bool = False,
    prefix_block: int = BLOCK_TOKENS,
    deterministic: bool = False,
    clock: ManualClock | None = None,
    native: bool = True,
    ahead: bool = False,
    aligned: bool = False,
    varlen: Varlen | None = None,
    offload: HostOffload | None = None,
    driver: Driver | None = None,
    interleaved: bool = True,
    side: Callable[[Rectangle], Side] | None = None,
    prompts: PrefillPlacement | None = None,
) -> RandomBatch:
    """A fresh engine. `chunk` is small, so that most prompts are prefilled in several. `native`: if possible.

    `model`: a model, or a family whose model is shared by its batches if nothing changes it, because finding out how it
    is run takes longer than most tests.

    `ahead`: steps of constant shape begin before the last one is read, as on CUDA; no logits are recorded then.
    `aligned`: on the paper's literal shaping. `varlen`: computes prompts' attention in one call per layer. `offload`:
    rows leave as from a device with memory of its own. `driver`: maps memory as rows grow, a few tokens at a time.
    `side`: where prompts are computed beside steps that begin ahead. `prompts`: the placement otherwise.
    """
    native = native and not aligned
    shared = chosen(model, native) if isinstance(model, str) and not (ahead or varlen or deterministic) else None
    # If rotation depends on a text's length, a model keeps what earlier texts made it compute.
    if shared is not None and shared[1].long_rope_limit is None:
        model, forward = shared
    else:
        model = model_of(model) if isinstance(model, str) else model
        forward = choose(model, native=native and not (ahead and model.device.type == "cpu")).forward
    on_cpu = model.device.type == "cpu"
    if varlen is not None or (ahead and on_cpu):
        assert isinstance(forward, TorchForward)
        ragged: Ragged = InTorch() if driver is None else RowByRow()
        forward = CudaForward(forward, ragged if ahead and on_cpu else None, varlen=varlen)
    if deterministic:
        forward = forward.fixed(rows)
    recorder = Recorder()

    make = partial(mapped_rectangle, driver, kv_bytes, interleaved) if driver is not None else Rectangle
    of: dict[str, Any] = {"aligned": aligned, "offload": offload, "make": make, "dtype": model.dtype, "side": side}
    ours, batch, prefiller = bodies(forward, recorder, rows, model.device, end_ids, **of)
    if prompts is not None:
        assert isinstance(ours.stepper, AsyncStepper)
        ours.stepper.placement = prompts
    rectangle = prefiller.rectangle

    settings = Settings(
        policy="test",
        max_rows=rows,
        max_model_len=CONTEXT,
        kv_bytes=kv_bytes,
        prefill_chunk=chunk,
        max_stall_seconds=0.2,
        max_waiting=256,
        seed=0,
    )
    clock = clock or ManualClock()
    engine = Engine(
        batch=batch,
        prefiller=prefiller,
        policy=MemoryGuard(policy),
        settings=settings,
        outputs=OutputProcessor(lambda query: TextStream(NoText(), query.params.stop), end_ids),
        footprint=batch.footprint,
        stamp="tiny",
        budget=Budget(
            kv_bytes,
            swap_bytes,
            floor_bytes=batch.footprint.of(CONTEXT),
            free_bytes=lambda: 2**50,
            clock=clock,
        ),
        clock=clock,
        sinks=sinks,  # type: ignore[arg-type]
        whole_prompts=forward.whole_prompts,
        guaranteed_tokens=guaranteed_tokens,
        prefix_store=(
            prefix_store(rectangle, block=prefix_block, longest=forward.long_rope_limit, offload=offload)
            if prefix_cache
            else None
        ),
    )
    return RandomBatch(engine, recorder, ours)


def torch_forward_of(model: PreTrainedModel) -> TorchForward:
    """The model run by torch alone."""
    forward = choose(model, native=False).forward
    assert isinstance(forward, TorchForward)
    return forward


def bodies(
    forward: Forward,
    recorder: Sampler,
    rows: int,
    device: torch.device,
    end_ids: Sequence[int],
    *,
    aligned: bool = False,
    offload: HostOffload | None = None,
    make: Callable[..., Rectangle] = Rectangle,
    dtype: torch.dtype = torch.float32,
    side: Callable[[Rectangle], Side] | None = None,
) -> tuple[Rows, RectangleBatch, PrefillHere]:
    """A batch of so many rows, and a prefiller: on one rectangle, or apart if the batch's rows are aligned.

    Also returns the batch's rows. `make`: makes the rectangle that they share.
    """
    of: dict[str, Any] = {"columns": CONTEXT, "dtype": dtype, "device": device}
    shapes = forward.geometry.shapes
    if aligned:
        body = AlignedRectangle(keeping_all(shapes), capacity=rows, **of)
        assert isinstance(forward, TorchForward)
        shaped = Rows(RowFeeder(body, AlignedForward(forward, body), recorder), "tiny")
        apart = Rows(RowFeeder(Rectangle(keeping_all(shapes), capacity=rows + 1, **of), forward, recorder), "tiny")
        beside = PrefillHere(apart, range(rows + 1), beside_batch=False)
        return shaped, RectangleBatch(shaped, range(rows), rows), beside
    rectangle = make(shapes, capacity=2 * rows + 1, **of)
    steps = forward.steps(rectangle) if isinstance(forward, CudaForward) else None
    if steps is None:
        both = Rows(RowFeeder(rectangle, forward, recorder), "tiny", offload=offload)
    else:
        feeder = RowFeeder(rectangle, forward, Sampler(end_ids))
        streams = None if side is None else PrefillStreamStepper(feeder, steps, side(rectangle))
        both = Rows(feeder, "tiny", stepper=streams or AsyncStepper(feeder, steps), offload=offload)
    beside = PrefillHere(both, range(rows, 2 * rows + 1), beside_batch=True)
    return both, RectangleBatch(both, range(rows), rows), beside


def mapped_rectangle(
    driver: Driver, most_bytes: int, interleaved: bool, shapes: Sequence[LayerShape], **of: Any
) -> MappedRectangle:
    """With pages of a few tokens."""
    layout = PageLayout(
        shapes, of["columns"], of["dtype"], driver.granularity, interleaved=interleaved, page_tokens=TOKENS_OF_A_PAGE
    )
    return MappedRectangle(shapes, driver=driver, most_bytes=most_bytes, layout=layout, **of)


@dataclass(frozen=True, slots=True)
class RowByRow:
    """Like Triton's kernels, it reads nothing that rows do not hold."""

    name: str = "row by row"
    reads_width: bool = False

    def keep(self, new: tuple[Tensor, Tensor], kept: tuple[Tensor, Tensor], token_rows: TokenRows) -> None:
        InTorch().keep(new, kept, token_rows)

    def attend(
        self,
        q: Tensor,
        kept: tuple[Tensor, Tensor],
        token_rows: TokenRows,
        scale: float,
        visibility: Visibility,
        sinks: Tensor | None,
    ) -> Tensor:
        outputs = []
        for at, stop in enumerate(token_rows.stops.tolist()):
            one = slice(at, at + 1)
            mine = TokenRows(
                token_rows.rows[one], token_rows.stops[one], token_rows.ring, min(stop, token_rows.ring or stop)
            )
            nobody = q.new_zeros(1, q.shape[1], kept[1].shape[-1])
            outputs.append(InTorch().attend(q[one], kept, mine, scale, visibility, sinks) if stop else nobody)
        return torch.cat(outputs)


def some_queries(count: int, dice: random.Random, *, longest_prompt: int = 59, longest_answer: int = 24) -> list[Query]:
    """Greedy queries of random lengths; the seed of each is its number."""
    return [
        query_of(
            f"q{i}",
            [dice.randrange(3, VOCABULARY) for _ in range(dice.randint(1, longest_prompt))],
            dice.randint(1, longest_answer),
            seed=i,
        )
        for i in range(count)
    ]


def query_of(name: str, prompt: Sequence[int], limit: int, *, seed: int = 0, **params: object) -> Query:
    sampling = SamplingParams(**{"temperature": 0, "max_tokens": limit, "ignore_eos": True, **params})  # type: ignore[arg-type]
    return Query(id=name, prompt=tuple(prompt), params=sampling, seed=seed, limit_tokens=limit, arrived=0.0)


def alone(model: PreTrainedModel | str, query: Query) -> tuple[list[int], Tensor]:
    """The oracle: the same query by itself through stock `generate`: its tokens, and logits `[tokens, vocabulary]`.

    `model`: a model, or a family, of which it is computed once for all tests.
    """
    if isinstance(model, str):
        tokens, logits = _alone_of(model, query.prompt, query.limit_tokens)
        return list(tokens), logits
    # Dynamic rope keeps what a longer text made it compute: each query has a model that saw no other.
    if any(kind in str(model.config) for kind in ("dynamic", "longrope")):
        model = copy.deepcopy(model)
    prompt = torch.tensor([query.prompt], device=model.device)
    out = model.generate(
        prompt,
        # Without it, `generate` takes a prompt's tokens 0 for padding.
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=query.limit_tokens,
        min_new_tokens=query.limit_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[0, len(query.prompt) :].tolist(), torch.cat(out.logits)


stock = cache(model_of)


@cache
def _alone_of(family: str, prompt: tuple[int, ...], limit: int) -> tuple[list[int], Tensor]:
    return alone(stock(family), query_of("alone", prompt, limit))
