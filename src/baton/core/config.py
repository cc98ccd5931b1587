"""What was asked: `Config`, with "auto", from flags, environment, file and keywords.

`core/settings.py` turns it into values for the loader, the engine and the server.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass

from baton.core.config_sources import MOST_CONFIG_BYTES, from_environment, from_file
from baton.core.errors import SettingError
from baton.core.files import read_text
from baton.core.limits import Limits, flag_of, setting
from baton.core.replicas import LOSSES, REPLICA_HANDOVER, check_replicas
from baton.core.several import check_several
from baton.core.several import named_models as named_models
from baton.core.step import NO_TRAITS, Traits
from baton.core.template_options import parse_variables
from baton.core.values import AUTO as AUTO
from baton.core.values import checked, number_in

log = logging.getLogger("baton")

DTYPES = (AUTO, "float32", "bfloat16", "float16")
FLOAT8 = "float8"
QUANTIZED_NATIVELY = ("int8", "int4", "int4:exact")
QUANTIZE = ("none", *QUANTIZED_NATIVELY, FLOAT8)
ALIGNED = "aligned"
SHAPING = ("ragged", ALIGNED)
NO_COMPILER = "none"
STEP_COMPILERS = (NO_COMPILER, "inductor")
SHARE_ALL, SHARE_BY_KEY, SHARE_BY_SALT = "all", "key", "salt"
PREFIX_SHARING = (AUTO, SHARE_ALL, SHARE_BY_KEY, SHARE_BY_SALT)
GENERATION_CONFIG = (AUTO, "none")
OFF = "off"
REASONING = (AUTO, OFF)
DEVICES = (AUTO, "cpu", "cuda", "mps")
LOG_LEVELS = ("debug", "info", "warning", "error")
MOST_THREADS = 1024


@dataclass(frozen=True, kw_only=True)
class Config(Limits):
    """What was asked for. Each field is a flag, a `BATON_*` variable and a key of `--config file.toml`."""

    model: str | None = setting(None, "Hub id, folder or GGUF file (also REPO:FORM); the built-in model if left out.")
    models: tuple[str, ...] = setting(
        (), "Several models in one server, each a hub id or folder, or NAME=ID; the first is the default of requests."
    )
    load_on_demand: bool = setting(False, "A model is loaded when the first request names it, not at the start.")
    unload_after: float = setting(
        0.0, "Seconds without a request after which a model leaves the memory (--load-on-demand); 0: never.", low=0
    )
    served_model_name: str | None = setting(None, "Name that requests use for the model.")
    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(8000, "Port to listen on.", low=0, high=65535)
    api_key: tuple[str, ...] = setting((), "Key that requests must send as a bearer token; several with commas.")
    api_key_file: str | None = setting(None, "File with such keys, one a line; # begins a comment.")
    allowed_host: tuple[str, ...] = setting((), "Name that requests may have as their Host; * for any.")
    cors_origin: tuple[str, ...] = setting((), "Origin whose pages may read answers (https://example.org); * for any.")
    dtype: str = setting(AUTO, "Number format of weights and KV; auto: as saved, on GPUs in 16 bits.", choices=DTYPES)
    device: str = setting(AUTO, "Where the model runs.", choices=DEVICES)
    quantize: str = setting(
        "none",
        "Weights of linear layers in fewer bits: int8 or int4 on the CPU (int4:exact: activations in 16), float8 on "
        "newer NVIDIA GPUs.",
        choices=QUANTIZE,
    )
    compile: bool = setting(True, "Steps as one native call if the model's can be recorded (CPU); else in torch.")
    step_cache: str = setting(
        AUTO,
        "Folder that keeps recorded and proved steps for the next start (CPU), or off; auto: baton/steps in the user's "
        "folder for caches.",
    )
    quantized_cache: str = setting(
        AUTO,
        "Folder that keeps the weights of --quantize int4 and int8 packed for the next start, which maps them; or off; "
        "auto: baton/packed in the user's folder for caches.",
    )
    quantized_cache_size: int = setting(
        32 * 2**30,
        "Most that folder holds; what was not used for the longest time goes. A file takes at most half of free room.",
        low=1,
        size=True,
    )
    step_compiler: str = setting(
        NO_COMPILER,
        "What layers are compiled with for decode steps on CUDA; starting then takes longer.",
        choices=STEP_COMPILERS,
    )
    max_batch_size: str = setting(AUTO, "Most rows of the running batch: a number, or auto.", number=True)
    max_model_len: str = setting(AUTO, "Most tokens of a query, prompt and generated: a number, or auto.", number=True)
    kv_memory: str = setting(
        AUTO, "Most memory for keys and values of all rows: like 4GiB or 500MB, or auto.", memory=True
    )
    kv_mapping: bool = setting(
        False, "Memory for keys and values is mapped as rows grow (CUDA), not allocated at once; never for padded rows."
    )
    swap_memory: str = setting(
        AUTO,
        "Most memory for queries swapped out and stored prefixes, the host's on CUDA: a size, 0 for none, or auto.",
        memory=True,
        was="pool_memory",
    )
    policy: str = setting("baton", "How queries are scheduled: baton, priority, slo, orca or run_to_completion.")
    shaping: str = setting(
        "ragged",
        "How the batch's rows lie: each by itself, or aligned at their ends as the paper draws it (slow, for study).",
        choices=SHAPING,
    )
    prefix_cache: bool = setting(
        True, "Prompts that begin as earlier texts did are computed from there; never by run_to_completion."
    )
    prefix_sharing: str = setting(
        AUTO,
        "Whose stored prefixes a prompt may begin with: of all, of the same API key, or of the same cache_salt alone; "
        "auto: key if there are keys, else all.",
        choices=PREFIX_SHARING,
    )
    deterministic: bool = setting(
        False, "Results equal to the bit in any company: steps of a fixed shape, slower; no prefix cache."
    )
    prefill_chunk: str = setting(
        AUTO, "Most prompt tokens per iteration while rows run: a number, or auto.", number=True
    )
    max_stall_ms: int = setting(200, "Longest that prefill may hold up running rows per iteration.", low=1)
    drain_timeout: float = setting(30.0, "Seconds that running queries get to finish at shutdown.", low=0)
    hang_timeout: float = setting(60.0, "Seconds of an iteration after which the engine is said to hang.", low=0.1)
    hang_exit: float = setting(
        5.0, "Times --hang-timeout after which a server that hangs ends itself, to be started again; 0: never.", low=0
    )
    threads: str = setting(
        AUTO, "Compute threads: a number, or auto (one for each core that this process may use).", number=True
    )
    seed: int = setting(0, "Seed from which the seeds of queries that bring none are drawn.", low=0)
    trust_remote_code: bool = setting(False, "Run Python code that comes with the model.")
    special_in_text: bool | None = setting(
        None,
        "Special tokens in a conversation's words are tokens, not text; the default if there are no keys.",
    )
    reasoning: str = setting(
        AUTO,
        "Reasoning between a model's own tags is separated from its answer (auto), or left in it.",
        choices=REASONING,
    )
    generation_config: str = setting(
        AUTO,
        "Sampling defaults of the model's author, from generation_config.json: for requests that name nothing else, "
        "or none.",
        choices=GENERATION_CONFIG,
    )
    chat_template: str | None = setting(None, "File with the chat template, instead of the model's own.")
    chat_template_kwargs: str | None = setting(
        None, 'Variables that the chat template is handed, as a JSON object: {"enable_thinking": false}.'
    )
    batch_dir: str | None = setting(
        None, "Folder where files and batches are kept, for /v1/files and /v1/batches, which are off without it."
    )
    handover: str | None = setting(
        None,
        "Folder where what is running at shutdown is left to the next start; clients come back for it at "
        "/v1/baton/streams/{id}, which is off without it.",
    )
    replicas: str | None = setting(
        None,
        "Engines in processes of their own, on Ray Serve: a number, or a range like 1-8 that follows the load; one "
        "engine in the server's process if left out.",
    )
    ray_address: str | None = setting(
        None, "Ray cluster whose machines run the engines: auto, or HOST:PORT; one is started here if left out."
    )
    replica_cpus: str = setting(
        AUTO, "Cores of each engine: a number, or auto (this machine's, shared by all).", number=True
    )
    replica_gpus: str = setting(AUTO, "GPUs of each engine: a number, or auto (one if there are any).")
    replica_handover: str = setting(
        AUTO,
        "How queries leave an engine that is ended: with keys and values, as tokens that are computed again, or not at "
        "all while --drain-timeout lasts (off); auto: with keys and values unless computing is measured to be faster.",
        choices=REPLICA_HANDOVER,
    )
    prefill_replicas: int = setting(
        0, "Engines besides that compute long prompts up to the first token, and then hand them over.", low=0
    )
    losses: int = setting(LOSSES, "Engines that may be lost with a query on board; then it fails.", low=1)
    metrics_compat: str = setting("none", "Names on /metrics beside baton's own.", choices=("none", "vllm"))
    trace: str | None = setting(None, "File to which everything that happens is written (`baton explain` reads it).")
    log_level: str = setting("info", "What is logged.", choices=LOG_LEVELS)


def template_variables(config: Config) -> dict[str, typing.Any]:
    """The default variables of chat templates. Raises SettingError."""
    return {} if config.chat_template_kwargs is None else parse_variables(config.chat_template_kwargs)


def read_template(config: Config) -> str | None:
    """The chat template in the named file; None for the model's own. Raises SettingError."""
    path = config.chat_template
    if path is None:
        return None
    return read_text("--chat-template", path, param="chat_template", most_bytes=MOST_CONFIG_BYTES)


