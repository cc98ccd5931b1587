"""A step as one native call: the logits that torch gives, in any company, and nothing kept before its commit."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from baton.core.errors import LoadError
from baton.kv.rectangle import Rectangle
from baton.loader.choose import choose
from baton.loader.formats import FORMATS
from baton.loader.rounded import rounded_weights
from baton.loader.selfcheck import stock_logits
from baton.model.forward import TorchForward
from baton.model.port import Forward
from baton.model.visibility import Span, cut
from baton.native import forward as native_forward
from baton.native import library as native
from baton.native.forward import NativeForward
from baton.native.graph import Buffer, Graph, Line, Ref, Space, TableSpec, head_tables
from baton.native.lower import lower
from baton.native.program import Program
from baton.native.record import record
from families import CONTEXT, FAMILIES, VOCABULARY, WINDOW, Family, bare_model, model_of
from recorded_once import recorded

pytestmark = pytest.mark.skipif(native.library is None, reason=native.describe())

# What differs: layers with rings, learned positions, soft caps, shared norms, heads of two sizes, biases.
DENSE = ["llama", "gemma3", "gpt2", "gemma2", "gemma4", "opt", "phi", "glm4"]
# Shared experts; biases, and weights that lie the other way round; other choices; groups; beside a dense layer.
EXPERTS = ["qwen3_moe", "qwen2_moe", "gpt_oss", "phimoe", "glm4_moe", "gemma4_moe"]
# Keys and values that are expanded from latents, one with rotations by complex numbers.
LATENTS = ["deepseek_v2", "deepseek_v3"]
# A convolution beside attention; both kinds of state space, alone and beside attention; the gated delta rule.
STATES = ["lfm2", "mamba", "mamba2", "falcon_h1", "qwen3_next"]
# In torch mamba's prompts cannot be cut.
KINDS = [*DENSE, *EXPERTS, *LATENTS, *(name for name in STATES if name != "mamba")]
# Of the gated delta rule's logits, relative to the largest; see docs/models.md.
NOISE = {"qwen3_next": 1e-4}


def is_native(forward: Forward) -> bool:
    return isinstance(forward, NativeForward)


def unchecked(model: PreTrainedModel, like: PreTrainedModel | None = None) -> NativeForward:
    """Native steps that no self-check has compared with the model. `like`: one of its shape that torch can run."""
    plain = choose(like or model, native=False).forward
    assert isinstance(plain, TorchForward)
    return NativeForward(Program(lower(record(model)), plain.geometry, model.dtype, threads=2), plain)


def rectangle_of(forward: Forward, rows: int, dtype: torch.dtype = torch.float32) -> Rectangle:
    return Rectangle(forward.geometry.shapes, capacity=rows, columns=CONTEXT, dtype=dtype, device=torch.device("cpu"))


def fed(
    forward: Forward, rectangle: Rectangle, steps: Sequence[Sequence[Span]], texts: Sequence[Tensor]
) -> list[Tensor]:
    """The logits of each step."""
    by_text = []
    for spans in steps:
        tokens = [token for s in spans for token in texts[s.row][s.start : s.stop].tolist()]
        run = forward.decode if all(span.count == 1 for span in spans) else forward.fill
        logits, ran = run(rectangle, spans, tokens)
        ran.commit()
        for span in spans:
            rectangle.lens[span.row] = span.stop
        by_text.append(logits)
    return by_text


def some_steps(dice: random.Random, rows: int, longest: int) -> list[list[Span]]:
    """Rows are fed pieces of any length, several rows at a time, until each has been fed something."""
    stops, steps = [0] * rows, []
    while min(stops) < longest // 2:
        spans = []
        for row in sorted(dice.sample(range(rows), dice.randint(1, rows))):
            count = min(dice.choice([1, 1, 2, 5, WINDOW + 3]), longest - stops[row])
            if count:
                spans.append(Span(row, stops[row], count, every=dice.random() < 0.3))
                stops[row] += count
        if spans:
            steps.append(spans)
    return steps


def some_texts(rows: int, seed: int = 0) -> list[Tensor]:
    return list(torch.randint(VOCABULARY, (rows, CONTEXT), generator=torch.Generator().manual_seed(seed)))


def test_a_recording_that_is_remembered_reads_the_weights_of_the_model_it_is_asked_for() -> None:
    """What tests do to load tiny models in less time."""
    first, other = model_of("gemma3"), bare_model(next(one for one in FAMILIES if one.name == "gemma3"))
    recorded(first)
    remembered, anew = lower(recorded(other)), lower(record(other))
    assert str(remembered.lines) == str(anew.lines)
    for ours, right in zip(remembered.tables, anew.tables, strict=True):
        assert ours.weight is not None and right.weight is not None and torch.equal(ours.weight, right.weight)


def test_shapes_of_a_recording_are_told_by_one_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mode reads the whole stack when it is made, which took half of the time."""
    made, right = [0], FakeTensorMode.__init__

    def counted(self: FakeTensorMode, *args: Any, **kwargs: Any) -> None:
        made[0] += 1
        right(self, *args, **kwargs)

    monkeypatch.setattr(FakeTensorMode, "__init__", counted)
    record(model_of("llama"))
    assert made[0] == 1


