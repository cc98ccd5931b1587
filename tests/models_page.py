"""Writes docs/models.md from what the exactness tests found; nothing in its tables is typed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from baton.loader.choose import choose
from baton.model.port import Forward
from baton.native.forward import NativeForward
from families import FAMILIES, model_of

POLICIES = ("run_to_completion", "orca", "baton")
COMMAND = "pytest tests/test_same_as_alone.py tests/model/test_load_refusals.py --models-page docs/models.md"

_TEXT = """# Which models are run, and how exactly

Made by `{command}`
with torch {torch} and transformers {transformers} on the CPU, float32; do not edit.

Each family is a tiny model made from its config, with random weights that tell a wrong mask (tests/families.py).
{queries} queries arrive at random; rows are detached, forgotten and computed again, put back, and their number changes
at random. A family is in the table if every token equals that of the same query alone through stock `generate`, and
every logit to 1e-4 of the largest. The figures are the largest differences of logits found, of that size; `baton check
MODEL` makes the same comparison for a checkpoint of yours.

What a family needs is found at load, not read from a list: baton tries five ways of running a model and takes the first
in which its logits equal stock ones. So families that are not in the table run too, if that check passes, and are
refused by name if it does not.

| way | what it is |
| --- | --- |
| rectangle | attention is ours and reads the rows as they lie; prompts of several queries are packed |
| flat | as above, and single tokens of several rows, too, for models that count positions by the length of the cache |
| latents | as in a rectangle, over the compressed latents that the layers expand (MLA) |
| masked | the model's own attention, over rows and a mask (attention outside of transformers' interface, ALiBi) |
| singly | the model's own attention, one row after the other: exact, without the speed of a batch |

"Native": on the CPU a step is recorded once and carried out as one native call ([how](design/native.md)); all
others run in torch. "Whole prompts": Mamba-1 layers begin each chunk from nothing, so a prompt is fed at once. Models
with states are fed one prompt per call. A ring keeps exactly the window's tokens; states do not grow.

| family | type | way | layers keep | tokens | {policies} |
| --- | --- | --- | --- | --- | {dashes} |
{families}

## Refused at load

| type | what the refusal says |
| --- | --- |
{refused}
"""


def write_page(file: Path, found: Sequence[dict[str, Any]]) -> None:
    """Raises AssertionError where a family was not tested under each policy, or no refusal was."""
    worst = {(one["family"], one["policy"]): one for one in found if "worst" in one}
    missing = [(f.name, p) for f in FAMILIES for p in POLICIES if (f.name, p) not in worst]
    refused = [one for one in found if "refused" in one]
    assert not missing and refused, f"the page needs the results of: {COMMAND}"
    lines = [
        f"| {family.name} | `{family.model_type}` | {_way(forward := taken(family.name))} | {_kept(forward)} "
        f"| {worst[family.name, 'baton']['tokens']} | "
        + " | ".join(f"{worst[family.name, policy]['worst']:.0e}" for policy in POLICIES)
        + " |"
        for family in FAMILIES
    ]
    text = _TEXT.format(
        command=COMMAND,
        torch=torch.__version__.split("+")[0],
        transformers=transformers.__version__,
        queries="Fourteen",
        policies=" | ".join(POLICIES),
        dashes=" | ".join("---" for _ in POLICIES),
        families="\n".join(lines),
        refused="\n".join(f"| `{one['refused']}` | {one['reason'].replace('|', '/')} |" for one in refused),
    )
    file.write_text(text)


def taken(name: str) -> Forward:
    return choose(model_of(name)).forward


def _way(forward: Forward) -> str:
    return (
        forward.backend.value
        + (", native" if isinstance(forward, NativeForward) else "")
        + (", whole prompts" * forward.whole_prompts)
    )


def _kept(forward: Forward) -> str:
    shapes = forward.geometry.shapes
    counts = {
        "every token": sum(bool(shape.heads) and not shape.window for shape in shapes),
        "a ring": sum(bool(shape.window) for shape in shapes),
        "states": sum(bool(shape.states) for shape in shapes),
        "nothing of their own": sum(not shape.heads and not shape.states for shape in shapes),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)
