"""Each row-wise operation gives, in a recorded step, what torch gives: it replaces a tiny model's activation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from baton.loader.choose import choose
from baton.model.visibility import Span
from baton.native import library as native
from families import Family, model_from
from model.test_program import fed, is_native, rectangle_of, some_texts, unchecked

pytestmark = pytest.mark.skipif(native.library is None, reason=native.describe())

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda x: x.clamp(-0.5, 0.25),
    "cos": torch.cos,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "ge": lambda x: torch.where(x >= 0, x, 0.5 * x),
    "log": lambda x: torch.log(x.abs() + 0.1),
    "log1p": lambda x: torch.log1p(x.abs()),
    "maximum": lambda x: torch.maximum(x, x * x),
    "pow": lambda x: torch.pow(x.abs() + 0.1, 1.7),
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 0.1),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 0.1),
    "softplus": nn.functional.softplus,
    "tanh": torch.tanh,
    # What models choose experts by.
    "clamp to a number of the token": lambda x: x.clamp(min=x.mean(-1, keepdim=True)),
    "full_like": lambda x: torch.full_like(x, -0.5).scatter_(-1, x.topk(5)[1], x.topk(5)[0]),
    "gather": lambda x: x * x.gather(-1, x.topk(3)[1]).sum(-1, keepdim=True),
    "index": lambda x: x * torch.arange(float(x.shape[-1]))[x.topk(2)[1]].mean(-1, keepdim=True) / x.shape[-1],
    "masked_fill": lambda x: x.masked_fill(x > 0.2, 0.1),
    "max": lambda x: x * x.max(-1, keepdim=True)[0],
    "rows of a table": lambda x: x + torch.eye(x.shape[-1])[x.max(-1)[1]],
    "scatter": lambda x: x.scatter(-1, x.topk(5)[1], 0.5),
    "sum of few parts": lambda x: x + x.unflatten(-1, (4, -1)).sum(-2).repeat_interleave(4, -1),
    "sum of many parts": lambda x: x + x.unflatten(-1, (-1, 4)).sum(-2)[..., :1],
    # What state spaces are made of.
    "convolution by channel": lambda x: x + convolved(x).repeat_interleave(4, -1),
    "matrix times few vectors": lambda x: (
        x + (x.unflatten(-1, (-1, 8)) @ x[..., :24].unflatten(-1, (8, 3))).mean(-1).repeat_interleave(8, -1)
    ),
    "matrix times vector": lambda x: x + (x.unflatten(-1, (-1, 8)) @ x[..., :8, None]).mean(-2),
    "parts before the rows": lambda x: (torch.stack([x, x * x, -0.5 * x]) + x.repeat(3, 1, 1, 1)).mean(0),
    "rows folded": lambda x: (x.reshape(-1, x.shape[-1] // 4) - 0.1).square().view(x.shape),
    "topk": lambda x: torch.zeros_like(x).scatter_(-1, x.topk(5)[1], x.topk(5)[0]),
}


def convolved(x: Tensor) -> Tensor:
    channels = x.flatten(0, 1).unflatten(-1, (-1, 4))
    count = channels.shape[1]
    weight, bias = torch.linspace(-1, 1, 3 * count).view(count, 1, 3), torch.linspace(0, 1, count)
    sums: Tensor = nn.functional.conv1d(channels, weight, bias, groups=count)[..., -1]
    return sums.view(*x.shape[:-1], count)


class Activation(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return OPERATIONS[self.name](x)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_step_with_an_operation_gives_the_logits_that_torch_gives(name: str) -> None:
    texts, logits = some_texts(2), []
    for wanted in (False, True):
        model = model_from(Family("llama", "llama", {"num_hidden_layers": 1}))
        model.model.layers[0].mlp.act_fn = Activation(name)
        forward = choose(model, native=wanted).forward
        assert is_native(forward) == wanted
        steps = [[Span(0, 0, 9), Span(1, 0, 4)], [Span(0, 9, 1), Span(1, 4, 1)]]
        logits.append(fed(forward, rectangle_of(forward, 2), steps, texts))
    for expected, ours in zip(*logits, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_of_equal_numbers_the_first_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch promises nothing here, so that no self-check compares."""
    texts, logits = some_texts(1), []
    ways = {"ties": lambda x: x + (x * 0).topk(3)[1].float(), "first": lambda x: x + torch.arange(3.0)}
    for name, way in ways.items():
        monkeypatch.setitem(OPERATIONS, name, lambda x, way=way: torch.cat([way(x[..., :3]), x[..., 3:]], -1))
        model = model_from(Family("llama", "llama", {"num_hidden_layers": 1}))
        model.model.layers[0].mlp.act_fn = Activation(name)
        forward = unchecked(model)
        logits += fed(forward, rectangle_of(forward, 1), [[Span(0, 0, 9)]], texts)
    assert torch.equal(*logits)
