"""In which ways a stock model can be run over rows of a rectangle, and prompts beside its steps."""

from __future__ import annotations

from enum import StrEnum


class Way(StrEnum):
    """How a stock model is run over rows of different lengths; `loader/choose.py` takes the first that is exact.

    RECTANGLE: its attention is ours, and reads the rectangle as it lies.
    FLAT: so, too, but single tokens of several rows stand one behind the other, as prompts' do: for models that count
    positions themselves and take all rows of a call to be equally long.
    LATENTS: its attention is ours, over columns that its layers expand (multi-head latent attention).
    MASKED: its attention is its own, over the rows' columns and a mask.
    SINGLY: its attention is its own, each row in a call of its own.
    """

    RECTANGLE = "rectangle"
    FLAT = "flat"
    LATENTS = "latents"
    MASKED = "masked"
    SINGLY = "singly"

    @property
    def ours(self) -> bool:
        return self in (Way.RECTANGLE, Way.FLAT, Way.LATENTS)


DESCRIPTIONS = {
    Way.RECTANGLE: "our attention over ragged rows",
    Way.FLAT: "our attention over ragged rows, their tokens one behind the other",
    Way.LATENTS: "our attention over latents that each layer expands",
    Way.MASKED: "its own attention, rows masked, prompts one by one",
    Way.SINGLY: "its own attention, one row after the other (it cannot be batched exactly)",
}


class Prompts(StrEnum):
    """Where prompts go through the model while rows decode in steps that begin ahead.

    BEHIND: in a forward of their own, which the device does behind the step that runs.
    FUSED: in one forward with the step's tokens, so that weights are read once; such a step is not begun ahead.
    BESIDE: on a stream of their own, while steps go on (`cuda/prefill_stream.py`).
    """

    BEHIND = "behind"
    FUSED = "fused"
    BESIDE = "beside"


WHERE = {
    Prompts.BEHIND: "behind steps",
    Prompts.FUSED: "in one forward with a step",
    Prompts.BESIDE: "on a stream of their own",
}
