"""Chat templates: rendered as in transformers, and stopped if they take too long or write too much."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from baton.core.errors import InvalidValue, SettingError, Unsupported
from baton.core.limits import LimitExceeded, Limits
from baton.core.template_options import TemplateOptions
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


THINKING = (
    "{% set on = enable_thinking if enable_thinking is defined else true %}{% for m in messages %}"
    "<{{ m.role }}>{% if m.reasoning_content is string %}({{ m.reasoning_content }}){% endif %}{{ m.content }}</s>"
    "{% endfor %}{% for d in documents or [] %}[{{ d.title }}]{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if not on %}<think></think>{% endif %}{% endif %}"
)
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Well, ", "reasoning": "hm"},
]


@pytest.mark.parametrize(
    ("options", "stock_options"),
    [
        (TemplateOptions(), {"add_generation_prompt": True}),
        (TemplateOptions(generation_prompt=False), {}),
        (TemplateOptions({"enable_thinking": False}), {"add_generation_prompt": True, "enable_thinking": False}),
        (TemplateOptions(documents=[{"title": "t"}]), {"add_generation_prompt": True, "documents": [{"title": "t"}]}),
        (TemplateOptions(continue_final=True), {"continue_final_message": True}),
    ],
)
def test_options_are_those_of_transformers(options: TemplateOptions, stock_options: dict[str, Any]) -> None:
    stock, mine = tokenizer_of(THINKING)
    expected = stock.apply_chat_template(TURNS, tokenize=True, return_dict=False, **stock_options)
    assert mine.chat(TURNS, (), options) == expected
    assert mine.template_variables >= {"enable_thinking", "documents", "messages", "add_generation_prompt"}


def test_what_the_operator_set_holds_unless_a_request_says_otherwise() -> None:
    stock, _ = tokenizer_of(THINKING)
    mine = ModelTokenizer(stock, SIZE, variables={"enable_thinking": False})
    assert mine.decode(mine.chat(TURNS)).endswith("<think></think>")
    assert mine.decode(mine.chat(TURNS, (), TemplateOptions({"enable_thinking": True}))).endswith("<assistant>")
    with pytest.raises(SettingError, match="magic"):
        ModelTokenizer(stock, SIZE, variables={"magic": 1})


def test_a_last_message_that_the_template_leaves_out_cannot_be_continued() -> None:
    _, mine = tokenizer_of("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}")
    with pytest.raises(InvalidValue) as caught:
        mine.chat(TURNS, (), TemplateOptions(continue_final=True))
    assert caught.value.param == "continue_final_message"


@pytest.mark.parametrize(
    "options", [TemplateOptions(documents=[{"title": "a</s>b"}]), TemplateOptions({"note": "a</s>b"})]
)
def test_special_tokens_in_documents_and_variables_are_text(options: TemplateOptions) -> None:
    template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}{% for d in documents or [] %}{{ d.title }}"
    stock, plain = tokenizer_of(template + "{% endfor %}{{ note }}")
    apart = ModelTokenizer(stock, SIZE, special_in_text=False)
    turns = [{"role": "user", "content": "Hi"}]
    ends = tokens_of("</s>")
    assert plain.chat(turns, (), options).count(*ends) == 2
    assert apart.chat(turns, (), options).count(*ends) == 1
    assert apart.decode(apart.chat(turns, (), options), skip_special_tokens=False) == "Hi</s>a</s>b"


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


A = "{% set a = 'ab' * 30000 %}"
LISTS = "{% set x = ['aa'] * 100 %}{% set x = [x] * 100 %}{% set x = [x] * 100 %}"
AT_ONCE = [
    "{{ 'a' | center(500000000) | length }}",
    "{{ 'a'.center(500000000, 'x') | length }}",
    "{{ 'a'.ljust(500000000) | length }}",
    "{{ 'a'['rjust'](500000000) | length }}",
    "{{ '1'.zfill(500000000) | length }}",
    "{{ ('\\t' * 10).expandtabs(50000000) | length }}",
    "{{ '{:>500000000}'.format(1) | length }}",
    "{{ '{:*^500000000}'.format(1) | length }}",
    "{{ '{:.500000000f}'.format(1.5) | length }}",
    "{{ '{0:{1}}'.format(1, 500000000) | length }}",
    "{{ '{a:500000000}'.format_map({'a': 1}) | length }}",
    "{{ ('{0}' * 10000).format('b' * 60000) | length }}",
    "{{ '%500000000d' | format(1) | length }}",
    "{{ ('%.500000000f' % 1.5) | length }}",
    "{{ ('%-#0 +500000000ld' % 1) | length }}",
    "{{ ('%(a(b))500000000d' % {'a(b)': 1}) | length }}",
    "{{ (('%(a)s' * 1000) % {'a': 'b' * 60000}) | length }}",
    "{{ ('%500000000d'.encode() % 1) | length }}",
    "{{ 'a' | indent(500000000, true) | length }}",
    "{{ 'a' | indent(width=500000000, first=true) | length }}",
    A + "{{ a.replace('a', a) | length }}",
    A + "{{ a | replace('', a) | length }}",
    "{{ 'a'" + ".replace('a', 'a' * 16)" * 8 + " | length }}",
    A + "{{ a.join(['x'] * 1000) | length }}",
    A + "{{ range(9999) | join(a) | length }}",
    A + "{{ [a, a] | join | length }}",
    A + "{{ (a ~ a ~ a) | length }}",
    A + "{{ a.translate({97: a}) | length }}",
    "{{ messages | tojson(indent=500000000) | length }}",
    A + "{{ messages | tojson(separators=(a, a)) | length }}",
    "{{ [1] | batch(500000000, 0) | list | length }}",
    "{{ [1] | slice(500000000) | list | length }}",
    "{{ (1).to_bytes(500000000, 'big') | length }}",
    "{{ 2.5 | round(100000000, 'ceil') }}",
    LISTS + "{{ x | length }}",
    "{% set x = {'a': 'b'} %}" + "{% set x = {'a': x, 'b': x} %}" * 40 + "{{ x | tojson }}",
    A + "{% set x %}{% for i in range(9999) %}{{ a }}{% endfor %}{% endset %}{{ x | length }}",
    A + "{% macro m() %}{% for i in range(9999) %}{{ a }}{% endfor %}{% endmacro %}{{ m() | length }}",
    A + "{% set ns = namespace(x=[]) %}{% for i in range(999) %}{% set ns.x = [a[i:]] %}{% endfor %}",
    A + "{% for i in range(999) %}{% set x = a | upper %}{% endfor %}",
    A + "{{ a | list | length }}",
    A + "{{ a.split('a') | length }}",
    A + "{{ (a[:30000]).rfind('c' ~ a[:30000]) }}",
    A + "{{ a.strip(a) }}",
    A + "{{ (['x'] * 1000) | map('replace', 'x', a) | list | length }}",
    A + "{{ a | wordwrap(1) | length }}",
    A + "{{ (['x'] * 1000) | map('center', 50000000) | list | length }}",
    "{{ ([[1] * 1000] * 2) | sum(start=[] | list) | length }}{{ ([[1] * 100] * 99999) | sum(start=[]) }}",
    "{{ 'a' | center(500000000) }}",
]


@pytest.mark.parametrize("template", AT_ONCE)
def test_no_single_call_of_a_template_makes_more_than_it_may(template: str) -> None:
    """It is refused before anything is allocated, and so before it holds all other threads."""
    _, mine = tokenizer_of(template, max_template_bytes=2**16)
    tracemalloc.start()
    try:
        with pytest.raises(LimitExceeded, match=r"65536.*--max-template-bytes"):
            mine.chat(MESSAGES)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**16
    finally:
        tracemalloc.stop()


def test_what_a_template_says_when_it_refuses_is_cut() -> None:
    _, mine = tokenizer_of("{{ raise_exception('x' * 4000) }}")
    with pytest.raises(InvalidValue, match=r"x{500}…$"):
        mine.chat(MESSAGES)


FORMATS = [
    ("{{ '**%s**' % messages[1].role }}", "**user**"),
    ("{{ 'Cutoff 20240630: %s' % messages[1].role }}", "Cutoff 20240630: user"),
    ("{{ '%s 99999999999' | format(messages[1].role) }}", "user 99999999999"),
    ("{{ '100000000%% of %s' % messages[1].role }}", "100000000% of user"),
    ("{{ '%%99999999d %s' % 1 }}", "%99999999d 1"),
    ("{{ '%(n)05.1f %(who)s*' % {'n': 2.25, 'who': 'x'} }}", "002.2 x*"),
    ("{{ '%-4s|%+d|%x' % ('a', 20240630, 255) }}", "a   |+20240630|ff"),
    ("{{ '* %r' % ['a'] }}", "* ['a']"),
    ("{{ '{0:*^7}|{1:,}|{0!r:>5}'.format('ab', 20240630) }}", "**ab***|20,240,630| 'ab'"),
    ("{{ '{} of 99999999999'.format(1) }}{{ '{a[b]}'.format_map({'a': {'b': 2}}) }}", "1 of 999999999992"),
    ("{{ ['a', 'b'] | join('-') }}{{ messages | join('', attribute='role') }}", "a-bsystemuserassistanttooluser"),
    ("{{ [1, 2, 3] | sum }} {{ [{'n': 2}] | sum('n', 0.5) }} {{ [[1], [2]] | sum(start=[]) }}", "6 2.5 [1, 2]"),
    ("{{ 'a\\tb'.expandtabs(4) }}{{ 'ab'.encode().decode() }}{{ 'a,b'.rsplit(',', 1) }}", "a   bab['a', 'b']"),
    ("{{ 'aXb'.replace('X', ' ' * 3, 1) | center(9) }}", "  a   b  "),
    ("{{ range(5) | batch(2, 0) | list }}{{ range(4) | slice(2) | list }}", "[[0, 1], [2, 3], [4, 0]][[0, 1], [2, 3]]"),
    ("{{ messages[1:3] | map(attribute='role') | map('upper') | list }}", "['USER', 'ASSISTANT']"),
    ("{% set ns = namespace(a=1) %}{% set ns.a = [ns.a, 2] %}{{ ns.a }}{{ dict(b=1) }}", "[1, 2]{'b': 1}"),
    ("{% for k, v in {'a': (1, 2)}.items() %}{{ k }}{{ v[0] }}{{ v[:1] }}{% endfor %}", "a1(1,)"),
    (
        "{% for m in messages[:2] %}{{ m.role.replace('s', 'z', 1) }}{{ m.role.split('s')[0] }}{{ ' a '.strip() }}"
        "{{ 'a'.center(3) }}{{ 'a\\t'.expandtabs(2) }}{{ 'a'.encode('utf-8').decode() }}{{ '{:>2}'.format(1) }}"
        "{{ 'b'.translate({98: 'c'}) }}{% macro f() %}{{ 'd'.zfill(2) }}{% endmacro %}{{ f() }}{% endfor %}",
        "zystema a a a 1c0duzerua a a a 1c0d",
    ),
    ("{{ 'x' if 'a' in ('a', messages[0].role) }}{{ 2 ** 10 // 3 - 1 }}{{ 7 / 2 }}", "x3403.5"),
]


@pytest.mark.parametrize(("template", "right"), FORMATS)
def test_what_stays_within_its_bounds_is_as_transformers_renders_it(template: str, right: str) -> None:
    stock, mine = tokenizer_of(template)
    assert mine.decode(mine.chat(MESSAGES)) == right
    assert stock.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True) == right


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ 9 ** (9 ** 9) }}", "bits"),
        ("{% set ns = namespace(x=9) %}{% for a in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}", "bits"),
        ("{{ '%*d' % (9, 1) }}", "width"),
        ("{{ __baton_check_time() }}", "business"),
        ("{{ __baton_held.__self__ }}", "business"),
        ("{{ ('f' * 2000) | int(0, 16) }}", "bits"),
        ("{% set n = 3 ** 2000 %}{{ n // 7 + n * n }}", "bits"),
        ("{{ 'é'.encode('punycode') }}", "encoding"),
        ("{{ '%(a' % {'a': 1} }}", "incomplete"),
        ("{{ lipsum(1000000) }}", "lipsum"),
        ("{{ '{0.__class__.__mro__}'.format(1) }}", "unsafe"),
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