@pytest.mark.parametrize("name", KINDS)
def test_any_spans_give_the_logits_that_torch_gives(name: str) -> None:
    texts, steps = some_texts(4), some_steps(random.Random(name), 4, 60)
    forward = choose(model_of(name), native=False).forward
    expected = fed(forward, rectangle_of(forward, 4), steps, texts)
    forward = choose(model_of(name)).forward
    assert is_native(forward)
    for ours, torchs in zip(fed(forward, rectangle_of(forward, 4), steps, texts), expected, strict=True):
        atol = NOISE.get(name, 1e-5) * float(torchs.abs().max())
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gpt_oss", "mamba2", "qwen3_next"])
@pytest.mark.parametrize("variant", native.variants() if native.library else [])
def test_each_instruction_set_gives_the_same(name: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, steps = some_texts(3), some_steps(random.Random(5), 3, 40)
    forward = choose(model_of(name)).forward
    expected = fed(forward, rectangle_of(forward, 3), steps, texts)
    monkeypatch.setattr(native, "best", lambda: native.kernels(variant))
    forward = choose(model_of(name)).forward
    assert variant in ", ".join(forward.parts())
    for ours, best in zip(fed(forward, rectangle_of(forward, 3), steps, texts), expected, strict=True):
        atol = NOISE.get(name, 1e-5) * float(best.abs().max())
        torch.testing.assert_close(ours, best, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("name", ["llama", "gemma3", *EXPERTS, *STATES])
def test_a_row_gives_the_same_bits_in_any_company(name: str) -> None:
    texts = some_texts(6)
    forward = choose(model_of(name)).forward
    steps = [[Span(row, 0, 20) for row in range(6)], *([Span(row, at, 1) for row in range(6)] for at in range(20, 30))]
    together = fed(forward, rectangle_of(forward, 6), steps, texts)
    for row in range(6):
        alone = fed(forward, rectangle_of(forward, 6), [[step[row]] for step in steps], texts)
        for ours, all_rows in zip(alone, together, strict=True):
            assert torch.equal(ours[0], all_rows[row])


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "qwen3_moe", "gpt_oss", *STATES])
def test_a_row_gives_the_same_bits_however_its_prompt_is_cut(name: str) -> None:
    texts = some_texts(1)
    forward = choose(model_of(name)).forward
    runs = []
    for cuts in ([0, 40], [0, 1, 2, 17, 39, 40], list(range(41)), [0, 16, 32, 40]):
        steps = [[Span(0, first, last - first)] for first, last in itertools.pairwise(cuts)]
        runs.append(fed(forward, rectangle_of(forward, 1), steps, texts)[-1])
    assert all(torch.equal(runs[0], other) for other in runs[1:])


