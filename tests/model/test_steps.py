"""A decode step of constant shape gives what a step of today's gives, and asks the host for nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from baton.core.errors import LoadError
from baton.core.query import SamplingParams
from baton.cuda.compiled_layers import CompiledLayers
from baton.cuda.decode_steps import Launched, Resident, Steps
from baton.cuda.forward import CudaForward
from baton.cuda.ragged_attention import InTorch
from baton.cuda.slots import Chance, Slot, chance_of, chances_of, follows, step_inputs
from baton.kv.rectangle import Rectangle
from baton.loader.device_steps import in_steady_steps
from baton.loader.proof import proof_of
from baton.model import hooked
from baton.model.device import Device
from baton.model.execution import AttentionBackend
from baton.model.forward import TorchForward
from baton.model.hooked import BY_TOKEN, Hooked
from baton.model.port import Forward
from baton.model.visibility import Span
from baton.sampling.draw import Draw, filters_of
from baton.sampling.on_device import NOT_FINITE, TOO_FEW_CANDIDATES, Kind, drawn
from baton.sampling.sampler import Sampler
from families import _COMMON, CONTEXT, FAMILIES, model_of
from random_batch import torch_forward_of

FIRST_LIGHT = ("llama", "qwen3", "mistral_window", "gemma3", "gpt2", "qwen3_moe")
# Softcaps, sinks, chunks, shared layers.
OTHERS = ("gemma2", "gpt_oss", "llama4", "gemma3n", "olmo3", "opt")
LENGTHS, ROWS = (20, 5, 33), (2, 0, 5)
ANSWER = 20

FILTERED = filters_of(SamplingParams(top_k=5, top_p=0.9, min_p=0.1))


def rectangle_of(forward: Forward, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Rectangle:
    return Rectangle(forward.geometry.shapes, capacity=6, columns=CONTEXT, dtype=dtype, device=torch.device(device))


def filled(forward: Forward, rectangle: Rectangle) -> list[int]:
    """Three prompts in three rows. Returns the first token of each."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 160, (length,), generator=generator).tolist() for length in LENGTHS]
    spans = [Span(row, 0, length) for row, length in zip(ROWS, LENGTHS, strict=True)]
    logits, ran = forward.fill(rectangle, spans, [token for prompt in prompts for token in prompt])
    ran.commit()
    return logits.argmax(-1).tolist()


def compare(family: str, compiled: str | None = None) -> None:
    """Step after step, each fed what the one before drew: the same tokens, and logits to a millionth."""
    forward = torch_forward_of(model_of(family))
    today, resident = rectangle_of(forward), rectangle_of(forward)
    tokens = filled(forward, today)
    assert filled(forward, resident) == tokens
    steps = Steps(forward.hooked, resident, InTorch(), capture=False, compiled=compiled)
    last: Launched | None = None
    # What compilers make is the same at each step: a few show how one follows on another.
    for step in range(4 if compiled else ANSWER):
        spans = [Span(row, length + step, 1) for row, length in zip(ROWS, LENGTHS, strict=True)]
        fed = tokens if last is None else [follows(at) for at in range(len(ROWS))]
        logits, ran = forward.decode(today, spans, tokens)
        ran.commit()
        last = steps.launch([Slot(span.row, token, span.stop) for span, token in zip(spans, fed, strict=True)])
        tokens = logits.argmax(-1).tolist()
        assert float((last.logits - logits).abs().max() / logits.abs().max()) < 1e-5
        assert last.tokens() == tokens
        assert last.empty_slots == 1


