"""One compute thread: tiny models gain nothing from more, and a busy machine makes more of them slow.

`pytest -m fast` reads and runs the files with this mark alone (MARKS): everyday tests that never import torch.
`--models-results FILE` writes scripts/pages/models.json from the results of the tests that ran.
`--through-front wire` has servers stand over a front: see `through_front.py`.
"""

import gc
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Each start proves its step, and leaves nothing in the user's folders.
os.environ.setdefault("BATON_STEP_CACHE", "off")
os.environ.setdefault("BATON_QUANTIZED_CACHE", "off")

import pytest

# Without a GPU, Triton's kernels are interpreted; Triton checks that when it is first imported.
if not Path("/proc/driver/nvidia/version").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

TESTS = Path(__file__).parent
# What leads to a collection, and what a test may leave behind.
MOST_THREADS, MOST_LEFT, PATIENCE_SECONDS = 100, 40, 10.0
FAST = (
    "bench/test_accuracy.py",
    "bench/test_compare.py",
    "bench/test_figures.py",
    "bench/test_workload.py",
    "builtin/test_tasks.py",
    "engine/test_post.py",
    "engine/test_output.py",
    "grammar/test_closed.py",
    "jobs",
    "observe/test_exposition.py",
    "observe/test_metrics.py",
    "observe/test_replicas.py",
    "observe/test_spans.py",
    "parsing",
    "policy",
    "server/test_access.py",
    "server/test_batches.py",
    "server/test_chat.py",
    "server/test_completions.py",
    "server/test_live_data.py",
    "server/test_load.py",
    "server/test_logprobs.py",
    "server/test_openapi.py",
    "server/test_origin.py",
    "server/test_refusals.py",
    "server/test_stream.py",
    "server/test_telling.py",
    "server/test_tools.py",
    "test_config.py",
    "test_dependencies.py",
    "test_foreign.py",
    "test_house_rules.py",
    "test_limits.py",
    "test_query.py",
    "test_text.py",
)
LONG = (
    "bench/test_on_cuda.py",
    "cluster/test_killed_engine.py",
    "cluster/test_ray_failures.py",
    "cluster/test_ray_updates.py",
    "engine/test_any_order.py",
    "model/test_mapped.py",
    "model/test_packed_checkpoints.py",
    "model/test_packed_memory.py",
    "model/test_program.py",
    "model/test_rotary.py",
    "model/test_steps.py",
    "model/test_triton_decode.py",
    "server/test_crowds.py",
    "test_bench_verb.py",
    "test_check.py",
    "test_everything_at_once.py",
    "test_handover.py",
    "test_low_limits.py",
    "test_same_as_alone.py",
    "test_several_models.py",
    "test_soak.py",
    "test_swapped_rows.py",
    "test_tune.py",
)
# The marks of a file, by itself or with its folder; files that are neither fast nor of servers have `models`.
MARKS = {
    "fast": FAST,
    "server": (
        *("bench", "jobs", "parsing", "server", "test_batch_verb.py", "test_bench_verb.py", "test_chat_verb.py"),
        "test_faults.py",
        *("test_low_limits.py", "test_soak.py", "test_top.py"),
    ),
    "cluster": (
        *("cluster/test_ray_failures.py", "cluster/test_ray_updates.py", "cluster/test_serve_replicas.py"),
        "cluster/test_serve_whole.py",
    ),
    "gpu_standin": (
        *("bench/test_on_cuda.py", "kv/test_copies.py", "kv/test_mapped.py", "kv/test_pinned.py"),
        *("model/test_ahead.py", "model/test_beside.py", "model/test_float8.py", "model/test_graphs.py"),
        *("model/test_mapped.py", "model/test_packed.py", "model/test_steps.py", "model/test_streams.py"),
        *("model/test_triton_decode.py", "test_all_of_a_gpu.py", "test_aside.py"),
    ),
}

_FOUND = pytest.StashKey[list[dict[str, Any]]]()


def marks_of(path: Path) -> list[str]:
    inside = path.relative_to(TESTS).as_posix()
    marks = [
        mark for mark, names in MARKS.items() if any(inside == name or inside.startswith(f"{name}/") for name in names)
    ]
    return marks if {"fast", "server"} & {*marks} else ["models", *marks]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # Only to read the other files would import torch.
    asked = config.option.markexpr
    ours = collection_path.suffix == ".py" and TESTS in collection_path.parents
    return True if asked in ("models", *MARKS) and ours and asked not in marks_of(collection_path) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--through-front"):
        import through_front

        through_front.leave_out(config, items)
    # With `--dist loadfile --no-loadscope-reorder`, a long file at the end would leave the other cores idle.
    items.sort(key=lambda item: item.path.relative_to(TESTS).as_posix() not in LONG)
    for item in items:
        for mark in marks_of(item.path):
            item.add_marker(mark)


def pytest_collection_finish() -> None:
    # Torch's and transformers' 400,000 objects stay: each full collection, as of `open_engine`, took a quarter second.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_compute_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    one_thread()
    if "torch" in sys.modules:
        from recorded_once import remember_recordings  # it imports torch

        remember_recordings()
    yield
    assert request.config.option.markexpr != "fast" or "torch" not in sys.modules, "a fast test imported torch"


@pytest.fixture(scope="session", autouse=True)
def no_user_cache() -> Iterator[None]:
    """As BATON_STEP_CACHE and BATON_QUANTIZED_CACHE, for engines of the tests' own process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("baton.core.settings.user_cache", lambda: None)
        yield


@pytest.fixture(autouse=True)
def one_compute_thread_again() -> Iterator[None]:
    """An engine sets torch's threads for the whole process: later tests would wait for a second core at each sum."""
    one_thread()
    yield
    one_thread()


def one_thread() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    """Tests close engines and applications: a watchdog's look at thousands of stacks takes minutes."""
    before = threading.active_count()
    yield
    if threading.active_count() > min(MOST_THREADS, before + MOST_LEFT):
        # An engine's thread for masks ends with its batch; what lived when an engine was opened is frozen.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
    patience = time.monotonic() + PATIENCE_SECONDS
    while threading.active_count() > before + MOST_LEFT and time.monotonic() < patience:
        time.sleep(0.01)  # those of a pool that was shut down are ending
    if threading.active_count() > before + MOST_LEFT:
        left = Counter(thread.name.rstrip("0123456789_") for thread in threading.enumerate())
        pytest.fail(f"this test leaves {threading.active_count() - before} threads; there are {left}")


def pytest_addoption(parser: pytest.Parser) -> None:
    through = "servers stand over a front and an engine elsewhere; with ray, a Ray Serve is between them"
    parser.addoption("--through-front", choices=["wire", "ray"], help=through)
    parser.addoption("--models-results", metavar="FILE", help="write which models are exact, as this run found")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--models-results") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--models-results needs all results in one process: leave out -n")
    config.stash[_FOUND] = []
    if config.getoption("--through-front"):
        import through_front  # it imports torch

        through_front.begin(config.getoption("--through-front"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.when == "call" and item.config.getoption("--through-front"):
        import through_front

        report.user_properties.append((through_front.CROSSED, through_front.taken()))
    if report.when == "call" and report.passed and report.user_properties:
        item.config.stash[_FOUND].append(dict(report.user_properties))
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.getoption("--through-front"):
        import through_front

        through_front.end(session)
    file = session.config.getoption("--models-results")
    if file and exitstatus == 0:
        from models_results import write_results  # it imports torch

        write_results(Path(file), session.config.stash[_FOUND])
