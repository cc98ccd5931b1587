"""Turns what was asked into three values: for the loader, for the engine and for the server.

`load_settings`, `resolve` and `server_settings` are called once each, by the code that joins the rooms. No other code
sees the `Config`. `resolve` is the only place where "auto" becomes a number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baton.core.config import (
    ALIGNED,
    AUTO,
    OFF,
    SHARE_ALL,
    SHARE_BY_KEY,
    Config,
    check_shaping,
    read_template,
    template_variables,
)
from baton.core.errors import SettingError
from baton.core.files import user_cache
from baton.core.footprint import Footprint
from baton.core.limits import Limits
from baton.core.step import NO_TRAITS, Traits
from baton.core.values import number_in, parse_bytes

# If KV memory is allocated at once, activations need the rest.
_AT_ONCE_SHARE = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadSettings:
    """What the loader needs.

    Attributes:
        source: A folder or a hub id.
        name: What the model is called in messages.
        longest: Most tokens of a query; None for what the model's context is.
        template: The chat template instead of the model's own; None for that.
        template_variables: What chat templates are handed by default.
        generation_config: The model author's sampling defaults are taken.
        step_cache: Folder of steps that earlier starts proved; None for none.
        quantized_cache: Folder of weights that earlier starts quantised; None for none.
        quantized_cache_size: Most bytes of its files.
        special_in_text: Special tokens in what a conversation says are those tokens, not text.
    """

    source: str
    name: str
    longest: int | None
    device: str
    dtype: str
    quantize: str
    compile: bool
    step_compiler: str
    shaping: str
    deterministic: bool
    kv_mapping: bool
    trust_remote_code: bool
    special_in_text: bool
    step_cache: Path | None
    quantized_cache: Path | None
    quantized_cache_size: int
    template: str | None
    template_variables: Mapping[str, Any]
    generation_config: bool
    limits: Limits


def load_settings(config: Config, source: str, name: str) -> LoadSettings:
    """Returns what the loader needs. Raises SettingError."""
    same = ("device", "dtype", "quantize", "compile", "step_compiler", "shaping", "deterministic", "kv_mapping")
    longest = number_in("max_model_len", config.max_model_len, 0)
    return LoadSettings(
        source=source,
        name=name,
        longest=longest or None,
        **{known: getattr(config, known) for known in same},
        trust_remote_code=config.trust_remote_code,
        template=read_template(config),
        template_variables=template_variables(config),
        generation_config=config.generation_config == AUTO,
        special_in_text=not has_keys(config) if config.special_in_text is None else config.special_in_text,
        step_cache=cache_folder(config.step_cache, "steps"),
        quantized_cache=cache_folder(config.quantized_cache, "packed"),
        quantized_cache_size=config.quantized_cache_size,
        limits=limits_of(config),
    )


def cache_folder(asked: str, name: str) -> Path | None:
    """The folder that a setting asks for, by default `name`; None if it is off, or if there is no folder for caches."""
    if asked == OFF:
        return None
    if asked != AUTO:
        return Path(asked)
    cache = user_cache()
    return None if cache is None else cache / name


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """What the server needs besides the limits, which the engine has too. Times are in seconds.

    Attributes:
        hang_exit_seconds: After so long in one iteration the process ends itself; 0: never.
        vllm_names: The metrics page has vLLM's names beside baton's.
        unload_after_seconds: After so long without a request a model is unloaded; 0: never.
        batch_dir: The folder of files and batches; None: there are none.
        handover: The folder of answers that go on in the next process; None: they end with this one.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: tuple[str, ...] = ()
    api_key_file: str | None = None
    allowed_host: tuple[str, ...] = ()
    cors_origin: tuple[str, ...] = ()
    drain_seconds: float = 30.0
    hang_seconds: float = 60.0
    hang_exit_seconds: float = 300.0
    vllm_names: bool = False
    unload_after_seconds: float = 0.0
    batch_dir: str | None = None
    handover: str | None = None


def server_settings(config: Config) -> ServerSettings:
    """Returns what the server needs."""
    same = ("host", "port", "api_key", "api_key_file", "allowed_host", "cors_origin", "batch_dir", "handover")
    return ServerSettings(
        **{known: getattr(config, known) for known in same},
        drain_seconds=config.drain_timeout,
        hang_seconds=config.hang_timeout,
        hang_exit_seconds=config.hang_exit * config.hang_timeout,
        vllm_names=config.metrics_compat == "vllm",
        unload_after_seconds=config.unload_after,
    )