@pytest.mark.parametrize("family", [*FIRST_LIGHT, *OTHERS])
def test_steps_of_constant_shape_give_what_todays_steps_give(family: str) -> None:
    compare(family)


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_moe"])
def test_a_step_is_one_graph_to_a_compiler(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fullgraph` raises at the first thing that cannot be in it."""
    # Today's steps are no such graph.
    whole = torch.compile(hooked.call, fullgraph=True, dynamic=False, backend="eager")
    one_by_one = hooked.call
    calls: list[int] = []

    def call(model: Any, ids: Tensor, *rest: Any, **more: Any) -> Any:
        resident = isinstance(model_shape(rest[1]), Resident)
        calls.append(resident)
        return (whole if resident else one_by_one)(model, ids, *rest, **more)

    def model_shape(cache: Any) -> Any:
        return cache.layers[0]._current.step.shape

    monkeypatch.setattr(hooked, "call", call)
    compare(family)
    assert sum(calls) == ANSWER


# Layers that differ to a compiler (llama's: below, by aot_eager); what it would get wrong in others is found at load.
@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe", "gpt_oss", "gemma3n"])
def test_steps_of_compiled_layers_give_what_todays_steps_give(family: str) -> None:
    compare(family, compiled="eager")


def test_one_layer_is_compiled_for_all() -> None:
    counted = []
    for layers in (2, 5):
        torch.compiler.reset()
        counters.clear()
        config = AutoConfig.for_model("llama", **{**_COMMON, "num_hidden_layers": layers})
        forward = torch_forward_of(AutoModelForCausalLM.from_config(config).eval())
        steps = Steps(forward.hooked, rectangle_of(forward), InTorch(), capture=False, compiled="eager")
        for rows in (2, 6):
            steps.launch([Slot(row, 7, 1) for row in range(rows)])
        counted.append(counters["stats"]["unique_graphs"])
        # What is not captured runs as stock has it.
        assert not any("forward" in vars(layer) for layer in forward.hooked.model.model.layers)
    assert 0 < counted[0] == counted[1] <= 6


def test_a_model_without_a_list_of_layers_is_named() -> None:
    hooked = torch_forward_of(model_of("llama")).hooked
    hooked.model.config.num_hidden_layers += 1
    with pytest.raises(LoadError, match="in no list"):
        CompiledLayers(hooked, "eager")


def is_transformers_at_least(version: str) -> bool:
    return Version(transformers.__version__) >= Version(version)


class NoHost(TorchDispatchMode):
    """Raises if an operation has tensors of the host and of the device: a copy, and mostly a wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, out)) if isinstance(one, Tensor)]
        if any(one.device.type == "meta" for one in tensors):
            # Not even a single number, which some operations copy.
            assert not any(one.device.type == "cpu" for one in tensors), f"{func} copies"
        return out


# Stock looks for padding in gpt2's prompts, but not while a graph is captured.
@pytest.mark.parametrize("family", [name for name in (*FIRST_LIGHT, *OTHERS) if name != "gpt2"])
@pytest.mark.parametrize("chance", [Chance(), Chance(1.0, seed=7), Chance(1.0, FILTERED, seed=7)])
def test_nothing_of_a_step_asks_the_host(family: str, chance: Chance) -> None:
    """On a device that has no numbers at all, whatever looks at one raises."""
    if family == "gemma3n" and not is_transformers_at_least("5.23"):
        pytest.skip("older transformers copy a constant to the device in each of its steps")
    geometry = torch_forward_of(model_of(family)).geometry
    described = next(one for one in FAMILIES if one.name == family)
    with torch.device("meta"):
        config = AutoConfig.for_model(described.model_type, **{**_COMMON, **described.more})
        model = AutoModelForCausalLM.from_config(config).bfloat16().eval()
    forward = TorchForward(model, geometry, AttentionBackend.RAGGED)
    rectangle = rectangle_of(forward, "meta", torch.bfloat16)
    steps = Steps(forward.hooked, rectangle, InTorch(), capture=False)
    slots = [Slot(2, 7, 21, chance), Slot(0, follows(1), 6)]
    launched = steps.launch(slots)
    (step,) = steps._made.values()
    with NoHost():
        steps._go(step, chance.kind)
    logits = step.logits
    assert (logits.device.type, logits.shape, launched.logits.shape) == ("meta", (2, 160), (2, 160))


def test_what_asks_the_host_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Hooked.run

    def run(self: Hooked, *args: Any, **kwargs: Any) -> Any:
        logits, commit = right(self, *args, **kwargs)
        return logits[: int(logits.argmax())], commit

    monkeypatch.setattr(Hooked, "run", run)
    with pytest.raises(RuntimeError, match="meta tensors"):
        test_nothing_of_a_step_asks_the_host("llama", Chance())


PARAMS = [
    SamplingParams(temperature=0),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.0, top_k=7),
    SamplingParams(temperature=1.5, top_p=0.8),
    SamplingParams(temperature=1.0, top_k=40, top_p=0.9, min_p=0.05),
    SamplingParams(temperature=2.0, min_p=0.001),
]


def test_the_device_draws_what_the_sampler_draws() -> None:
    """Of a vocabulary that is larger than what filters look at first."""
    generator = torch.Generator().manual_seed(0)
    sampler, again = Sampler(()), 0
    for turn in range(40):
        logits = torch.randn(len(PARAMS), 3000, generator=generator) * (4.0 if turn % 2 else 1.0)
        draws = [Draw(params, seed, [1] * (5 + turn), 3) for seed, params in enumerate(PARAMS)]
        tokens = [_drawn(row[None], draw)[0] for row, draw in zip(logits, draws, strict=True)]
        together = _drawn(logits, *draws)
        assert together == tokens
        expected = sampler(logits, draws)
        again += tokens.count(TOO_FEW_CANDIDATES)
        assert [a for a in tokens if a != TOO_FEW_CANDIDATES] == [
            b for a, b in zip(tokens, expected, strict=True) if a != TOO_FEW_CANDIDATES
        ]
    assert 0 < again < 40 * len(PARAMS) / 3


@pytest.mark.parametrize("kind", [Kind.GREEDY, Kind.FREE, Kind.FILTERED])
def test_a_draw_is_one_graph_to_a_compiler(kind: Kind) -> None:
    logits = torch.randn(len(PARAMS), 3000, generator=torch.Generator().manual_seed(0))
    chances = [chance_of(Draw(params, seed, [1] * 5, 3)) for seed, params in enumerate(PARAMS)]
    inputs = step_inputs([Slot(0, 0, 5, chance) for chance in chances if chance], len(PARAMS))

    def draw(inputs: Tensor, logits: Tensor) -> Tensor:
        return drawn(logits, chances_of(inputs), kind)

    compiled = torch.compile(draw, fullgraph=True, dynamic=False, backend="eager")
    assert compiled(inputs, logits).tolist() == draw(inputs, logits).tolist()


def test_a_row_that_is_not_finite_is_told_of() -> None:
    logits = torch.zeros(3, 50)
    logits[1, 7] = torch.nan
    logits[2, 3] = torch.inf
    draws = [Draw(SamplingParams(temperature=0.0), 0, [1], 1)] * 3
    assert _drawn(logits, *draws) == [0, NOT_FINITE, NOT_FINITE]


def test_what_is_not_drawn_on_the_device_is_known() -> None:
    for params in (
        SamplingParams(repetition_penalty=1.1),
        SamplingParams(logprobs=1),
        SamplingParams(min_tokens=3),
        SamplingParams(top_k=1000),
    ):
        assert chance_of(Draw(params, 0, [1, 2], 2)) is None


def _drawn(logits: Tensor, *draws: Draw) -> list[int]:
    chances = [chance_of(draw) for draw in draws]
    slots = [Slot(0, 0, len(draw.tokens), chance) for draw, chance in zip(draws, chances, strict=True) if chance]
    chosen = chances_of(step_inputs(slots, len(slots)))
    return drawn(logits, chosen, max(slot.chance.kind for slot in slots)).tolist()


def test_a_model_goes_resident_in_the_first_way_that_is_exact() -> None:
    model = model_of("llama")
    proof, plain = proof_of(model), torch_forward_of(model)

    class Wrong(InTorch):
        def attend(self, q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return super().attend(q, *args, **kwargs) * 1.1

    forward, reasons = in_steady_steps(proof, plain, [Wrong(name="wrong"), InTorch(name="right")])
    assert "decode steps of constant shape, right" in forward.parts()
    assert isinstance(forward, CudaForward)
    assert forward.steps(rectangle_of(forward)) is not None
    assert [reason.way for reason in reasons] == ["decode steps of constant shape by wrong"]
    assert "its logits differ" in reasons[0].why
    assert in_steady_steps(proof, plain, [Wrong(name="wrong")]) == (plain, reasons)


@pytest.mark.parametrize("backend", ["aot_eager", "no_such_backend"])
def test_steps_are_compiled_where_that_is_exact_and_else_are_not(backend: str) -> None:
    """Inductor's kernels for the CPU take a minute and give the same: docs/lab-notes.md."""
    model = model_of("llama")
    proof, plain = proof_of(model), torch_forward_of(model)
    forward, reasons = in_steady_steps(proof, plain, [InTorch()], compiled=backend)
    if backend == "aot_eager":
        assert forward.parts()[-1].endswith("masked attention in torch, compiled by aot_eager")
        assert reasons == []
    else:
        assert forward.parts()[-1].endswith("masked attention in torch")
        said = "not decode steps of constant shape by masked attention in torch, no_such_backend: it does not run ("
        assert str(reasons[0]).startswith(said)
    assert isinstance(forward, CudaForward)
    assert forward.steps(rectangle_of(forward)) is not None


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_experts_in_16_bits_are_grouped_products_or_token_by_token(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two grouped products a layer, only in steps; and in no step if experts are computed token by token."""
    calls, product = [0], torch.nn.functional.grouped_mm

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls[0] += 1
        return product(*args, **kwargs)

    model = model_of(family).bfloat16()
    forward = torch_forward_of(model)
    rectangle = rectangle_of(forward, dtype=torch.bfloat16)
    monkeypatch.setattr(torch.nn.functional, "grouped_mm", counted)
    logits = []
    for how, products in ((None, 2 * len(forward.geometry.shapes)), (BY_TOKEN, 0)):
        steps = Steps(forward.hooked, rectangle, InTorch(), capture=False, experts=how)
        calls[0] = 0
        logits.append(steps.launch([Slot(0, 7, 1), Slot(1, 9, 1)]).logits)
        assert calls[0] == products
        assert forward.hooked.experts == "grouped_mm"
    assert float((logits[0] - logits[1]).abs().max() / logits[0].abs().max()) < 2e-2


@pytest.mark.parametrize(("capability", "said"), [((9, 0), "in one product"), ((8, 0), "token by token")])
def test_experts_are_grouped_where_that_asks_no_host(
    capability: tuple[int, int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("qwen3_moe").bfloat16()
    proof, plain = proof_of(model), torch_forward_of(model)
    monkeypatch.setattr("baton.loader.device_steps.device_of", lambda device: Device("cuda", capability))
    forward, _ = in_steady_steps(proof, plain, [InTorch()])
    assert forward.parts()[-1].endswith(f"masked attention in torch, experts {said}")


def test_a_family_with_states_keeps_its_steps() -> None:
    plain = torch_forward_of(model_of("mamba2"))
    with pytest.raises(LoadError, match="more than a token and a length"):
        CudaForward(plain, InTorch())
