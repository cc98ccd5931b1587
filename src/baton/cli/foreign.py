"""Flags of vLLM, llama.cpp and others, with baton's names for the same settings."""

from __future__ import annotations

import re
from collections.abc import Mapping

from baton.core.errors import SettingError

_MODEL = "the model is given without a flag: baton serve MODEL"
_ONE_DEVICE = "baton runs a model on one device; several engines are several servers"
_MEANT: Mapping[str, str] = {
    **dict.fromkeys(("--model", "--model-path", "--model-id", "--hf-repo", "-hf", "-m"), _MODEL),
    **dict.fromkeys(("--max-num-seqs", "--parallel", "-np", "--max-running-requests"), "--max-batch-size"),
    **dict.fromkeys(("--ctx-size", "-c", "--context-length", "--max-total-tokens"), "--max-model-len"),
    **dict.fromkeys(
        ("--gpu-memory-utilization", "--mem-fraction-static", "--kv-cache-memory-bytes", "--swap-space"),
        "--kv-memory, a size like 4GiB",
    ),
    **dict.fromkeys(("--tensor-parallel-size", "-tp", "--tp", "--tp-size", "--pipeline-parallel-size"), _ONE_DEVICE),
    **dict.fromkeys(("--n-gpu-layers", "-ngl"), "--device"),
    **dict.fromkeys(("--max-num-batched-tokens", "--chunked-prefill-size", "--batch-size"), "--prefill-chunk"),
    **dict.fromkeys(("--enable-prefix-caching", "--no-enable-prefix-caching"), "--prefix-cache and --no-prefix-cache"),
    **dict.fromkeys(("--enforce-eager", "--disable-cuda-graph"), "--no-compile"),
    **dict.fromkeys(("--quantization", "-q"), "--quantize"),
    **dict.fromkeys(("--allowed-origins",), "--cors-origin"),
    **dict.fromkeys(("--reasoning-parser", "--reasoning-format"), "--reasoning; the model's own tags are found"),
    **dict.fromkeys(
        ("--tool-call-parser", "--enable-auto-tool-choice", "--jinja"), "no flag: the model's style of calls is found"
    ),
    **dict.fromkeys(("--chat-template-file",), "--chat-template"),
    **dict.fromkeys(("--torch-dtype",), "--dtype"),
    **dict.fromkeys(("--max-concurrent-requests", "--max-queue-size"), "--max-waiting"),
    **dict.fromkeys(("--uvicorn-log-level",), "--log-level"),
    **dict.fromkeys(("--threads-batch", "-t"), "--threads"),
    **dict.fromkeys(("--alias", "-a"), "--served-model-name"),
}
_ADDRESS = re.compile(r"(?:localhost|[\w.-]+|\[[0-9a-fA-F:.]+\]):\d{1,5}(?:/.*)?")


def hint(arguments: list[str], unknown: str) -> str:
    """Returns baton's name for another server's flag; "" for an unknown one.

    click reports only the first letter of a short flag, so the whole flag is searched for among the `arguments`.
    """
    given = next((one for one in arguments if one.split("=")[0] in _MEANT and one.startswith(unknown)), unknown)
    meant = _MEANT.get(given.split("=")[0])
    if meant is None:
        return ""
    return f"; {meant}" if meant in (_MODEL, _ONE_DEVICE) else f"; baton's name is {meant}"


def check_address(text: str) -> None:
    """Raises SettingError for a host and a port without a scheme."""
    if _ADDRESS.fullmatch(text):
        raise SettingError(f"{text}: did you mean http://{text}?", param="url")
