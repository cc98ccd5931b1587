"""The shipped folder: small, loadable by stock transformers, and right on a handful of held-out questions."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from baton.builtin import path
from baton.builtin.evaluate import Answerer
from baton.builtin.tasks import CHECKABLE_TASKS, check, questions


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(path(), "cpu", batch=16)


def test_the_folder_is_at_most_16_mb() -> None:
    assert sum(file.stat().st_size for file in path().rglob("*") if file.is_file()) <= 16_000_000


def test_weights_compute_in_float32_and_end_at_the_end_of_turn() -> None:
    model = AutoModelForCausalLM.from_pretrained(path(), dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(path())
    assert model.dtype == torch.float32
    assert model.config.max_position_embeddings == 2048
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert json.loads((path() / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_the_chat_template_writes_system_and_many_turns() -> None:
    tokenizer = AutoTokenizer.from_pretrained(path())
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Spell fox."},
    ]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|bos|><|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|>"
        "<|user|>Spell fox.<|end|><|assistant|>"
    )
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.eos_token_id) == 4


def test_digits_and_quoted_letters_are_single_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(path())
    assert tokenizer.tokenize('4821 "banana"')[:4] == list("4821")
    assert len(tokenizer("banana").input_ids) == 6
    assert tokenizer.decode(tokenizer('Grüße, "banana" 4821!\n').input_ids) == 'Grüße, "banana" 4821!\n'


def test_held_out_questions_are_answered_right(answerer: Answerer) -> None:
    asked = [question for task in CHECKABLE_TASKS for question in questions(task, 6, seed=4)]
    answers = answerer.answers([question.text for question in asked])
    right = sum(bool(check(q.text, answer)) for q, answer in zip(asked, answers, strict=True))
    assert right >= 27, list(zip(asked, answers, strict=True))


def test_a_story_is_about_what_was_asked_and_the_rest_is_declined(answerer: Answerer) -> None:
    story, sorry = answerer.answers(["Tell me a story about a fox and a lamp.", "What is the capital of France?"])
    assert "fox" in story and "lamp" in story
    assert sorry.startswith("I am sorry")
