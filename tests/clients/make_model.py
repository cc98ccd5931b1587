"""The built-in model in a folder, under a chat template that renders tools as Hermes and Qwen do.

    python make_model.py FOLDER

The model never saw such prompts: what it calls of its own will is chance. Forced calls and schemas are what clients can
rely on.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from baton import builtin

TEMPLATE = """\
<|bos|>
{%- if tools %}
    {{- '<|system|>Call functions of these signatures:\\n<tools>' }}
    {%- for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}
    {{- '\\n</tools>\\nas <tool_call>\\n{"name": NAME, "arguments": ARGUMENTS}\\n</tool_call><|end|>' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|' + ('user' if message.role == 'tool' else message.role) + '|>' + (message.content or '') }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""


def main(folder: Path) -> None:
    shutil.copytree(builtin.path(), folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
