"""Trains the built-in model from scratch: `python -m baton.builtin.train --out DIR --minutes M`.

Text comes from the project's own generators; only a checkpoint to continue from is read from disk. The rate is constant
after a short warm-up and falls to zero over the last part of the time (`--decay`). The state before the fall is kept,
and the latest every two minutes, so that a run can continue (`--resume`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from baton.builtin import train_settings as recipe
from baton.builtin.corpus import SPECIALS, Encoder, rows
from baton.builtin.tokenizer import save_tokenizer, train_tokenizer

Batch = tuple[torch.Tensor, torch.Tensor]  # ids: [rows, columns], weights: [rows, columns]


def new_model() -> LlamaForCausalLM:
    """The untrained model, its weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.SEED)
    ids = {name: i for i, name in enumerate(SPECIALS)}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.VOCABULARY,
            hidden_size=recipe.HIDDEN,
            intermediate_size=recipe.INTERMEDIATE,
            num_hidden_layers=recipe.LAYERS,
            num_attention_heads=recipe.HEADS,
            num_key_value_heads=recipe.KV_HEADS,
            max_position_embeddings=recipe.CONTEXT,
            rope_parameters={"rope_type": "default", "rope_theta": recipe.ROPE_BASE},
            tie_word_embeddings=True,
            bos_token_id=ids["<|bos|>"],
            eos_token_id=ids["<|end|>"],
            pad_token_id=ids["<|pad|>"],
        )
    )


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers." in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers." not in name]
    both: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=recipe.MATRIX_RATE, weight_decay=0.0, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for optimizer in both:
        for group in optimizer.param_groups:
            group["full_rate"] = group["lr"]
    return both


def batches(seed: int, columns: int, encoder: Encoder) -> Iterator[Batch]:
    """Batches of packed rows, padded to the longest."""
    source = rows(seed, columns, encoder)
    count = max(1, recipe.STEP_TOKENS // columns)
    while True:
        taken = list(itertools.islice(source, count))
        ids = torch.zeros(count, max(len(row.ids) for row in taken), dtype=torch.long)
        weights = torch.zeros(ids.shape)
        for i, row in enumerate(taken):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            weights[i, : len(row.ids)] = torch.tensor(row.weights)
        yield ids, weights


def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Weighted mean cross entropy; logits are only computed for tokens with a weight."""
    ids, weights = batch
    learned = weights[:, 1:] > 0
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][learned])
    losses = nn.functional.cross_entropy(logits.float(), ids[:, 1:][learned], reduction="none")
    weight = weights[:, 1:][learned]
    return (losses * weight).sum() / weight.sum()


def mixed_batches(seed: int, encoder: Encoder) -> Iterator[Batch]:
    """Batches of short rows with some longer ones, in the recipe's shares."""
    rng = random.Random(seed)
    sources = {columns: batches(seed + columns, columns, encoder) for columns in recipe.ROW_SHARES}
    while True:
        yield next(sources[rng.choices(list(sources), list(recipe.ROW_SHARES.values()))[0]])


def rate_at(done: float, steps: int, decay: float) -> float:
    """The rate's factor: warm-up by steps, then 1, then down to 0 over the last `decay` of the time."""
    return min(1.0, (steps + 1) / recipe.WARMUP_STEPS) * min(1.0, max(0.0, 1.0 - done) / decay)


class Run:
    """A training run: model, optimizers and counts, saved and resumed together."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.model = new_model()
        self.optimizers = optimizers(self.model)
        self.steps = self.tokens = 0
        self.seconds = 0.0

    def save(self, name: str) -> None:
        """Writes one file, replaced as a whole."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "counts": (self.steps, self.tokens, self.seconds),
        }
        torch.save(state, self.out / f"{name}.new")
        (self.out / f"{name}.new").replace(self.out / name)

    def resume(self, file: Path) -> None:
        """Loads weights, optimizer states and counts of an earlier run."""
        state = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.steps, self.tokens, self.seconds = state["counts"]

    def step(self, batch: Batch, factor: float) -> float:
        """Makes one update and returns the loss."""
        loss = loss_of(self.model, batch)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_rate"] * factor
            optimizer.step()
            optimizer.zero_grad()
        self.steps += 1
        self.tokens += int(batch[0].numel())
        return float(loss.detach())


def train(run: Run, encoder: Encoder, minutes: float, decay: float, peak: float) -> None:
    """Runs steps until the time is over. Each run draws from a seed of its own, from the steps done before it."""
    source = mixed_batches(recipe.SEED + 1 + run.steps, encoder)
    begun, before, average, falling = time.monotonic(), run.seconds, 0.0, False
    saved = before
    run.model.train()
    while (done := (time.monotonic() - begun) / (60 * minutes)) < 1.0:
        if done > 1.0 - decay and not falling:
            falling = True
            run.save("before_decay.pt")
        loss = run.step(next(source), peak * rate_at(done, run.steps, decay))
        run.seconds = before + time.monotonic() - begun
        average = loss if not average else 0.98 * average + 0.02 * loss
        if run.steps % 50 == 0:
            speed = run.tokens / run.seconds
            print(
                f"{100 * done:5.1f} %  step {run.steps}  tokens {run.tokens / 1e6:.2f} M  "
                f"loss {average:.4f}  {speed:.0f} tokens/s",
                flush=True,
            )
        if run.seconds - saved > 120:
            saved = run.seconds
            run.save("latest.pt")


def save_model(run: Run, folder: Path) -> None:
    """Saves the finished model: weights stored as float16 (half the size), computed in float32."""
    model: Any = run.model
    model.half()
    ids = {name: i for i, name in enumerate(SPECIALS)}
    make_config: Any = GenerationConfig
    model.generation_config = make_config(
        bos_token_id=ids["<|bos|>"], eos_token_id=ids["<|end|>"], pad_token_id=ids["<|pad|>"],
        do_sample=False,
    )  # fmt: skip
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and, in model/, the result")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--decay", type=float, default=0.4, help="last part of the time in which the rate falls")
    parser.add_argument("--peak", type=float, default=1.0, help="factor of the recipe's rates")
    parser.add_argument("--resume", type=Path, help="checkpoint of an earlier run to go on from")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    run = Run(asked.out)
    if asked.resume:
        run.resume(asked.resume)
        tokenizer = Tokenizer.from_file(str(asked.resume.parent / "model" / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(recipe.SEED)
    save_tokenizer(tokenizer, asked.out / "model")
    print(f"{sum(p.numel() for p in run.model.parameters())} parameters", flush=True)
    train(run, lambda text: list(tokenizer.encode(text).ids), asked.minutes, asked.decay, asked.peak)
    run.save("final.pt")
    save_model(run, asked.out / "model")


if __name__ == "__main__":
    main()
