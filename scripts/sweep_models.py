"""Tries every causal type that the installed transformers knows, as a tiny model: it runs, or is refused.

A wider and rougher net than tests/families.py: random weights, one self-check at load each, no crowd. Types whose
configs cannot be made small by the usual names are counted as not built, and some are refused for what these names make
of them (a hybrid without a single attention layer): there the type needs a config of its own.

    python scripts/sweep_models.py
    python scripts/sweep_models.py nemotron_h zamba
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections import Counter
from typing import Any

import torch
import transformers
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from baton.core.errors import LoadError
from baton.loader.choose import choose

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 160,
    "max_position_embeddings": 192,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
MLA = {
    "n_routed_experts": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
}
OLDER = {
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "d_model": 64,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "encoder_ffn_dim": 64,
}
VARIANTS: tuple[dict[str, Any], ...] = (
    {**COMMON, **EXPERTS, **MLA},
    {**COMMON, **EXPERTS, "head_dim": 16},
    {**COMMON, **OLDER},
    COMMON,
    {},
)
LARGEST_PARAMETERS = 60e6
SECONDS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="all causal types if left out")
    asked = parser.parse_args().types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    signal.signal(signal.SIGALRM, _too_slow)
    counts: Counter[str] = Counter()
    for name in tqdm(asked, disable=not sys.stderr.isatty()):
        verdict, words = _tried(name)
        counts[verdict] += 1
        tqdm.write(f"{verdict:<10} {name:<26} {words}")
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))


def _tried(name: str) -> tuple[str, str]:
    """The best that any variant of its config gives."""
    outcome = ("not built", "")
    for variant in VARIANTS:
        signal.alarm(SECONDS)
        try:
            model = _made(name, variant)
        except Exception as error:
            outcome = outcome if outcome[1] else ("not built", _line(error))
            continue
        finally:
            signal.alarm(0)
        signal.alarm(SECONDS)
        try:
            return "runs", choose(model).description
        except (LoadError, TimeoutError) as error:
            outcome = ("refused", _line(error))
        finally:
            signal.alarm(0)
    return outcome


def _made(name: str, variant: dict[str, Any]) -> PreTrainedModel:
    config = AutoConfig.for_model(name, **variant)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST_PARAMETERS:
        raise ValueError(f"{size / 1e6:,.0f} million parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().float()
    for key, weight in model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3 if "embed" in key else 0.15)
    return model


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _too_slow(*_: object) -> None:
    raise TimeoutError("took too long")


if __name__ == "__main__":
    main()
