"""In which ways a stock model can be run over rows of a rectangle."""

from __future__ import annotations

from enum import StrEnum


class Way(StrEnum):
    """How a stock model is run over rows of different lengths; `model/load.py` takes the first that is exact.

    RECTANGLE: its attention is ours, and reads the rectangle as it lies.
    LATENTS: its attention is ours, over columns that its layers expand (multi-head latent attention).
    MASKED: its attention is its own, over the rows' columns and a mask.
    SINGLY: its attention is its own, each row in a call of its own.
    """

    RECTANGLE = "rectangle"
    LATENTS = "latents"
    MASKED = "masked"
    SINGLY = "singly"

    @property
    def ours(self) -> bool:
        return self in (Way.RECTANGLE, Way.LATENTS)


DESCRIPTIONS = {
    Way.RECTANGLE: "our attention over ragged rows",
    Way.LATENTS: "our attention over latents that each layer expands",
    Way.MASKED: "its own attention, rows masked, prompts one by one",
    Way.SINGLY: "its own attention, one row after the other (it cannot be batched exactly)",
}