def check_shaping(config: Config, traits: Traits = NO_TRAITS) -> None:
    """Raises SettingError for settings that aligned rows cannot be combined with."""
    if config.shaping != ALIGNED:
        return
    if traits.selective:
        message = "--shaping aligned: selective batching aligns no rows; take --policy baton or run_to_completion"
        raise SettingError(message, param="shaping")
    if config.deterministic:
        message = "--shaping aligned: its shapes change with the batch, --deterministic's must not"
        raise SettingError(message, param="shaping")


def check_loading(config: Config) -> None:
    """Raises SettingError for flags of the model that exclude each other, whatever the model and the machine."""
    native = {"--shaping aligned": config.shaping == ALIGNED, "--no-compile": not config.compile}
    if config.quantize in QUANTIZED_NATIVELY:
        for flag, holds in native.items():
            if holds:
                raise SettingError(
                    f"--quantize {config.quantize} needs native steps: leave out {flag}", param="quantize"
                )
    on = config.device
    if config.quantize == FLOAT8 and on not in (AUTO, "cuda"):
        message = f"--quantize float8 needs an NVIDIA GPU, not --device {on}; CPUs have int8 and int4"
        raise SettingError(message, param="quantize")
    if config.step_compiler == NO_COMPILER:
        return
    why = {
        f"decode steps are compiled on CUDA, not on {on}": on not in (AUTO, "cuda"),
        "steps must be of constant shape, without --no-compile": not config.compile,
        "aligned rows have no steps of constant shape": config.shaping == ALIGNED,
        "--deterministic fixes shapes in its own way": config.deterministic,
    }
    for reason, holds in why.items():
        if holds:
            raise SettingError(f"--step-compiler {config.step_compiler}: {reason}", param="step_compiler")


