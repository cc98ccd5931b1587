"""The verbs that measure and compare. torch is imported only by what a verb runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from baton.cli.flags import LOADING, OF_THE_BATCH, SERVING, settings, workload
from baton.cli.foreign import check_address
from baton.cli.given import config_of, parted
from baton.cli.refuse import refuse_bench, refuse_simulate, refuse_tune


@click.command(epilog="Example:  baton check Qwen/Qwen3-0.6B --dtype bfloat16")
@settings(without=SERVING | OF_THE_BATCH - {"max_model_len"})
@click.option("--tokens", type=click.IntRange(2), default=16, show_default=True, help="Tokens that each query answers.")
@click.option(
    "--longest",
    type=click.IntRange(1),
    default=None,
    help="Most tokens of a prompt.  [default: beyond each length that the config names, as far as a budget goes]",
)
@click.option(
    "--perplexity",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="Instead: how well the model predicts this text, alone and as it is served (--quantize).",
)
@click.option(
    "--window", type=click.IntRange(2), default=512, show_default=True, help="Tokens of the text that see each other."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check(
    config_file: str | None,
    tokens: int,
    longest: int | None,
    perplexity: Path | None,
    window: int,
    as_json: bool,
    **flags: Any,
) -> None:
    """Proves that this model gives in any batch what it gives alone, on this machine and in this dtype.

    Compares tokens and logits with stock generate; exit status 1 where they differ.
    """
    config = config_of(flags, config_file)
    if perplexity is not None:
        from baton.cli.perplexity import run_perplexity

        run_perplexity(config, perplexity, window=window, as_json=as_json)
        return
    from baton.cli.check import run_check

    run_check(config, tokens=tokens, longest=longest, as_json=as_json)


@click.command(epilog="Example:  baton bench --workload azure.csv --queries 64 --policies orca,baton --json new.json")
@settings(without=SERVING | {"policy", "trace"})
@click.option("--policies", default="run_to_completion,orca,baton", show_default=True, help="Which to compare.")
@click.option("--vary", multiple=True, metavar="SETTING=A,B", help="Also with each of these values; may be repeated.")
@workload
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Runs of each, alternated.")
@click.option("--goal-first", type=float, default=None, help="Goodput: most seconds to the first token.")
@click.option("--goal-token", type=float, default=None, help="Goodput: most seconds a token, on average.")
@click.option("--goal-gap", type=float, default=None, help="Goodput: most seconds between two tokens of a query.")
@click.option("--alone", type=click.IntRange(0), default=8, show_default=True, help="Answers held against alone.")
@click.option("--accuracy", type=click.IntRange(1), help="Questions of each task of the built-in model, held out.")
@click.option("--json", "json_file", type=click.Path(), help="All figures, for `baton compare`.")
@click.option("--append", is_flag=True, help="Adds the runs to those in the --json file, if it is there.")
@click.option("--in-turn", type=click.IntRange(1, 65535), metavar="PORT", help="Iteration by iteration with another.")
@click.option("--html", "html_file", type=click.Path(), help="All figures and plots on one page, for people.")
def bench(config_file: str | None, **options: Any) -> None:
    """Runs one workload through several policies and settings on one engine and compares them.

    Runs are alternated and repeated; medians are shown. Every answer is greedy and of a set length.

    --in-turn alternates the iterations with those of another `baton bench` of the same PORT, started beside this one:
    `baton compare` then finds small changes on noisy machines, too.
    """
    config, asked = parted(options, config_file)
    refuse_bench(config, asked)
    from baton.cli.bench import run_bench

    run_bench(config, {**asked, "seed": config.seed})


@click.command(epilog="Example:  baton tune Qwen/Qwen3-0.6B --goal-ms 50 --json costs.json")
@settings(without=SERVING | {"policy", "trace"})
@click.option("--goal-ms", type=click.FloatRange(0.001), default=None, help="Most milliseconds between two tokens.")
@click.option("--prompt-tokens", type=click.IntRange(1), default=256, show_default=True, help="Of a usual query.")
@click.option("--answer-tokens", type=click.IntRange(1), default=128, show_default=True, help="Of a usual query.")
@click.option("--most-rows", type=click.IntRange(1), default=32, show_default=True, help="Rows that are tried.")
@click.option(
    "--formats", metavar="A,B", default=None, help="Compares these instead: all, or none,bfloat16,int8,int4 and others."
)
@click.option(
    "--text",
    "text_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="With --formats: how well each predicts this text.",
)
@click.option("--json", "json_file", type=click.Path(), help="The costs, for `baton simulate`; or the comparison.")
def tune(config_file: str | None, **options: Any) -> None:
    """Measures this machine and advises rows and chunk for a latency goal, with the curve.

    Iterations are measured by rows and by prompt tokens, through an engine with a listening client. Throughput and
    latency for queries of the given lengths are computed from these. --formats compares formats of the weights.
    """
    config, asked = parted(options, config_file)
    refuse_tune(config, asked)
    if asked["formats"] is not None:
        from baton.measure.formats import run_formats

        run_formats(config, asked)
        return
    from baton.measure.tune import run_tune

    run_tune(config, asked)


@click.command(epilog="Example:  baton simulate --costs costs.json --queries 10000 --policies orca,baton")
@settings(without=SERVING | LOADING | {"policy", "trace"})
@click.option("--costs", required=True, metavar="FILE", help="What forwards cost, as `baton tune --json` writes it.")
@click.option("--memory", type=int, default=64 * 2**30, show_default=True, help="Bytes that are free for rows.")
@click.option("--policies", default="run_to_completion,orca,baton", show_default=True, help="Which to compare.")
@click.option("--vary", multiple=True, metavar="SETTING=A,B", help="Also with each of these values; may be repeated.")
@workload
@click.option(
    "--replicas", "engines", default="1", show_default=True, help="Engines behind one front: 1,4, or 1-8 by the load."
)
@click.option(
    "--by-prefix/--by-work", default=True, show_default=True, help="How the front chooses one: by prefixes, or not."
)
@click.option("--goal-first", type=float, default=None, help="Goodput: most seconds to the first token.")
@click.option("--goal-token", type=float, default=None, help="Goodput: most seconds a token, on average.")
@click.option("--goal-gap", type=float, default=None, help="Goodput: most seconds between two tokens of a query.")
@click.option("--json", "json_file", type=click.Path(), help="All figures.")
def simulate(config_file: str | None, **options: Any) -> None:
    """Runs workloads and policies against measured costs, without a device: for what cannot be run here.

    The engine and the policies are those that serve; only a forward is a number of seconds.
    """
    config, asked = parted(options, config_file)
    refuse_simulate(config, asked)
    from baton.measure.simulate import run_simulate

    run_simulate(config, {**asked, "seed": config.seed})


@click.command(epilog="Example:  baton compare before.json after.json")
@click.argument("first", metavar="A.json", type=click.Path())
@click.argument("second", metavar="B.json", type=click.Path())
@click.option("--tolerance", type=click.FloatRange(0), default=0.03, show_default=True, help="What is no matter.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def compare(first: str, second: str, tolerance: float, as_json: bool) -> None:
    """Compares two reports of `baton bench`: speed beyond noise, equality and accuracy of answers.

    Exit status 1 if B is slower, answers differently, or answers fewer questions rightly. This needs 7 runs of each, or
    10 runs made in turn (`baton bench --in-turn`), which show smaller changes.
    """
    from baton.bench.commands import run_compare

    run_compare(first, second, tolerance=tolerance, as_json=as_json)


@click.command(epilog="Example:  baton load http://127.0.0.1:8000 --arrivals poisson:2 --mode timed --queries 100")
@click.argument("url")
@click.option("--api-key", envvar="BATON_API_KEY", default=None, help="Sent as a bearer token.")
@click.option("--model-name", default=None, help="Which model to ask.  [default: the server's first]")
@click.option("--text", is_flag=True, help="Prompts of words; else of token ids, which not every server takes.")
@click.option("--field", "fields", multiple=True, metavar="NAME=JSON", help="A request field more; may be repeated.")
@click.option("--goal-first", type=float, default=None, help="Goodput: most seconds to the first token.")
@click.option("--goal-token", type=float, default=None, help="Goodput: most seconds a token, on average.")
@click.option("--goal-gap", type=float, default=None, help="Goodput: most seconds between two tokens of a query.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of lengths, times and prompts.")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="Runs, each with new prompts.")
@click.option("--json", "json_file", type=click.Path(), help="All figures, for `baton compare`.")
@click.option("--append", is_flag=True, help="Adds the runs to those in the --json file, if it is there.")
@workload
def load(url: str, **options: Any) -> None:
    """Sends a workload to any OpenAI-compatible server and measures the answers.

    It asks /v1/completions with streams, greedily, for answers of a set length (ignore_eos). It also reports its own
    delays: how late queries were asked, and how late its event loop came round.
    """
    check_address(url)
    from baton.bench.commands import run_load

    run_load(url, options)


MEASURING = (check, bench, tune, simulate, compare, load)
