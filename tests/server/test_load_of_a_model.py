"""`baton load` against the built-in model: what was asked and what was generated is counted as the server counts it."""

from __future__ import annotations

from baton import LLM
from baton.bench.drive import Mode
from baton.bench.over_http import drive_over_http, find_target, vocabulary_of
from baton.bench.workload import make_workload
from baton.core.clock import monotonic
from baton.server.app import create_app
from server.listening import listening


def test_the_built_in_model() -> None:
    with LLM(max_batch_size=4) as llm:
        app = create_app(llm.client, render_metrics=lambda: (b"", "text/plain"), version="1")
        with listening(app) as url:
            workload = make_workload(6, prompt="uniform:5,30", answer="uniform:3,9", shared_prefix=64)
            target = find_target(url, None, None, {"ignore_eos": True})
            prompts = workload.prompts(vocabulary_of(target))
            drove = drive_over_http(target, workload, prompts, monotonic, mode=Mode.CLOSED, at_once=3)
    responses = drove.run.responses
    assert [one.error for one in responses] == [None] * 6
    assert [one.count for one in responses] == [ask.answer_tokens for ask in workload.asks]
    assert [one.prompt_tokens for one in responses] == [len(prompt) for prompt in prompts]
    assert sum(one.cached_tokens for one in responses) >= 64, "the shared beginning is computed once or so"