def threads(config: Config, cores: int) -> int:
    """How many threads compute, if the process may use so many cores. Raises SettingError."""
    count = number_in("threads", config.threads, cores)
    if count > MOST_THREADS:
        raise SettingError(f"--threads {config.threads}: at most {MOST_THREADS}", param="threads")
    return count


OLD_NAMES = {known.metadata["was"]: known.name for known in dataclasses.fields(Config) if "was" in known.metadata}
"""Former names of settings, and what they are called now."""


def load_config(
    flags: Mapping[str, object], *, file: str | None = None, environment: Mapping[str, str] = os.environ
) -> Config:
    """Flags over environment over file. Raises SettingError, with the name, for an unknown setting or a bad value."""
    values: dict[str, object] = {}
    if file is not None:
        values.update(_renamed(from_file(file)))
    known = {f.name for f in dataclasses.fields(Config)} | set(OLD_NAMES)
    values.update(_renamed(from_environment(environment, known)))
    values.update(_renamed({name: value for name, value in flags.items() if value not in (None, ())}))
    if flags.get("models"):  # models that a command names replace one in the environment
        values.pop("model", None)
    return make_config(values)


def make_config(values: Mapping[str, object]) -> Config:
    """A Config of these values, each checked against its field. Raises SettingError."""
    values = _renamed(values)
    known = {f.name: f for f in dataclasses.fields(Config)}
    hints = typing.get_type_hints(Config)
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise SettingError(f"unknown setting: {', '.join(unknown)}", param=unknown[0])
    values = {name: checked(known[name], hints[name], value) for name, value in values.items()}
    if len(values.get("models") or ()) == 1 and not values.get("load_on_demand"):  # type: ignore[arg-type]
        # One model alone needs no process beside its own.
        values = {**values, "model": values["models"][0], "models": ()}  # type: ignore[index]
    config = Config(**values)  # type: ignore[arg-type]
    check_several(config)
    check_replicas(config)
    check_shaping(config)
    template_variables(config)
    read_template(config)
    return config


def _renamed(values: Mapping[str, object]) -> dict[str, object]:
    """Returns the values under today's names. Raises SettingError if one is given under both its names."""
    for old in OLD_NAMES.keys() & values.keys():
        new = OLD_NAMES[old]
        if new in values:
            raise SettingError(f"{flag_of(old)} is called {flag_of(new)} now: give {flag_of(new)} alone", param=old)
        log.warning("%s is called %s now; the next release takes the new name alone", flag_of(old), flag_of(new))
    return {OLD_NAMES.get(name, name): value for name, value in values.items()}
