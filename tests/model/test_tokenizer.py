"""Text pieces of generated tokens put together are the text of all of them, however bytes fall."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from baton.core.errors import InvalidValue, Unsupported
from baton.model.tokenizer import ModelTokenizer, PlainDecoder
from bytewise import SIZE, backend, tokens_of
from tiny_checkpoint import VOCABULARY, save_tokenizer

# A prompt that ends in U+FFFD itself looks unfinished to the stock incremental decoder.
PROMPTS = st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=6)
PATIENT = settings(max_examples=150, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(stock: Any) -> ModelTokenizer:
    return ModelTokenizer(stock, VOCABULARY)


def pieces(decoder: Any, tokens: list[int]) -> Iterator[str]:
    for token in tokens:
        yield decoder.step(token)
    yield decoder.flush()


def test_text_goes_to_tokens_and_back(tokenizer: ModelTokenizer) -> None:
    text = "Grüße, 世界 🎉!"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@PATIENT
@given(text=st.text(max_size=12), prompt=PROMPTS)
def test_the_pieces_of_a_text_are_the_text(tokenizer: ModelTokenizer, text: str, prompt: str) -> None:
    decoder = tokenizer.stream(tokenizer.encode(prompt), skip_special_tokens=True)
    assert "".join(pieces(decoder, tokenizer.encode(text))) == text


@PATIENT
@given(text=st.text(min_size=1, max_size=8))
def test_no_piece_ends_inside_a_character(tokenizer: ModelTokenizer, text: str) -> None:
    decoder = tokenizer.stream(tokenizer.encode("a"), skip_special_tokens=True)
    said = ""
    for token in tokenizer.encode(text):
        said += decoder.step(token)
        assert text.startswith(said)


@PATIENT
@given(tokens=st.lists(st.integers(3, VOCABULARY - 1), max_size=12), prompt=PROMPTS)
def test_any_bytes_give_what_decoding_them_at_once_gives(
    tokenizer: ModelTokenizer, tokens: list[int], prompt: str
) -> None:
    decoder = tokenizer.stream(tokenizer.encode(prompt), skip_special_tokens=True)
    assert "".join(pieces(decoder, tokens)) == tokenizer.decode(tokens)


def test_a_character_that_the_prompt_began_comes_whole(tokenizer: ModelTokenizer) -> None:
    first, *rest = tokenizer.encode("世")
    assert list(pieces(tokenizer.stream([first], skip_special_tokens=True), rest)) == ["", "世", ""]


def test_bytes_that_never_become_a_character_come_at_the_end(tokenizer: ModelTokenizer) -> None:
    half = tokenizer.encode("世")[:2]
    decoder = tokenizer.stream(tokenizer.encode("a"), skip_special_tokens=True)
    assert [decoder.step(token) for token in half] == ["", ""]
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


@pytest.mark.parametrize(("skip", "text"), [(True, "ab"), (False, "a</s>b")])
def test_special_tokens_are_text_only_where_asked(tokenizer: ModelTokenizer, skip: bool, text: str) -> None:
    tokens = [*tokenizer.encode("a"), 2, *tokenizer.encode("b")]
    assert "".join(pieces(tokenizer.stream([1], skip_special_tokens=skip), tokens)) == text
    assert tokenizer.decode(tokens, skip_special_tokens=skip) == text


def test_a_tokenizer_without_a_fast_backend_says_the_same(tokenizer: ModelTokenizer, stock: Any) -> None:
    class Slow:
        """The same tokenizer as it looks without its fast backend."""

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return stock.decode(ids, skip_special_tokens=skip_special_tokens)

    assert isinstance(ModelTokenizer(Slow(), VOCABULARY).stream([], skip_special_tokens=True), PlainDecoder)
    for text in ("plain", "Grüße 世界", "🎉"):
        tokens = tokenizer.encode(text)
        slow = list(pieces(PlainDecoder(Slow(), True), tokens))
        assert slow == list(pieces(tokenizer.stream([], skip_special_tokens=True), tokens))
        assert "".join(slow) == text
    half = tokenizer.encode("a世")[:3]
    assert list(pieces(PlainDecoder(Slow(), True), half)) == ["a", "", "", "\ufffd"]


@PATIENT
@given(text=st.text(max_size=8))
def test_the_bytes_of_its_tokens_are_the_text(tokenizer: ModelTokenizer, text: str) -> None:
    assert b"".join(tokenizer.piece(token) for token in tokenizer.encode(text)) == text.encode()


def test_a_token_keeps_its_space_and_a_special_one_is_told_by_its_name(tokenizer: ModelTokenizer) -> None:
    assert [tokenizer.piece(token) for token in (*tokenizer.encode(" é"), 2)] == [b" ", b"\xc3", b"\xa9", b"</s>"]
    assert tokenizer.piece(VOCABULARY + 1) == b"", "a model may have more tokens than its tokenizer"


def test_the_tokens_of_a_sentencepiece_tokenizer_are_told_with_their_spaces_and_bytes() -> None:
    """As Llama 2's: a first word's space is not shown, and what is no token is written byte by byte."""
    words = {"<unk>": 0, "a": 1, "\u2581a": 2, "\u2581the": 3, "<0xC3>": 4, "<0xA9>": 5}
    backend = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    llama = ModelTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"), len(words))
    assert llama.decode([3]) == "the"
    assert [llama.piece(token) for token in (3, 1, 4, 5, 0)] == [b" the", b"a", b"\xc3", b"\xa9", b"<unk>"]


def test_a_conversation_ends_where_the_assistants_turn_begins(tokenizer: ModelTokenizer) -> None:
    tokens = tokenizer.chat([{"role": "user", "content": "Hi"}])
    assert tokenizer.decode(tokens, skip_special_tokens=False) == "<s>user: Hi</s><s>assistant: "


def test_without_a_chat_template_a_conversation_is_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, chat_template=None)
    plain = ModelTokenizer(AutoTokenizer.from_pretrained(tmp_path), VOCABULARY)
    with pytest.raises(Unsupported) as caught:
        plain.chat([{"role": "user", "content": "Hi"}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize("messages", ["Hi", [5], [None], 5])
def test_what_is_no_conversation_is_refused(tokenizer: ModelTokenizer, messages: Any) -> None:
    with pytest.raises(InvalidValue) as caught:
        tokenizer.chat(messages)
    assert caught.value.param == "messages"


def test_what_the_template_refuses_is_the_clients_error(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, chat_template="{{ raise_exception('roles must alternate') }}")
    strict = ModelTokenizer(AutoTokenizer.from_pretrained(tmp_path), VOCABULARY)
    with pytest.raises(InvalidValue, match="roles must alternate"):
        strict.chat([{"role": "user", "content": "Hi"}])


@PATIENT
@given(text=st.text(max_size=8), before=st.text(max_size=4))
def test_of_special_tokens_only_those_shown_are_text(text: str, before: str) -> None:
    stock = PreTrainedTokenizerFast(tokenizer_object=backend(), bos_token="<s>", eos_token="</s>")
    mine, tag = ModelTokenizer(stock, SIZE), backend().token_to_id("<tool_call>")
    end = backend().token_to_id("</tool_call>")
    assert tag is not None and end is not None
    said = [*tokens_of(before, "letters"), tag, 1, *tokens_of(text, "letters"), end, 0]
    decoder = mine.stream(tokens_of("a"), skip_special_tokens=True, visible_special_tokens=[tag])
    assert "".join(pieces(decoder, said)) == f"{before}<tool_call>{text}"
    assert mine.special["<tool_call>"] == tag == mine.token("<tool_call>")
    assert mine.token("<nothing>") is None
