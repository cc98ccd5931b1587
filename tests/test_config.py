"""Settings: where they come from, which are refused by name, and how "auto" becomes a number."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.core.config import AUTO, Config, check_shaping, load_config, make_config
from baton.core.config_sources import NOT_SETTINGS
from baton.core.errors import SettingError
from baton.core.footprint import Columns, Footprint
from baton.core.replicas import range_of
from baton.core.settings import Facts, resolve
from baton.core.step import Traits
from baton.core.values import parse_bytes
from baton.policy.port import traits
from baton.policy.table import policy_named

FACTS = Facts(
    context_tokens=1000,
    footprint=Footprint((Columns(100),)),
    free_bytes=10**9,
    device="cpu",
    dtype="float32",
    cores=2,
    lazy_memory=True,
)


def write(folder: Path, text: str) -> str:
    path = folder / "baton.toml"
    path.write_text(text)
    return str(path)


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "port = 1\nmax_waiting = 1\nseed = 1\nlog-level = 'debug'")
    environment = {"BATON_PORT": "2", "BATON_MAX_WAITING": "2", "HOME": "/", "OTHER_PORT": "9"}
    config = load_config({"port": 3, "max_waiting": None, "dtype": None}, file=file, environment=environment)
    assert (config.port, config.max_waiting, config.seed, config.log_level) == (3, 2, 1, "debug")
    assert config.dtype == AUTO


def test_nothing_given_gives_the_defaults() -> None:
    assert load_config({}, environment={}) == Config()


def test_what_the_process_is_told_of_its_native_kernels_is_no_setting() -> None:
    assert load_config({}, environment=dict.fromkeys(NOT_SETTINGS, "1")) == Config()


@pytest.mark.parametrize("source", ["flags", "environment", "file"])
def test_an_unknown_setting_is_refused_by_name_wherever_it_comes_from(source: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="max_batch_sise") as caught:
        load_config(
            {"max_batch_sise": 4} if source == "flags" else {},
            file=write(tmp_path, "max-batch-sise = 4") if source == "file" else None,
            environment={"BATON_MAX_BATCH_SISE": "4"} if source == "environment" else {},
        )
    assert caught.value.param == "max_batch_sise"
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("port", "eighty"),
        ("port", 80.5),
        ("port", True),
        ("port", None),
        ("max_waiting", 0),
        ("max_stall_ms", 0),
        ("seed", -1),
        ("drain_timeout", -0.1),
        ("drain_timeout", "soon"),
        ("drain_timeout", float("nan")),
        ("dtype", "float8"),
        ("device", "tpu"),
        ("log_level", "loud"),
        ("trust_remote_code", "perhaps"),
        ("trust_remote_code", 2),
        ("model", True),
        ("host", 1.5),
        ("api_key", ""),
        ("api_key", "k,"),
        ("api_key", 1.5),
        ("api_key", True),
    ],
)
def test_a_bad_value_is_refused_by_its_flags_name(name: str, value: object) -> None:
    with pytest.raises(SettingError) as caught:
        make_config({name: value})
    assert caught.value.param == name
    assert f"--{name.replace('_', '-')}" in caught.value.message


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("port", "0", 0),
        ("port", 65535, 65535),
        ("drain_timeout", "1.5", 1.5),
        ("drain_timeout", 2, 2.0),
        ("max_batch_size", 8, "8"),
        ("trust_remote_code", "Yes", True),
        ("trust_remote_code", "0", False),
        ("model", None, None),
        ("api_key", "k", ("k",)),
        ("api_key", "k, l", ("k", "l")),
        ("cors_origin", ["a", "b"], ("a", "b")),
    ],
)
def test_a_value_is_taken_in_its_fields_type(name: str, value: object, taken: object) -> None:
    value_taken = getattr(make_config({name: value} if value is not None else {}), name)
    assert value_taken == taken
    assert type(value_taken) is type(taken)


@pytest.mark.parametrize("text", ["port = ", "= 1", "port = 1\nport = 2"])
def test_a_file_that_is_no_toml_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--config"):
        load_config({}, file=write(tmp_path, text), environment={})


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"port = '\xff\xfe'")
    for file in (tmp_path / "none.toml", tmp_path, binary):
        with pytest.raises(SettingError, match="--config") as caught:
            load_config({}, file=str(file), environment={})
        assert str(file) in caught.value.message


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1048576", 2**20),
        ("512b", 512),
        ("4GiB", 4 * 2**30),
        ("4gib", 4 * 2**30),
        ("500MB", 500 * 10**6),
        ("500 m", 500 * 10**6),
        (" 1.5 KiB ", 1536),
        ("2T", 2 * 10**12),
    ],
)
def test_sizes_are_read_with_binary_and_decimal_units(text: str, count: int) -> None:
    assert parse_bytes(text, "kv_memory") == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "4 gigs", "4XiB", "0x10", "1e9", "auto", "1_000"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="--kv-memory") as caught:
        parse_bytes(text, "kv_memory")
    assert caught.value.param == "kv_memory"


def test_every_setting_has_help() -> None:
    assert all(field.metadata["help"].endswith(".") for field in dataclasses.fields(Config))


def test_auto_becomes_what_the_model_and_the_machine_allow() -> None:
    settings = resolve(Config(), FACTS)
    assert settings.max_model_len == 1000
    assert settings.max_rows == 8
    assert settings.kv_bytes == 2 * 8 * 1000 * 100
    assert settings.prefill_chunk is None
    assert settings.max_stall_seconds == 0.2
    assert resolve(Config(), dataclasses.replace(FACTS, device="cuda")).max_rows == 32


def test_auto_memory_is_at_most_half_of_what_is_free() -> None:
    assert resolve(Config(), dataclasses.replace(FACTS, free_bytes=300_000)).kv_bytes == 150_000


def test_the_pool_is_half_of_what_rows_may_take_within_half_of_what_is_left() -> None:
    assert resolve(Config(), FACTS).swap_bytes == 8 * 1000 * 100
    assert resolve(Config(), dataclasses.replace(FACTS, free_bytes=300_000)).swap_bytes == 75_000
    tight = dataclasses.replace(FACTS, free_bytes=1_000_000)
    assert resolve(Config(kv_memory="900000"), tight).swap_bytes == 50_000
    assert resolve(Config(kv_memory="2MB"), tight).swap_bytes == 0
    # If it is allocated at once, all rows are taken from what is free: 17 of 200 bytes a token.
    at_once = dataclasses.replace(FACTS, lazy_memory=False, context_tokens=10, free_bytes=25_000)
    assert resolve(Config(), at_once).swap_bytes == (25_000 - 17 * 1000) // 2


def test_where_the_pool_is_in_other_memory_that_is_what_bounds_it() -> None:
    apart = dataclasses.replace(FACTS, device="cuda", lazy_memory=False, swap_free_bytes=40_000)
    assert resolve(Config(max_model_len="100"), apart).swap_bytes == 20_000
    plenty = dataclasses.replace(apart, swap_free_bytes=10**12)
    assert resolve(Config(max_model_len="100"), plenty).swap_bytes == 32 * 100 * 100
    # Aligned rows stay on the device.
    aligned = dataclasses.replace(apart, free_bytes=10**6, swap_free_bytes=0)
    assert resolve(Config(max_model_len="10", shaping="aligned", max_batch_size="2"), aligned).swap_bytes > 0


@pytest.mark.parametrize(("text", "count"), [("0", 0), ("3MB", 3 * 10**6), ("1KiB", 1024)])
def test_the_pool_may_be_asked_for_also_none(text: str, count: int) -> None:
    assert resolve(Config(swap_memory=text), FACTS).swap_bytes == count


def test_what_was_asked_holds() -> None:
    asked = Config(
        max_batch_size="3",
        max_model_len="500",
        kv_memory="1MB",
        prefill_chunk="7",
        policy="orca",
        seed=5,
        max_stall_ms=50,
    )
    settings = resolve(asked, FACTS)
    assert (settings.max_rows, settings.max_model_len, settings.kv_bytes, settings.prefill_chunk) == (3, 500, 10**6, 7)
    assert (settings.policy, settings.seed, settings.max_stall_seconds) == ("orca", 5, 0.05)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"max_model_len": "1001"}, "max_model_len"),
        ({"max_model_len": "0"}, "max_model_len"),
        ({"max_model_len": "many"}, "max_model_len"),
        ({"max_batch_size": "0"}, "max_batch_size"),
        ({"max_batch_size": "-1"}, "max_batch_size"),
        ({"max_batch_size": "1.5"}, "max_batch_size"),
        ({"prefill_chunk": "0"}, "prefill_chunk"),
        ({"kv_memory": "99999"}, "kv_memory"),
        ({"kv_memory": "much"}, "kv_memory"),
        ({"swap_memory": "much"}, "swap_memory"),
        ({"swap_memory": "-1"}, "swap_memory"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(asked: dict[str, str], param: str) -> None:
    with pytest.raises(SettingError) as caught:
        resolve(Config(**asked), FACTS)  # type: ignore[arg-type]
    assert caught.value.param == param


def test_memory_that_cannot_hold_one_query_is_refused_also_when_auto() -> None:
    with pytest.raises(SettingError, match="raise --kv-memory or lower --max-model-len"):
        resolve(Config(), dataclasses.replace(FACTS, free_bytes=199_999))


def test_where_memory_is_allocated_at_once_auto_takes_the_length_that_fits() -> None:
    """Rows of the batch, and as many and one more for prefill: 17 rows of 100 bytes a token."""
    eager = dataclasses.replace(FACTS, lazy_memory=False, free_bytes=17 * 100 * 500)
    settings = resolve(Config(), eager)
    assert 100 < settings.max_model_len < 500
    with pytest.raises(SettingError, match="lower --max-batch-size or --max-model-len"):
        resolve(Config(max_model_len="500"), eager)
    assert resolve(Config(), dataclasses.replace(eager, free_bytes=10**9)).max_model_len == 1000
    assert resolve(Config(max_batch_size="1"), eager).max_model_len > settings.max_model_len


def test_where_memory_is_mapped_as_rows_grow_rows_may_be_as_long_as_the_context() -> None:
    """Pages of 64 tokens: 16 of them for 1000 tokens."""
    mapped = Footprint((Columns(100),), page=6400)
    device = dataclasses.replace(FACTS, device="cuda", lazy_memory=False, free_bytes=10**6)
    settings = resolve(Config(), dataclasses.replace(device, mapped_footprint=mapped))
    assert (settings.kv_mapping, settings.max_model_len, settings.max_rows) == (True, 1000, 32)
    assert settings.kv_bytes == 8 * 10**5
    plenty = dataclasses.replace(device, mapped_footprint=mapped, free_bytes=10**9)
    assert resolve(Config(), plenty).kv_bytes == 2 * 32 * 16 * 6400
    assert resolve(Config(), device).max_model_len < 200


@pytest.mark.parametrize(("asked", "said"), [({}, Traits(pads=True)), ({"shaping": "aligned"}, Traits())])
def test_memory_is_not_mapped_where_rows_are_read_as_far_as_the_longest(asked: dict[str, str], said: Traits) -> None:
    mapped = Footprint((Columns(100),), page=6400)
    facts = dataclasses.replace(FACTS, lazy_memory=False, mapped_footprint=mapped)
    facts = dataclasses.replace(facts, free_bytes=10**9)
    assert not resolve(Config(**asked), facts, said).kv_mapping  # type: ignore[arg-type]
    assert resolve(Config(), facts).kv_mapping


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    rows=st.one_of(st.just(AUTO), st.integers(1, 64).map(str)),
    length=st.one_of(st.just(AUTO), st.integers(1, 1000).map(str)),
    memory=st.one_of(st.just(AUTO), st.integers(0, 10**7).map(str)),
    free=st.integers(0, 10**7),
    lazy=st.booleans(),
)
def test_settings_that_hold_always_fit_one_whole_query(
    rows: str, length: str, memory: str, free: int, lazy: bool
) -> None:
    config = Config(max_batch_size=rows, max_model_len=length, kv_memory=memory)
    refused, settings = None, None
    try:
        settings = resolve(config, dataclasses.replace(FACTS, free_bytes=free, lazy_memory=lazy))
    except SettingError as error:
        refused = error.param
    assert refused in ((None, "kv_memory") if lazy else (None, "kv_memory", "max_model_len"))
    if settings is None:
        return
    allocated = (2 * settings.max_rows + 1) * settings.max_model_len * FACTS.footprint.token_bytes
    assert lazy or allocated <= free
    assert settings.kv_bytes >= settings.max_model_len * FACTS.footprint.token_bytes
    assert settings.max_rows >= 1
    assert memory != AUTO or settings.kv_bytes <= free // 2


@pytest.mark.parametrize(
    ("policy", "asked", "expected"),
    [("baton", True, True), ("baton", False, False), ("orca", True, True), ("run_to_completion", True, False)],
)
def test_prefixes_are_kept_unless_told_otherwise_and_never_by_the_baseline(
    policy: str, asked: bool, expected: bool
) -> None:
    settings = resolve(Config(policy=policy, prefix_cache=asked), FACTS, traits(policy_named(policy)))
    assert settings.prefix_cache is expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "all"),
        ({"api_key": ("k",)}, "key"),
        ({"api_key_file": "keys"}, "key"),
        ({"api_key": ("k",), "prefix_sharing": "all"}, "all"),
        ({"prefix_sharing": "salt"}, "salt"),
    ],
)
def test_prefixes_are_shared_within_a_key_where_there_are_keys(asked: dict[str, object], expected: str) -> None:
    settings = resolve(make_config(asked), FACTS)
    assert (settings.prefix_sharing, settings.has_keys) == (
        expected,
        bool(asked.get("api_key") or asked.get("api_key_file")),
    )


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ({}, {}, None),
        ({"special_in_text": False}, {"BATON_SPECIAL_IN_TEXT": "yes"}, False),
        ({"special_in_text": None}, {"BATON_SPECIAL_IN_TEXT": "yes"}, True),
        ({}, {"BATON_SPECIAL_IN_TEXT": "0"}, False),
    ],
)
def test_what_is_on_sometimes_is_on_off_or_left_open(
    flags: dict[str, object], environment: dict[str, str], expected: bool | None
) -> None:
    assert load_config(flags, environment=environment).special_in_text is expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_batch_size", "lots"),
        ("max_batch_size", 0),
        ("max_model_len", "-1"),
        ("prefill_chunk", "1.5"),
        ("threads", "all"),
        ("kv_memory", "4GBs"),
        ("swap_memory", "half"),
    ],
)
def test_a_number_that_may_be_auto_is_refused_before_anything_is_loaded(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=f"--{name.replace('_', '-')} {value}"):
        make_config({name: value})


def test_settings_that_exclude_each_other_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(SettingError, match="selective batching aligns no rows"):
        check_shaping(make_config({"shaping": "aligned"}), Traits(selective=True))


@pytest.mark.parametrize("where", ["flag", "variable", "file", "keyword"])
def test_a_setting_is_taken_under_its_old_name_too_which_is_told(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('pool-memory = "1MB"')
    config = {
        "flag": lambda: load_config({"pool_memory": "1MB"}, environment={}),
        "variable": lambda: load_config({}, environment={"BATON_POOL_MEMORY": "1MB"}),
        "file": lambda: load_config({}, file=str(file), environment={}),
        "keyword": lambda: make_config({"pool_memory": "1MB"}),
    }[where]()
    assert config.swap_memory == "1MB"
    assert [record.getMessage() for record in caplog.records] == [
        "--pool-memory is called --swap-memory now; the next release takes the new name alone"
    ]


def test_flags_hold_over_a_file_whichever_name_each_has(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('pool_memory = "1MB"')
    assert load_config({"swap_memory": "2MB"}, file=str(file), environment={}).swap_memory == "2MB"
    assert load_config({"pool_memory": "3MB"}, file=str(file), environment={}).swap_memory == "3MB"


def test_both_names_of_a_setting_at_once_are_refused() -> None:
    with pytest.raises(SettingError, match="--pool-memory is called --swap-memory now: give --swap-memory alone"):
        load_config({"pool_memory": "1MB", "swap_memory": "2MB"}, environment={})


@pytest.mark.parametrize(("text", "least", "most"), [("3", 3, 3), ("1-8", 1, 8), (" 2 - 2 ", 2, 2)])
def test_replicas_are_a_number_or_a_range(text: str, least: int, most: int) -> None:
    assert range_of(text) == (least, most)


@pytest.mark.parametrize("text", ["0", "8-1", "-2", "1-", "many", "1-5000"])
def test_other_replicas_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="range like 1-8"):
        make_config({"replicas": text})


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"losses": 3}, "--losses is for several engines: add --replicas"),
        ({"ray_address": "auto"}, "--ray-address is for several engines"),
        ({"replicas": "2", "trace": "t.jsonl"}, "--trace: not with --replicas"),
        ({"replicas": "2", "models": "a,b"}, "--models: not with --replicas"),
        ({"replicas": "2", "replica_gpus": "some"}, "--replica-gpus some"),
    ],
)
def test_what_cannot_be_combined_with_replicas_is_refused(values: dict[str, object], complaint: str) -> None:
    with pytest.raises(SettingError, match=complaint):
        make_config(values)
