"""A text has at least as many tokens as its bytes show, whatever the tokenizer; else none is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from baton import builtin
from baton.core.errors import ContextLengthExceeded
from baton.core.limits import Limits
from baton.model.tokenizer import ModelTokenizer

SPACES = 16


def bytewise(normalizer: Any = None, pre: Any = None, alphabet: int = 256, **added: Any) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:alphabet]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    merges = []
    for size in (1, 2, 4, 8):
        merges.append(("\u0120" * size, "\u0120" * size))
        vocabulary["\u0120" * 2 * size] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.normalizer = normalizer
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre, level]) if pre else level
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", special=True, normalized=False, **added)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>")


def with_bytes(count: int = 256) -> PreTrainedTokenizerFast:
    """As Llama 2's: a sign for a blank, and bytes for what has no token."""
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(count)} | {"\u2581": 257, "a": 258}
    merges = [("\u2581", "\u2581"), ("\u2581\u2581", "\u2581\u2581")]
    vocabulary |= {"\u2581" * 2: 259, "\u2581" * 4: 260}
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def words() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


BOUNDED: dict[str, Any] = {
    "bytes": bytewise(),
    "composed": bytewise(normalizers.NFC()),
    "parted": bytewise(pre=pre_tokenizers.Split(Regex(r"\s+"), "isolated")),
    "blanks taken": bytewise(lstrip=True, rstrip=True),
    "byte fall-back": with_bytes(),
    "built in": AutoTokenizer.from_pretrained(str(builtin.path())),
}
UNBOUNDED: dict[str, Any] = {
    "unknown words": words(),
    "blanks dropped": bytewise(normalizers.Replace(Regex(" +"), " ")),
    "marks dropped": bytewise(normalizers.StripAccents()),
    "ends dropped": bytewise(normalizers.Strip()),
    "parts dropped": bytewise(pre=pre_tokenizers.Split(" ", "removed")),
    "words alone": bytewise(pre=pre_tokenizers.WhitespaceSplit()),
    "a byte without a token": bytewise(alphabet=255),
    "bytes without tokens": with_bytes(255),
}
TEXTS = st.lists(
    st.sampled_from(
        [" ", "    ", "a", "e\u0301", "\u03b9\u0308\u0301", "\u1112\u1161\u11ab", "<s>", "\n", "\U0001f98a"]
    )
    | st.text(max_size=3)
).map("".join)


@pytest.mark.parametrize("name", BOUNDED)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_no_text_that_fits_is_refused(name: str, text: str) -> None:
    tokenizer = ModelTokenizer(BOUNDED[name], 300)
    tokens = tokenizer.encode(text, special=False)
    tokenizer.prepare(len(tokens))
    tokenizer.fit(text)


@pytest.mark.parametrize("name", BOUNDED)
def test_what_cannot_fit_is_refused_before_it_is_encoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ModelTokenizer(BOUNDED[name], 300)
    tokenizer.prepare(100)
    monkeypatch.setattr(tokenizer, "encode", lambda text, **more: pytest.fail("it was encoded"))
    with pytest.raises(ContextLengthExceeded, match=r"tokens or more, the context is 100 \(--max-model-len\)"):
        tokenizer.fit("a" * 100_000)


def test_a_conversation_that_is_only_counted_may_be_longer_than_the_context() -> None:
    tokenizer = ModelTokenizer(BOUNDED["built in"], 300)
    tokenizer.prepare(100)
    long = [{"role": "user", "content": "a" * 10_000}]
    with pytest.raises(ContextLengthExceeded):
        tokenizer.chat(long)
    assert len(tokenizer.chat(long, any_length=True)) > 10_000 / 20


@pytest.mark.parametrize("name", UNBOUNDED)
def test_nothing_is_told_where_a_token_may_stand_for_any_text(name: str) -> None:
    tokenizer = ModelTokenizer(UNBOUNDED[name], 300)
    tokenizer.prepare(1)
    tokenizer.fit("a " * 100_000)


def test_blanks_that_a_token_takes_count_for_nothing() -> None:
    tokenizer = ModelTokenizer(BOUNDED["blanks taken"], 300)
    text = " " * 10_000 + "<s>" + " " * 10_000
    assert len(tokenizer.encode(text, special=False)) == 1
    tokenizer.prepare(1)
    tokenizer.fit(text)


def test_a_conversation_that_cannot_fit_is_refused_before_it_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = bytewise()
    stock.chat_template = "{{ messages[0].content }}"
    tokenizer = ModelTokenizer(stock, 300, Limits())
    tokenizer.prepare(100)
    assert len(tokenizer.chat([{"role": "user", "content": "a" * 50}])) == 50
    monkeypatch.setattr(tokenizer, "encode", lambda text, **more: pytest.fail("it was encoded"))
    with pytest.raises(ContextLengthExceeded):
        tokenizer.chat([{"role": "user", "content": "a" * 10_000}])


@pytest.mark.parametrize("name", BOUNDED)
def test_nobody_waits_for_another_ones_text(name: str) -> None:
    """As long as a text takes to be encoded, others encode, decode and ask for names."""
    tokenizer = ModelTokenizer(BOUNDED[name], 300)
    tokenizer.prepare(100)
    with tokenizer._lock:
        tokens = tokenizer.encode("a")
        tokenizer.decode(tokens), tokenizer.piece(1), tokenizer.token("<s>"), tokenizer.backend()
        assert tokenizer.special is not None


def test_it_encodes_and_decodes_as_the_stock_tokenizer_does() -> None:
    for name, stock in {**BOUNDED, **UNBOUNDED}.items():
        tokenizer = ModelTokenizer(stock, 300)
        for text in ("", "a", "  a b\n", "Gr\u00fc\u00dfe e\u0301 <s>"):
            for special in (True, False):
                assert (
                    tokenizer.encode(text, special=special) == stock(text, add_special_tokens=special)["input_ids"]
                ), name
            tokens = tokenizer.encode(text)
            for skip in (True, False):
                assert tokenizer.decode(tokens, skip_special_tokens=skip) == stock.decode(
                    tokens, skip_special_tokens=skip
                )


def test_a_tokenizer_that_was_saved_with_a_length_cuts_nothing() -> None:
    stock = bytewise()
    stock.backend_tokenizer.enable_truncation(4)
    stock.backend_tokenizer.enable_padding(length=64)
    assert len(ModelTokenizer(stock, 300).encode("a" * 30)) == 30
