"""The built-in model: a small Llama of the project's own, how it was made, and questions with known answers.

It may never download anything, and `tasks` may never import torch.
"""

from __future__ import annotations

from pathlib import Path

NAME = "baton-builtin"
"""What requests call it."""


def path() -> Path:
    """The folder of the model's files, loadable by `from_pretrained`."""
    return Path(__file__).parent / "model"
