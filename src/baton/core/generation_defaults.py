"""The sampling defaults of a model's author in generation_config.json, for requests that name nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from baton.core.errors import InvalidValue
from baton.core.sampling import SamplingParams

HONOURED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
# Other values that change a text, each with the value that changes nothing.
_NOT_HONOURED: Mapping[str, object] = {
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "prompt_lookup_num_tokens"), 1),
    **dict.fromkeys(("length_penalty", "typical_p", "encoder_repetition_penalty", "guidance_scale", "top_h"), 1.0),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "diversity_penalty", "penalty_alpha"), 0.0),
    **dict.fromkeys(("early_stopping", "renormalize_logits", "remove_invalid_values", "token_healing"), False),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids"), None),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids", "sequence_bias"), None),
    **dict.fromkeys(("exponential_decay_length_penalty", "watermarking_config", "stop_strings", "max_time"), None),
    **dict.fromkeys(("max_length", "max_new_tokens"), None),
}


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """`sampling`: values by the names of `SamplingParams`. `ignored`: values of the author that are not honoured."""

    sampling: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        sentence = ", ".join(f"{name} {value:g}" for name, value in self.sampling.items()) or "nothing"
        return sentence + (f"; not honoured: {', '.join(self.ignored)}" if self.ignored else "")


def defaults_of(written: Mapping[str, Any]) -> GenerationDefaults:
    """The defaults in a generation config. `do_sample: false` is temperature 0."""
    defaults = {name: written[name] for name in HONOURED if written.get(name) is not None}
    if written.get("do_sample") is False:
        defaults["temperature"] = 0.0
    wrong = {name for name, value in defaults.items() if not _may_be(name, value)}
    ignored = [name for name, neutral in _NOT_HONOURED.items() if written.get(name) not in (None, [], neutral)]
    sampling = {name: value for name, value in defaults.items() if name not in wrong}
    return GenerationDefaults(MappingProxyType(sampling), tuple(sorted([*ignored, *wrong])))


def _may_be(name: str, value: Any) -> bool:
    try:
        SamplingParams(**{name: value})
    except InvalidValue:
        return False
    return True


NO_DEFAULTS = GenerationDefaults()
