"""One row's draw, and the key of its noise.

The noise of a draw is a function of (query's seed, position, token id) alone. So a row's draw does not depend on its
neighbours, and no generator's state has to move with a row. `on_host.py` and `on_device.py` make the same draws in two
ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from baton.core.sampling import SAMPLING_FIELDS, Group, SamplingParams
from baton.sampling.grammar_masks import Mask
from baton.sampling.seen_tokens import Seen

_FILTERS = [known for known in SAMPLING_FIELDS if known.group is Group.FILTER]
FILTERS = tuple(known.name for known in _FILTERS)
"""The filters by name, in the order in which they are applied."""
NO_FILTERS = tuple(known.default for known in _FILTERS)
filters_of: Callable[[SamplingParams], tuple[float, ...]] = attrgetter(*FILTERS)
# Filters get so many best tokens first, and more only if top-p or min-p is not reached among them.
FIRST_CANDIDATES = 128
MORE = 8
# splitmix64 (Steele, Lea, Flood 2014): the constant that spreads a number, and the finaliser's multipliers.
SPREAD, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1
# The smallest normal float32. At this temperature any difference of logits decides already, so a lower one draws the
# same; and division by less would overflow, or be by zero on a device that flushes small numbers.
_COLDEST = 2.0**-126


@dataclass(frozen=True, slots=True)
class Draw:
    """One row's next draw: `tokens` so far (not copied), of which `prompt_tokens` were the prompt.

    `mask`: which tokens may be drawn at all; None for all. `seen`: counts of these tokens; None: made when needed.
    """

    params: SamplingParams
    seed: int
    tokens: Sequence[int]
    prompt_tokens: int
    mask: Mask | None = None
    seen: Seen | None = None

    @property
    def temperature(self) -> float:
        """The divisor of the logits, at least the smallest number that any device divides by; 0 for the best token."""
        asked = self.params.temperature
        return max(asked, _COLDEST) if asked else 0.0

    @property
    def shapes(self) -> bool:
        """Whether it changes logits before the best of them is searched."""
        params = self.params
        return bool(self.penalises or params.logit_bias or len(self.tokens) - self.prompt_tokens < params.min_tokens)

    @property
    def penalises(self) -> bool:
        """Whether it depends on the tokens so far."""
        params = self.params
        return bool(params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty)

    @property
    def filters(self) -> bool:
        """Whether some tokens cannot be drawn."""
        return filters_of(self.params) != NO_FILTERS

    @property
    def key(self) -> int:
        """The 64 bits with which token ids are hashed."""
        return _mix(mixed_seed(self.seed) ^ len(self.tokens))


def mixed_seed(seed: int) -> int:
    """The 64 bits of a seed from which its draws' keys are made."""
    return _mix(seed & _MASK)


def _mix(x: int) -> int:
    """splitmix64 of one 64-bit number."""
    x = (x + SPREAD) & _MASK
    x = ((x ^ (x >> 30)) * FIRST) & _MASK
    x = ((x ^ (x >> 27)) * SECOND) & _MASK
    return x ^ (x >> 31)
