"""Writes scripts/pages/models.json from what the exactness tests found; docs/models.md is made of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from scripts.pages.models import COMMAND

from baton.loader.choose import NATIVE, Choice, choose
from baton.model.port import Forward
from baton.native.forward import NativeForward
from families import FAMILIES, model_of

POLICIES = ("run_to_completion", "orca", "baton")


def write_results(file: Path, outcomes: Sequence[dict[str, Any]]) -> None:
    """Raises AssertionError if a family was not tested under each policy, or no refusal was."""
    worst = {(one["family"], one["policy"]): one for one in outcomes if "worst" in one}
    missing = [(f.name, p) for f in FAMILIES for p in POLICIES if (f.name, p) not in worst]
    refused = [{"type": one["refused"], "reason": one["reason"]} for one in outcomes if "refused" in one]
    assert not missing and refused, f"the page needs the results of: {COMMAND}"
    chosen = {family.name: choose(model_of(family.name)) for family in FAMILIES}
    families = [
        {
            "family": family.name,
            "type": family.model_type,
            "way": _way(chosen[family.name].forward),
            "why": _why(chosen[family.name]),
            "kept": _kept(chosen[family.name].forward),
            "tokens": worst[family.name, "baton"]["tokens"],
            "worst": {policy: f"{worst[family.name, policy]['worst']:.0e}" for policy in POLICIES},
        }
        for family in FAMILIES
    ]
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    file.write_text(_lines({**versions, "families": families, "refused": refused}))


def _lines(results: dict[str, Any]) -> str:
    """JSON with a line for each item, so that a difference names the family."""
    parts = []
    for name, value in results.items():
        items = ",\n".join(f"  {json.dumps(item)}" for item in value) if isinstance(value, list) else ""
        parts.append(f" {json.dumps(name)}: " + (f"[\n{items}\n ]" if items else json.dumps(value)))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _way(forward: Forward) -> str:
    return (
        forward.backend.value
        + (", native" if isinstance(forward, NativeForward) else "")
        + (", whole prompts" * forward.whole_prompts)
    )


def _why(choice: Choice) -> str:
    """Why it has no native steps; nothing if it has."""
    return "; ".join(one.why for one in choice.reasons if one.way == NATIVE)


def _kept(forward: Forward) -> str:
    shapes = forward.geometry.shapes
    counts = {
        "every token": sum(bool(shape.heads) and not shape.window for shape in shapes),
        "a ring": sum(bool(shape.window) for shape in shapes),
        "states": sum(bool(shape.states) for shape in shapes),
        "nothing of their own": sum(not shape.heads and not shape.states for shape in shapes),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)
