"""Everything that an NVIDIA GPU has to show, in one command: exactness, steps against their floor, throughput, latency.

Random weights at real shapes, made on the device; lengths of the Azure conversation trace's first 256 (azure_conversations.csv).
Each part has a cap of seconds, and what does not fit the whole budget is left out by name. Results are written after
each part as JSON and markdown. `--tiny` runs every part in small on a CPU, to find mistakes without a GPU.

    python benchmarks/on_cuda.py --out "$OUT" --budget 460
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import gc
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, Qwen3Config

with contextlib.suppress(ImportError):
    import llguidance  # noqa: F401
if "llguidance" not in sys.modules:
    # Constrained answers are not measured here.
    sys.modules["llguidance"] = types.ModuleType("llguidance")

from make_shape import tokenizer

from baton.compose import POLICIES, make_engine
from baton.config import Settings
from baton.events import Event, IterationDone, Update
from baton.kv.rectangle import Rectangle, footprint
from baton.model import ragged
from baton.model.load import Loaded, hook
from baton.model.look import EVERYTHING
from baton.model.selfcheck import check_texts, self_check, stock_logits
from baton.model.steps import Slot, Steps, follows
from baton.model.tokenizer import ModelTokenizer
from baton.query import Query, SamplingParams

PARTS = ("machine", "exact", "kernel", "steps", "offline", "online", "memory")
HERE = Path(__file__).parent


def _llama(**changes: Any) -> Any:
    shape = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    shape |= {"intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192}
    return LlamaConfig(**{**shape, "rope_theta": 500000.0, "tie_word_embeddings": False, **changes})


def _qwen(**changes: Any) -> Any:
    shape = {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
    shape |= {"head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936, "max_position_embeddings": 8192}
    return Qwen3Config(**{**shape, "tie_word_embeddings": True, **changes})


_TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
_TINY |= {"head_dim": 16, "intermediate_size": 96, "vocab_size": 320, "max_position_embeddings": 256}
SHAPES: dict[str, Callable[..., Any]] = {"llama-3.1-8b": _llama, "qwen3-0.6b": _qwen}


@dataclass(frozen=True)
class Ask:
    prompt: list[int]
    tokens: int


@dataclass
class Report:
    """`found` is written after each part. `budget`: seconds from the start on."""

    out: Path
    budget: float
    found: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        return self.budget - (time.perf_counter() - self.began)

    def part(self, name: str, run: Callable[[], Any], *, needs: float) -> None:
        """Runs a part where so many seconds are left; what fails says so, and the others go on."""
        began = time.perf_counter()
        if self.left < needs:
            self.found[name] = {"left out": f"{self.left:.0f} s left, {needs:.0f} wanted"}
        else:
            try:
                self.found[name] = run()
            except Exception:
                self.found[name] = {"failed": traceback.format_exc(limit=-6)}
        seconds = time.perf_counter() - began
        print(f"[{time.perf_counter() - self.began:6.1f} s] {name} ({seconds:.1f} s): {self.found[name]}", flush=True)
        self.write()

    def write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "cuda.json").write_text(json.dumps(self.found, indent=1, default=str))
        (self.out / "cuda.md").write_text("\n\n".join(_markdown(name, value) for name, value in self.found.items()))


def _markdown(name: str, value: Any) -> str:
    rows = value if isinstance(value, list) else [value]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(_shown(row.get(column, "")) for column in columns) for row in rows]
    return f"## {name}\n\n" + "\n".join(f"| {line} |" for line in lines)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", "<br>").replace("|", "\\|")


# The machine


def machine(device: torch.device) -> dict[str, Any]:
    """Names, and the two ceilings: a large copy, bytes read and written, and a large product on random numbers."""
    found = {"torch": torch.__version__, "transformers": transformers.__version__, "device": str(device)}
    cuda = device.type == "cuda"
    if cuda:
        found |= {"name": torch.cuda.get_device_name(), "triton": ragged.triton_decode is not None}
    size = 2**32 if cuda else 2**22
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * size / seconds_of(lambda: target.copy_(source), device, 20 if cuda else 2)
    side = 8192 if cuda else 128
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    multiplied = 2 * side**3 / seconds_of(lambda: a @ b, device, 10 if cuda else 2)
    return {**found, "copy GB/s": copied / 1e9, "product TFLOP/s": multiplied / 1e12}


def seconds_of(run: Callable[[], object], device: torch.device, count: int) -> float:
    """Median, on the device where it has events."""
    run()
    found = []
    for _ in range(count):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            run()
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def exact(tiny: bool) -> dict[str, Any]:
    """The tests that need a GPU: kernels against float64, and first light's families in float32 against `generate`."""
    files = ["tests/model/test_triton_decode.py", "tests/model/test_cuda.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "-n", "8", *files]
    if tiny:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "--collect-only", *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, timeout=150)
    lines = done.stdout.strip().splitlines()
    return {"rc": done.returncode, "said": lines[-1] if lines else done.stderr[-300:], "failures": _failures(lines)}


