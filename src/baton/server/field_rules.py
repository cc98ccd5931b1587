"""The one table of fields that no route honours: which are taken without effect, and which values of others are.

The rule: a field that could change the answer is honoured or refused by name, and any other is taken. The fields of the
request models are honoured. A null is as if the field were not there. `docs/server.md` has this table as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Rule:
    """What is done with a field. `values`: the values that are taken, None for any. `instead`: what a refusal adds."""

    values: tuple[object, ...] | None = None
    instead: str = ""

    @property
    def taken(self) -> bool:
        """Whether any value besides null is taken."""
        return self.values != ()

    def takes(self, value: object) -> bool:
        return self.values is None or any(type(value) is type(one) and value == one for one in self.values)


Rules = Mapping[str, Rule]


def _any(*names: str) -> dict[str, Rule]:
    return dict.fromkeys(names, Rule())


def _only(*values: object, instead: str = "") -> Rule:
    return Rule(values, instead)


_OF_CLIENTS = _any(
    "metadata",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "request_id",
    "rid",
    "safety_identifier",
    "service_tier",
    "session_id",
    "store",
    "verbosity",
)
_OF_OPENAI: Rules = {
    "audio": _only(),
    "function_call": _only("none", "auto", instead="send tool_choice"),
    "functions": _only([], instead="send tools"),
    "modalities": _only(["text"]),
    "moderation": _only(),
    "reasoning_effort": _only("none"),
    "suffix": _only(""),
    "tool_choice": _only("none", "auto"),
    "tools": _only([]),
    "top_logprobs": _only(0),
    "web_search_options": _only(),
}
_OF_OTHER_SERVERS: Rules = {
    "add_generation_prompt": _only(True),
    "add_special_tokens": _only(False),
    "allowed_token_ids": _only(),
    "bad_words": _only([]),
    "chat_template": _only(instead="start the server with the template"),
    "chat_template_kwargs": _only({}),
    "continue_final_message": _only(False),
    "documents": _only([]),
    "ebnf": _only(instead="send structured_outputs"),
    "echo": _only(False),
    "guided_choice": _only(instead="send structured_outputs"),
    "guided_grammar": _only(instead="send structured_outputs"),
    "guided_json": _only(instead="send structured_outputs"),
    "guided_regex": _only(instead="send structured_outputs"),
    "include_reasoning": _only(True),
    "include_stop_str_in_output": _only(False),
    "length_penalty": _only(1.0, 1),
    "logits_processors": _only([]),
    "lora_path": _only(),
    "no_stop_trim": _only(False),
    "prompt_logprobs": _only(),
    "regex": _only(instead="send structured_outputs"),
    "return_cached_tokens_details": _only(False),
    "return_hidden_states": _only(False),
    "return_prompt_text": _only(False),
    "return_routed_experts": _only(False),
    "return_token_ids": _only(False),
    "return_token_offsets": _only(False),
    "return_tokens_as_token_ids": _only(False),
    "separate_reasoning": _only(True),
    "skip_special_tokens": _only(True),
    "spaces_between_special_tokens": _only(True),
    "stop_regex": _only(),
    "stream_reasoning": _only(True),
    "thinking_token_budget": _only(),
    "truncate_prompt_tokens": _only(instead="shorten the prompt"),
    "use_audio_in_video": _only(False),
    "use_beam_search": _only(False),
}

REQUEST: Rules = {**_OF_CLIENTS, **_OF_OPENAI, **_OF_OTHER_SERVERS}
MESSAGE: Rules = {
    **_any("annotations", "cache_control", "id", "name", "parsed", "provider_specific_fields", "refusal", "timestamp"),
    **_any("reasoning_details"),
    "audio": _only(),
    "function_call": _only(instead="send tool_calls"),
}
PART: Rules = _any("annotations", "cache_control", "id", "provider_specific_fields")
TOOL_CALL: Rules = _any("cache_control", "index", "provider_specific_fields")
CALLED: Rules = _any("parsed_arguments")
TOOL: Rules = _any("cache_control", "provider_specific_fields")
STREAM: Rules = _any("include_obfuscation")
# A stream of Responses ends with the usage in any case.
RESPONSES_STREAM: Rules = _any("include_obfuscation", "include_usage")


_STATE = "nothing is stored here, send the whole conversation"
RESPONSES: Rules = {
    **_any("access_programs", "client_metadata", "max_tool_calls", "metadata", "prompt_cache_key"),
    **_any("prompt_cache_options", "prompt_cache_retention", "safety_identifier", "service_tier", "store"),
    "background": _only(False),
    "context_management": _only([]),
    "conversation": _only(instead=_STATE),
    "image": _only(),
    "moderation": _only(),
    "previous_response_id": _only(instead=_STATE),
    "prompt": _only(instead=_STATE),
    "truncation": _only("disabled"),
}
ITEM: Rules = _any("caller", "encrypted_content", "id", "phase", "status")
ITEM_PART: Rules = _any("annotations", "cache_control", "logprobs", "prompt_cache_breakpoint")
RESPONSES_TOOL: Rules = {**_any("allowed_callers", "cache_control", "output_schema"), "defer_loading": _only(False)}

MESSAGES: Rules = {
    **_any("betas", "cache_control", "diagnostics", "inference_geo", "service_tier", "speed", "user_profile_id"),
    **_any("workspace_id"),
    "container": _only(instead="tools run at the client's"),
    "context_management": _only({}),
    "mcp_servers": _only([]),
}
BLOCK: Rules = {
    **_any("cache_control", "caller", "is_error", "signature", "toolset_name"),
    "citations": _only(instead="leave them out"),
}
MESSAGES_TOOL: Rules = {
    **_any("allowed_callers", "cache_control", "eager_input_streaming", "input_examples"),
    "defer_loading": _only(False),
}

TABLES: Mapping[str, Mapping[str, Rules]] = {
    "chats and completions": {
        "": REQUEST,
        "messages": MESSAGE,
        "messages.content": PART,
        "messages.tool_calls": TOOL_CALL,
        "messages.tool_calls.function": CALLED,
        "tools": TOOL,
        "tools.function": TOOL,
        "stream_options": STREAM,
    },
    "responses": {
        "": RESPONSES,
        "input": ITEM,
        "input.content": ITEM_PART,
        "tools": RESPONSES_TOOL,
        "reasoning": _any("context", "generate_summary", "summary"),
        "stream_options": RESPONSES_STREAM,
        "text": _any("verbosity"),
    },
    "messages": {
        "": MESSAGES,
        "messages": _any("cache_control", "id"),
        "messages.content": BLOCK,
        "system": BLOCK,
        "tools": MESSAGES_TOOL,
        "thinking": _any("budget_tokens", "display"),
    },
}
"""By the form of a request and the path of an object in it."""


@dataclass(frozen=True, slots=True)
class Place:
    """An object of a request: which fields are honoured in it, and the objects in its fields.

    `path`: its field's name, as in x-baton-ignored. `honoured`: None leaves unknown fields to the reader of the object.
    `only_for`: a field that is honoured only in objects of this role. `kinds`: instead of all that, a `Place` for each
    type of object; the first is for objects without a type, and other types are refused.
    """

    path: str = ""
    honoured: frozenset[str] | None = None
    rules: Rules = field(default_factory=dict)
    inner: Mapping[str, Place] = field(default_factory=dict)
    only_for: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, Place] = field(default_factory=dict)


def name_in_report(path: str, name: str) -> str:
    """A field's name as x-baton-ignored and the metrics write it."""
    return f"{path}.{name}" if path else name


REPORTED: tuple[str, ...] = tuple(
    sorted(
        {
            name_in_report(path, name)
            for table in TABLES.values()
            for path, rules in table.items()
            for name, rule in rules.items()
            if rule.taken
        }
    )
)
"""All names that may be reported: no other text of a client gets there."""
