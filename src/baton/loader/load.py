"""A model from the hub, from a folder or built in: loaded, probed, checked against its own stock attention."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from baton.core.config import ALIGNED, AUTO, NO_COMPILER
from baton.core.errors import LoadError, SettingError
from baton.core.generation_defaults import NO_DEFAULTS, GenerationDefaults, defaults_of
from baton.core.settings import LoadSettings
from baton.cuda.virtual_memory import Driver
from baton.loader.checkpoint import few
from baton.loader.choose import Choice, choose
from baton.loader.context import context
from baton.loader.formats import FORMATS, ROUNDED_ACTIVATIONS, WeightFormat
from baton.loader.gguf_blocks import METHOD
from baton.loader.gguf_file import place_of
from baton.loader.hub import Place
from baton.loader.kept_steps import StaleSteps, StepCache
from baton.loader.mapping import mapping
from baton.loader.packed_format import PackedFormat
from baton.loader.packings import packed_format, said_of
from baton.loader.rounded import rounded_weights
from baton.loader.selfcheck import use_reference_attention
from baton.loader.slow_dtype import WORTHWHILE, float32_gain
from baton.loader.stamp import stamp_of, weights_digest
from baton.loader.stock import read_config, read_model, read_tokenizer, tell_of_tokens
from baton.loader.structure import Structure, structure
from baton.loader.whole import not_finite
from baton.model.device import Device, device_of
from baton.model.forward import TorchForward
from baton.model.packed_layers import count_weights, packed_bytes, packed_layers
from baton.model.port import Forward
from baton.model.probe import Geometry
from baton.model.tokenizer import ModelTokenizer
from baton.native.forward import NativeForward
from baton.native.kept_weights import KeptWeights

OnPhase = Callable[[str, float], None]
"""Called with a phase's name and the seconds it took."""


def ignore_phase(phase: str, seconds: float) -> None:
    """The default of `on_phase`: does nothing."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run.

    `packed`: how its checkpoint's packed layers are kept, and `widened`: why it computes in float32 though it was saved
    in another number format; for people. `driver`: maps memory as rows grow; None if not
    asked for, or for the reason `why_not_mapped`.
    """

    name: str
    model: PreTrainedModel
    choice: Choice
    tokenizer: ModelTokenizer
    end_ids: tuple[int, ...]
    context_tokens: int
    context_source: str
    dtype: torch.dtype
    device: torch.device
    parameters: int
    stamp: str
    weights: str = ""
    generation: GenerationDefaults = NO_DEFAULTS
    packed: str = ""
    widened: str = ""
    driver: Driver | None = None
    why_not_mapped: str = ""

    @property
    def forward(self) -> Forward:
        return self.choice.forward

    @property
    def geometry(self) -> Geometry:
        return self.forward.geometry

    @property
    def format(self) -> WeightFormat:
        return self.choice.format

    @property
    def tolerance(self) -> float:
        """Of logits, relative to the largest, for what the weights' format rounds."""
        return ROUNDED_ACTIVATIONS if self.packed else self.format.tolerance

    @property
    def chosen_share(self) -> float:
        """The share of experts that a token chooses, where only those are read; else 0."""
        return self.forward.program.chosen_share if isinstance(self.forward, NativeForward) else 0.0

    @property
    def chooses_roughly(self) -> bool:
        """Whether tokens choose experts by rounded numbers, so that a near tie may fall the other way than alone."""
        if not self.chosen_share:
            return False
        rounded = self.dtype is not torch.float32 or self.format.rounded_bits is not None
        return rounded or bool(packed_layers(self.model))

    @property
    def description(self) -> str:
        """How the model is run, for people."""
        return "; ".join(filter(None, (self.packed, self.choice.description, self.widened)))

    def fixed(self, rows: int) -> Loaded:
        """Returns the same model, run so that a row's bits do not depend on its company; see `Forward.fixed`."""
        return replace(self, choice=replace(self.choice, forward=self.forward.fixed(rows)))


