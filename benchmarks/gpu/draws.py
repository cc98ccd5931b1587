"""Random draws after a step: as a graph, and launched one by one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from baton.core.sampling import SamplingParams
from baton.cuda.decode_steps import Steps
from baton.cuda.slots import Chance, Slot
from baton.kv.rectangle import Rectangle
from baton.loader.loaded import Loaded
from baton.sampling.draw import filters_of
from baton.sampling.on_device import Kind

from .models import collect, cuda_forward
from .timing import seconds_of

_WAYS = {
    Kind.FREE: Chance(1.0, seed=7),
    Kind.FILTERED: Chance(1.0, filters_of(SamplingParams(top_k=40, top_p=0.95)), seed=7),
}


def draws(loaded: Loaded, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Microseconds of a step, and of each kind of draw of all of its rows."""
    cuda, measurements = loaded.device.type == "cuda", []
    forward = cuda_forward(loaded)
    for rows in counts:
        rectangle = Rectangle(
            loaded.geometry.shapes, capacity=rows, columns=64, dtype=loaded.dtype, device=loaded.device
        )
        assert forward.ragged is not None
        run = Steps(forward.torch_forward.hooked, rectangle, forward.ragged, capture=cuda)
        for kind, chance in _WAYS.items():
            run.launch([Slot(row, 5 + row, 1, chance) for row in range(rows)]).tokens()
            (step,) = run._made.values()
            one = {"rows": rows, "kind": kind.name.lower(), "vocabulary": step.logits.shape[-1]}
            one["step us"] = seconds_of(step.run, loaded.device, 10 if cuda else 2) * 1e6
            with torch.inference_mode():
                draw = partial(run._draw, step.inputs, step.logits, kind)
                one["launched one by one us"] = seconds_of(draw, loaded.device, 10) * 1e6
                if kind in step.draws:
                    one["as a graph us"] = seconds_of(step.draws[kind], loaded.device, 10) * 1e6
            measurements.append(one)
        collect(loaded.device)
    return measurements