@pytest.mark.parametrize("format", ["none", "int8", "int4"])
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_experts_give_a_row_the_same_bits_in_any_company_in_every_format(name: str, format: str) -> None:
    texts, logits = some_texts(9), []
    forward = choose(model_of(name), format=FORMATS[format]).forward
    for rows in (range(9), [4], [1, 4, 8]):
        spans = [Span(row, 0, 20) for row in rows], [Span(row, 20, 1) for row in rows]
        prompt, step = fed(forward, rectangle_of(forward, 9), spans, texts)
        at = list(rows).index(4)
        logits.append(torch.stack([prompt[at], step[at]]))
    assert all(torch.equal(logits[0], other) for other in logits[1:])


def test_experts_that_nobody_chose_are_not_read() -> None:
    """An expert whose weights are not numbers changes nothing as long as its router avoids it."""
    texts, logits = some_texts(2), []
    steps = [[Span(0, 0, 30), Span(1, 0, 5)], [Span(0, 30, 1), Span(1, 5, 1)]]
    for avoided in (-1e4, 1e4):
        for number in (0.0, float("nan")):
            model = model_of("gpt_oss")
            for layer in model.model.layers:
                layer.mlp.router.bias[3] = avoided
                layer.mlp.experts.gate_up_proj[3] = layer.mlp.experts.down_proj[3] = number
            forward = unchecked(model, like=model_of("gpt_oss"))
            logits.append(torch.cat(fed(forward, rectangle_of(forward, 2), steps, texts)))
    assert logits[1].isfinite().all()
    assert torch.equal(logits[0], logits[1])
    # The control: all texts choose it.
    assert logits[3].isnan().all()


def test_of_experts_that_all_have_a_slot_only_those_with_numbers_are_read() -> None:
    """llama4 multiplies with all experts, and feeds zeros to those that a token did not choose."""
    texts, logits = some_texts(2), []
    steps = [[Span(0, 0, 30), Span(1, 0, 5)], [Span(0, 30, 1), Span(1, 5, 1)]]
    for expert, number in ((1, 0.0), (1, float("nan")), (0, float("nan"))):
        model = model_of("llama4")
        for layer in model.model.layers:
            # Of two that are level the first is chosen.
            layer.feed_forward.router.weight[1] = layer.feed_forward.router.weight[0]
            layer.feed_forward.experts.gate_up_proj[expert] = layer.feed_forward.experts.down_proj[expert] = number
        forward = unchecked(model, like=model_of("llama4"))
        assert forward.program.chosen_share == 0.5
        logits.append(torch.cat(fed(forward, rectangle_of(forward, 2), steps, texts)))
    assert logits[0].isfinite().all()
    assert torch.equal(logits[0], logits[1])
    assert logits[2].isnan().all()


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "mamba2"])
def test_threads_do_not_change_a_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, steps, runs = some_texts(5), some_steps(random.Random(2), 5, 40), []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        forward = choose(model_of(name)).forward
        runs.append(fed(forward, rectangle_of(forward, 5), steps, texts))
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


def test_two_engines_of_a_process_may_compute_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native threads are shared."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    forwards, texts, steps = [choose(model_of(name)).forward for name in ("llama", "gemma3")], some_texts(4), []
    for seed in range(6):
        steps.append(some_steps(random.Random(seed), 4, 40))

    def work(forward: Forward) -> list[Tensor]:
        return [logits for some in steps for logits in fed(forward, rectangle_of(forward, 4), some, texts)]

    expected = [work(forward) for forward in forwards]
    with ThreadPoolExecutor(2) as pool:
        for logits_of_one, right in zip(pool.map(work, forwards), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(logits_of_one, right, strict=True))


