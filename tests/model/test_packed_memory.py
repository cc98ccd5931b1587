"""A packed checkpoint loads within its file's size: unpacked it would take eight times as much."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from baton.native import library as native
from tiny_checkpoint import VOCABULARY, save_tokenizer

# Of what unpacking a piece at a time takes in passing, whatever the model's size.
PASSING_MEGABYTES = 32

pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif(native.best() is None, reason=native.describe()),
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a peak"),
]

# The small model first: what imports and the first load leave is not the large one's.
LOAD = """
import gc, sys
from baton.core.config import Config
from baton.core.settings import load_settings
from baton.loader.load import load

def megabytes(name):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(name))

small, large = (load_settings(Config(device="cpu", step_cache="off"), folder, "m") for folder in sys.argv[1:])
del_me = load(small)
del del_me
gc.collect()
before = megabytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
loaded = load(large)
assert "one native call" in loaded.description and "GPTQ" in loaded.description, loaded.description
print(megabytes("VmHWM") - before, megabytes("VmRSS") - before)
"""


def saved(folder: Path, size: int, layers: int) -> Path:
    """GPTQ in 4 bits of random numbers, in one file."""
    config = LlamaConfig(
        hidden_size=size,
        intermediate_size=3 * size,
        num_hidden_layers=layers,
        num_attention_heads=size // 64,
        num_key_value_heads=size // 64,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        state = LlamaForCausalLM(config).state_dict()
    dice, tensors = torch.Generator().manual_seed(0), dict[str, torch.Tensor]()
    for name, meta in state.items():
        if not name.endswith("_proj.weight"):
            tensors[name] = (
                torch.ones(meta.shape) if meta.dim() == 1 else 0.02 * torch.randn(meta.shape, generator=dice)
            )
            continue
        outputs, inputs = meta.shape
        layer, groups = name.removesuffix("weight"), inputs // 64
        tensors[f"{layer}qweight"] = torch.randint(-(1 << 31), 1 << 31, (inputs // 8, outputs), generator=dice).int()
        tensors[f"{layer}qzeros"] = torch.full((groups, outputs // 8), 0x77777777, dtype=torch.int32)
        tensors[f"{layer}scales"] = torch.full((groups, outputs), inputs**-0.5 / 5)
        tensors[f"{layer}g_idx"] = torch.arange(inputs, dtype=torch.int32) // 64
    floats = {name: one.half() if one.is_floating_point() else one for name, one in tensors.items()}
    folder.mkdir()
    save_file(floats, folder / "model.safetensors", metadata={"format": "pt"})
    config.dtype = torch.float16
    config.architectures = ["LlamaForCausalLM"]
    config.quantization_config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True}
    config.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def test_loading_takes_little_more_than_the_file(tmp_path: Path) -> None:
    small, large = saved(tmp_path / "small", 128, 2), saved(tmp_path / "large", 2048, 4)
    done = subprocess.run([sys.executable, "-c", LOAD, str(small), str(large)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak, at_work = map(float, done.stdout.split())
    file = (large / "model.safetensors").stat().st_size / 2**20
    assert peak <= 1.15 * file + PASSING_MEGABYTES and at_work <= 1.1 * file, (peak, at_work, file)