def limits_of(config: Config) -> Limits:
    return Limits(**{known.name: getattr(config, known.name) for known in dataclasses.fields(Limits)})


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about the loaded model and this machine. `lazy_memory`: KV memory is committed only as rows grow into it.

    `swap_free_bytes`: free bytes of the memory that holds swapped-out queries and stored prefixes; None if that is the
    rows' memory. `context_source`: where the context's number comes from, for people. `mapped_footprint`: of a query if
    a device's memory is mapped as rows grow; None if it is not.
    """

    context_tokens: int
    footprint: Footprint
    free_bytes: int
    device: str
    dtype: str
    cores: int
    lazy_memory: bool
    swap_free_bytes: int | None = None
    mapped_footprint: Footprint | None = None
    context_source: str = "its config"


@dataclass(frozen=True, slots=True)
class Settings:
    """The resolved settings, in numbers.

    `reasoning`: it is told apart from answers. `has_keys`: requests need an API key. `kv_mapping`: memory for keys and
    values is mapped as rows grow.
    """

    policy: str
    max_rows: int
    max_model_len: int
    kv_bytes: int
    prefill_chunk: int | None
    max_stall_seconds: float
    max_waiting: int
    seed: int
    swap_bytes: int = 0
    shaping: str = "ragged"
    prefix_cache: bool = True
    prefix_sharing: str = SHARE_ALL
    has_keys: bool = False
    deterministic: bool = False
    hang_seconds: float = 60.0
    kv_mapping: bool = False
    reasoning: bool = True
    limits: Limits = field(default_factory=Limits)


def resolve(config: Config, facts: Facts, traits: Traits = NO_TRAITS) -> Settings:
    """Turns "auto" into numbers. Raises SettingError with the name of a setting that cannot be honoured."""
    facts, mapped = _laid_out(config, facts, traits)
    rows = number_in("max_batch_size", config.max_batch_size, 8 if facts.device == "cpu" else 32)
    # Memory that is allocated at once holds the batch's rows, and as many and one more for prefill.
    at_once = 1 if facts.lazy_memory else 2 * rows + 1
    fitting = int(facts.free_bytes * _AT_ONCE_SHARE) // (at_once * max(facts.footprint.token_bytes, 1))
    auto = facts.context_tokens if facts.lazy_memory else max(1, min(facts.context_tokens, fitting))
    length = number_in("max_model_len", config.max_model_len, auto)
    if not facts.lazy_memory and length > fitting:
        message = f"{rows} rows of {length} tokens do not fit this device: lower --max-batch-size or --max-model-len"
        raise SettingError(message, param="max_model_len")
    if length > facts.context_tokens:
        message = (
            f"--max-model-len {length} is more than the model's context of {facts.context_tokens} tokens "
            f"({facts.context_source}): lower it, or put the rope scaling that the model's card names into config.json"
        )
        raise SettingError(message, param="max_model_len")
    check_shaping(config, traits)
    held = facts.footprint.aligned(length) if config.shaping == ALIGNED else facts.footprint
    row_bytes = held.of(length)
    if config.kv_memory == AUTO:
        # Half of what is free. The other half is for activations, the pool of detached rows and other processes.
        share = _AT_ONCE_SHARE if mapped else 0.5
        kv_bytes = min(2 * rows * row_bytes, int(facts.free_bytes * share))
    else:
        kv_bytes = parse_bytes(config.kv_memory, "kv_memory")
    if kv_bytes < row_bytes:
        message = (
            f"{kv_bytes / 2**20:.0f} MiB for keys and values cannot hold one query of {length} tokens "
            f"({row_bytes / 2**20:.0f} MiB): raise --kv-memory or lower --max-model-len"
        )
        raise SettingError(message, param="kv_memory")
    if config.swap_memory == AUTO:
        # Half of what rows may take, if half of what is left then has room for it.
        taken = kv_bytes if facts.lazy_memory else at_once * row_bytes
        apart = None if config.shaping == ALIGNED else facts.swap_free_bytes
        left = facts.free_bytes - taken if apart is None else apart
        swap_bytes = min(kv_bytes, max(0, left)) // 2
    else:
        swap_bytes = parse_bytes(config.swap_memory, "swap_memory")
    chunk = None if config.prefill_chunk == AUTO else number_in("prefill_chunk", config.prefill_chunk, 0)
    return Settings(
        policy=config.policy,
        max_rows=rows,
        max_model_len=length,
        kv_bytes=kv_bytes,
        prefill_chunk=chunk,
        max_stall_seconds=config.max_stall_ms / 1000,
        max_waiting=config.max_waiting,
        seed=config.seed,
        swap_bytes=swap_bytes,
        shaping=config.shaping,
        # If bits must be reproducible, a prompt is always fed in the same pieces.
        prefix_cache=config.prefix_cache and traits.keeps_prefixes and not config.deterministic,
        prefix_sharing=_prefix_sharing(config),
        has_keys=has_keys(config),
        deterministic=config.deterministic,
        hang_seconds=config.hang_timeout,
        kv_mapping=mapped,
        reasoning=config.reasoning == AUTO,
        limits=limits_of(config),
    )


def _laid_out(config: Config, facts: Facts, traits: Traits) -> tuple[Facts, bool]:
    """The facts for these settings, and whether memory is mapped as rows grow.

    It is not if rows are padded or aligned, because other rows' columns are then read too.
    """
    if facts.mapped_footprint is None or traits.pads or config.shaping == ALIGNED:
        return facts, False
    return dataclasses.replace(facts, footprint=facts.mapped_footprint, lazy_memory=True), True


def _prefix_sharing(config: Config) -> str:
    if config.prefix_sharing != AUTO:
        return config.prefix_sharing
    return SHARE_BY_KEY if has_keys(config) else SHARE_ALL


def has_keys(config: Config) -> bool:
    """Whether requests need a key, so that they come from people who need not trust one another."""
    return bool(config.api_key or config.api_key_file)
