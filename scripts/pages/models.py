"""The page docs/models.md, from models.json: what a run of the exactness tests found. No figure is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
RESULTS = Path(__file__).with_name("models.json")
COMMAND = (
    "pytest tests/test_same_as_alone.py tests/model/test_load_refusals.py --models-results scripts/pages/models.json"
)

_TEXT = """# Which models are run, and how exactly

Made by `{command}`,
then `scripts/docs`, with torch {torch} and transformers {transformers} on the CPU, float32; do not edit.

Each family is a tiny model made from its config, with random weights that tell a wrong mask (tests/families.py).
Ten queries arrive at random; rows are detached, forgotten and computed again, put back, and their number changes
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
| latents | as in a rectangle, over compressed latents (MLA), which the layers expand in torch and native steps do not |
| masked | the model's own attention, over rows and a mask (attention outside of transformers' interface, ALiBi) |
| singly | the model's own attention, one row after the other: exact, without the speed of a batch |

"Native": on the CPU a step is recorded once and carried out as one native call ([how](design/native.md)): {native} of
these {all}. All others run in torch. There, models with states are fed one prompt per call, and at once where Mamba-1
layers begin each chunk from nothing ("whole prompts"). A ring keeps exactly the window's tokens; states do not grow.

| family | type | way | layers keep | tokens | {policies} |
| --- | --- | --- | --- | --- | {dashes} |
{families}

## Why steps of some run in torch

| family | why |
| --- | --- |
{in_torch}

## Refused at load

| type | what the refusal says |
| --- | --- |
{refused}
"""


def text(_page: str) -> str:
    results = json.loads(RESULTS.read_text())
    policies = list(results["families"][0]["worst"])
    families = [
        f"| {one['family']} | `{one['type']}` | {one['way']} | {one['kept']} | {one['tokens']} "
        f"| {' | '.join(one['worst'][policy] for policy in policies)} |"
        for one in results["families"]
    ]
    return _TEXT.format(
        command=COMMAND,
        torch=results["torch"],
        transformers=results["transformers"],
        policies=" | ".join(policies),
        dashes=" | ".join("---" for _ in policies),
        families="\n".join(families),
        native=sum("native" in one["way"] for one in results["families"]),
        all=len(families),
        in_torch="\n".join(f"| {one['family']} | {one['why']} |" for one in results["families"] if one["why"]),
        refused="\n".join(f"| `{one['type']}` | {one['reason'].replace('|', '/')} |" for one in results["refused"]),
    )
