"""The ways to run a stock model over rows of a rectangle, and prompts beside its steps."""

from __future__ import annotations

from enum import StrEnum


class AttentionBackend(StrEnum):
    """How a stock model is run over rows of different lengths; `loader/choose.py` takes the first that is exact.

    RAGGED: our attention, which reads the rectangle directly. FLAT: the same, but single tokens of several rows are
    packed one after the other, as prompts are: for models that count positions themselves and assume that all rows of a
    call are equally long. MLA: our attention over columns that the layers expand (multi-head latent attention). MASKED:
    the model's own attention, over the rows' columns and a mask. PER_ROW: the model's own attention, one call for each
    row.
    """

    RAGGED = "rectangle"
    FLAT = "flat"
    MLA = "latents"
    MASKED = "masked"
    PER_ROW = "singly"

    @property
    def ours(self) -> bool:
        return self in (AttentionBackend.RAGGED, AttentionBackend.FLAT, AttentionBackend.MLA)


DESCRIPTIONS = {
    AttentionBackend.RAGGED: "our attention over ragged rows",
    AttentionBackend.FLAT: "our attention over ragged rows, their tokens one behind the other",
    AttentionBackend.MLA: "our attention over latents that each layer expands",
    AttentionBackend.MASKED: "its own attention, rows masked, prompts one by one",
    AttentionBackend.PER_ROW: "its own attention, one row after the other (it cannot be batched exactly)",
}


class PrefillPlacement(StrEnum):
    """Where prompts are computed while rows decode in steps that begin ahead.

    AFTER_DECODE: in a forward of their own, after the running step. FUSED: in one forward with the step's tokens, so
    that weights are read once; such a step is not begun ahead. SIDE_STREAM: on a stream of their own, while steps go on
    (`cuda/prefill_stream.py`).
    """

    AFTER_DECODE = "behind"
    FUSED = "fused"
    SIDE_STREAM = "beside"


WHERE = {
    PrefillPlacement.AFTER_DECODE: "behind steps",
    PrefillPlacement.FUSED: "in one forward with a step",
    PrefillPlacement.SIDE_STREAM: "on a stream of their own",
}
