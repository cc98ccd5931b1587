"""A scripted model (see `make_scripted.py`) for agents whose prompts are long: it is shown whole conversations.

    python make_agents.py FOLDER

Its context has 8192 tokens, and its tokenizer is the built-in model's, so that what an agent sends fits only just.
"""

from __future__ import annotations

import sys
from pathlib import Path

from make_scripted import GREETING, Scripts, call, scripted
from transformers import AutoTokenizer

from baton import builtin

CONTEXT = 8192
SCRIPTS = {
    "<|greet|>": GREETING[4:],
    "<|get_weather|>": call("get_weather", {"city": "Rome"}),
    "<|final_answer|>": call("final_answer", {"answer": "sun in Rome"}),
    "<|code|>": ["Thought: I can ask.\n", "<code>\n", 'final_answer(get_weather("Rome") + " in Rome")\n', "</code>"],
    "<|rewrite|>": ["hello.txt\n", "```\n", "Goodbye now.\n```\n"],
    "<|edit|>": [
        *("hello.txt\n", "```\n", "<<<<<<< SEARCH\n", "Hello there.\n", "=======\n", "Goodbye now.\n"),
        *(">>>>>>> REPLACE\n", "```\n\n"),
    ],
}
TEMPLATE = """\
{%- set last = messages[-1] -%}
{%- set names = (tools or []) | map(attribute='function') | map(attribute='name') | list -%}
{{- '<|bos|>' -}}
{%- for tool in tools or [] %}{{ '<|system|>' + (tool | tojson) + '<|end|>' }}{% endfor -%}
{%- for message in messages -%}
    {{- '<|' + ('user' if message.role == 'tool' else message.role) + '|>' + (message.content or '') -}}
    {%- for call in message.tool_calls or [] -%}
        {{- '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if 'SEARCH/REPLACE' in messages[0].content -%}{{- '<|edit|>' -}}
    {%- elif 'file listing' in messages[0].content -%}{{- '<|rewrite|>' -}}
    {%- elif names and 'sun' in (last.content or '') and 'final_answer' in names -%}{{- '<|final_answer|>' -}}
    {%- elif 'get_weather' in names and last.role == 'user' -%}{{- '<|get_weather|>' -}}
    {%- elif not names and 'final_answer' in messages[0].content -%}{{- '<|code|>' -}}
    {%- else -%}{{- '<|greet|>' -}}
    {%- endif -%}
{%- endif -%}
"""


def main(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(builtin.path())
    backend = tokenizer.backend_tokenizer
    known = Scripts()
    for begin, pieces in SCRIPTS.items():
        known.add(backend, begin, pieces, tokenizer.eos_token_id)
    tokenizer.chat_template = TEMPLATE
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(folder)
    ids = {"bos": tokenizer.bos_token_id, "end": tokenizer.eos_token_id}
    scripted(known, backend.get_vocab_size(), CONTEXT, **ids).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
