"""What stock transformers gives for a query alone: `generate` with stock attention, on the same weights."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from baton.model.load import context_of
from baton.model.rotary import as_made, near_limit
from baton.model.selfcheck import windows_of

LONGEST_PROMPT = 1024


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt and what stock gives for it: the tokens, and float32 logits `[tokens, vocabulary]`."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: Tensor


@dataclass(slots=True)
class Oracle:
    """Makes the cases while the model is still stock. `answer`: tokens of each; `longest`: of a prompt."""

    answer: int
    longest: int = LONGEST_PROMPT
    cases: list[Case] = field(default_factory=list)
    further: list[Case] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __call__(self, model: PreTrainedModel) -> None:
        # In a short context, short answers: the longest case is a prompt, its answer, five tokens and another answer.
        self.answer = max(1, min(self.answer, (context_of(model.config) - 6) // 2))
        dice = random.Random(0)
        vocabulary = int(model.config.get_text_config().vocab_size)
        for length in self._lengths(model):
            self.cases.append(self._alone(model, [dice.randrange(vocabulary) for _ in range(length)]))
        # What continues the longest: its next turn, and another text that begins as it does.
        known = max(self.cases, key=lambda case: len(case.prompt))
        more = [dice.randrange(vocabulary) for _ in range(5)]
        for prompt in ([*known.prompt, *known.tokens, *more], [*known.prompt[:-3], *more]):
            if len(prompt) + self.answer <= context_of(model.config):
                self.further.append(self._alone(model, prompt))

    def _lengths(self, model: PreTrainedModel) -> list[int]:
        lengths = [1, 9, 26, 40, 75]
        far, window = near_limit(model), min(windows_of(model.config.get_text_config()), default=0)
        for what, length in (("window", window + 17 if window else 0), ("original context", (far or 0) - 7)):
            if length > self.longest:
                self.notes.append(f"no prompt went beyond the {what}: that needs {length} tokens (--longest)")
            elif length > 0:
                lengths.append(length)
        most = context_of(model.config) - 2 * self.answer - 8
        return sorted({max(1, min(length, most)) for length in lengths})

    def _alone(self, model: PreTrainedModel, prompt: Sequence[int]) -> Case:
        own, model.generation_config = model.generation_config, GenerationConfig()
        ids = torch.tensor([prompt], device=model.device)
        as_made(model)
        try:
            out = model.generate(  # type: ignore[operator]
                ids,
                # Else tokens that happen to be the padding token would be hidden.
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
