"""Whose keys and values a segment has: the same name in every process, another for other weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from baton.kv.rectangle import LayerShape, StateShape
from baton.loader.stamp import stamp_of, weights_digest
from checkpoints import edited, loaded_of
from families import model_of
from tiny_checkpoint import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def test_the_same_checkpoint_has_the_same_stamp_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    assert loaded_of(folder).stamp == loaded_of(edited(folder, tmp_path / "copy")).stamp


def test_another_training_another_dtype_and_another_config_are_told_apart(folder: Path, tmp_path: Path) -> None:
    def trained(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "model.layers.1.self_attn.q_proj.weight"
        return {**weights, name: weights[name] * 1.01}

    others = [
        loaded_of(edited(folder, tmp_path / "trained", trained)),
        loaded_of(edited(folder, tmp_path / "theta", rope_parameters={"rope_type": "default", "rope_theta": 5000.0})),
        loaded_of(folder, dtype="bfloat16"),
        loaded_of(folder, quantize="int8"),
    ]
    assert len({loaded_of(folder).stamp, *(other.stamp for other in others)}) == 5


def test_shapes_with_states_have_a_name_that_is_no_address() -> None:
    shapes = [LayerShape(states=(StateShape((2, 3), torch.float32, "conv"),))]
    assert stamp_of("w", torch.float32, "none", shapes) == "9f6509d7f7c78208b1216160da85f1b5"


def test_a_model_that_was_made_twice_has_one_digest() -> None:
    assert weights_digest(model_of("mamba2")) == weights_digest(model_of("mamba2")) != weights_digest(model_of("mamba"))