def _failures(lines: Sequence[str]) -> str:
    return "; ".join(line[:200] for line in lines if line.startswith(("FAILED", "ERROR", "E  ")))[:2000]


# Models


def build(name: str, device: torch.device, tiny: bool) -> Loaded:
    """A model with random weights, hooked as `load` does it."""
    config = SHAPES[name](**(_TINY if tiny else {}))
    began = time.perf_counter()
    torch.manual_seed(0)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    made = time.perf_counter() - began
    forward = hook(model, native=device.type == "cuda")
    if device.type == "cpu":
        forward.go_resident(ragged.InTorch())
    print(f"{name}: made in {made:.1f} s, hooked in {time.perf_counter() - began - made:.1f} s", flush=True)
    print(f"{name}: {forward.description}", flush=True)
    return Loaded(
        name=name,
        model=model,
        forward=forward,
        geometry=forward.geometry,
        tokenizer=ModelTokenizer(tokenizer(config.vocab_size), config.vocab_size),
        end_ids=(),
        context_tokens=config.max_position_embeddings,
        dtype=dtype,
        device=device,
        parameters=sum(p.numel() for p in model.parameters()),
        stamp=name,
    )


@contextlib.contextmanager
def stock(model: Any) -> Iterator[None]:
    """The model with an attention of its own."""
    ours = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(ours)


def logits_error(loaded: Loaded) -> dict[str, Any]:
    """How far our logits are from the model's own, relative to the largest."""
    texts = check_texts(loaded.model)
    with stock(loaded.model):
        expected = stock_logits(loaded.model, texts)
    return {
        "logits differ by": self_check(loaded.model, loaded.forward, texts, expected),
        "dtype": str(loaded.dtype),
        "how": loaded.forward.description,
    }


def free(loaded: Loaded) -> None:
    """Lets go of the last engine's rectangle and its graphs."""
    way = loaded.forward._ragged
    if way is not None:
        loaded.forward.go_resident(way, compiled=loaded.forward._compiled)
    gc.collect()
    if loaded.device.type == "cuda":
        torch.cuda.empty_cache()


# One kernel, one step


