"""Chat templates: as transformers renders them, and stopped where they take too long or write too much."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from baton.errors import InvalidValue, Unsupported
from baton.limits import LimitExceeded, Limits
from baton.model.tokenizer import ModelTokenizer
from bytewise import SIZE, backend, tokens_of

TOOLS_TEMPLATE = (Path(__file__).parent.parent / "tools.jinja").read_text()
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": 'Hi <b> "x" é🎉'},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": [1, "ü"]}}}],
    },
    {"role": "tool", "content": "warm", "tool_call_id": "c"},
    {"role": "user", "content": " again "},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]

SAME = [
    TOOLS_TEMPLATE,
    "{% for m in messages %}\n  {{ m.role }}: {{ m.content }}\n{% endfor %}\n{{ eos_token }}",
    (
        "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}"
        "{{ loop.previtem }}{% endfor %}"
    ),
    (
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
        "{{ m.role ~ ':' ~ (m.content or '') }}{% break %}{% endfor %}"
    ),
    (
        "{% macro say(m, n=2) %}{{ m.role * n }}{{ caller() if caller }}{% endmacro %}{{ say(messages[0]) }}"
        "{% call say(messages[1]) %}!{% endcall %}"
    ),
    (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n ** 2 }} {{ '%s!' % ns.n }}"
    ),
    (
        "{% set x %}a{% for i in range(3) %}{{ i }}{% endfor %}{% endset %}{{ x }}{{ [1] + [2] }}"
        "{{ messages | tojson(indent=2) }}"
    ),
    "{% for m in messages %}{% generation %}{{ m.content | trim }}{% endgeneration %}{% else %}none{% endfor %}",
    (
        "{{ messages[1:] | map(attribute='role') | join(',') }}{{ dict(a=1) }}{{ tools is none }}"
        "{{ documents is defined }}"
    ),
    "{% for m in messages recursive %}{{ m if m is string else loop([m.role]) }}{% endfor %}",
    "{% filter upper %}{% for m in messages %}{{ m.role }}{% endfor %}{% endfilter %}{{ add_generation_prompt }}",
]


def tokenizer_of(template: Any, **limits: Any) -> tuple[Any, ModelTokenizer]:
    stock: Any = PreTrainedTokenizerFast(
        tokenizer_object=backend(), bos_token="<s>", eos_token="</s>", chat_template=template
    )
    return stock, ModelTokenizer(stock, SIZE, Limits(**limits))


@pytest.mark.parametrize("tools", [[], TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("template", SAME)
def test_as_transformers_renders_it(template: str, tools: list[Any]) -> None:
    stock, mine = tokenizer_of(template)
    given = {"add_generation_prompt": True, "tools": tools or None}
    expected = stock.apply_chat_template(MESSAGES, tokenize=True, return_dict=False, **given)
    if tools and "tools" not in template:
        with pytest.raises(Unsupported, match="tools"):
            mine.chat(MESSAGES, tools)
        return
    assert mine.chat(MESSAGES, tools) == expected
    assert len(expected) > 3


ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "{% for m in [1, 1] recursive %}{% if loop.depth < 90 %}{{ loop([1, 1]) }}{% endif %}{% endfor %}",
    (
        "{% macro f() %}{{ caller() }}{% endmacro %}{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% call f() %}{% endcall %}{% endfor %}{% endfor %}"
    ),
]


@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_that_does_not_end_is_stopped(template: str) -> None:
    _, mine = tokenizer_of(template, template_timeout=0.05)
    with pytest.raises(LimitExceeded, match=r"0\.05 s.*--template-timeout") as stopped:
        mine.chat(MESSAGES)
    assert (stopped.value.status, stopped.value.param) == (400, "messages")


HUGE = [
    "{% for a in range(99999) %}{{ messages[0].content * 10 }}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{{ 'a' * 10000000000 }}",
    "{{ [1] * 10000000000 }}",
    "{{ 10000000000 * 'a' }}",
    "{{ '%9999999999d' % 1 }}",
]


@pytest.mark.parametrize("template", HUGE)
def test_a_template_that_writes_too_much_is_stopped(template: str) -> None:
    _, mine = tokenizer_of(template, max_template_bytes=2**16)
    with pytest.raises(LimitExceeded, match=r"65536.*--max-template-bytes"):
        mine.chat(MESSAGES)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ 9 ** (9 ** 9) }}", "bits"),
        ("{% set ns = namespace(x=9) %}{% for a in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}", "bits"),
        ("{{ '%*d' % (9, 1) }}", "width"),
        ("{{ __baton_look() }}", "business"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "refused"),
        ("{% include '/etc/passwd' %}", "refused"),
    ],
)
def test_what_a_template_may_not_do_is_an_error_of_the_request(template: str, why: str) -> None:
    _, mine = tokenizer_of(template)
    with pytest.raises(InvalidValue, match=why):
        mine.chat(MESSAGES)


async def test_others_are_served_while_a_template_goes_on() -> None:
    """Neither the event loop nor the tokenizer waits for it."""
    _, mine = tokenizer_of(ENDLESS[0], template_timeout=0.3)
    chat, turns, began = asyncio.create_task(asyncio.to_thread(mine.chat, MESSAGES)), 0, time.monotonic()
    while not chat.done():
        assert await asyncio.to_thread(mine.encode, "abc") == tokens_of("abc")
        turns += 1
    with pytest.raises(LimitExceeded):
        await chat
    assert turns > 3 and time.monotonic() - began > 0.25


def test_models_with_several_templates_have_one_for_tools(tmp_path: Path) -> None:
    stock, _ = tokenizer_of({"default": "{{ messages }}", "tool_use": "{{ tools }} x"})
    stock.save_pretrained(tmp_path)
    mine = ModelTokenizer(AutoTokenizer.from_pretrained(tmp_path), SIZE)
    assert mine.chat_template(tools=False) == "{{ messages }}"
    assert mine.chat_template(tools=True) == "{{ tools }} x"
    assert mine.decode(mine.chat(MESSAGES, TOOLS))[-1] == "x"
