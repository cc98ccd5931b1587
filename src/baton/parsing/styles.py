"""How models write tool calls, and which style a model has, from its chat template and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from baton.parsing import harmony
from baton.parsing.calls import ParserOf
from baton.parsing.gemma_calls import FunctionGemma, Gemma
from baton.parsing.json_calls import Bare, Command, Granite, Phi, Tagged
from baton.parsing.markup_calls import Glm, Markup, MiniMax, Seed
from baton.parsing.named_calls import DeepSeek, Kimi, Mistral
from baton.parsing.python_calls import Olmo, Pythonic


@dataclass(frozen=True, slots=True)
class Style:
    """`parser` reads the calls. `tags`: what it must see in the text, even if a tag is a special token.

    A grammar that forces calls is made from `frame` (see `grammar/framed.py`), or from `opening`, `closing` and
    `arguments`: the tags around a call, which is a JSON object, and the name of its arguments. `closing` is "" if
    nothing closes it; then it may stand without the opening tag at the beginning of an answer. With neither, calls
    cannot be forced.
    """

    name: str
    parser: ParserOf
    tags: tuple[str, ...]
    frame: Mapping[str, Any] | None = None
    opening: str = ""
    closing: str = ""
    arguments: str = ""

    @property
    def forcible(self) -> bool:
        return bool(self.frame or self.opening)


def _frame(mode: str, opening: str, before: str, after: str, **more: Any) -> Mapping[str, Any]:
    known = {"mode": mode, "opening": opening, "before": before, "after": after, "begin": "", "end": "", "between": ""}
    return {**known, **more}


def _list(opening: str, end: str, name: str = "name", arguments: str = "arguments") -> Mapping[str, Any]:
    """A list of objects after a tag."""
    keys = {"name": name, "arguments": arguments}
    return _frame("object", opening, "", "", begin=f"{opening}[", end=f"]{end}", between=", ", **keys)


_CALLS, _CALL = DeepSeek.sections, (DeepSeek.opening, DeepSeek.closing)
_SECTION = {"begin": _CALLS[0], "end": _CALLS[1]}

HERMES = Style("hermes", Tagged, (Tagged.opening, Tagged.closing), None, Tagged.opening, Tagged.closing, "arguments")
LLAMA = Style("llama", Bare, (Bare.opening,), None, Bare.opening, "", "parameters")
QWEN = Style(
    "qwen3_coder",
    Markup,
    (Markup.opening, Markup.closing),
    _frame(
        "markup",
        Markup.opening,
        "<tool_call>\n<function={name}>\n",
        "</function>\n</tool_call>",
        argument=("<parameter={key}>\n", "\n</parameter>\n"),
        between="\n",
    ),
)
SEED = Style(
    "seed_oss",
    Seed,
    (Seed.opening, Seed.closing),
    _frame(
        "markup",
        Seed.opening,
        "<seed:tool_call>\n<function={name}>\n",
        "</function>\n</seed:tool_call>",
        argument=("<parameter={key}>", "</parameter>\n"),
        between="\n",
    ),
)
MINIMAX = Style(
    "minimax_m2",
    MiniMax,
    (MiniMax.opening, MiniMax.closing),
    _frame(
        "markup",
        MiniMax.opening,
        '<invoke name="{name}">\n',
        "</invoke>\n",
        argument=('<parameter name="{key}">', "</parameter>\n"),
        begin="<minimax:tool_call>\n",
        end="</minimax:tool_call>",
    ),
)
GLM = Style(
    "glm45",
    Glm,
    (Glm.opening, Glm.closing, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    _frame(
        "markup",
        Glm.opening,
        "<tool_call>{name}\n",
        "</tool_call>",
        argument=("<arg_key>{key}</arg_key>\n<arg_value>", "</arg_value>\n"),
        between="\n",
    ),
)
DEEPSEEK = Style(
    "deepseek_v31",
    DeepSeek,
    (*_CALLS, *_CALL, DeepSeek.separator),
    _frame("arguments", _CALLS[0], f"{_CALL[0]}{{name}}{DeepSeek.separator}", _CALL[1], **_SECTION),
)
DEEPSEEK_CODE = Style(
    "deepseek_v3",
    DeepSeek,
    DEEPSEEK.tags,
    _frame(
        "arguments",
        _CALLS[0],
        f"{_CALL[0]}function{DeepSeek.separator}{{name}}\n```json\n",
        f"\n```{_CALL[1]}",
        between="\n",
        **_SECTION,
    ),
)
KIMI = Style(
    "kimi_k2",
    Kimi,
    (*Kimi.sections, Kimi.opening, Kimi.closing, "<|tool_call_argument_begin|>"),
    _frame(
        "arguments",
        Kimi.sections[0],
        f"{Kimi.opening}functions.{{name}}:{{index}}<|tool_call_argument_begin|>",
        Kimi.closing,
        begin=Kimi.sections[0],
        end=Kimi.sections[1],
    ),
)
_MISTRAL_TAGS = (Mistral.opening, "[ARGS]", "[CALL_ID]")
MISTRAL = Style("mistral", Mistral, _MISTRAL_TAGS, _list(Mistral.opening, ""))
MISTRAL_ARGS = Style(
    "mistral_v11",
    Mistral,
    _MISTRAL_TAGS,
    _frame("arguments", Mistral.opening, "[TOOL_CALLS]{name}[ARGS]", ""),
)
GRANITE = Style("granite", Granite, (Granite.opening,), _list(Granite.opening, ""))
PHI = Style("phi4_mini", Phi, (Phi.opening, Phi.closing), _list(Phi.opening, Phi.closing))
COMMAND = Style(
    "command_a",
    Command,
    (Command.opening, Command.closing),
    _list(Command.opening, Command.closing, "tool_name", "parameters"),
)
LFM2 = Style("lfm2", Pythonic, (Pythonic.opening, Pythonic.closing))
OLMO = Style("olmo3", Olmo, (Olmo.opening, Olmo.closing))
GEMMA = Style("gemma4", Gemma, (Gemma.opening, Gemma.closing, Gemma.quote))
FUNCTION_GEMMA = Style(
    "functiongemma", FunctionGemma, (FunctionGemma.opening, FunctionGemma.closing, FunctionGemma.quote)
)
HARMONY = Style(
    "harmony",
    harmony.Harmony,
    harmony.TAGS,
    _frame(
        "arguments",
        "",
        "<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>",
        "",
        # A call ends the answer.
        several=False,
    ),
)

# Styles by what a chat template or the tokenizer's response template contains, in this order.
_KNOWN: tuple[tuple[tuple[str, ...], Style], ...] = (
    ((harmony.CHANNEL, harmony.MESSAGE), HARMONY),
    ((DeepSeek.opening, "```json"), DEEPSEEK_CODE),
    ((DeepSeek.opening,), DEEPSEEK),
    ((Kimi.opening,), KIMI),
    ((Mistral.opening, "[ARGS]"), MISTRAL_ARGS),
    ((Mistral.opening,), MISTRAL),
    ((MiniMax.opening,), MINIMAX),
    ((Seed.opening,), SEED),
    ((Glm.opening, "<arg_key>"), GLM),
    ((Markup.opening, "<function="), QWEN),
    (("<function=", "<parameter="), QWEN),
    ((Tagged.opening,), HERMES),
    ((FunctionGemma.opening,), FUNCTION_GEMMA),
    ((Pythonic.opening,), LFM2),
    ((Olmo.opening,), OLMO),
    ((Command.opening,), COMMAND),
    ((Phi.opening, Phi.closing), PHI),
    ((Granite.opening,), GRANITE),
    ((Gemma.opening,), GEMMA),
    (("<|tool|>", "<|/tool|>"), PHI),
    ((Bare.opening,), LLAMA),
    (('"parameters": ',), LLAMA),
)
STYLES = {style.name: style for _, style in _KNOWN}


def style_of(template: str, declared: Mapping[str, object] | None = None) -> Style | None:
    """How a model writes calls, from its chat template; None for an unknown style.

    `declared`: the tokenizer's response template, which says it explicitly if there is one.
    """
    fields = (declared or {}).get("fields")
    said = fields.get("tool_calls") if isinstance(fields, Mapping) else None
    if said is not None:
        # A pattern's backslashes are not part of the tag.
        return _style_with_tags(json.dumps(said, ensure_ascii=False).replace("\\", ""), strict=True)
    return _style_with_tags(template)


def _style_with_tags(text: str, *, strict: bool = False) -> Style | None:
    known = _KNOWN[:-1] if strict else _KNOWN
    return next((style for tags, style in known if all(tag in text for tag in tags)), None)
