"""A model that follows a script: its next token is a function of the last one and of the script it is in.

    python make_scripted.py FOLDER

Its chat template ends each prompt with the token that begins a script: a call of the tool that the script knows, if the
request offers that tool and the last message is a user's, and else a greeting. So agents go through whole loops.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 4096
WIDTH, HEAD = 512, 128
LOGIT, ATTENTION = 30.0, 60.0
END = 2
CALLS: dict[str, dict[str, object]] = {
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
    """The pieces that follow each token that begins a script.

    Each piece is a token, after which the same one always comes.
    """
    yield "<|greet|>", GREETING
    yield "<|plain|>", GREETING[4:]  # strict tools leave no room for thoughts
    for name, arguments in CALLS.items():
        yield f"<|{name}|>", call(name, arguments)


def call(name: str, arguments: Mapping[str, object]) -> list[str]:
    """As models of the Hermes style write it. A forced call may have nothing else up to the first brace."""
    first, rest = json.dumps(arguments).split(" ", 1)
    return ["<tool_call>\n{", f'"name": "{name}", "arguments": {first} ', rest, "}\n</tool_call>"]


def main(folder: Path) -> None:
    vocabulary = {letter: at + 3 for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary | {"<pad>": 0, "<s>": 1, "</s>": END}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    known = Scripts()
    for begin, pieces in scripts():
        known.add(tokenizer, begin, pieces, END)
    template = TEMPLATE.replace("CALLS", repr(list(CALLS)))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    scripted(known, tokenizer.get_vocab_size(), CONTEXT, bos=1, end=END).save_pretrained(folder)


@dataclass(slots=True)
class Scripts:
    """What the model knows: which token follows which in which script, that of the token that began it."""

    begins: list[int] = field(default_factory=list)
    follows: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, tokenizer: Tokenizer, begin: str, pieces: Sequence[str], end: int) -> None:
        """Gives the tokenizer these tokens. A piece may be in more than one script, but once in each."""
        tokenizer.add_special_tokens([AddedToken(begin, special=True, normalized=False)])
        tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in pieces])
        first, *rest = (int(tokenizer.token_to_id(text) or 0) for text in (begin, *pieces))
        self.begins.append(first)
        self.follows += [(first, *pair) for pair in pairwise([first, *rest, end])]


def scripted(scripts: Scripts, size: int, context: int, *, bos: int, end: int) -> LlamaForCausalLM:
    """A llama of one layer, whose attention finds the token that began the script, wherever it is.

    Its head makes the next token of that and of the last token.
    """
    config = LlamaConfig(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=WIDTH // HEAD,
        num_key_value_heads=1,
        intermediate_size=64,
        vocab_size=size,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=bos,
        eos_token_id=end,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        # Such vectors are all but orthogonal. Two numbers of each are facts: it is a token, it begins a script.
        signs = torch.randint(0, 2, (size, WIDTH), generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
        signs[:, 0], signs[:, 1] = 1.0, 0.0
        signs[scripts.begins, 1] = 1.0
        attention = model.model.layers[0].self_attn
        # The pair of numbers that positions turn least.
        slow = HEAD // 2 - 1
        attention.q_proj.weight[slow, 0] = attention.k_proj.weight[slow, 1] = (ATTENTION * HEAD**0.5) ** 0.5
        inside = range(2, 2 + HEAD)
        attention.v_proj.weight[range(HEAD), inside] = 1.0
        attention.o_proj.weight[inside, range(HEAD)] = 1.0
        model.model.embed_tokens.weight.copy_(signs)
        for norm in (model.model.norm, model.model.layers[0].input_layernorm):
            norm.weight.fill_(1.0)
        # Far above all others at any temperature.
        for last, following in {(last, following) for _, last, following in scripts.follows}:
            model.lm_head.weight[following] += signs[last] * (2 * LOGIT / WIDTH)
        for begin, following in {(begin, following) for begin, _, following in scripts.follows}:
            model.lm_head.weight[following, inside] += signs[begin, inside] * (LOGIT / HEAD)
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]))