def load(
    asked: LoadSettings,
    *,
    on_phase: OnPhase = ignore_phase,
    before: Callable[[PreTrainedModel], None] | None = None,
) -> Loaded:
    """Loads a model. Raises LoadError, in one line that says what to do.

    `before` is called with the model while it is still stock.
    """
    name = asked.name
    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        # The hub's progress bars for downloads are switched off with transformers' own.
        transformers.logging.disable_progress_bar()
    device = device_asked(asked.device)
    facts = device_of(device)
    compiled = _compiler(asked, facts)
    format = FORMATS[asked.quantize]
    format.check(facts)
    code = asked.trust_remote_code
    with _phase("tokenizer", on_phase):
        place = place_of(asked.source, code=code)
        stock = read_config(place, trust_remote_code=code)
        packed = _kept_packed(asked, stock, facts)
        tokenizer = read_tokenizer(place, trust_remote_code=code)
        if asked.template is not None:
            tokenizer.chat_template = asked.template
        saved = saved_dtype(stock)
    with _phase("weights", on_phase):
        dtype = _dtype(asked, stock, facts, format)
        model = read_model(place, stock, dtype=dtype, trust_remote_code=code, packed=packed)
        parameters = count_weights(model)
        weights = weights_digest(model)
        columns, exact = asked.longest or context_of(model.config), None
        format = _kept(asked, format, place, weights)
        if format.rounded_bits is not None and not format.native_only:
            # Rounded weights would hide which way is exact.
            exact = _exact_backends(model.eval().requires_grad_(False), columns, name, asked)
        format.prepare(model, device)
        model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    if before is not None:
        use_reference_attention(model)
        with _phase("alone", on_phase), rounded_weights(model, format.packing):
            before(model)
    with _phase("self-check", on_phase):
        try:
            # Aligned rows run in torch: native steps expect each row at its own columns.
            why_not = "--shaping aligned" if asked.shaping == ALIGNED else "--no-compile"
            native = asked.compile and asked.shaping != ALIGNED
            stock_attention = model.config.get_text_config()._attn_implementation
            chosen = partial(
                choose,
                model,
                native=native,
                why_not=why_not,
                format=format,
                release=True,
                compiled=compiled,
                columns=columns,
                exact=exact,
            )
            choice = chosen(cache=_cache(asked, model, format, columns) if native and before is None else None)
            gain = _gain(asked, model, choice) if before is None and facts.kind == "cpu" else 0.0
            if gain:
                model.float().set_attn_implementation(stock_attention)
                choice = chosen()
        except StaleSteps:
            # The file is gone by now, and so are the weights.
            return load(asked, on_phase=on_phase)
        except LoadError as error:
            raise LoadError(_why_not(model, name, error, asked)) from error
        driver, why_not_mapped = mapping(model, choice.forward) if asked.kv_mapping else (None, "")
    model_context = context(model.config)
    vocabulary = int(model.config.get_text_config().vocab_size)
    tell_of_tokens(tokenizer, vocabulary, name)
    return Loaded(
        name=name,
        model=model,
        choice=choice,
        tokenizer=ModelTokenizer(
            tokenizer,
            vocabulary,
            asked.limits,
            special_in_text=asked.special_in_text,
            variables=asked.template_variables,
        ),
        end_ids=end_ids(model, tokenizer),
        context_tokens=model_context.asked(asked.longest or 0),
        context_source=model_context.source,
        dtype=model.dtype,
        device=device,
        parameters=parameters,
        stamp=stamp_of(weights, model.dtype, asked.quantize, choice.forward.geometry.shapes),
        weights=stamp_of(weights, model.dtype, asked.quantize, ()),
        generation=generation_defaults(model) if asked.generation_config else NO_DEFAULTS,
        packed="" if packed is None or not packed_layers(model) else _told(model, packed, saved),
        widened=_widened(gain, saved) if gain else "",
        driver=driver,
        why_not_mapped=why_not_mapped,
    )


def _exact_backends(model: PreTrainedModel, columns: int, name: str, asked: LoadSettings) -> Structure:
    use_reference_attention(model)
    try:
        return structure(model, columns)
    except LoadError as error:
        raise LoadError(_why_not(model, name, error, asked)) from error


def _gain(asked: LoadSettings, model: PreTrainedModel, choice: Choice) -> float:
    """How many times as long torch takes as in float32, if its number format is its own choice; else 0."""
    if asked.dtype != AUTO or asked.quantize != "none" or not isinstance(choice.forward, TorchForward):
        return 0.0
    gain = 0.0 if packed_layers(model) else float32_gain(model)
    return gain if gain >= WORTHWHILE else 0.0


def _widened(gain: float, saved: str) -> str:
    return f"computed in float32, for torch takes {gain:.1f} times as long in {saved} here (--dtype {saved} keeps it)"


def _kept(asked: LoadSettings, format: WeightFormat, place: Place, weights: str) -> WeightFormat:
    """The format with the file for these weights, if there is to be one. `weights`: a digest of a sample."""
    if asked.quantized_cache is None or not format.native_only:
        return format
    # What a sample does not show, a file's time does.
    files = [(one.name, one.stat()) for one in sorted(place.folder.iterdir()) if one.is_file()]
    told = format.name, weights, [(name, at.st_size, at.st_mtime_ns) for name, at in files]
    key = hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()
    return replace(format, kept=KeptWeights(asked.quantized_cache, key))


