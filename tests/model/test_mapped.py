"""Memory that is mapped as rows grow is never touched before, whatever a family keeps, however rows are shaken."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

import pytest

from baton.core.errors import LoadError
from baton.cuda.forward import CudaForward
from baton.loader.choose import choose
from baton.loader.mapping import check, mapping
from baton.model.forward import TorchForward
from baton.testing.host_driver import HostDriver
from families import model_of
from forked import forked
from mapped_batches import KINDS, OF_ALL, batches, batches_that_reserve_too_little
from random_batch import RowByRow

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")


# Rings; latents; keys and states in one layer; a recomputed text; the model's own attention and mask.
@linux_only
@pytest.mark.parametrize(
    "families",
    [("llama", "mistral_window"), ("gemma3", "bloom"), ("deepseek_v3", "falcon_h1", "phi3_longrope")],
)
def test_a_batch_touches_nothing_that_is_not_its_own(families: tuple[str, ...]) -> None:
    status, lines = forked(lambda: batches(families))
    assert status == 0, lines
    assert len(lines) == sum(len(KINDS) if family in OF_ALL else len(KINDS) // 2 for family in families)
    # Pages did change hands, and ran out.
    assert sum("taken" in line and not line.endswith("0 taken, 0 refused") for line in lines) > len(lines) / 3


@linux_only
def test_a_page_that_is_touched_and_not_there_ends_the_process() -> None:
    status, lines = forked(lambda: batches_that_reserve_too_little(["llama"]))
    assert status == -signal.SIGSEGV, lines


@linux_only
def test_a_model_is_tried_on_mapped_memory_before_it_is_served_there() -> None:
    model = model_of("gemma3")
    plain = choose(model, native=False).forward
    assert isinstance(plain, TorchForward)
    forward = CudaForward(plain, RowByRow())
    check(model, forward, HostDriver())
    assert mapping(model, forward) == (None, "cpu has no such calls")

    class Fading(HostDriver):
        """What was there is gone when a row grows."""

        def map(self, address: int, size: int, pages: Sequence[int]) -> None:
            for at in list(self._mapped) if len(self._mapped) > 4 else ():
                super().unmap(at, size)
                super().map(at, size, [self.create(size)])
            super().map(address, size, pages)

    with pytest.raises(LoadError, match="its logits differ"):
        check(model, forward, Fading())


def test_attention_that_reads_rows_as_far_as_the_longest_has_no_mapped_memory() -> None:
    model = model_of("bloom")
    with pytest.raises(LoadError, match="as far as the longest"):
        check(model, choose(model, native=False).forward, HostDriver())
