"""Any tokens of any kind of tokenizer, one by one: the text of all of them, at a cost that does not grow."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from baton.model.tokenizer import ModelTokenizer

WORDS = ("\u2581Hello", "\u2581world", "Hello", "ld", "\u2581", "\u2581\u2581", "\u2581a", "a", ".", "\u4e2d", "\u00e9")
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_end|>")


def finished(backend: Tokenizer) -> Tokenizer:
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    backend.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return backend


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*SPECIAL, *alphabet, "\u0120a", "\u0120\u00f0\u0141", "\u013c\u00b6X", "He"]
    backend = Tokenizer(models.BPE(vocab={name: at for at, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return finished(backend)


def sentencepiece() -> Tokenizer:
    """As Llama-2's."""
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    vocabulary = {name: at for at, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return finished(backend)


def metaspace() -> Tokenizer:
    backend = Tokenizer(models.WordLevel({name: at for at, name in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    return finished(backend)


def word_piece() -> Tokenizer:
    names = [*SPECIAL, "hello", "##ing", "##s", "do", "n't", ".", "##.", "'", "a"]
    backend = Tokenizer(models.WordPiece({name: at for at, name in enumerate(names)}, unk_token="<unk>"))
    backend.decoder = decoders.WordPiece()
    return finished(backend)


def suffixes() -> Tokenizer:
    """As GPT-1's: a word's end is in its last token's name."""
    names = [*SPECIAL, "un", "do</w>", "a</w>", "b", "ing</w>"]
    backend = Tokenizer(models.WordLevel({name: at for at, name in enumerate(names)}, unk_token="<unk>"))
    backend.decoder = decoders.BPEDecoder()
    return finished(backend)


def word_level() -> Tokenizer:
    """Without a decoder words are joined by blanks."""
    backend = Tokenizer(models.WordLevel({name: at for at, name in enumerate([*SPECIAL, "hello", "a", "b"])}))
    return finished(backend)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level,
    "sentencepiece": sentencepiece,
    "metaspace": metaspace,
    "word_piece": word_piece,
    "suffixes": suffixes,
    "word_level": word_level,
}


@cache
def tokenizer_of(kind: str) -> tuple[ModelTokenizer, Tokenizer]:
    backend = KINDS[kind]()
    stock = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return ModelTokenizer(stock, backend.get_vocab_size() + 3), backend


def said(kind: str, tokens: Sequence[int], prompt: Sequence[int] = (), **more: Any) -> str:
    decoder = tokenizer_of(kind)[0].stream(prompt, **{"skip_special_tokens": True, **more})
    return "".join([*map(decoder.step, tokens), decoder.flush()])


def ids(kind: str, *names: str) -> list[int]:
    numbers = [tokenizer_of(kind)[1].token_to_id(name) for name in names]
    assert None not in numbers
    return [token for token in numbers if token is not None]


def some_tokens(kind: str, dice: random.Random) -> list[int]:
    """Any tokens, and some that there are not. Bytes of a fall-back make whole characters or none, see below."""
    backend = tokenizer_of(kind)[1]
    size = backend.get_vocab_size()
    tokens: list[int] = []
    for _ in range(dice.randint(1, 24)):
        token = dice.randrange(size + 3)
        name = backend.id_to_token(token) or ""
        if name.startswith("<0x"):
            character = dice.choice("\n\u00e9\u4e16\U0001f336")
            tokens += ids(kind, *(f"<0x{byte:02X}>" for byte in character.encode()))
        else:
            tokens.append(token)
    return tokens


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_any_tokens_give_what_the_stock_tokenizer_gives(kind: str, skip: bool) -> None:
    backend, dice = tokenizer_of(kind)[1], random.Random(kind)
    for _ in range(300):
        tokens = some_tokens(kind, dice)
        assert said(kind, tokens, skip_special_tokens=skip) == backend.decode(tokens, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", KINDS)
def test_behind_a_prompt_any_tokens_give_what_the_stock_tokenizer_adds_to_it(kind: str) -> None:
    backend, dice = tokenizer_of(kind)[1], random.Random(kind)
    for _ in range(300):
        prompt, tokens = some_tokens(kind, dice), some_tokens(kind, dice)
        before, whole = (backend.decode(some) for some in (prompt, [*prompt, *tokens]))
        if not before.endswith("\ufffd"):
            assert said(kind, tokens, prompt) == whole.removeprefix(before)


@pytest.mark.parametrize("kind", KINDS)
def test_no_sequence_raises_and_nothing_of_the_prompt_is_said(kind: str) -> None:
    backend, dice = tokenizer_of(kind)[1], random.Random(kind)
    for _ in range(300):
        tokens, prompt = ([dice.randrange(backend.get_vocab_size() + 3) for _ in range(12)] for _ in range(2))
        alone = [len(backend.decode([token], skip_special_tokens=False)) + 1 for token in tokens]
        assert len(said(kind, tokens, prompt)) <= sum(alone)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        # A line end that was sent cannot be taken back if the next byte turns out to be none.
        (["<0x0A>", "<0xC3>", "\u2581Hello"], "\n\ufffd Hello"),
        (["<0xE4>", "<0xB8>", "\u2581Hello"], "\ufffd\ufffd Hello"),
        (["<0xC3>", "<0x41>", "\u2581world"], "\ufffdA world"),
        (["<0x80>", "</s>", "<0x80>", "\u2581a"], "\ufffd\ufffd a"),
        (["<0xE4>", "</s>", "<0xB8>", "<0x96>", "\u2581a"], "\u4e16 a"),
        (["<0xE4>", "<0xB8>"], "\ufffd\ufffd"),
    ],
)
def test_bytes_that_are_no_character_are_said_so_and_the_text_goes_on(names: list[str], text: str) -> None:
    assert said("sentencepiece", ids("sentencepiece", *names), ids("sentencepiece", "\u2581a")) == text


def bytes_in(kind: str, text: bytes) -> list[int]:
    if kind == "sentencepiece":
        return ids(kind, *(f"<0x{byte:02X}>" for byte in text))
    return [
        token for byte in text for token in range(len(SPECIAL), len(SPECIAL) + 256) if piece(token) == bytes([byte])
    ]


@cache
def piece(token: int) -> bytes:
    return tokenizer_of("byte_level")[0].piece(token)


@pytest.mark.parametrize("special", [[], ["</s>"]])
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("character", ["\u00e9", "\u4e16", "\U0001f336"])
def test_a_character_that_the_prompt_began_comes_whole_or_not_at_all(
    character: str, kind: str, special: list[str]
) -> None:
    encoded = character.encode()
    word = ids(kind, "He" if kind == "byte_level" else "Hello")
    for there in range(1, len(encoded)):
        prompt = [*word, *bytes_in(kind, encoded[:there]), *ids(kind, *special)]
        rest = bytes_in(kind, encoded[there:])
        text = said(kind, word)
        assert said(kind, [*rest, *word], prompt) == character + text
        assert said(kind, [*ids(kind, *special), *rest], prompt) == character
        assert said(kind, word, prompt) == text
        assert said(kind, [*bytes_in(kind, b"\n"), *word], prompt) == "\n" + text
        assert said(kind, [], prompt) == said(kind, ids(kind, "</s>"), prompt) == ""
        if there < len(encoded) - 1:
            assert set(said(kind, [rest[0], *word], prompt).removesuffix(text)) == {"\ufffd"}


def test_shown_tokens_stand_between_texts_as_the_stock_tokenizer_writes_them() -> None:
    end, *words = ids("sentencepiece", "<|im_end|>", "\u2581Hello", "\u2581a", "<0xC3>")
    assert said("sentencepiece", [words[0], end, words[1]], [1], visible_special_tokens=[end]) == "Hello<|im_end|> a"
    assert (
        said("sentencepiece", [words[2], end, 2, words[1]], words[:1], visible_special_tokens=[end])
        == "\ufffd<|im_end|> a"
    )


class Counting:
    """A backend that counts the ids that it is asked to decode."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self.decoded = 0

    def decode(self, tokens: list[int], **more: Any) -> str:
        self.decoded += len(tokens)
        return str(self._backend.decode(tokens, **more))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


TOKENS = 32_000
NOTHING = {
    "byte_level": ["</s>", "<|im_end|>", "\u0122", "\u00e4", "\u0120\u00f0\u0141", "a", "<tool>"],
    "sentencepiece": ["</s>", "<0x80>", "<0xE4>", "<0x41>", "\u2581", "\u2581Hello", "<tool>"],
    "metaspace": ["</s>", "\u2581", "a"],
    "word_level": ["<s>", "a"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NOTHING.items() for name in names])
def test_a_token_costs_the_same_however_many_came_before_it(kind: str, name: str) -> None:
    mine, backend = tokenizer_of(kind)
    counting = Counting(backend)
    fresh = ModelTokenizer(_With(counting), mine.vocabulary)
    decoder = fresh.stream(ids(kind, name) * 9, skip_special_tokens=True)
    (token,), kept = ids(kind, name), 0
    text = ""
    for _ in range(TOKENS):
        text += decoder.step(token)
        kept = max(kept, len(decoder._utf8.getstate()[0]))  # type: ignore[union-attr]
    text += decoder.flush()
    assert counting.decoded <= 2 * TOKENS + 20 and kept <= 4
    tail = backend.decode([token] * 9 + [token] * 50).removeprefix(backend.decode([token] * 9))
    if name not in ("\u00e4", "<0xE4>"):
        assert text.startswith(tail) and len(text) >= len(tail)


class _With:
    """As transformers hands a fast tokenizer out."""

    def __init__(self, backend: Any) -> None:
        self.backend_tokenizer = backend


class Slow:
    """A tokenizer without a fast backend that counts what it decodes."""

    def __init__(self, kind: str) -> None:
        self._backend = tokenizer_of(kind)[1]
        self.decoded = 0
        self.all_special_ids = ids(kind, *SPECIAL)

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        self.decoded += len(tokens)
        return str(self._backend.decode(tokens, skip_special_tokens=skip_special_tokens))


@pytest.mark.parametrize("name", NOTHING["byte_level"])
def test_a_slow_tokenizer_is_not_asked_for_more(name: str) -> None:
    slow = Slow("byte_level")
    decoder = ModelTokenizer(slow, 300).stream([], skip_special_tokens=True)
    for _ in range(2000):
        decoder.step(ids("byte_level", name)[0])
    decoder.flush()
    assert slow.decoded <= 14 * 2000