def _cache(asked: LoadSettings, model: PreTrainedModel, format: WeightFormat, columns: int) -> StepCache | None:
    if asked.step_cache is None or model.device.type != "cpu":
        return None
    return StepCache(asked.step_cache, model, format, columns)


def _why_not(model: PreTrainedModel, name: str, error: LoadError, asked: LoadSettings) -> str:
    broken = not_finite(model)
    if broken:
        return f"{name} has weights that are NaN or infinite, {few(broken)}: take another checkpoint"
    why = f"{name} cannot be batched exactly: {error.message}"
    if asked.quantize != "none":
        return why
    return f"{why}; so it is not served: run {model.config.model_type} models with transformers' own generate"


def end_ids(model: PreTrainedModel, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a text, from the generation config and the tokenizer."""
    end_id = model.generation_config.eos_token_id if model.generation_config else None
    ids = list(end_id) if isinstance(end_id, (list, tuple)) else [end_id]
    ids.append(getattr(tokenizer, "eos_token_id", None))
    return tuple(sorted({int(i) for i in ids if i is not None}))


def generation_defaults(model: PreTrainedModel) -> GenerationDefaults:
    """The sampling defaults of the model's author."""
    return defaults_of(model.generation_config.to_dict()) if model.generation_config else NO_DEFAULTS


def context_of(config: Any) -> int:
    """The longest text that the model was made for, in tokens."""
    return context(config).tokens


def saved_dtype(config: Any) -> str:
    """The number format of a checkpoint with this stock config, by name."""
    saved = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None) or "float32"
    return str(saved).removeprefix("torch.")


def _kept_packed(asked: LoadSettings, stock: Any, facts: Device) -> PackedFormat | None:
    """The format in which a packed checkpoint is kept; None if it is not packed, or has a quantizer of its own.

    Raises SettingError if its codes would be rounded again.
    """
    if facts.kind != "cpu":
        if said_of(stock).get("quant_method") == METHOD:
            raise SettingError("GGUF files are read on CPUs alone: --device cpu", param="device")
        return None
    packed = packed_format(stock, asked.source)
    if packed is not None and asked.quantize != "none":
        raise SettingError(
            f"--quantize {asked.quantize}: {asked.name} is packed already ({packed.name}), and rounding its numbers"
            " again would lose a second time: leave it out",
            param="quantize",
        )
    return packed


def _told(model: PreTrainedModel, packed: PackedFormat, saved: str) -> str:
    """How packed layers are kept, for people: the format, its bytes, and what is rounded."""
    size = packed_bytes(model)
    dtype = str(model.dtype).removeprefix("torch.")
    others = f"other weights in {dtype}, rounded from {saved}" if (saved, dtype) == ("float16", "bfloat16") else ""
    which = packed.packs
    kept = f"{which} stay packed as they are: {packed.name} ({size / 2**20:,.1f} MiB)"
    return ", ".join(filter(None, (kept, packed.note, others)))


def _dtype(asked: LoadSettings, stock: Any, facts: Device, format: WeightFormat) -> str:
    """The number format in which weights are loaded. Raises SettingError for one that the device does not have."""
    if asked.dtype == AUTO and facts.kind != "cuda":
        return AUTO
    if asked.dtype == AUTO and getattr(stock, "quantization_config", None):
        return AUTO
    if asked.dtype == AUTO and format.dtype is not None:
        return format.dtype
    return facts.dtype(asked.dtype, saved_dtype(stock))


def _compiler(asked: LoadSettings, facts: Device) -> str | None:
    """The backend of torch.compile for decode steps. Raises SettingError if no decode steps can be compiled."""
    if asked.step_compiler == NO_COMPILER:
        return None
    why = {
        f"decode steps are compiled on CUDA, not on {facts.kind}": not facts.captures,
        "steps must be of constant shape, without --no-compile": not asked.compile,
        "aligned rows have no steps of constant shape": asked.shaping == ALIGNED,
        "--deterministic fixes shapes in its own way": asked.deterministic,
    }
    for reason, holds in why.items():
        if holds:
            raise SettingError(f"--step-compiler {asked.step_compiler}: {reason}", param="step_compiler")
    return asked.step_compiler


def device_asked(asked: str) -> torch.device:
    """The device of this name, or the best one. Raises SettingError if the device is not there."""
    if asked == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if asked == "cuda" and not torch.cuda.is_available():
        raise SettingError("--device cuda: torch finds no CUDA device here", param="device")
    if asked == "mps" and not torch.backends.mps.is_available():
        raise SettingError("--device mps: torch finds no MPS device here", param="device")
    return torch.device(asked)


@contextmanager
def _phase(name: str, on_phase: OnPhase) -> Iterator[None]:
    began = time.perf_counter()
    yield
    on_phase(name, time.perf_counter() - began)
