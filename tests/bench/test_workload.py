"""Workloads: traces are read as their services wrote them, distributions give what they say, and seeds repeat them."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import pytest

from baton.bench.workload import Ask, Workload, make_workload, read_trace_of_queries
from baton.core.errors import SettingError

_AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
AZURE_2023 = _AZURE + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
AZURE_2024 = _AZURE + "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01+00:00,7,6\n"
BURSTGPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
45,GPT-4,12,30,42,API
5,ChatGPT,472,18,490,Conversation log
6,ChatGPT,9,0,9,API
"""
MOONCAKE = """\
{"timestamp": 27000, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 30000, "input_length": 600, "output_length": 3, "hash_ids": [46, 2353]}
"""
NO_TRACES = ["", "a,b\n1,2\n", _AZURE, AZURE_2023 + "then,x,y\n", '{"input_length": 3}\n', "\x00\xff"]


def read(folder: Path, text: str) -> Workload:
    path = folder / "trace"
    path.write_text(text)
    return read_trace_of_queries(path)


def test_azures(tmp_path: Path) -> None:
    first, second = read(tmp_path, AZURE_2023).asks
    assert (first, second.prompt_tokens, second.answer_tokens) == (Ask(0.0, 374, 44), 396, 109)
    assert second.at == pytest.approx(4.314579)
    first, second = read(tmp_path, AZURE_2024).asks
    assert first.prompt_tokens == 2162 and second.at == pytest.approx(0.99007)


def test_burstgpts_in_order_and_without_those_that_failed(tmp_path: Path) -> None:
    workload = read(tmp_path, BURSTGPT)
    assert workload.asks == (Ask(0.0, 472, 18), Ask(40.0, 12, 30))
    assert "BurstGPT" in workload.about


def test_mooncakes_blocks_are_shared_tokens(tmp_path: Path) -> None:
    workload = read(tmp_path, MOONCAKE)
    assert [ask.at for ask in workload.asks] == [0.0, 3.0]
    first, second = workload.prompts(1000)
    assert (len(first), len(second)) == (1100, 600)
    assert first[:512] == second[:512] and first[512:600] != second[512:600]


@pytest.mark.parametrize("text", NO_TRACES)
def test_what_is_no_trace_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingError, match="trace"):
        read(tmp_path, text)
    with pytest.raises(SettingError, match="nowhere"):
        read_trace_of_queries(tmp_path / "nowhere")


def test_lengths_and_times_are_drawn_as_they_say() -> None:
    some = make_workload(4000, prompt="uniform:10,20", answer="lognormal:50,0.5", arrivals="poisson:4", seed=1).asks
    assert {ask.prompt_tokens for ask in some} == set(range(10, 21))
    assert statistics.median(ask.answer_tokens for ask in some) == pytest.approx(50, rel=0.05)
    gaps = [after.at - before.at for before, after in itertools.pairwise(some)]
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.05)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(1, rel=0.1)
    bursty = make_workload(4000, prompt="5", answer="6", arrivals="bursty:4,3", seed=1).asks
    gaps = [after.at - before.at for before, after in itertools.pairwise(bursty)]
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.15)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(3, rel=0.25)
    assert {(ask.prompt_tokens, ask.answer_tokens) for ask in bursty} == {(5, 6)}


def test_a_seed_repeats_a_workload_and_its_prompts() -> None:
    one, again, other = (make_workload(20, arrivals="poisson:1", seed=seed) for seed in (7, 7, 8))
    assert one == again and one.asks != other.asks
    assert one.prompts(500, seed=3) == again.prompts(500, seed=3) != again.prompts(500, seed=4)
    assert all(3 <= token < 500 for prompt in one.prompts(500) for token in prompt)


def test_shared_beginnings() -> None:
    workload = make_workload(30, prompt="8", answer="4", shared_prefix=16, prefixes=2)
    prompts = workload.prompts(10_000)
    assert {len(prompt) for prompt in prompts} == {24}
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 2
    assert len({tuple(prompt[16:]) for prompt in prompts}) == 30


def test_turns_follow_each_other() -> None:
    workload = make_workload(3, prompt="5", answer="7", shared_prefix=4, turns=3)
    assert workload.conversations() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert workload.whole_prompts()[:3] == [9, 9 + 7 + 5, 9 + 7 + 5 + 7 + 5]
    assert [len(prompt) for prompt in workload.prompts(99)[:3]] == [9, 5, 5], "what is new"
    assert "3 conversations of 3 turns" in workload.about
    assert make_workload(3, prompt="5", answer="7").conversations() == [[0], [1], [2]]


def test_a_part_has_the_turns_before() -> None:
    workload = make_workload(6, prompt="5", answer="7", turns=2)
    numbers = workload.part(5)
    assert numbers == [0, 1, 4, 5, 8]
    assert [ask.after for ask in workload.only(numbers).asks] == [None, 0, None, 2, None]
    single = make_workload(8, prompt="5", answer="7")
    assert single.part(4) == [0, 2, 4, 6] and single.part(99) == list(range(8)) and len(single.part(3)) == 3


def test_it_can_be_cut_and_hurried() -> None:
    workload = make_workload(10, prompt="uniform:1,100", answer="50", arrivals="poisson:1")
    short = workload.first(4).clipped(20, 10).faster(2)
    assert len(short.asks) == 4 and max(ask.prompt_tokens for ask in short.asks) <= 20
    assert [ask.at * 2 for ask in short.asks] == [ask.at for ask in workload.asks[:4]]


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "many"},
        {"prompt": "uniform:5"},
        {"answer": "lognormal:1"},
        {"arrivals": "poisson:0"},
        {"arrivals": "soon"},
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_refused_by_name(settings: dict[str, str]) -> None:
    (name,) = settings
    with pytest.raises(SettingError) as caught:
        make_workload(3, **settings)  # type: ignore[arg-type]
    assert caught.value.param == name
    with pytest.raises(SettingError):
        make_workload(0)
