"""Steps that an earlier start recorded and proved, kept on disk, so that the next start need not do it again.

A file has a step's graph, how the model is run, and a digest of the logits that the step gave when it was proved
against the model alone. The next start takes the step if it gives the same bits, and else proves one afresh. A file
belongs to one model, number format and kernel set, and to one version of torch, transformers and of this package.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor
from transformers import PreTrainedModel

from baton.core.errors import LoadError
from baton.core.files import OWNER_ONLY, PART
from baton.loader.formats import WeightFormat
from baton.loader.selfcheck import our_logits, use_reference_attention
from baton.loader.stamp import weights_digest
from baton.loader.structure import hooked
from baton.model.execution import AttentionBackend
from baton.model.forward import TorchForward
from baton.model.rotary import must_rotate_beyond
from baton.native import library as native
from baton.native.forward import NativeForward
from baton.native.graph import Graph
from baton.native.program import Program
from baton.native.written import Written, folded, read, write

log = logging.getLogger("baton.model")

MOST_FILES = 100
"""Files in the folder; those that were not read for the longest time go."""
_DIGEST = 16
_STEPS = "steps"


class StaleSteps(LoadError):
    """The kept step is not that of these weights, which it has rounded already: the model must be read again."""


@dataclass(frozen=True, slots=True)
class KeptFacts:
    """What a start found out of a model. `texts`: token ids; `logits`: a digest of the step's logits for them."""

    backend: str
    whole: bool
    checked_tokens: int
    unchecked: tuple[str, ...]
    texts: tuple[tuple[int, ...], ...]
    logits: str


class StepCache:
    """The kept step of one model as it is loaded, in `folder`.

    Whatever is wrong with a file or the folder, the model is loaded without it.
    """

    def __init__(self, folder: Path, model: PreTrainedModel, format: WeightFormat, columns: int) -> None:
        self._model, self._format = model, format
        self._path = folder / f"{_key(model, format, columns)}.step"
        self._graph: Written | None = None

    def hold(self, graph: Graph) -> None:
        """Writes a graph down, before a program takes its weights."""
        if _is_stock(self._model):
            with _unharmed("write down its step"):
                self._graph = write(graph, self._model)
                if self._graph is not None:
                    self._graph.plain["folded"] = _folded(self._graph, self._model)

    def keep(
        self,
        forward: NativeForward,
        texts: list[Tensor],
        plain: TorchForward,
        *,
        checked_tokens: int,
        unchecked: tuple[str, ...],
    ) -> None:
        """Keeps the step that was held last and proved since. `plain`: the same model in torch."""
        if self._graph is None:
            return
        with _unharmed("keep its step"):
            logits = _digest(our_logits(self._model, forward, texts))
            fed = tuple(tuple(text.tolist()) for text in texts)
            facts = KeptFacts(plain.backend.name, plain.whole_prompts, checked_tokens, unchecked, fed, logits)
            said = json.dumps({"facts": asdict(facts), "graph": self._graph.plain}).encode()
            tensors = {name: tensor.clone() for name, tensor in self._graph.tensors.items()}
            tensors[_STEPS] = torch.from_numpy(np.frombuffer(said, np.uint8).copy())
            content = write_tensors(tensors)
            _replace(self._path, hashlib.blake2b(content, digest_size=_DIGEST).digest() + content)

    def take(self, threads: int) -> tuple[NativeForward, KeptFacts] | None:
        """Returns the step that an earlier start proved, if it gives the same bits; else None.

        The model's own weights are given back, as `Program` does with `release`. Raises StaleSteps if it gives others
        and the weights are rounded by now.
        """
        kept = self._read()
        if kept is None:
            return None
        facts, graph = kept
        model, stock = self._model, self._model.config.get_text_config()._attn_implementation
        program = None
        try:
            if _folded(graph, model) != graph.plain["folded"]:
                raise ValueError("its constants are of other weights")
            use_reference_attention(model)
            must_rotate_beyond(model)
            plain = hooked(model, AttentionBackend[facts.backend], facts.whole, stock)
            if plain is None:
                raise ValueError("its way is none of this model's")
            program = Program(
                read(graph, model),
                plain.geometry,
                model.dtype,
                threads=threads,
                packing=self._format.packing,
                parameters=model.parameters(),
                kept=self._format.kept,
                release=True,
            )
            forward = NativeForward(program, plain)
            if _digest(our_logits(model, forward, [torch.tensor(text) for text in facts.texts])) == facts.logits:
                return forward, facts
            why = "it gives other bits"
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        log.info("a kept step is not taken: %s", why)
        self._path.unlink(missing_ok=True)
        model.set_attn_implementation(stock)
        if program is not None:
            try:
                program.restore()
            except LoadError as error:
                raise StaleSteps(error.message) from error
        return None

    def _read(self) -> tuple[KeptFacts, Written] | None:
        if not self._path.exists():
            return None
        with _unharmed("read its kept step"):
            content = self._path.read_bytes()
            if hashlib.blake2b(content[_DIGEST:], digest_size=_DIGEST).digest() != content[:_DIGEST]:
                raise ValueError("the file is damaged")
            tensors = read_tensors(content[_DIGEST:])
            plain = json.loads(tensors.pop(_STEPS).numpy().tobytes())
            os.utime(self._path)
            facts = plain["facts"]
            facts["texts"] = tuple(tuple(text) for text in facts["texts"])
            facts["unchecked"] = tuple(facts["unchecked"])
            return KeptFacts(**facts), Written(plain["graph"], tensors)
        return None


def _key(model: PreTrainedModel, format: WeightFormat, columns: int) -> str:
    told = (
        weights_digest(model),
        str(model.dtype),
        format.name,
        columns,
        native.describe(),
        torch.__version__,
        transformers.__version__,
        _source_digest(),
    )
    return hashlib.blake2b(repr(told).encode(), digest_size=_DIGEST).hexdigest()


@cache
def _source_digest() -> str:
    """Of this package's Python files and native library."""
    digest = hashlib.blake2b(digest_size=_DIGEST)
    root = Path(__file__).parents[1]
    for path in sorted([*root.rglob("*.py"), *root.glob("native/_kernels*")]):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _folded(graph: Written, model: PreTrainedModel) -> str:
    """Of whole weights that may stand in the graph's constants, for which a sample is not enough.

    A changed number in them would be left out, and the step would give the same bits all the same.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST)
    for name, tensor in folded(graph, model):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_stock(model: PreTrainedModel) -> bool:
    """Whether its code is of transformers, whose version is known, and not of a model folder."""
    return type(model).__module__.partition(".")[0] == "transformers"


def _digest(logits: list[Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    for one in logits:
        digest.update(one.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Writes a file so that nobody sees a part of it, and lets the oldest files go."""
    path.parent.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=PART, delete=False) as file:
        try:
            file.write(content)
            file.close()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    known = sorted(path.parent.glob("*.step"), key=lambda one: one.stat().st_mtime)
    for old in known[:-MOST_FILES]:
        old.unlink(missing_ok=True)


@contextlib.contextmanager
def _unharmed(what: str) -> Iterator[None]:
    """A start goes on without what fails here."""
    try:
        yield
    except Exception as error:
        log.info("cannot %s: %s", what, error)
