"""Messages as a template takes them: words as texts or in parts, arguments as mappings or texts, null as none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from baton.core.errors import InvalidValue
from baton.model.tokenizer import ModelTokenizer
from baton.server.schema import ChatRequest
from bytewise import SIZE, backend

PARTS = [
    # As Llama Guard 3 and LLaVA have them.
    "{% for m in messages %}<{{ m.role }}>{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endfor %}",
    "{% for m in messages %}<{{ m['role'] }}>{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}"
    "{% endfor %}{% endfor %}",
    "{% for m in messages %}<{{ m.role }}>{% set content = m.content %}{% for c in content %}"
    "{{ c.text if c.type == 'text' }}{% endfor %}{% endfor %}",
    "{% macro say(m) %}{% for c in m.get('content') %}{{ c.get('text') }}{% endfor %}{% endmacro %}"
    "{% for m in messages %}<{{ m.role }}>{{ say(m) }}{% endfor %}",
    "{% for m in messages %}<{{ m.role }}>{{ m.content | selectattr('type', 'equalto', 'text') "
    "| map(attribute='text') | join }}{% endfor %}",
    # Which of the two it is, is asked.
    "{% for m in messages %}<{{ m.role }}>{% if m.content is not string %}{% for c in m.content %}{{ c.text }}"
    "{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "{% for m in messages %}<{{ m.role }}>{{ m.content[0]['text'] ~ (m.content[1].text if m.content | length > 1) }}"
    "{% endfor %}",
]
WITH_SYSTEM_AS_TEXT = (
    "{% if messages[0].role == 'system' %}<system>{{ messages[0].content + '' }}{% endif %}"
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{% for c in m.content %}{{ c.text }}{% endfor %}"
    "{% endfor %}"
)
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "user"},
    {"role": "user", "content": "type text " * 5},
]
SAID = "<system>S<user>Hi<assistant>user<user>" + "type text " * 5


def of(template: Any) -> tuple[Any, ModelTokenizer]:
    stock: Any = PreTrainedTokenizerFast(
        tokenizer_object=backend(), bos_token="<s>", eos_token="</s>", chat_template=template
    )
    return stock, ModelTokenizer(stock, SIZE)


def prompt(template: Any, messages: list[dict[str, Any]], *, http: bool = True) -> str:
    """As a request, or as a call in Python."""
    stock, mine = of(template)
    turns = ChatRequest.read({"messages": messages}).turns() if http else messages
    return str(stock.decode(mine.chat(turns)))


def parted(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


@pytest.mark.parametrize("http", [True, False], ids=["http", "python"])
@pytest.mark.parametrize("sent", [TALK, parted(TALK)], ids=["texts", "parts"])
@pytest.mark.parametrize("template", [*PARTS, WITH_SYSTEM_AS_TEXT])
def test_words_are_in_the_prompt_whether_a_template_takes_texts_or_parts(
    template: str, sent: list[dict[str, Any]], http: bool
) -> None:
    assert prompt(template, sent, http=http) == SAID


@pytest.mark.parametrize("template", PARTS)
def test_several_parts_are_handed_as_they_were_sent(template: str) -> None:
    several = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    stock, _ = of(template)
    text = "one\ntwo" if "is not string" in template else "onetwo"
    assert prompt(template, several) == f"<user>{text}"
    if text == "onetwo":
        assert stock.apply_chat_template(several, tokenize=False) == "<user>onetwo"


def test_a_template_of_texts_is_handed_the_parts_joined() -> None:
    several = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    plain = "{% for m in messages %}{{ m.content | trim }}{% endfor %}"
    assert prompt(plain, several) == prompt(plain, several, http=False) == "one\ntwo"


def test_of_what_a_template_leaves_out_on_purpose_the_rest_is_as_it_writes_it() -> None:
    last = "{% for m in messages %}{% if loop.last %}{{ m.content }}{{ 'type' ~ 'text' }}{% endif %}{% endfor %}"
    assert prompt(last, TALK) == TALK[-1]["content"] + "typetext"
    shout = "{% for m in messages %}{{ m.content | upper }}{{ m.text }}{% endfor %}"
    assert prompt(shout, TALK) == "SHIUSER" + TALK[-1]["content"].upper()
    head = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    assert prompt(head, [{"role": "user", "content": "a</think>b"}]) == "b"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<{{ m.role }}>{% for c in m.content %}{{ c.words }}{% endfor %}{% endfor %}",
        "{% for m in messages %}<{{ m.role }}>{% for c in m.content %}{{ c.words if c.text }}{% endfor %}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'human' %}{{ m.content }}{% endif %}{% endfor %}",
    ],
)
def test_a_prompt_without_a_word_of_the_conversation_is_refused(template: str) -> None:
    with pytest.raises(InvalidValue, match="leaves out"):
        prompt(template, TALK)


# As DeepSeek V3 and R1 have them: arguments are joined as a text, and null content is asked for.
JOINING = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and m['content'] is none %}{% for c in m['tool_calls'] %}"
    "{{ '<call>' + c['function']['name'] + '\n' + c['function']['arguments'] + '\n' }}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' and m['content'] is not none %}{{ '<a>' + m['content'] }}{% endif %}"
    "{% if m['role'] in ('user', 'tool') %}{{ '<' + m['role'] + '>' + m['content'] }}{% endif %}{% endfor %}"
)
WRITING = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}<%s>{% endfor %}{% endfor %}"
SENT = '{"a":[1,"ü"], "b": null}'
CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": SENT}}
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": None, "tool_calls": [CALLED]},
    {"role": "tool", "tool_call_id": "c1", "content": "x"},
]


@pytest.mark.parametrize("http", [True, False], ids=["http", "python"])
@pytest.mark.parametrize("absent", [True, False])
def test_arguments_are_joined_as_the_text_that_was_sent_and_null_is_none(http: bool, absent: bool) -> None:
    history = [dict(message) for message in HISTORY]
    if absent:
        del history[1]["content"]
    assert prompt(JOINING, history, http=http) == f"<user>q<call>f\n{SENT}\n<tool>x"


CANONICAL = json.dumps(json.loads(SENT), ensure_ascii=False)


@pytest.mark.parametrize("http", [True, False], ids=["http", "python"])
@pytest.mark.parametrize(
    ("written", "right"),
    [
        ("{{ c.function.arguments | tojson }}", CANONICAL),
        ("{{ c.function | tojson }}", f'{{"name": "f", "arguments": {CANONICAL}}}'),
        ("{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}", "a=[1, 'ü'];b=None;"),
        ("{% for k, v in c.function.arguments | items %}{{ k }};{% endfor %}", "a;b;"),
        ("{% for k in c.function.arguments %}{{ k }};{% endfor %}", "a;b;"),
        ("{{ c.function.arguments['a'][0] }}{{ c.function.arguments.a[1] }}", "1ü"),
        ("{{ c.function.arguments is mapping }}{{ c.function.arguments is string }}", "TrueFalse"),
        ("{% set a = c.function.arguments %}{{ a if a is string else a | tojson }}", CANONICAL),
        # Never as Python writes a mapping.
        ("{{ c.function.arguments }}", SENT),
        ("{{ 'a' ~ c.function.arguments }}", "a" + SENT),
        ("{{ 'a' + c.function.arguments + 'b' }}", "a" + SENT + "b"),
        ("{{ '%s' % c.function.arguments }}", SENT),
        ("{{ '{}'.format(c.function.arguments) }}", SENT),
        ("{{ c.function.arguments | string | trim }}", SENT),
        ("{{ [c.function.arguments] | join }}", SENT),
    ],
)  # fmt: skip
def test_arguments_are_a_mapping_and_a_text(written: str, right: str, http: bool) -> None:
    assert prompt(WRITING.replace("%s", written, 1), HISTORY, http=http) == f"q<{right}>x"


def test_arguments_given_as_a_mapping_are_joined_as_json() -> None:
    history = [dict(message) for message in HISTORY]
    function = {"name": "f", "arguments": {"a": "ü", "b": None}}
    history[1] = {**history[1], "tool_calls": [{**CALLED, "function": function}]}
    assert prompt(JOINING, history, http=False) == '<user>q<call>f\n{"a": "ü", "b": null}\n<tool>x'


@pytest.mark.parametrize(
    ("asked", "right"),
    [
        ("m.content is none", "False|True|False|"),
        ("m.content == none", "False|True|False|"),
        ("m['content'] is not none", "True|False|True|"),
        ("m.content is defined", "True|False|True|"),
        ("'content' in m", "True|False|True|"),
        ("m.content is string", "True|False|True|"),
        ("m.get('content') is none", "False|True|False|"),
        ("m.content or ''", "q||x|"),
        ("m.content | default('d')", "q|d|x|"),
        ("m.name is none", "False|False|False|"),
        ("m.content", "q||x|"),
    ],
)
def test_null_is_missing_and_none(asked: str, right: str) -> None:
    template = (
        "{% for m in messages %}{{ " + asked + " }}|{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    assert prompt(template, HISTORY) == right + "qx"


def test_a_template_that_fails_with_both_fails_as_it_does_with_texts() -> None:
    with pytest.raises(InvalidValue, match="roles must alternate"):
        prompt(
            "{% for m in messages %}{{ m.content.text }}{{ raise_exception('roles must alternate') }}{% endfor %}", TALK
        )
