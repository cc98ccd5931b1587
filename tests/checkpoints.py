"""Tiny checkpoints with one thing changed, and what a load of them says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from baton.core.config import Config
from baton.core.errors import LoadError
from baton.core.settings import load_settings
from baton.loader.hub import find
from baton.loader.load import load
from baton.loader.loaded import Loaded
from baton.loader.stock import read_config

WEIGHTS = "model.safetensors"
Weights = dict[str, Tensor]


def edited(folder: Path, copy: Path, change: Callable[[Weights], Weights] | None = None, **config: Any) -> Path:
    """A copy with other weights and other entries in config.json."""
    shutil.copytree(folder, copy)
    if change is not None:
        changed = {name: tensor.contiguous() for name, tensor in change(load_file(copy / WEIGHTS)).items()}
        save_file(changed, copy / WEIGHTS, metadata={"format": "pt"})
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return copy


def config_of(folder: Path) -> Any:
    return read_config(find(str(folder)), trust_remote_code=False)


def loaded_of(folder: Path, **settings: Any) -> Loaded:
    return load(load_settings(Config(device="cpu", **settings), str(folder), "tiny"))


def refusal(folder: Path, **settings: Any) -> str:
    """The one line that a load of this folder is refused with."""
    with pytest.raises(LoadError) as caught:
        loaded_of(folder, **settings)
    message = caught.value.message
    assert "\n" not in message and caught.value.exit_status == 1 and len(message) < 700
    return message.replace(str(folder), "FOLDER")
