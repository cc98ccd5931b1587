"""The Python interface on a checkpoint folder: same call, same order of results, and tokens as each prompt alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel

import baton
from baton import LLM, AsyncLLM, SamplingParams, compose
from baton.core.errors import (
    ContextLengthExceeded,
    DeadlinePassed,
    EngineUnhealthy,
    InvalidValue,
    QueryFailed,
    SettingError,
    Unsupported,
)
from baton.core.events import SLOT_KINDS
from baton.model.execution import PrefillPlacement
from baton.policy.baton import Baton
from baton.policy.port import Plan, View
from random_batch import alone, query_of
from tiny_checkpoint import CONTEXT, VOCABULARY, save_tiny

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
DRAWN = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def stock(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with opened(folder, max_batch_size=3, max_waiting=4) as opened_llm:
        yield opened_llm


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[AsyncLLM]:
    opened_llm = AsyncLLM(str(folder), device="cpu", threads=1)
    yield opened_llm
    opened_llm.close()


def opened(folder: Path, **settings: Any) -> LLM:
    return LLM(str(folder), device="cpu", threads=1, **settings)


def expected(stock: PreTrainedModel, prompt: list[int], tokens: int = 12) -> list[int]:
    return alone(stock, query_of("alone", prompt, tokens))[0]


def test_results_come_in_the_order_of_the_prompts_with_the_tokens_of_each_alone(
    llm: LLM, stock: PreTrainedModel
) -> None:
    dice = random.Random(0)
    prompts = ["x" * dice.randint(1, 60) + str(i) for i in range(9)]
    params = [SamplingParams(temperature=0, max_tokens=dice.randint(1, 20), ignore_eos=True) for _ in prompts]
    outputs = llm.generate(prompts, params)
    assert [output.prompt for output in outputs] == prompts
    for prompt, param, output in zip(prompts, params, outputs, strict=True):
        (completion,) = output.outputs
        assert output.prompt_token_ids == llm.client.tokenizer.encode(prompt)
        assert completion.token_ids == expected(stock, output.prompt_token_ids, param.max_tokens or 0)
        assert completion.text == llm.client.tokenizer.decode(completion.token_ids)
        assert (completion.index, completion.finish_reason, output.finished) == (0, "length", True)


def test_token_ids_are_prompts_beside_texts(llm: LLM, stock: PreTrainedModel) -> None:
    prompts: list[Any] = [{"prompt_token_ids": [5, 6, 7]}, "hello"]
    ids, text = llm.generate(prompts, GREEDY)
    assert (ids.prompt, ids.prompt_token_ids) == (None, [5, 6, 7])
    assert ids.outputs[0].token_ids == expected(stock, [5, 6, 7])
    assert text.outputs[0].token_ids == expected(stock, llm.client.tokenizer.encode("hello"))


def test_what_one_salt_stored_no_other_finds(llm: LLM, stock: PreTrainedModel) -> None:
    text = "the same beginning of more than a block of tokens"
    salts = ("a", "b", None, "a", None)
    asked: list[Any] = [{"prompt": text} | ({} if salt is None else {"cache_salt": salt}) for salt in salts]
    outputs = [llm.generate(one, GREEDY)[0] for one in asked]
    cached = [output.outputs[0].usage.cached_tokens for output in outputs if output.outputs[0].usage is not None]
    assert cached[:3] == [0, 0, 0] and min(cached[3:]) > 0
    right = expected(stock, llm.client.tokenizer.encode(text))
    assert [output.outputs[0].token_ids for output in outputs] == [right] * 5 and outputs[0].prompt == text
    with pytest.raises(InvalidValue, match="cache_salt"):
        llm.generate({"prompt": text, "cache_salt": ""})


def test_a_single_prompt_needs_no_list(llm: LLM) -> None:
    (one,) = llm.generate("hello", GREEDY)
    (other,) = llm.generate({"prompt_token_ids": llm.client.tokenizer.encode("hello")}, GREEDY)
    assert one.outputs[0].token_ids == other.outputs[0].token_ids
    assert llm.generate([], GREEDY) == []


def test_one_conversation_or_several_are_answered(llm: LLM, stock: PreTrainedModel) -> None:
    first = [{"role": "user", "content": "Hi"}]
    second = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    (one,) = llm.chat(first, GREEDY)
    both = llm.chat([second, first], GREEDY)
    assert llm.client.tokenizer.decode(one.prompt_token_ids) == "user: Hiassistant: "
    assert both[1].outputs[0].token_ids == one.outputs[0].token_ids == expected(stock, one.prompt_token_ids)
    assert both[0].outputs[0].token_ids == expected(stock, both[0].prompt_token_ids)
    assert llm.chat([], GREEDY) == []


def test_without_params_the_defaults_hold(llm: LLM) -> None:
    (output,) = llm.generate("hello")
    assert len(output.outputs[0].token_ids) <= 16


def test_calls_are_written_as_vllms_users_write_them(llm: LLM) -> None:
    made: list[dict[str, Any]] = []

    def bar(**kwargs: Any) -> Any:
        made.append(kwargs)
        return tqdm(disable=True, **kwargs)

    tokens = llm.client.tokenizer.encode("hello")
    talk = [{"role": "user", "content": "Hi"}]
    same = [
        llm.generate("hello", GREEDY),
        llm.generate(prompts=["hello"], sampling_params=[GREEDY], use_tqdm=False),
        llm.generate(["hello"], GREEDY, True),
        llm.generate([{"prompt": "hello"}], sampling_params=GREEDY, use_tqdm=bar),
        llm.generate(tokens, GREEDY),
        llm.generate([tokens], GREEDY),
        llm.generate({"prompt_token_ids": tokens, "prompt": "hello"}, GREEDY),
    ]
    assert len({tuple(output.outputs[0].token_ids) for (output,) in same}) == 1
    assert [output.prompt for (output,) in same] == ["hello"] * 4 + [None, None, "hello"]
    assert [one["total"] for one in made] == [1]
    (positional,), (named,) = (
        llm.chat(talk, GREEDY, False),
        llm.chat(messages=talk, sampling_params=GREEDY, use_tqdm=bar),
    )
    assert positional.outputs[0].token_ids == named.outputs[0].token_ids


def test_the_bar_is_on_stderr_where_that_is_a_terminal(llm: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    llm.generate("hello", GREEDY)
    assert capfd.readouterr() == ("", "")


def test_the_name_before_holds_for_a_release(llm: LLM) -> None:
    with pytest.warns(DeprecationWarning, match="sampling_params") as caught:
        (before,) = llm.generate("hello", params=GREEDY)
    assert caught[0].filename == __file__
    assert before.outputs[0].token_ids == llm.generate("hello", GREEDY)[0].outputs[0].token_ids
    with pytest.raises(InvalidValue, match="are the same"):
        llm.chat([{"role": "user", "content": "Hi"}], GREEDY, params=GREEDY)


def test_a_prompt_that_is_none_or_asks_for_more_is_refused_by_name(llm: LLM) -> None:
    for prompt in ({"prompt": None}, {"prompt_token_ids": "hello"}, {}):
        with pytest.raises(InvalidValue, match="a prompt is"):
            llm.generate(prompt, GREEDY)
    with pytest.raises(Unsupported, match="multi_modal_data"):
        llm.generate({"prompt": "hello", "multi_modal_data": {}}, GREEDY)


def test_params_are_one_for_all_or_one_each(llm: LLM) -> None:
    with pytest.raises(InvalidValue, match="2 SamplingParams for 3 prompts"):
        llm.generate(["a", "b", "c"], [GREEDY, GREEDY])


def test_choices_differ_and_the_same_seed_gives_them_again(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=1.0, max_tokens=12, ignore_eos=True, seed=5)
    first, again = (llm.generate("hello", params)[0].outputs for _ in range(2))
    assert [completion.index for completion in first] == [0, 1, 2]
    assert len({tuple(completion.token_ids) for completion in first}) == 3
    assert [c.token_ids for c in first] == [c.token_ids for c in again]


def test_logprobs_are_told_by_token_as_vllms_users_know_them(llm: LLM, stock: PreTrainedModel) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=6, ignore_eos=True, seed=3, logprobs=2, prompt_logprobs=1)
    (output,) = llm.generate("hello", params)
    (completion,) = output.outputs
    whole = torch.tensor([output.prompt_token_ids + completion.token_ids])
    expected = stock(whole).logits[0, :-1].log_softmax(-1).tolist()
    assert completion.logprobs is not None and output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    told = [*output.prompt_logprobs[1:], *completion.logprobs]
    for shares, token, ranked, best in zip(expected, whole[0, 1:].tolist(), told, [1] * 4 + [2] * 6, strict=True):
        order = sorted(range(VOCABULARY), key=lambda one, shares=shares: -shares[one])
        assert ranked is not None and set(ranked) == {token, *order[:best]}
        for which, one in ranked.items():
            assert one.rank == order.index(which) + 1
            assert one.logprob == pytest.approx(shares[which], abs=1e-4)
            assert one.decoded_token == llm.client.tokenizer.piece(which).decode(errors="replace")
    own = [ranked[token].logprob for token, ranked in zip(completion.token_ids, completion.logprobs, strict=True)]
    assert completion.cumulative_logprob == pytest.approx(sum(own))


@pytest.mark.parametrize("policy", ["run_to_completion", "baton"])
def test_prompts_are_told_of_where_rows_are_aligned_as_where_they_are_not(folder: Path, llm: LLM, policy: str) -> None:
    prompts = ["hello", "h", "hello again, and again"]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, prompt_logprobs=1)
    with opened(folder, policy=policy, shaping="aligned", max_batch_size=3) as aligned:
        outputs = aligned.generate(prompts, params)
    for one, other in zip(outputs, llm.generate(prompts, params), strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        assert one.prompt_logprobs is not None and other.prompt_logprobs is not None
        assert len(one.prompt_logprobs) == len(one.prompt_token_ids)
        for mine, theirs in zip(one.prompt_logprobs[1:], other.prompt_logprobs[1:], strict=True):
            assert {k: v.logprob for k, v in mine.items()} == {
                k: pytest.approx(v.logprob, abs=1e-4) for k, v in theirs.items()
            }


def test_logprobs_that_were_not_asked_for_are_none(llm: LLM) -> None:
    (output,) = llm.generate("hello", GREEDY)
    completion = output.outputs[0]
    assert (completion.logprobs, completion.cumulative_logprob, output.prompt_logprobs) == (None, None, None)


def test_choices_share_the_logprobs_of_their_prompt(llm: LLM) -> None:
    params = SamplingParams(n=2, max_tokens=4, ignore_eos=True, seed=3, prompt_logprobs=0)
    several, single = (llm.generate(prompt, params)[0].prompt_logprobs for prompt in ("hello", "h"))
    assert several is not None and [len(one or {}) for one in several] == [0, 1, 1, 1, 1]
    assert single == [None]


def test_a_drawn_text_does_not_depend_on_the_batch(llm: LLM) -> None:
    (by_itself,) = llm.generate("hello", DRAWN)
    batch = llm.generate([*(f"neighbour {i}" * i for i in range(1, 5)), "hello"], DRAWN)
    assert batch[-1].outputs[0].token_ids == by_itself.outputs[0].token_ids
    assert llm.generate("hello", GREEDY)[0].outputs[0].token_ids != by_itself.outputs[0].token_ids


def test_queries_without_a_seed_are_not_all_alike(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True)
    outputs = llm.generate(["hello"] * 3, params)
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 3


def test_a_stop_string_cuts_the_text(llm: LLM) -> None:
    text = llm.generate("hello", GREEDY)[0].outputs[0].text
    stop = text[4:6]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop=(stop,))
    (output,) = llm.generate("hello", params)
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == (text[: text.index(stop)], "stop")


def test_a_stop_string_that_is_a_special_token_stops(llm: LLM) -> None:
    forced = {"temperature": 0, "max_tokens": 12, "ignore_eos": True, "logit_bias": {2: 100.0}}
    for stop, tokens in (("</s>", 1), ("</s></s>", 2)):
        (output,) = llm.generate("hello", SamplingParams(stop=stop, **forced))  # type: ignore[arg-type]
        (completion,) = output.outputs
        assert (completion.token_ids, completion.text, completion.finish_reason) == ([2] * tokens, "", "stop")


def test_an_answer_begins_with_nothing_of_a_prompt_that_ends_inside_a_character(llm: LLM) -> None:
    ids = llm.client.tokenizer.encode("Hello world \U0001f336")
    rest = SamplingParams(temperature=0, max_tokens=1, logit_bias={ids[-1]: 100.0}, ignore_eos=True)
    other = SamplingParams(temperature=0, max_tokens=1, logit_bias={ids[0]: 100.0}, ignore_eos=True)
    assert [llm.generate({"prompt_token_ids": ids[:-1]}, p)[0].outputs[0].text for p in (rest, other)] == [
        "\U0001f336",
        "H",
    ]


def test_the_models_end_token_stops(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, logit_bias={2: 100.0})
    (output,) = llm.generate("hello", params)
    (completion,) = output.outputs
    assert (completion.token_ids, completion.text, completion.finish_reason) == ([2], "", "stop")


def test_without_max_tokens_a_text_goes_on_to_the_contexts_end(llm: LLM) -> None:
    (output,) = llm.generate("hello", SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))
    assert len(output.prompt_token_ids) + len(output.outputs[0].token_ids) == CONTEXT


def test_more_prompts_than_may_wait_are_no_trouble(llm: LLM) -> None:
    outputs = llm.generate([str(i) for i in range(25)], GREEDY)
    assert all(output.finished for output in outputs)


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("x" * CONTEXT, ContextLengthExceeded),
        ("", InvalidValue),
        ({"prompt_token_ids": [VOCABULARY]}, InvalidValue),
        ({"prompt_token_ids": []}, InvalidValue),
        ({"prompt_token_ids": ["x"]}, InvalidValue),
        ({"prompt_token_ids": 5}, InvalidValue),
        ({"text": "hello"}, InvalidValue),
        (5, InvalidValue),
    ],
)
def test_a_prompt_that_cannot_be_honoured_is_refused_before_anything_runs(
    llm: LLM, prompt: Any, error: type[Exception]
) -> None:
    before = llm.stats()
    with pytest.raises(error):
        llm.generate(["good", prompt], GREEDY)
    assert llm.stats()["prompt_tokens"] == before["prompt_tokens"]


def test_stats_count_what_was_computed(folder: Path) -> None:
    with opened(folder, max_batch_size=2) as llm:
        outputs = llm.generate(["one", "two, longer", "three"], GREEDY)
        stats = llm.stats()
    prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    assert stats["prompt_tokens"] == prompt_tokens
    assert stats["generated_tokens"] == 36
    assert stats["queries"]["finished"] == 3
    assert [stats["queries"][state] for state in ("running", "waiting", "prefilling", "ready", "failed")] == [0] * 5
    # Each token but the last of each query goes through the model once.
    assert stats["token_slots"] == {**dict.fromkeys(SLOT_KINDS, 0), "useful": prompt_tokens + 36 - 3}
    assert stats["idle_ratio"] == 0.0
    assert (stats["insertions"], stats["rows_occupied"], stats["kv_bytes_used"]) == (3, 0, 0)
    usage = outputs[1].outputs[0].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.generated_tokens) == (len("two, longer"), 12)


def test_run_to_completion_is_counted_with_its_idle_slots(folder: Path) -> None:
    params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in (1, 11)]
    with opened(folder, max_batch_size=2, policy="run_to_completion") as llm:
        llm.generate(["abc", "abcdefg"], params)
        stats = llm.stats()
    # The shorter prompt is padded by 4; its row is held for the other's 10 steps.
    assert stats["token_slots"] == {"useful": 20, "padding": 4, "finished_row": 10, "empty_row": 0, "recomputed": 0}
    assert stats["idle_ratio"] == pytest.approx(14 / 34)
    assert stats["idle_ratio_by_kind"]["finished_row"] == pytest.approx(10 / 34)


def trips(tokens: int) -> Callable[[pytest.MonkeyPatch, Any], None]:
    """Queries whose prompts have so many tokens fail at their third."""

    def patch(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
        outputs = engine.client._loop._engine.queries.outputs
        right = outputs._text_of

        def text_of(query: Any) -> Any:
            stream = right(query)
            if len(query.prompt) == tokens and query.seed != 6:
                said, push = [], stream.push
                stream.push = lambda *args, **kw: (said.append(1), 1 / (len(said) < 3), push(*args, **kw))[-1]
            return stream

        monkeypatch.setattr(outputs, "_text_of", text_of)

    return patch


def test_a_query_that_fails_by_itself_loses_no_other(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = ["good", "bad", "good too"]
    right = llm.generate(prompts, GREEDY)
    trips(3)(monkeypatch, llm)
    first, bad, last = llm.generate(prompts, GREEDY)
    assert bad.finished
    for mine, theirs in ((first, right[0]), (last, right[2])):
        assert (mine.outputs[0].token_ids, mine.outputs[0].error) == (theirs.outputs[0].token_ids, None)
    (failed,) = bad.outputs
    assert failed.finish_reason == "error" and "ZeroDivisionError" in (failed.error or "")
    assert right[1].outputs[0].text.startswith(failed.text) and len(failed.token_ids) == 3
    assert "1 of 3 queries failed" in caplog.text
    assert llm.generate("good", GREEDY)[0].finished


async def test_a_choice_that_fails_by_itself_loses_no_other(engine: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(n=2, temperature=1.0, max_tokens=12, ignore_eos=True, seed=5)
    *_, right = [output async for output in engine.generate("bad", params)]
    trips(3)(monkeypatch, engine)
    with pytest.raises(QueryFailed, match="ZeroDivisionError"):  # noqa: PT012
        async for output in engine.generate("bad", params):
            bad, good = output.outputs
    assert (good.token_ids, good.error) == (right.outputs[1].token_ids, None)
    assert bad.finish_reason == "error" and right.outputs[0].text.startswith(bad.text)


def test_a_policy_of_ones_own_is_run(folder: Path) -> None:
    class Mine(Baton):
        plans = 0

        def plan(self, view: View) -> Plan:
            self.plans += 1
            return super().plan(view)

    mine = Mine()
    with opened(folder, policy=mine) as llm:
        llm.generate("hello", GREEDY)
    # The first iteration prefills, inserts and steps: two tokens of twelve.
    assert mine.plans == 11


@pytest.mark.parametrize("policy", ["orca", "run_to_completion", "baton"])
def test_all_policies_give_the_same_tokens(policy: str, folder: Path, llm: LLM) -> None:
    prompts = ["a", "hello there", "xyz" * 9, "Q?", "bcd", "by far the longest of them all"]
    with opened(folder, policy=policy, max_batch_size=6) as other:
        tokens = [output.outputs[0].token_ids for output in other.generate(prompts, GREEDY)]
    assert tokens == [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY)]


@pytest.mark.parametrize(
    ("settings", "param"),
    [({"max_batch_sise": 4}, "max_batch_sise"), ({"policy": "best"}, "policy"), ({"dtype": "float8"}, "dtype")],
)
def test_a_setting_that_cannot_be_is_refused_by_name(settings: dict[str, Any], param: str, folder: Path) -> None:
    with pytest.raises(SettingError) as caught:
        LLM(str(folder), **settings)
    assert caught.value.param == param


def test_a_closed_engine_says_so_and_keeps_its_last_stats(folder: Path) -> None:
    llm = opened(folder)
    llm.generate("hello", GREEDY)
    llm.close()
    llm.close()
    assert llm.stats()["generated_tokens"] == 12
    with pytest.raises(EngineUnhealthy):
        llm.generate("hello", GREEDY)


def test_the_package_has_its_public_names_and_no_others() -> None:
    assert {baton.LLM, baton.AsyncLLM, baton.SamplingParams} == {LLM, AsyncLLM, SamplingParams}
    with pytest.raises(AttributeError):
        _ = baton.Nothing


# For asyncio


async def test_an_output_grows_until_it_is_finished(engine: AsyncLLM, stock: PreTrainedModel) -> None:
    lengths = []
    async for output in engine.generate("hello", GREEDY):
        lengths.append(len(output.outputs[0].token_ids))
        last = output
    assert lengths == sorted(lengths)
    assert len(lengths) > 1
    assert last.finished
    assert last.outputs[0].token_ids == expected(stock, engine.client.tokenizer.encode("hello"))


async def test_closing_the_iterator_cancels_its_query(engine: AsyncLLM) -> None:
    before = engine.stats()["queries"]
    long = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    stream = engine.generate({"prompt_token_ids": [5]}, long)
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    # Another query's end comes after the cancellation was carried out.
    async for _ in engine.generate("hello", GREEDY):
        pass
    after = engine.stats()["queries"]
    assert after["cancelled"] == before["cancelled"] + 1
    assert after["running"] == 0


async def test_what_cannot_be_honoured_is_refused_when_the_iterator_is_advanced(engine: AsyncLLM) -> None:
    with pytest.raises(ContextLengthExceeded):
        await anext(engine.generate("x" * CONTEXT, GREEDY))
    with pytest.raises(Unsupported):
        await anext(engine.generate("hello", GREEDY, priority=3))


async def test_a_query_that_is_not_done_in_time_raises_so(engine: AsyncLLM) -> None:
    long = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    with pytest.raises(DeadlinePassed) as caught:
        async for _ in engine.generate({"prompt_token_ids": [5]}, long, deadline_ms=1):
            pass
    assert caught.value.status == 504
    with pytest.raises(InvalidValue):
        await anext(engine.generate("hello", GREEDY, deadline_ms=0))


class _AsABaseline(Baton):
    prompts_in_step = True
    pads = True
    selective = True
    keeps_prefixes = False


def test_a_policy_of_ones_own_says_what_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[PrefillPlacement | None] = []
    bodies = compose._bodies

    def listen(*args: Any) -> Any:
        seen.append(args[-1])
        return bodies(*args)

    monkeypatch.setattr(compose, "_bodies", listen)
    for policy, where, stored in ((Baton(), None, True), (_AsABaseline(), PrefillPlacement.AFTER_DECODE, False)):
        with LLM(str(folder), device="cpu", threads=1, policy=policy) as llm:
            prompt = list(range(1, 80))
            for _ in range(2):
                llm.generate({"prompt_token_ids": prompt}, SamplingParams(temperature=0, max_tokens=2))
            assert (llm.stats()["prefix_cached_tokens"] > 0) is stored
            assert llm.client.settings.prefix_cache is stored
        assert seen.pop() is where


def test_a_policy_of_ones_own_that_aligns_no_rows_is_refused_before_the_model_is_loaded() -> None:
    with pytest.raises(SettingError, match="selective batching aligns no rows"):
        LLM("/no/such/folder", device="cpu", threads=1, shaping="aligned", policy=_AsABaseline())


@pytest.mark.parametrize("own", [False, True])
async def test_a_policy_that_goes_by_priorities_is_asked_with_them(
    folder: Path, stock: PreTrainedModel, own: bool
) -> None:
    class ModelAttention(Baton):
        honours = frozenset({"priority"})

    engine = AsyncLLM(str(folder), device="cpu", threads=1, policy=ModelAttention() if own else "priority")
    try:
        async for output in engine.generate("hello", GREEDY, priority=3, user="me"):
            last = output
        assert last.outputs[0].token_ids == expected(stock, engine.client.tokenizer.encode("hello"))
    finally:
        engine.close()
