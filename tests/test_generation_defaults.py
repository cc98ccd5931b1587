"""The model author's sampling defaults: read from generation_config.json, used if a request names nothing else."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from baton import LLM, SamplingParams
from baton.core.generation_defaults import NO_DEFAULTS, defaults_of
from baton.server.schema import ChatRequest, CompletionRequest
from bytewise import save_speaking

AUTHOR: dict[str, Any] = {"do_sample": True, "temperature": 0.01, "top_k": 1, "eos_token_id": 2, "num_beams": 1}


@pytest.mark.parametrize(
    ("written", "sampling", "ignored"),
    [
        ({}, {}, ()),
        (AUTHOR, {"temperature": 0.01, "top_k": 1}, ()),
        ({"do_sample": False}, {"temperature": 0.0}, ()),
        ({"repetition_penalty": 1.1, "top_p": None}, {"repetition_penalty": 1.1}, ()),
        (
            {"no_repeat_ngram_size": 3, "suppress_tokens": [1], "num_beams": 2},
            {},
            "no_repeat_ngram_size num_beams suppress_tokens",
        ),
        ({"no_repeat_ngram_size": 0, "suppress_tokens": [], "length_penalty": 1.0}, {}, ()),
        ({"temperature": "hot", "top_p": 7}, {}, "temperature top_p"),
    ],
)
def test_what_an_author_may_write(written: dict[str, Any], sampling: dict[str, Any], ignored: Any) -> None:
    defaults = defaults_of(written)
    assert (dict(defaults.sampling), defaults.ignored) == (sampling, tuple(ignored.split()) if ignored else ())
    assert all(name in str(defaults) for name in (*sampling, *defaults.ignored))


def test_a_request_that_names_a_field_has_its_own() -> None:
    author = {"temperature": 0.5, "top_k": 3}
    for request in (ChatRequest, CompletionRequest):
        body: dict[str, Any] = (
            {"messages": [{"role": "user", "content": "x"}]} if request is ChatRequest else {"prompt": "x"}
        )
        params = request.read({**body, "top_k": 0, "temperature": None}).params(author)
        assert (params.temperature, params.top_k) == (0.5, 0)
        assert request.read(body).params().temperature == 1.0


def test_params_know_what_was_named() -> None:
    params = SamplingParams(seed=3, top_k=2)
    assert params.named == {"seed", "top_k"}
    assert params.with_defaults({"top_k": 9, "top_p": 0.5}) == SamplingParams(seed=3, top_k=2, top_p=0.5)
    again = pickle.loads(pickle.dumps(params))
    assert again == params and again.named == params.named


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = save_speaking(tmp_path_factory.mktemp("author"))
    (place / "generation_config.json").write_text(json.dumps(AUTHOR))
    return place


def test_the_python_api_takes_them_for_fields_that_are_not_named(folder: Path) -> None:
    prompt = {"prompt_token_ids": [5, 6]}

    def said(llm: LLM, **more: Any) -> set[tuple[int, ...]]:
        params = [SamplingParams(max_tokens=6, seed=seed, **more) for seed in (1, 2)]
        return {tuple(llm.generate(prompt, one, use_tqdm=False)[0].outputs[0].token_ids) for one in params}

    with LLM(str(folder)) as llm:
        assert len(said(llm)) == 1, "the author's temperature and top_k leave no choice"
        assert len(said(llm, temperature=2.0, top_k=0)) == 2
        assert llm.client.defaults == {"temperature": 0.01, "top_k": 1}
    with LLM(str(folder), generation_config="none") as llm:
        assert llm.client.defaults == {} and len(said(llm)) == 2


def test_nothing_is_said_of_models_without() -> None:
    assert NO_DEFAULTS.sampling == {} and NO_DEFAULTS.ignored == ()
