"""In which ways a stock model can be run over rows of a rectangle, and prompts beside its steps."""

from __future__ import annotations

from enum import StrEnum


class AttentionBackend(StrEnum):
    """How a stock model is run over rows of different lengths; `loader/choose.py` takes the first that is exact.

    RAGGED: its attention is ours, and reads the rectangle as it lies.
    FLAT: so, too, but single tokens of several rows stand one behind the other, as prompts' do: for models that count
    positions themselves and take all rows of a call to be equally long.
    MLA: its attention is ours, over columns that its layers expand (multi-head latent attention).
    MASKED: its attention is its own, over the rows' columns and a mask.
    PER_ROW: its attention is its own, each row in a call of its own.
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
    """Where prompts go through the model while rows decode in steps that begin ahead.

    AFTER_DECODE: in a forward of their own, which the device does behind the step that runs.
    FUSED: in one forward with the step's tokens, so that weights are read once; such a step is not begun ahead.
    SIDE_STREAM: on a stream of their own, while steps go on (`cuda/prefill_stream.py`).
    """

    AFTER_DECODE = "behind"
    FUSED = "fused"
    SIDE_STREAM = "beside"


WHERE = {
    PrefillPlacement.AFTER_DECODE: "behind steps",
    PrefillPlacement.FUSED: "in one forward with a step",
    PrefillPlacement.SIDE_STREAM: "on a stream of their own",
}
