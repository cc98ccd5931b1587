"""A model from the hub, from a folder or built in: loaded, probed, checked against its own stock attention."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import transformers
from transformers import PreTrainedModel

from baton.core.config import ALIGNED, AUTO
from baton.core.errors import LoadError
from baton.core.generation_defaults import NO_DEFAULTS, GenerationDefaults, defaults_of
from baton.core.settings import LoadSettings
from baton.loader.checkpoint import few
from baton.loader.choose import Choice, choose
from baton.loader.context import context
from baton.loader.formats import FORMATS, WeightFormat
from baton.loader.gguf_file import place_of
from baton.loader.hub import Place
from baton.loader.kept_steps import StaleSteps, StepCache
from baton.loader.loaded import Loaded
from baton.loader.mapping import mapping
from baton.loader.packed_format import PackedFormat
from baton.loader.rounded import rounded_weights
from baton.loader.selfcheck import use_reference_attention
from baton.loader.slow_dtype import WORTHWHILE, float32_gain
from baton.loader.stamp import stamp_of, weights_digest
from baton.loader.stock import read_config, read_model, read_tokenizer, tell_of_tokens
from baton.loader.structure import Structure, structure
from baton.loader.wanted import device_asked, dtype_of, kept_packed, saved_dtype, step_compiler
from baton.loader.whole import not_finite
from baton.model.device import device_of
from baton.model.forward import TorchForward
from baton.model.packed_layers import count_weights, packed_bytes, packed_layers
from baton.model.tokenizer import ModelTokenizer
from baton.native.kept_weights import KeptWeights

OnPhase = Callable[[str, float], None]
"""Called with a phase's name and the seconds it took."""


def ignore_phase(phase: str, seconds: float) -> None:
    """The default of `on_phase`: does nothing."""


def load(
    asked: LoadSettings,
    *,
    on_phase: OnPhase = ignore_phase,
    before: Callable[[PreTrainedModel], None] | None = None,
) -> Loaded:
    """Loads a model. Raises LoadError, in one line that says what to do.

    `before` is called with the model while it is still stock; once more, from the beginning, if that is in float32
    after all.
    """
    name = asked.name
    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        # The hub's progress bars for downloads are switched off with transformers' own.
        transformers.logging.disable_progress_bar()
    device = device_asked(asked.device)
    facts = device_of(device)
    compiled = step_compiler(asked, facts)
    format = FORMATS[asked.quantize]
    format.check(facts)
    code = asked.trust_remote_code
    with _phase("tokenizer", on_phase):
        place = place_of(asked.source, code=code)
        stock = read_config(place, trust_remote_code=code)
        packed = kept_packed(asked, stock, facts)
        tokenizer = read_tokenizer(place, trust_remote_code=code)
        if asked.template is not None:
            tokenizer.chat_template = asked.template
        saved = saved_dtype(stock)
    with _phase("weights", on_phase):
        dtype = dtype_of(asked, stock, facts, format)
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
            gain = _gain(asked, model, choice) if facts.kind == "cpu" else 0.0
            if gain and before is not None:
                # It is served in float32, so that is also what it gives alone.
                again = load(replace(asked, dtype="float32"), on_phase=on_phase, before=before)
                return replace(again, widened=_widened(gain, saved))
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
    return replace(format, kept=KeptWeights(asked.quantized_cache, key, asked.quantized_cache_size))


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


def _told(model: PreTrainedModel, packed: PackedFormat, saved: str) -> str:
    """How packed layers are kept, for people: the format, its bytes, and what is rounded."""
    size = packed_bytes(model)
    dtype = str(model.dtype).removeprefix("torch.")
    others = f"other weights in {dtype}, rounded from {saved}" if (saved, dtype) == ("float16", "bfloat16") else ""
    which = packed.packs
    kept = f"{which} stay packed as they are: {packed.name} ({size / 2**20:,.1f} MiB)"
    return ", ".join(filter(None, (kept, packed.note, others)))


@contextmanager
def _phase(name: str, on_phase: OnPhase) -> Iterator[None]:
    began = time.perf_counter()
    yield
    on_phase(name, time.perf_counter() - began)
