"""What a conversation's prompt depends on besides its messages and tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from baton.core.errors import InvalidValue, SettingError, Unsupported

# Variables that templates get in other ways.
_TAKEN = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"}
)
# Variables that turn reasoning on and off: of Qwen and GLM, of DeepSeek, of Granite.
_SWITCHES = ("enable_thinking", "thinking")
EFFORT = "reasoning_effort"
NO_EFFORT = "none"


@dataclass(frozen=True, slots=True)
class TemplateOptions:
    """`variables`: further variables of the chat template, such as `enable_thinking`; over the server's own.

    `generation_prompt`: the prompt ends where the assistant's turn begins. `continue_final`: it ends in the last
    message, which the model continues; then there is no generation prompt. `documents`: for templates that quote them.
    """

    variables: Mapping[str, Any] = field(default_factory=dict)
    generation_prompt: bool = True
    continue_final: bool = False
    documents: Sequence[Mapping[str, Any]] = ()


NO_TEMPLATE_OPTIONS = TemplateOptions()


def check_variables(variables: Mapping[str, Any], known: frozenset[str], param: str) -> None:
    """Raises InvalidValue or Unsupported for variables that a chat template, which reads `known`, must not get."""
    for name in variables:
        where = f"{param}.{name[:64]}"
        if name in _TAKEN or name.startswith("__") or name.endswith("_token"):
            raise InvalidValue(f"{where} cannot be set there", param=where)
        if name not in known:
            raise Unsupported(f"{where} is not honoured: this model's chat template does not know it", param=where)


def with_effort(
    variables: Mapping[str, Any], effort: str | None, known: frozenset[str], *, reasons: bool
) -> Mapping[str, Any]:
    """Returns the variables with a request's `reasoning_effort` as the template takes it; a value of its own wins.

    `reasons`: whether the model is known to reason. Raises Unsupported if the effort cannot be honoured.
    """
    if effort is None or EFFORT in variables:
        return variables
    if EFFORT in known:
        return {**variables, EFFORT: effort}
    switches = [name for name in _SWITCHES if name in known]
    if switches:
        return {**dict.fromkeys(switches, effort != NO_EFFORT), **variables}
    if effort == NO_EFFORT and not reasons:
        return variables
    message = f"{EFFORT} {effort} is not honoured: this model's chat template has no switch for it"
    raise Unsupported(message, param=EFFORT)


def has_switch(known: frozenset[str]) -> bool:
    """Whether a chat template with these variables can switch reasoning."""
    return EFFORT in known or any(name in known for name in _SWITCHES)


def parse_variables(text: str) -> dict[str, Any]:
    """The variables of `--chat-template-kwargs`. Raises SettingError."""
    try:
        variables = json.loads(text)
    except (ValueError, RecursionError):
        variables = None
    if not isinstance(variables, dict):
        message = f'--chat-template-kwargs {text[:100]}: must be a JSON object like {{"enable_thinking": false}}'
        raise SettingError(message, param="chat_template_kwargs")
    return variables
