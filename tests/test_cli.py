"""The command line: answers on stdout, and every error is one line on stderr with its exit status."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from baton.cli.main import main
from random_batch import alone, query_of
from tiny_checkpoint import CONTEXT, VOCABULARY, save_model, save_tiny, save_tokenizer


@dataclass(frozen=True)
class ForwardStats:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., ForwardStats]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def without_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("plain"), chat_template=None)


@pytest.fixture
def baton(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs the command in this process; `stdin` is a file, not a terminal, and empty unless given."""
    for name in [name for name in os.environ if name.startswith("BATON_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("BATON_THREADS", "1")
    handlers = list(logging.getLogger().handlers)

    def runs(*arguments: object, stdin: str = "") -> ForwardStats:
        monkeypatch.setattr(sys, "argv", ["baton", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ForwardStats(int(ended.value.code or 0), said.out, said.err)

    yield runs
    # The command configures logging on this test's captured stderr.
    logging.getLogger().handlers[:] = handlers


def one_line(ran: ForwardStats, *words: str) -> bool:
    """Whether the command said nothing but one line, on stderr, that has these words."""
    lines = ran.err.splitlines()
    return ran.out == "" and len(lines) == 1 and lines[0].startswith("baton: ") and all(w in lines[0] for w in words)


# What cannot be


def test_a_missing_folder_is_a_failure(baton: Run, tmp_path: Path) -> None:
    for verb in ("generate", "info"):
        ran = baton(verb, tmp_path / "nowhere", *(["-p", "Hi"] if verb == "generate" else []))
        assert ran.status == 1
        assert one_line(ran, "nowhere", "no such folder"), ran


def test_a_folder_without_weights_is_a_failure(baton: Run, folder: Path, tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    ran = baton("generate", tmp_path, "-p", "Hi")
    assert ran.status == 1
    assert one_line(ran, "no .safetensors file"), ran


def test_a_folder_without_a_tokenizer_is_a_failure(baton: Run, tmp_path: Path) -> None:
    save_model(tmp_path)
    ran = baton("generate", tmp_path, "-p", "Hi")
    assert ran.status == 1
    assert one_line(ran, "no tokenizer"), ran


@pytest.mark.parametrize("verb", ["generate", "serve", "info"])
def test_an_unknown_flag_is_a_bad_setting(verb: str, baton: Run) -> None:
    ran = baton(verb, "--max-batch-sise", "4")
    assert ran.status == 2
    assert one_line(ran, "--max-batch-sise"), ran


def test_an_unknown_setting_in_the_environment_or_a_file_is_a_bad_setting(
    baton: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "baton.toml"
    file.write_text("max-batch-sise = 4")
    ran = baton("generate", "--config", file, "-p", "Hi")
    assert ran.status == 2
    assert one_line(ran, "max_batch_sise"), ran
    monkeypatch.setenv("BATON_MAX_BATCH_SISE", "4")
    ran = baton("generate", "-p", "Hi")
    assert ran.status == 2
    assert one_line(ran, "max_batch_sise"), ran


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max-batch-size", "none"),
        ("--max-batch-size", "0"),
        ("--max-model-len", str(CONTEXT + 1)),
        ("--kv-memory", "much"),
        ("--kv-memory", "1KB"),
        ("--dtype", "float8"),
        ("--device", "tpu"),
        ("--policy", "best"),
        ("--threads", "0"),
        ("--threads", "many"),
        ("--prefill-chunk", "-3"),
        ("--seed", "-1"),
        ("--log-level", "loud"),
    ],
)
def test_a_bad_value_is_a_bad_setting_that_names_its_flag(flag: str, value: str, baton: Run, folder: Path) -> None:
    ran = baton("generate", folder, flag, value, "-p", "Hi")
    assert ran.status == 2
    assert one_line(ran, flag if value != "1KB" else "raise --kv-memory"), ran


@pytest.mark.parametrize("flag", ["--max-tokens", "--temperature", "--sampling-seed"])
def test_a_sampling_value_that_is_no_number_is_a_bad_setting(flag: str, baton: Run) -> None:
    ran = baton("generate", flag, "much", "-p", "Hi")
    assert ran.status == 2
    assert one_line(ran, flag), ran


@pytest.mark.parametrize(("flag", "value"), [("--max-tokens", 0), ("--temperature", -1), ("--sampling-seed", 2**70)])
def test_a_sampling_value_out_of_its_limits_is_said_in_one_line(flag: str, value: int, baton: Run) -> None:
    ran = baton("generate", flag, value, "-p", "Hi")
    assert ran.status in (1, 2)
    assert one_line(ran, "must be"), ran


def test_a_prompt_in_the_models_place_is_said_to_be_no_model(baton: Run) -> None:
    ran = baton("generate", "What is 17 + 25?")
    assert ran.status == 2
    assert one_line(ran, "What is 17 + 25?", "-p"), ran


def test_nothing_to_generate_for_is_a_bad_setting(baton: Run, folder: Path) -> None:
    ran = baton("generate", folder)
    assert ran.status == 2
    assert one_line(ran, "no prompt"), ran


def test_a_file_of_prompts_that_is_not_there_is_a_bad_setting(baton: Run, tmp_path: Path) -> None:
    ran = baton("generate", "-f", tmp_path / "none.txt")
    assert ran.status == 2
    assert one_line(ran, "none.txt"), ran


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("x" * CONTEXT, "context"),
        ('{"prompt": "a", "top_k": 3}', "top_k"),
        ('{"prompt": 5}', "not a prompt"),
        ("{}", "not a prompt"),
        ('{"prompt_token_ids": 5}', "not a prompt"),
        ('{"prompt_token_ids": ["a"]}', "token ids"),
        (f'{{"prompt_token_ids": [{VOCABULARY}]}}', "vocabulary"),
        ('{"messages": "Hi"}', "messages"),
    ],
)
def test_a_line_that_is_no_prompt_is_a_failure_before_anything_is_answered(
    line: str, word: str, baton: Run, folder: Path
) -> None:
    ran = baton("generate", folder, "--no-chat", "--json", stdin=f"good\n{line}\n")
    assert ran.status == 1
    assert one_line(ran, word), ran


def test_asking_a_model_to_chat_that_does_not_is_a_failure(baton: Run, without_chat: Path) -> None:
    ran = baton("generate", without_chat, "--chat", "-p", "Hi")
    assert ran.status == 1
    assert one_line(ran, "no chat template"), ran


def test_a_port_in_use_is_a_bad_setting_and_no_model_is_loaded(baton: Run, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = baton("serve", folder, "--port", port)
    assert ran.status != 0
    assert one_line(ran, str(port)), ran


def test_no_verb_and_an_unknown_verb_are_told_how_it_is_used(baton: Run) -> None:
    ran = baton()
    assert ran.status == 2
    assert ran.err.startswith("Usage: ")
    assert any(line.split()[:1] == ["generate"] for line in ran.err.splitlines())
    ran = baton("generte")
    assert ran.status == 2
    assert one_line(ran, "generte"), ran


# What is answered


def expected(folder: Path, prompt: list[int], tokens: int) -> list[int]:
    return alone(AutoModelForCausalLM.from_pretrained(folder).eval(), query_of("alone", prompt, tokens))[0]


def test_lines_of_json_come_out_in_the_order_of_the_lines_that_went_in(baton: Run, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = [
        "plain text",
        '"a string"',
        '{"prompt": "an object"}',
        '{"prompt_token_ids": [5, 6, 7]}',
        '{"messages": [{"role": "user", "content": "Hi"}]}',
        "{not json",
    ]
    prompts = [
        *(tokenizer(text)["input_ids"] for text in ("plain text", "a string", "an object")),
        [5, 6, 7],
        tokenizer("<s>user: Hi</s><s>assistant: ")["input_ids"],
        tokenizer("{not json")["input_ids"],
    ]
    ran = baton(
        "generate",
        folder,
        "--json",
        "--no-chat",
        "--max-tokens",
        6,
        "--max-batch-size",
        2,
        stdin="\n".join([*lines, ""]),
    )
    assert (ran.status, ran.err) == (0, "")
    assert len(ran.rows) == len(lines)
    for row, prompt in zip(ran.rows, prompts, strict=True):
        tokens = expected(folder, prompt, 6)
        tokens = tokens[: tokens.index(2) + 1] if 2 in tokens else tokens
        assert row == {
            "text": tokenizer.decode(tokens, skip_special_tokens=True),
            "token_ids": tokens,
            "finish_reason": "stop" if tokens[-1] == 2 else "length",
            "prompt_tokens": len(prompt),
        }


def test_a_single_prompt_gives_its_text_alone_and_several_say_whose_it_is(baton: Run, folder: Path) -> None:
    (row,) = baton("generate", folder, "--json", "--max-tokens", 5, "-p", "Hi").rows
    ran = baton("generate", folder, "--max-tokens", 5, "-p", "Hi")
    assert (ran.status, ran.out) == (0, row["text"] + "\n")
    ran = baton("generate", folder, "--max-tokens", 5, "-p", "Hi", "-p", "Ho")
    assert ran.out.startswith(f"> Hi\n{row['text']}\n\n> Ho\n")


def test_prompts_are_questions_where_the_model_chats_and_texts_where_it_does_not(
    baton: Run, folder: Path, without_chat: Path
) -> None:
    def prompt_tokens(*arguments: object) -> int:
        (row,) = baton("generate", *arguments, "--json", "--max-tokens", 1, "-p", "Hi").rows
        return int(row["prompt_tokens"])

    template = 1 + len("user: ") + 1 + 1 + len("assistant: ")
    assert prompt_tokens(folder) == 2 + template
    assert prompt_tokens(folder, "--no-chat") == 2
    assert prompt_tokens(without_chat) == 2


def test_prompts_from_a_file_follow_those_of_the_flags(baton: Run, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("abc\n\nabcde\n")
    ran = baton("generate", folder, "--no-chat", "--json", "--max-tokens", 1, "-p", "x", "-f", file)
    assert [row["prompt_tokens"] for row in ran.rows] == [1, 3, 5]


def test_the_same_sampling_seed_gives_the_same_text(baton: Run, folder: Path) -> None:
    def drawn(seed: int) -> str:
        return baton(
            "generate", folder, "--temperature", 1, "--sampling-seed", seed, "--max-tokens", 8, "--json", "-p", "Hi"
        ).out

    assert drawn(3) == drawn(3) != drawn(4)


def test_stats_come_on_stderr(baton: Run, folder: Path) -> None:
    ran = baton("generate", folder, "--no-chat", "--stats", "--max-tokens", 1, "--json", "-p", "abc", "-p", "abcd")
    assert len(ran.rows) == 2
    assert json.loads(ran.err)["token_slots"]["useful"] == 7


def test_info_says_what_fits(baton: Run, folder: Path) -> None:
    ran = baton("info", folder, "--json")
    assert (ran.status, ran.err) == (0, "")
    facts = json.loads(ran.out)
    model = AutoModelForCausalLM.from_pretrained(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (facts["parameters"], facts["weight_bytes"]) == (parameters, parameters * 4)
    head = model.lm_head.weight.numel()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)) - head
    rest = 4 * (parameters - linear - head)
    assert facts["weight_bytes_int8"] == int(rest + 8.5 / 8 * (linear + head))
    assert facts["weight_bytes_int4"] == int(rest + 4.5 / 8 * linear + 8.5 / 8 * head)
    # Two layers, one head, 16 numbers for keys and 16 for values.
    assert facts["kv_bytes_per_token"] == 2 * 32 * 4
    assert (facts["context_tokens"], facts["batched"], facts["why_not"]) == (CONTEXT, True, None)
    assert facts["kv_bytes_of_a_full_row"] >= CONTEXT * 2 * 32 * 4
    assert facts["full_rows_that_fit"] > 1
    assert (facts["device"], facts["steps"]) == ("cpu", "one native call each")
    assert "finds no MPS device" in baton("info", folder, "--device", "mps").err
    half = json.loads(baton("info", folder, "--json", "--dtype", "bfloat16").out)
    assert (half["kv_bytes_per_token"], half["weight_bytes"]) == (2 * 32 * 2, parameters * 2)


def test_info_is_a_table_for_people(baton: Run, folder: Path) -> None:
    ran = baton("info", folder)
    assert ran.status == 0
    assert f"{VOCABULARY}" in ran.out
    assert "kv bytes per token" in ran.out


@pytest.mark.parametrize("verb", ["serve", "generate", "info"])
def test_each_verb_has_help_with_an_example(verb: str, baton: Run) -> None:
    ran = baton(verb, "--help")
    assert ran.status == 0
    assert f"Example:  baton {verb}" in ran.out
    assert "MODEL" in ran.out


@pytest.mark.parametrize(("flags", "kept"), [([], True), (["--no-prefix-cache"], False), (["--prefix-cache"], True)])
def test_what_is_on_by_itself_can_be_turned_off(
    flags: list[str], kept: bool, baton: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("baton.cli.generate.run_generate", lambda config, *_, **__: asked.append(config.prefix_cache))
    assert baton("generate", "-p", "Hi", *flags).status == 0
    assert asked == [kept]


def test_the_version_is_the_packages(baton: Run) -> None:
    from baton import __version__

    assert baton("--version").out.strip().endswith(__version__)


def test_the_command_answers_and_refuses_without_importing_torch() -> None:
    """In a process of its own, as a user starts it: help and bad settings need not wait for torch."""
    script = (
        "import sys\n"
        "from baton.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    assert not {'torch', 'transformers'} & set(sys.modules), 'slow imports'\n"
    )

    def runs(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    helped = runs("generate", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    refused = runs("generate", "--port", "80", "-p", "Hi")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1


def test_one_compute_thread_is_what_these_tests_run_on() -> None:
    """The commands set the number of threads for the whole process; the next tests must not pay for it."""
    assert torch.get_num_threads() == 1
