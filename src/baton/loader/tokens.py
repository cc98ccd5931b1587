"""A model's tokenizer without its weights, for a process that computes nothing."""

from __future__ import annotations

from baton.core.settings import LoadSettings
from baton.loader.gguf_file import place_of
from baton.loader.stock import read_config, read_tokenizer
from baton.model.tokenizer import ModelTokenizer


def load_tokenizer(asked: LoadSettings) -> ModelTokenizer:
    """The tokenizer of a model, as `load` has it. Raises LoadError and SettingError."""
    code = asked.trust_remote_code
    place = place_of(asked.source, code=code)
    stock = read_config(place, trust_remote_code=code)
    tokenizer = read_tokenizer(place, trust_remote_code=code)
    if asked.template is not None:
        tokenizer.chat_template = asked.template
    vocabulary = int(stock.get_text_config().vocab_size)
    return ModelTokenizer(
        tokenizer,
        vocabulary,
        asked.limits,
        special_in_text=asked.special_in_text,
        variables=asked.template_variables,
    )
