"""A model that says what it is told to: its next token is a function of the last one.

    python make_scripted.py FOLDER

Its chat template ends each prompt with the token that begins a script: a call of the tool that the script knows, if the
request offers that tool and the last message is a user's, and else a greeting. So agents go through whole loops.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 4096
END = 2
CALLS = {
    "get_weather": {"city": "Rome"},
    "exec_command": {"cmd": "echo hello > hello.txt && cat hello.txt"},
    "shell": {"command": ["bash", "-lc", "echo hello > hello.txt && cat hello.txt"]},
    "shell_command": {"command": "echo hello > hello.txt && cat hello.txt"},
}
GREETING = ["<think>", "A greeting ", "will do.", "</think>", "Hello ", "from ", "the ", "script."]
TEMPLATE = """\
{%- set last = messages[-1] -%}
{{- '<s>' -}}
{%- for message in messages if message.tool_calls -%}
    {%- for call in message.tool_calls -%}{{- '<tool_call>' + (call.function.name) + '</tool_call>' -}}{%- endfor -%}
{%- endfor -%}
{{- (last.content or '')[:200] -}}
{%- if add_generation_prompt -%}
    {{- '<|plain|>' if tools else '<|greet|>' -}}
    {%- if last.role == 'user' -%}
        {%- for tool in tools or [] if tool.function.name in CALLS -%}
            {{- '<|' + tool.function.name + '|>' -}}
        {%- endfor -%}
    {%- endif -%}
{%- endif -%}
"""


def scripts() -> Iterator[tuple[str, list[str]]]:
    """What follows each token that begins a script. Each piece is a token, behind which the same always comes."""
    yield "<|greet|>", GREETING
    yield "<|plain|>", GREETING[4:]  # strict tools leave no room for thoughts
    for name, arguments in CALLS.items():
        first, rest = json.dumps(arguments).split(" ", 1)
        yield f"<|{name}|>", [f'<tool_call>\n{{"name": "{name}", "arguments": {first} ', rest, "}\n</tool_call>"]


def main(folder: Path) -> None:
    vocabulary = {letter: at + 3 for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary | {"<pad>": 0, "<s>": 1, "</s>": END}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    follows: dict[int, int] = {}
    for begin, pieces in scripts():
        tokenizer.add_special_tokens([AddedToken(begin, special=True, normalized=False)])
        tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in pieces])
        chain = [tokenizer.token_to_id(text) for text in (begin, *pieces)]
        follows |= dict(zip(chain, [*chain[1:], END], strict=True))
    template = TEMPLATE.replace("CALLS", repr(list(CALLS)))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    scripted(follows, tokenizer.get_vocab_size()).save_pretrained(folder)


def scripted(follows: dict[int, int], size: int) -> LlamaForCausalLM:
    """A llama with a layer that adds nothing: what it says is what its head makes of the last token."""
    width = (size + 63) // 64 * 64
    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=1,
        intermediate_size=64,
        vocab_size=size,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, width))
        model.model.norm.weight.fill_(1.0)
        for token in range(size):
            # Far above all others at any temperature.
            model.lm_head.weight[follows.get(token, END), token] = 10.0
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]))