@pytest.mark.parametrize("name", ["llama", "mistral_window", "lfm2", "mamba2"])
def test_a_forward_that_is_not_committed_has_changed_nothing_that_is_seen(name: str) -> None:
    texts = some_texts(2)
    forward = choose(model_of(name)).forward
    rectangle = rectangle_of(forward, 2)
    fed(forward, rectangle, [[Span(0, 0, WINDOW + 5), Span(1, 0, 7)]], texts)
    spans = [Span(0, WINDOW + 5, 9), Span(1, 7, 1)]
    tokens = [token for s in spans for token in texts[s.row][s.start : s.stop].tolist()]
    first, _ = forward.fill(rectangle, spans, [0] * len(tokens))
    second, ran = forward.fill(rectangle, spans, tokens)
    third, _ = forward.fill(rectangle, spans, tokens)
    assert torch.equal(second, third)
    assert not torch.equal(first, second)
    ran.commit()


@pytest.mark.parametrize("name", ["llama", "mamba2"])
def test_long_chunks_are_divided(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = some_texts(2)
    forward = choose(model_of(name)).forward
    steps = [[Span(0, 0, 50, every=True), Span(1, 0, 33)], [Span(0, 50, 1), Span(1, 33, 20)]]
    whole = fed(forward, rectangle_of(forward, 2), steps, texts)
    monkeypatch.setattr(native_forward, "PASS", 16)
    for ours, one in zip(fed(forward, rectangle_of(forward, 2), steps, texts), whole, strict=True):
        torch.testing.assert_close(ours, one, rtol=1e-4, atol=1e-4)


def test_a_chunk_that_fails_in_its_second_pass_has_changed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, forward = some_texts(1), choose(model_of("qwen3_next")).forward
    rectangle, whole = rectangle_of(forward, 1), rectangle_of(forward, 1)
    steps = [[Span(0, 0, 9)], [Span(0, 9, 40)]]
    expected = fed(forward, whole, steps, texts)[1]
    fed(forward, rectangle, steps[:1], texts)
    right, passes = Program.run, itertools.count()

    def fails(self: Program, *args: object) -> tuple[Tensor, object]:
        if next(passes) == 1:
            raise MemoryError
        return right(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(native_forward, "PASS", 16)
    monkeypatch.setattr(Program, "run", fails)
    with pytest.raises(MemoryError):
        fed(forward, rectangle, steps[1:], texts)
    assert torch.equal(fed(forward, rectangle, steps[1:], texts)[0], expected)


def test_a_row_that_begins_again_has_no_states() -> None:
    texts, forward = some_texts(2), choose(model_of("lfm2")).forward
    rectangle = rectangle_of(forward, 2)
    steps = [[Span(0, 0, 9), Span(1, 0, 3)], [Span(0, 9, 1), Span(1, 3, 4)]]
    first = fed(forward, rectangle, steps, texts)
    for ours, one in zip(fed(forward, rectangle, steps, texts), first, strict=True):
        assert torch.equal(ours, one)


def test_spans_are_cut_where_a_pass_ends() -> None:
    spans = [Span(3, 5, 4), Span(1, 0, 6)]
    assert cut(spans, 0, 3) == [Span(3, 5, 3)]
    assert cut(spans, 3, 6) == [Span(3, 8, 1), Span(1, 0, 2)]
    assert cut(spans, 6, 10) == [Span(1, 2, 4)]


def test_padding_is_computed_and_kept_nowhere() -> None:
    texts = some_texts(3)
    forward = choose(model_of("gemma3")).forward
    rectangle, spans = rectangle_of(forward, 3), [Span(0, 0, 9), Span(1, 0, 4), Span(2, 0, 1)]
    tokens = [token for s in spans for token in texts[s.row][s.start : s.stop].tolist()]
    padded, ran = forward.padded(rectangle, spans, tokens)
    ran.commit()
    assert (ran.padded_to, len(padded)) == (9, 3)
    assert not rectangle.keys[0][1, 4:].any()
    ragged, _ = forward.fill(rectangle_of(forward, 3), spans, tokens)
    assert torch.equal(padded, ragged)


def test_padding_columns_that_hold_nan_are_never_read() -> None:
    texts = some_texts(2)
    forward = choose(model_of("llama")).forward
    rectangle = rectangle_of(forward, 2)
    for tensor in (*rectangle.keys, *rectangle.values):
        tensor.fill_(float("nan"))
    steps = [[Span(0, 0, 12), Span(1, 0, 3)], [Span(0, 12, 1), Span(1, 3, 1)]]
    assert all(logits.isfinite().all() for logits in fed(forward, rectangle, steps, texts))


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "gpt_oss"])
def test_released_weights_are_given_back_when_the_program_is_not_exact(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gpt2's weights and gpt_oss's experts lie the other way round; gpt2's output layer is its embedding."""
    family = next(family for family in FAMILIES if family.name == name)
    model = bare_model(family)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    right = NativeForward._run

    def wrong(self: NativeForward, *args: object, **kwargs: object) -> tuple[Tensor, object]:
        logits, ran = right(self, *args, **kwargs)  # type: ignore[arg-type]
        return logits + 1, ran

    with monkeypatch.context() as patch:
        patch.setattr(NativeForward, "_run", wrong)
        choice = choose(model, release=True)
    assert isinstance(choice.forward, TorchForward)
    assert "differ from those of the model alone" in choice.description
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    again = bare_model(family)
    assert is_native(choose(again, release=True).forward)
    assert sum(p.numel() for p in again.parameters()) < sum(value.numel() for value in before.values()) / 2


# With activations in 8 bits some tokens of a mixture go to other experts.
WITHIN = {"int8": 1e-3, "int4": 6e-2, "int4:exact": 1e-3}


@pytest.mark.parametrize(
    ("name", "format", "within"),
    [
        (name, format, within)
        for name in ("llama", "gpt2", "gemma3", "qwen3_moe", "gpt_oss", "lfm2", "mamba2")
        for format, within in WITHIN.items()
        if format != "int4" or name not in EXPERTS
    ],
)
def test_quantised_steps_give_what_the_model_with_the_rounded_weights_gives(
    name: str, format: str, within: float
) -> None:
    model, text = model_of(name), some_texts(1)[0][:40]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    own = stock_logits(model, [text])[0]
    with rounded_weights(model, FORMATS[format].packing):
        expected = stock_logits(model, [text])[0]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    forward = choose(model, format=FORMATS[format]).forward
    assert is_native(forward)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    steps = [[Span(0, 0, 36)], *([Span(0, at, 1)] for at in range(36, 40))]
    logits = torch.cat(fed(forward, rectangle_of(forward, 1), steps, [text]))
    size = float(expected.abs().max())
    assert 0 < float((logits - expected).abs().max()) / size < within < float((logits - own).abs().max()) / size


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("format", ["int8", "int4", "int4:exact"])
def test_a_quantised_model_with_other_products_is_found_out(
    name: str, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = NativeForward._run

    def wrong(self: NativeForward, *args: object, **kwargs: object) -> tuple[Tensor, object]:
        logits, ran = right(self, *args, **kwargs)  # type: ignore[arg-type]
        return logits * 1.2, ran

    monkeypatch.setattr(NativeForward, "_run", wrong)
    with pytest.raises(LoadError, match=f"--quantize {format}: its logits differ"):
        choose(model_of(name), format=FORMATS[format])


def test_4_bits_keep_the_output_layer_in_8() -> None:
    """Of a tied model the embedding, too: its rows come out as the 8-bit kind has them."""
    for name in ("llama", "gpt2"):
        model = model_of(name)
        forward = choose(model, format=FORMATS["int4"]).forward
        assert isinstance(forward, NativeForward)
        kinds = {table.weight.kind for table in forward.program._tables if not table.plain}
        heads = [t.weight for t in forward.program._tables if not t.plain and t.weight.kind == native.INT8]
        assert kinds == {native.INT4, native.INT8}
        assert [weight.outputs for weight in heads] == [model.config.vocab_size]


def test_what_chooses_experts_keeps_its_number_format() -> None:
    """Beside it a dense product may read the same numbers, and is kept in fewer bits."""
    model = model_of("qwen2_moe")
    forward = choose(model, format=FORMATS["int4"]).forward
    assert isinstance(forward, NativeForward)
    weights = [table.weight for table in forward.program._tables if not table.plain]
    router, experts = (4, 64), {(96, 64), (64, 48)}
    kinds = {(w.kind, (w.outputs, w.inputs) in experts) for w in weights if (w.outputs, w.inputs) != router}
    assert {w.kind for w in weights if (w.outputs, w.inputs) == router} == {native.FLOAT32}
    assert kinds == {(native.INT4, True), (native.INT4, False), (native.INT8, False)}
    assert forward.program.chosen_share == model.config.num_experts_per_tok / model.config.num_experts


def test_products_that_read_what_the_output_layer_reads_are_kept_as_it_is() -> None:
    """Rows are made ready once for all products that read them, and in one form."""
    groups = [[0], [1, 2], [2, 3], [4]]
    lines = [
        Line(does, table=at)
        for group in groups
        for does, at in (("READY", group[0]), *(("PRODUCT", at) for at in group))
    ]
    token, position = Buffer(1, Space.VALUES), Buffer(1, Space.VALUES)
    tables = [TableSpec(torch.empty(outputs, 3), packed=True) for outputs in (5, 7, 4, 4, 6)]
    assert head_tables(Graph(token, position, lines=lines, tables=tables, vocabulary=7)) == {1, 2, 3}


@pytest.mark.parametrize("format", ["int8", "int4", "int4:exact"])
def test_fewer_bits_are_refused_where_steps_are_not_native(format: str) -> None:
    with pytest.raises(LoadError, match=rf"--quantize {format}: its attention is its own"):
        choose(model_of("gpt_neo"), format=FORMATS[format])
    with pytest.raises(LoadError, match="leave out --no-compile"):
        choose(model_of("llama"), format=FORMATS[format], native=False)


def test_a_model_whose_step_looks_at_values_is_run_in_torch() -> None:
    model = model_of("llama")
    stock = model.model.forward

    def looks(*args: object, **kwargs: object) -> object:
        if int(kwargs["input_ids"].sum()) < 0:  # type: ignore[attr-defined]
            raise AssertionError
        return stock(*args, **kwargs)

    model.model.forward = looks
    choice = choose(model)
    assert not is_native(choice.forward)
    assert "not steps as one native call: " in choice.description
    assert "cannot be recorded" in choice.description


@pytest.mark.parametrize("name", ["llama", "gemma4", "phi", "bamba", "qwen3_next"])
def test_every_value_has_a_place_of_its_own_while_it_is_needed(name: str) -> None:
    """No line writes over a number that a later line still reads, or that threads read while it is carried out."""
    draft = lower(record(model_of(name)))
    owner: dict[tuple[str, int], object] = {("VALUES", given.offset): given for given in (draft.token, draft.position)}

    def is_whole(one: Ref) -> bool:
        buffer = one.buffer
        if buffer is None or buffer.space.name not in ("VALUES", "LATE"):
            return True
        return all(owner[buffer.space.name, buffer.offset + at] is buffer for at in range(buffer.size))

    made_ready: tuple[Ref, ...] = ()
    for line in draft.lines:
        assert all(is_whole(one) for one in line.inputs)
        if line.out is not None and line.out.buffer is not None:
            out = line.out.buffer
            for at in range(out.offset, out.offset + out.size):
                owner[out.space.name, at] = out
        if line.does == "READY":
            made_ready = line.inputs
        elif line.does == "PRODUCT":
            # Each thread makes the rows ready for itself, while others may multiply already.
            assert all(is_whole(one) for one in made_ready)
    assert widest(draft) <= draft.row_floats


def widest(draft: Graph) -> int:
    return max(
        one.buffer.offset + one.buffer.size
        for line in draft.lines
        for one in line.inputs
        if one.buffer is not None and one.buffer.space.name == "VALUES"
    )


def test_a_family_of_another_dtype_is_named() -> None:
    model = bare_model(Family("llama", "llama")).to(torch.float64)  # type: ignore[arg-type]
    assert "float64" in choose(model).description
