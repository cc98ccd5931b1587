"""What stock transformers gives for a query alone: `generate` with stock attention, on the same weights."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from baton.loader.lengths import lengths_of
from baton.loader.load import context_of
from baton.loader.selfcheck import TOLERANCE, tolerance_of
from baton.loader.structure import operations
from baton.model.rotary import as_made

# Stock may take so many operations for a prompt beyond a length, if no length of prompts is asked for.
MOST_OPERATIONS = 2e12
MOST_SCORE_BYTES = 2 << 30
# Prompts up to this length are tried in every scenario.
MOST_OF_SHORT = 128
_BEYOND = 17
_SHORT = (1, 9, 26, 40, 75)


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt and the stock model's result: the tokens, and float32 logits `[tokens, vocabulary]`."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: Tensor


@dataclass(slots=True)
class Oracle:
    """Makes the cases while the model is still stock.

    `answer`: tokens of each answer. `longest`: tokens of a prompt; None: as many as the budget allows. `context`: of
    prompt and answer together. `cases` are short. `long` ones are around the lengths that the config names, and at
    random lengths between. `further` continue the longest of the short ones. `tolerance`: of logits, from the model's
    number format.
    """

    answer: int
    longest: int | None = None
    context: int | None = None
    cases: list[Case] = field(default_factory=list)
    long: list[Case] = field(default_factory=list)
    further: list[Case] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tolerance: float = 0.0

    def __call__(self, model: PreTrainedModel) -> None:
        self.cases, self.long, self.further, self.notes = [], [], [], []
        context = min(context_of(model.config), self.context or sys.maxsize)
        # The longest case is a prompt, its answer, five tokens and another answer, which must fit in the context.
        self.answer = max(1, min(self.answer, (context - 6) // 2))
        dice = random.Random(0)
        vocabulary = int(model.config.get_text_config().vocab_size)
        short, long = self._lengths(model, context)
        for length in sorted(short):
            self.cases.append(self._alone(model, [dice.randrange(vocabulary) for _ in range(length)]))
        # Cases that continue the longest one: its next turn, and another text that begins in the same way.
        known = max(self.cases, key=lambda case: len(case.prompt))
        more = [dice.randrange(vocabulary) for _ in range(5)]
        for prompt in ([*known.prompt, *known.tokens, *more], [*known.prompt[:-3], *more]):
            if len(prompt) + self.answer <= context:
                self.further.append(self._alone(model, prompt))
        for length in sorted(long):
            self.long.append(self._alone(model, [dice.randrange(vocabulary) for _ in range(length)]))
        self.tolerance = self._tolerance(model)

    def _lengths(self, model: PreTrainedModel, context: int) -> tuple[set[int], set[int]]:
        """Lengths of short and long prompts: around each length of the config, and a random one of each magnitude."""
        dice, most = random.Random(2), context - 2 * self.answer - 8
        wanted = {length: "" for length in _SHORT}
        power = 2 * max(_SHORT)
        while power < most:
            wanted[dice.randint(power, min(2 * power, most))] = f"{power} tokens"
            power *= 2
        wanted[most] = f"{most} tokens, where the context ends"
        for length, name in lengths_of(model.config.get_text_config(), above=_BEYOND, below=most - _BEYOND).items():
            wanted[length - self.answer // 2] = wanted[length + _BEYOND] = f"{name} {length}"
        short, long = set(), set()
        for length, what in sorted(wanted.items()):
            if length <= MOST_OF_SHORT:
                short.add(max(1, min(length, most)))
            elif self._affordable(model, length):
                long.add(length)
            else:
                self.notes.append(f"no prompt went beyond {what}: that needs {length} tokens (--longest)")
        return short, long - short

    def _affordable(self, model: PreTrainedModel, length: int) -> bool:
        if self.longest is not None:
            return length <= self.longest
        layers = int(model.config.get_text_config().num_hidden_layers)
        return operations(model, length, layers, MOST_SCORE_BYTES) <= MOST_OPERATIONS

    def _tolerance(self, model: PreTrainedModel) -> float:
        """Tolerance of logits in this model's number format; the self-check's if it cannot be measured."""
        known = TOLERANCE.get(model.dtype, max(TOLERANCE.values()))
        if model.dtype is torch.float32:
            return known
        texts = [torch.tensor([*case.prompt, *case.tokens[:-1]]) for case in self.cases]
        prompts = [len(case.prompt) for case in self.cases]
        return tolerance_of(model, texts, prompts, [case.logits for case in self.cases]) or known

    def _alone(self, model: PreTrainedModel, prompt: Sequence[int]) -> Case:
        own, model.generation_config = model.generation_config, GenerationConfig()
        ids = torch.tensor([prompt], device=model.device)
        as_made(model)
        try:
            out = model.generate(  # type: ignore[operator]
                ids,
                # Without a mask, tokens that happen to be the padding token would be hidden.
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.answer,
                min_new_tokens=self.answer,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        finally:
            model.generation_config = own
        tokens = out.sequences[0, len(prompt) :].tolist()
        return Case(tuple(prompt), tuple(tokens), torch.cat(out.logits).float())
