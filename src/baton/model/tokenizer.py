"""The model's tokenizer as clients and text streams see it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from baton.core.errors import ContextLengthExceeded, InvalidValue, RequestError, SettingError, Unsupported
from baton.core.limits import Limits
from baton.core.template_options import NO_TEMPLATE_OPTIONS, TemplateOptions, check_variables
from baton.model.detokenizer import BYTE_OF, FastDecoder, PlainDecoder, TokenTexts, bytes_named
from baton.model.special_text import SpecialText
from baton.model.template import ChatTemplate
from baton.model.token_bytes import TokenBytes, token_bytes

# Of a template's refusal, which may be as long as a conversation.
_MOST_WHY = 500


class ModelTokenizer:
    """Encodes, decodes and renders conversations with a stock tokenizer. Safe to call from any thread.

    Threads do not wait for each other's texts: a fast tokenizer's state is set here and afterwards only read. It
    releases Python's lock while it encodes or decodes a batch.
    """

    def __init__(
        self,
        tokenizer: Any,
        vocabulary: int,
        limits: Limits | None = None,
        *,
        special_in_text: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """`special_in_text`: special tokens in messages are tokens; else they are text.

        `variables`: defaults for chat templates. Raises SettingError for one that they do not know.
        """
        self.vocabulary = vocabulary
        self.kind = type(tokenizer).__name__
        self._tokenizer = tokenizer
        self._limits = limits or Limits()
        self._pieces: dict[int, bytes] = {}
        self._lock = threading.Lock()  # tokenizers in Python keep state while they encode
        self._fast = _settled(tokenizer)
        self._most_tokens: int | None = None
        self._special_in_text = special_in_text
        self._special_texts: dict[str, SpecialText] = {}
        self.variables = dict(variables or {})
        if self.variables:
            try:
                check_variables(self.variables, self.template_variables, "--chat-template-kwargs")
            except RequestError as error:
                raise SettingError(error.message, param="chat_template_kwargs") from None

    def prepare(self, most_tokens: int) -> None:
        """Does now what would delay the first request. `most_tokens`: of a prompt, for `fit`."""
        self._most_tokens = most_tokens
        self.fit("")
        self.piece(0)
        source = None if self._special_in_text else self.chat_template(tools=False)
        if source is not None:
            self._special_text(source, ChatTemplate(source, self._limits)).prepare()

    @cached_property
    def roles(self) -> Mapping[str, str]:
        """The names of special tokens by their roles: "bos_token", "eos_token" and so on."""
        return {role: str(name) for role, name in self._tokenizer.special_tokens_map.items() if role.endswith("_token")}

    @cached_property
    def special(self) -> Mapping[str, int]:
        """Ids of all special tokens by their names: those with a role, and all others that are not text."""
        named = dict(zip(self._tokenizer.all_special_tokens, self._tokenizer.all_special_ids, strict=True))
        added = getattr(self._tokenizer, "added_tokens_decoder", {})
        return named | {str(token): number for number, token in added.items() if token.special}

    @cached_property
    def added(self) -> frozenset[str]:
        """Names of the tokens that were added to the vocabulary, special or not."""
        return frozenset(map(str, getattr(self._tokenizer, "added_tokens_decoder", {}).values()))

    @property
    def response_template(self) -> Mapping[str, Any] | None:
        """How answers are to be parsed, from the tokenizer's own files; None if they do not say."""
        template = getattr(self._tokenizer, "response_template", None)
        return template if isinstance(template, dict) else None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text, with or without the special tokens that the tokenizer adds by itself."""
        if self._fast is not None:
            # A batch of one: a text by itself would be encoded under Python's lock.
            return list(self._fast.encode_batch_fast([text], add_special_tokens=special)[0].ids)
        with self._lock:
            return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])

    def fit(self, text: str) -> None:
        """Raises ContextLengthExceeded if a text's bytes show that it has more tokens than a prompt may."""
        if self._most_tokens is None or self._token_bytes is None:
            return
        fewest = self._token_bytes.fewest(text)
        if fewest > self._most_tokens:
            message = f"the prompt has {fewest} tokens or more, the context is {self._most_tokens} (--max-model-len)"
            raise ContextLengthExceeded(message, param="prompt")

    @cached_property
    def template_variables(self) -> frozenset[str]:
        """The variables that the chat template reads, with tools or without."""
        names: set[str] = set()
        for tools in (False, True):
            with contextlib.suppress(Unsupported, TemplateError):
                source = self.chat_template(tools=tools)
                names |= ChatTemplate(source, self._limits).variables if source else set()
        return frozenset(names)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        options: TemplateOptions = NO_TEMPLATE_OPTIONS,
        *,
        any_length: bool = False,
    ) -> list[int]:
        """The prompt of a conversation, ending where the assistant's turn begins, unless `options` say otherwise.

        `any_length`: it may be longer than the context, because it is only counted.
        Raises Unsupported if the model has no chat template, or none that mentions tools; InvalidValue if the template
        refuses; LimitExceeded if it takes too long or writes too much.
        """
        source = self.chat_template(tools=bool(tools))
        if source is None:
            raise Unsupported("this model has no chat template: use /v1/completions", param="messages")
        try:
            template = ChatTemplate(source, self._limits)
            if tools and not template.takes_tools:
                raise Unsupported(
                    "tools are not honoured: this model's chat template says nothing of them", param="tools"
                )
            # What a user wrote; the defaults are the operator's.
            others = {"tools": tools, "documents": options.documents, "variables": options.variables}

            def write(turns: Sequence[Mapping[str, Any]], others: Any) -> str:
                variables = {**self.variables, **others["variables"]}
                given = dataclasses.replace(options, variables=variables, documents=others["documents"])
                return template.render(turns, others["tools"], self._tokenizer.special_tokens_map, given)

            text = write(messages, others)
            if not any_length:
                self.fit(text)
            tokens = self.encode(text, special=False)
            if self._special_in_text:
                return tokens
            encode = partial(self.encode, special=False)
            return self._special_text(source, template).tokens(tokens, messages, others, write, encode)
        except RequestError:
            raise
        except Exception as error:
            why = str(error)
            why = why if len(why) <= _MOST_WHY else f"{why[:_MOST_WHY]}…"
            raise InvalidValue(f"the chat template refused these messages: {why}", param="messages") from error

    def _special_text(self, source: str, template: ChatTemplate) -> SpecialText:
        with self._lock:
            if source not in self._special_texts:
                added = getattr(self._tokenizer, "added_tokens_decoder", {})
                normalizer = self._fast and self._fast.normalizer
                normalizes = normalizer and any(token.normalized for token in added.values())
                self._special_texts[source] = SpecialText(
                    self.special,
                    {str(token): number for number, token in added.items()},
                    unknown=self._tokenizer.unk_token,
                    source=source,
                    looked_for=template.looks_for,
                    backend=lambda: None if self._fast is None else str(self._fast.to_str()),
                    normalize=normalizer.normalize_str if normalizes else None,
                )
            return self._special_texts[source]

    def chat_template(self, *, tools: bool) -> str | None:
        """The source of the chat template, with tools or without."""
        if not getattr(self._tokenizer, "chat_template", None):
            return None
        try:
            return str(self._tokenizer.get_chat_template(None, [] if tools else None))
        except ValueError as error:
            raise Unsupported(f"this model's chat template cannot be read: {error}", param="messages") from error

    def token(self, name: str) -> int | None:
        """The one token of this name; None if there is none."""
        token_id = self._tokenizer.convert_tokens_to_ids(name)
        return token_id if isinstance(token_id, int) and token_id != self._tokenizer.unk_token_id else None

    def backend(self) -> str | None:
        """The fast tokenizer as JSON, without truncation and padding; None if there is none."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        plain = copy.copy(backend)
        plain.no_padding()
        plain.no_truncation()
        return str(plain.to_str())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        if self._fast is not None and not self._tokenizer.clean_up_tokenization_spaces:
            return str(self._fast.decode_batch([list(token_ids)], skip_special_tokens=skip_special_tokens)[0])
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def piece(self, token_id: int) -> bytes:
        """The bytes that this token adds to a text, in UTF-8; a special token's name.

        They may end inside a character.
        """
        if token_id not in self._pieces:
            self._pieces[token_id] = self._piece(token_id)
        return self._pieces[token_id]

    def _piece(self, token_id: int) -> bytes:
        # Decoded after another token, because a text's first one may lose its space.
        before = self.decode(self._anchor)
        both = self.decode([*self._anchor, token_id], skip_special_tokens=False)
        text = both[len(before) :] if both.startswith(before) else self.decode([token_id], skip_special_tokens=False)
        if "\ufffd" not in text:
            return text.encode()
        known = bytes_named(str(self._tokenizer.convert_ids_to_tokens(token_id)))
        return text.encode() if known is None else known

    @cached_property
    def _anchor(self) -> list[int]:
        """A token of a common letter."""
        return self.encode("a", special=False)[-1:]

    @cached_property
    def _token_bytes(self) -> TokenBytes | None:
        return None if self._fast is None else token_bytes(self._fast, BYTE_OF)

    def stream(
        self, prompt: Sequence[int], *, skip_special_tokens: bool, visible_special_tokens: Collection[int] = ()
    ) -> FastDecoder | PlainDecoder:
        """Returns a decoder of the tokens after the prompt.

        `visible_special_tokens`: special tokens that are not skipped.
        """
        texts = self._texts
        if texts is None:
            return PlainDecoder(self._tokenizer, skip_special_tokens)
        if not skip_special_tokens:
            return FastDecoder(texts, prompt)
        named = {token: self.piece(token).decode(errors="replace") for token in visible_special_tokens}
        return FastDecoder(texts, prompt, texts.special - named.keys(), named)

    @cached_property
    def _texts(self) -> TokenTexts | None:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return None if backend is None else TokenTexts(backend)


def _settled(tokenizer: Any) -> Any:
    """The Rust tokenizer of a stock one, set so that no call of the stock one changes it.

    None if there is none, or if the stock class does more than call it.
    """
    backend, kind = getattr(tokenizer, "backend_tokenizer", None), type(tokenizer)
    if backend is None or any(getattr(kind, name) is not getattr(PreTrainedTokenizerFast, name) for name in _STOCK):
        return None
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


_STOCK = ("__call__", "_encode_plus", "decode", "_decode")