def kernel(loaded: Loaded, asks: Sequence[Ask], bandwidth: float, columns: int) -> list[dict[str, Any]]:
    """Attention alone at this shape, as programs may be laid out, against the bytes it must read."""
    decode, config = ragged.triton_decode, loaded.model.config
    cuda = loaded.device.type == "cuda"
    if decode is None or not (cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return [{"left out": "no Triton, or no GPU"}]
    heads, dim = config.num_key_value_heads, loaded.geometry.shapes[0].key_dim
    found = []
    for rows in (8, 32, 128) if cuda else (2,):
        lens = lengths_of(asks, rows, columns)
        # Several, so that none is still in the cache when it is read again.
        layers = [torch.randn(2, rows, columns, heads, dim, dtype=loaded.dtype, device=loaded.device) for _ in range(4)]
        q = torch.randn(rows, config.num_attention_heads, dim, dtype=loaded.dtype, device=loaded.device)
        places, stops = torch.arange(rows, device=loaded.device), torch.tensor(lens, device=loaded.device)
        read = 2 * sum(lens) * heads * dim * loaded.dtype.itemsize
        asked = (q, layers, places, stops)
        for launch, least in itertools.product(_LAUNCHES, (128, 256)):
            options = {"launch": launch, "least": least, "scale": dim**-0.5, "look": EVERYTHING}
            seconds = replayed(partial(_attend_all, *asked, options), loaded.device) / len(layers)
            one = {"rows": rows, **launch, "least": least, "splits": decode.splits_of(rows, heads)}
            found.append({**one, "us": seconds * 1e6, "of bandwidth": read / bandwidth / seconds})
    return sorted(found, key=lambda one: (one["rows"], one["us"]))


def _attend_all(
    q: torch.Tensor, layers: Sequence[torch.Tensor], places: torch.Tensor, stops: torch.Tensor, options: dict[str, Any]
) -> None:
    for keys, values in layers:
        ragged.triton_decode.attend(q, keys, values, places, stops, **options)


_LAUNCHES = [
    {"BLOCK": 64, "num_warps": 4, "num_stages": 3},
    {"BLOCK": 64, "num_warps": 4, "num_stages": 2},
    {"BLOCK": 32, "num_warps": 4, "num_stages": 4},
    {"BLOCK": 128, "num_warps": 4, "num_stages": 2},
    {"BLOCK": 128, "num_warps": 8, "num_stages": 2},
]


def replayed(run: Callable[[], None], device: torch.device) -> float:
    """Seconds of a graph of it, on a device that has them."""
    run()
    if device.type != "cuda":
        return seconds_of(run, device, 1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return seconds_of(graph.replay, device, 10)


def lengths_of(asks: Sequence[Ask], rows: int, columns: int) -> list[int]:
    """Rows in the middle of their answers."""
    found = [len(ask.prompt) + ask.tokens // 2 for ask in itertools.islice(itertools.cycle(asks), rows)]
    return [min(length, columns - 64) for length in found]


def steps(
    loaded: Loaded, asks: Sequence[Ask], bandwidth: float, columns: int, counts: Sequence[int], compiled: str | None
) -> list[dict[str, Any]]:
    """Decode steps against their floor: the bytes of weights, keys and values over the bandwidth of a copy."""
    model, cuda = loaded.model, loaded.device.type == "cuda"
    embedding = model.get_input_embeddings().weight
    tied = embedding is model.get_output_embeddings().weight
    weights = sum(p.nbytes for p in model.parameters()) - (0 if tied else embedding.nbytes)
    token_bytes = footprint(loaded.geometry.shapes, columns, loaded.dtype, loaded.device).token_bytes
    found = []
    for rows in counts:
        lens = lengths_of(asks, rows, columns)
        # An engine's, where what is compiled is to serve it later.
        capacity = 2 * rows + 1 if compiled else rows
        rectangle = Rectangle(
            loaded.geometry.shapes, capacity=capacity, columns=columns, dtype=loaded.dtype, device=loaded.device
        )
        for buffer in (*rectangle.keys, *rectangle.values):
            buffer.normal_()
        way = loaded.forward._ragged
        assert way is not None, loaded.forward.description
        run = Steps(loaded.forward._hooked, rectangle, way, capture=cuda, compiled=compiled)
        began = time.perf_counter()
        run.launch([Slot(row, 5 + row, length) for row, length in enumerate(lens)]).tokens()
        made = time.perf_counter() - began
        count = 30 if cuda else 2
        times = []
        last = None
        for turn in range(1, count + 1):
            began = time.perf_counter()
            following = run.launch([Slot(row, follows(row), length + turn) for row, length in enumerate(lens)])
            if last is not None:
                last.tokens()
            times.append(time.perf_counter() - began)
            last = following
        *_, step = run._made.values()
        device_seconds = seconds_of(step.run, loaded.device, 20 if cuda else 2)
        floor = (weights + sum(lens) * token_bytes) / bandwidth
        found.append(
            {
                "rows": rows,
                "mean length": statistics.mean(lens),
                "compiled": compiled or "no",
                "step ms": device_seconds * 1e3,
                "with the host ms": statistics.median(times) * 1e3,
                "floor ms": floor * 1e3,
                "of the limit": floor / device_seconds,
                "made in s": made,
                "peak GB": torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0,
            }
        )
        del run, step, rectangle
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
    return found


# Throughput and latency


@dataclass
class Counted:
    """A sink that adds up slots, seconds of steps and stalls."""

    useful: int = 0
    idle: int = 0
    iterations: int = 0
    step_seconds: float = 0.0
    stall_seconds: float = 0.0
    seconds: float = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, IterationDone):
            self.useful += event.slots.useful
            self.idle += event.slots.idle
            self.iterations += 1
            self.step_seconds += event.step_seconds
            self.stall_seconds += sum(event.stall_seconds.values())
            self.seconds += event.seconds


def engine_run(
    loaded: Loaded,
    asks: Sequence[Ask],
    *,
    policy: str = "baton",
    rows: int,
    columns: int,
    cap: float,
    arrivals: Sequence[float] | None = None,
    stall_seconds: float = 0.2,
    kv_bytes: int = 2**40,
) -> dict[str, Any]:
    """All asks through an engine without a server; what had come after `cap` seconds where that is less."""
    settings = Settings(
        policy=policy,
        max_rows=rows,
        max_model_len=columns,
        kv_bytes=kv_bytes,
        prefill_chunk=None,
        max_stall_seconds=stall_seconds,
        max_waiting=len(asks) + 1,
        seed=0,
        pool_bytes=2**33,
        prefix_cache=False,
    )
    counted = Counted()
    engine = make_engine(loaded, settings, POLICIES[policy](), [counted])
    told: dict[str, list[float]] = {}
    tokens = 0

    def hear(updates: Sequence[Update]) -> None:
        nonlocal tokens
        now = time.perf_counter()
        for update in updates:
            tokens += len(update.token_ids)
            if update.token_ids:
                told.setdefault(update.query_id, []).append(now)

    params = [SamplingParams(temperature=0, max_tokens=ask.tokens, ignore_eos=True) for ask in asks]
    queries = [
        Query(id=str(at), prompt=tuple(ask.prompt), params=params[at], seed=at, limit_tokens=ask.tokens, arrived=0.0)
        for at, ask in enumerate(asks)
    ]
    due = list(arrivals) if arrivals is not None else [0.0] * len(queries)
    began, sent = time.perf_counter(), 0
    while (sent < len(queries) or engine.busy) and time.perf_counter() - began < cap:
        while sent < len(queries) and due[sent] <= time.perf_counter() - began:
            engine.accept(queries[sent], hear)
            sent += 1
        if not engine.busy:
            time.sleep(0.0005)
            continue
        engine.iterate()
        engine.hand_over()
    seconds = time.perf_counter() - began
    whole = sent == len(queries) and not engine.busy
    firsts = [times[0] - began - due[int(name)] for name, times in told.items()]
    gaps = [b - a for times in told.values() for a, b in itertools.pairwise(times)]
    found = {
        "policy": policy,
        "tokens/s": tokens / seconds,
        "seconds": seconds,
        "tokens": tokens,
        "whole": whole,
        "idle ratio": counted.idle / max(1, counted.idle + counted.useful),
        "iterations": counted.iterations,
        "in steps": counted.step_seconds / seconds,
        "in stalls": counted.stall_seconds / seconds,
        "host and fills": (seconds - counted.step_seconds) / seconds,
        **_percentiles("ttft s", firsts),
        **_percentiles("gap ms", [gap * 1e3 for gap in gaps]),
    }
    del engine
    free(loaded)
    return found


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100)
    return {f"{name} p50": cuts[49], f"{name} p95": cuts[94], f"{name} p99": cuts[98]}


def static_batches(loaded: Loaded, asks: Sequence[Ask], rows: int, cap: float) -> dict[str, Any]:
    """transformers' `generate`, so many at a time in order, padded on the left, until the cap."""
    tokens, began = 0, time.perf_counter()
    done = 0
    with stock(loaded.model), torch.inference_mode():
        while done < len(asks) and time.perf_counter() - began < cap:
            some = asks[done : done + rows]
            width = max(len(ask.prompt) for ask in some)
            ids = torch.zeros(len(some), width, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, ask in enumerate(some):
                ids[row, width - len(ask.prompt) :] = torch.tensor(ask.prompt)
                mask[row, width - len(ask.prompt) :] = 1
            config = GenerationConfig(
                do_sample=False, max_new_tokens=max(ask.tokens for ask in some), eos_token_id=None, pad_token_id=0
            )
            loaded.model.generate(
                ids.to(loaded.device), attention_mask=mask.to(loaded.device), generation_config=config
            )
            tokens += sum(ask.tokens for ask in some)
            done += len(some)
    seconds = time.perf_counter() - began
    name = "transformers generate, static batches"
    whole = done >= len(asks)
    return {"policy": name, "tokens/s": tokens / seconds, "seconds": seconds, "tokens": tokens, "whole": whole}


def continuous(loaded: Loaded, asks: Sequence[Ask], rows: int, cap: float) -> dict[str, Any]:
    """transformers' continuous batching with what it chooses by itself, and as many rows as we have."""
    from transformers.generation import ContinuousBatchingConfig

    settings: dict[str, Any] = {"max_requests_per_batch": rows}
    if loaded.device.type == "cpu":
        settings |= {"num_blocks": 4 * rows, "max_batch_tokens": 64, "auto_switch_to_flash": False}
    else:
        settings |= {"use_cuda_graph": True, "use_async_batching": True}
    generation = GenerationConfig(
        do_sample=False, max_new_tokens=max(ask.tokens for ask in asks), eos_token_id=-1, pad_token_id=0
    )
    with stock(loaded.model):
        known = {one.name for one in dataclasses.fields(ContinuousBatchingConfig)}
        config = ContinuousBatchingConfig(**{name: value for name, value in settings.items() if name in known})
        manager = loaded.model.init_continuous_batching(generation, config)
        manager.start()
        try:
            # What is compiled and captured at first is not measured.
            _finished(manager, asks[:2], 60.0)
            began = time.perf_counter()
            tokens, whole = _finished(manager, asks, cap)
            seconds = time.perf_counter() - began
        finally:
            manager.stop(block=True, timeout=10)
    found = {"policy": "transformers continuous batching", "tokens/s": tokens / seconds, "seconds": seconds}
    return {**found, "tokens": tokens, "whole": whole}


def _finished(manager: Any, asks: Sequence[Ask], cap: float) -> tuple[int, bool]:
    """Tokens of those that were finished within the cap."""
    began = time.perf_counter()
    names = {manager.add_request(ask.prompt, max_new_tokens=ask.tokens, eos_token_id=-1) for ask in asks}
    tokens = 0
    while names and time.perf_counter() - began < cap:
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise RuntimeError("continuous batching ended by itself")
        elif result.error is not None:
            raise RuntimeError(result.error)
        elif result.is_finished() and result.request_id in names:
            names.discard(result.request_id)
            tokens += len(result.generated_tokens)
    return tokens, not names


def online(loaded: Loaded, asks: Sequence[Ask], rows: int, columns: int, rate: float, cap: float) -> list[dict]:
    """Arrivals at random at 50 and 80 % of what went through at most, with a stall bound and without one."""
    found = []
    per_second = rate / statistics.mean(ask.tokens for ask in asks)
    for share, bound in itertools.product((0.5, 0.8), (0.05, 10.0)):
        dice = random.Random(1)
        at, arrivals = 0.0, []
        while at < 0.8 * cap and len(arrivals) < len(asks):
            arrivals.append(at)
            at += dice.expovariate(per_second * share)
        ran = engine_run(
            loaded, asks[: len(arrivals)], rows=rows, columns=columns, cap=cap, arrivals=arrivals, stall_seconds=bound
        )
        found.append({"load": share, "stall bound s": bound, "queries": len(arrivals), **ran})
    return found


def memory(loaded: Loaded, columns: int, cap: float) -> dict[str, Any]:
    """A budget of all memory that is free, and three times as much work at once: nothing may overflow."""
    cuda = loaded.device.type == "cuda"
    per_row = footprint(loaded.geometry.shapes, columns, loaded.dtype, loaded.device).of(columns)
    free_bytes = torch.cuda.mem_get_info()[0] if cuda else 64 * per_row
    # What `resolve` would choose: a rectangle of 80 % of it, with as many rows beside the batch as in it.
    rows = max(1, (int(free_bytes * 0.8) // per_row - 1) // 2)
    rows = min(rows, 384) if cuda else 4
    answer = columns // 32
    work = [Ask([5 + (7 * i + at) % 200 for i in range(columns - answer)], answer) for at in range(3 * rows)]
    ran = engine_run(loaded, work, rows=rows, columns=columns, cap=cap, kv_bytes=rows * per_row)
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    return {"rows": rows, "free GB": free_bytes / 1e9, "peak GB": peak, **ran}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--budget", type=float, default=460.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=sorted(SHAPES), default=["llama-3.1-8b", "qwen3-0.6b"])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--columns", type=int, default=4736)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--tiny", action="store_true", help="small models on the CPU: a test of this file")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    device = torch.device("cpu" if args.tiny else "cuda")
    if args.tiny:
        args.rows, args.columns, args.queries = 4, 96, 6
    report = Report(args.out, args.budget)
    bandwidth = 4.3e12
    if "machine" in args.parts:
        report.part("machine", lambda: machine(device), needs=10)
        bandwidth = report.found["machine"].get("copy GB/s", 4300.0) * 1e9
    if "exact" in args.parts:
        report.part("exact", lambda: exact(args.tiny), needs=60)
    for name in args.models:
        with contextlib.suppress(Exception):
            one_model(report, args, name, device, bandwidth)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print((args.out / "cuda.md").read_text())


def one_model(report: Report, args: argparse.Namespace, name: str, device: torch.device, bandwidth: float) -> None:
    made: list[Loaded] = []
    report.part(
        f"{name}: logits", lambda: made.append(build(name, device, args.tiny)) or logits_error(made[0]), needs=40
    )
    loaded, large, tiny = made[0], name.startswith("llama"), args.tiny
    asks = [
        Ask([5 + (7 * i + at) % 200 for i in range(context)], tokens)
        for at, (context, tokens) in enumerate(lengths(args.queries, args.columns))
    ]
    if "kernel" in args.parts and large:
        report.part("kernel", lambda: kernel(loaded, asks, bandwidth, args.columns), needs=30)
    counts = (1, 4) if tiny else (1, 8, 32, 128)
    if "steps" in args.parts:
        report.part(
            f"{name}: steps",
            lambda: steps(loaded, asks, bandwidth, args.columns, counts, None),
            needs=20,
        )
        report.part(
            f"{name}: steps compiled",
            lambda: steps(loaded, asks, bandwidth, args.columns, (4,) if tiny else (args.rows,), _backend(tiny)),
            needs=90,
        )
    if "offline" in args.parts:
        offline(report, loaded, asks, args)
    if "online" in args.parts and (large or tiny):
        best = [one["tokens/s"] for one in report.found.get(f"{name}: offline", []) if one["policy"] == "baton"]
        report.part(
            f"{name}: online",
            lambda: online(loaded, asks, args.rows, args.columns, max(best, default=1000.0), 2.0 if tiny else 10.0),
            needs=50,
        )
    if "memory" in args.parts and (not large or tiny):
        report.part(f"{name}: memory", lambda: memory(loaded, 64 if tiny else 8192, 30.0), needs=60)


def _backend(tiny: bool) -> str:
    return "eager" if tiny else "inductor"


def offline(report: Report, loaded: Loaded, asks: Sequence[Ask], args: argparse.Namespace) -> None:
    """Each policy and each peer in turn; where there is time, the two that are compared most once more."""
    name, cap = f"{loaded.name}: offline", 40.0
    found: list[dict[str, Any]] = []

    def run(policy: str, more: str = "") -> list[dict[str, Any]]:
        ran = engine_run(loaded, asks, policy=policy, rows=args.rows, columns=args.columns, cap=cap)
        found.append({**ran, "policy": policy + more})
        return found

    def peer(body: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
        found.append(body(loaded, asks, args.rows, 25.0))
        free(loaded)
        return found

    def compiled() -> list[dict[str, Any]]:
        """With the compiled step, where that was the faster one."""
        plain, other = (report.found.get(f"{loaded.name}: steps{more}") for more in ("", " compiled"))
        times = [
            {one["rows"]: one["step ms"] for one in some}.get(args.rows, 0.0) if isinstance(some, list) else 0.0
            for some in (plain, other)
        ]
        if not args.tiny and not 0.0 < times[1] < times[0]:
            return found
        way = loaded.forward._ragged
        loaded.forward.go_resident(way, compiled=_backend(args.tiny))
        try:
            return run("baton", more=" compiled")
        finally:
            loaded.forward.go_resident(way)

    # What a first run compiles is no part of any figure.
    report.part(
        f"{name}, warm-up",
        lambda: engine_run(loaded, asks[:8], rows=args.rows, columns=args.columns, cap=15.0),
        needs=20,
    )
    turns: list[Callable[[], Any]] = [
        lambda: run("baton"),
        lambda: compiled(),
        lambda: run("orca"),
        lambda: peer(continuous),
        lambda: peer(static_batches),
        lambda: run("run_to_completion"),
        lambda: run("baton"),
        lambda: run("orca"),
    ]
    for turn, body in enumerate(turns):
        so_far = list(found)
        report.part(name, body, needs=45)
        if isinstance(report.found[name], dict):
            # A part that failed or was left out must not hide those that went well.
            report.found[f"{name}, turn {turn}"] = report.found[name]
            report.found[name] = so_far


def lengths(count: int, columns: int) -> list[tuple[int, int]]:
    """Prompt and answer of the trace's first queries, as far as a row is long."""
    with (HERE / "azure_conversations.csv").open() as file:
        rows = list(itertools.islice(csv.DictReader(file), count))
    found = []
    for row in rows:
        tokens = min(int(row["GeneratedTokens"]), columns // 4)
        found.append((max(1, min(int(row["ContextTokens"]), columns - tokens)), tokens))
    return found


if __name__ == "__main__":
    main()
