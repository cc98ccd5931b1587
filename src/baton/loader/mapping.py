"""Tries, before any query comes, whether a model's rows can be in memory that is mapped as they grow."""

from __future__ import annotations

from functools import partial

from transformers import PreTrainedModel

from baton.core.errors import LoadError
from baton.cuda.mapped_rectangle import MappedRectangle
from baton.cuda.page_layout import PageLayout
from baton.cuda.virtual_memory import CudaDriver, Driver, trial
from baton.loader.selfcheck import check_texts, our_logits, self_check
from baton.model.execution import AttentionBackend
from baton.model.port import Forward
from baton.model.probe import own_words


def mapping(model: PreTrainedModel, forward: Forward) -> tuple[Driver | None, str]:
    """Returns what maps memory on the model's device; or None, and why not."""
    if model.device.type != "cuda":
        return None, f"{model.device.type} has no such calls"
    try:
        driver = CudaDriver(model.device)
        check(model, forward, driver)
        return driver, ""
    except LoadError as error:
        return None, error.message
    except Exception as error:
        return None, own_words("the trial failed", error)


def check(model: PreTrainedModel, forward: Forward, driver: Driver) -> None:
    """Raises if the driver does not do what it says, or if the model gives other logits on such memory."""
    if forward.backend is AttentionBackend.MASKED:
        raise LoadError("its own attention reads all rows as far as the longest")
    trial(driver)
    texts = check_texts(model)
    columns = max(map(len, texts))
    layout = PageLayout(forward.geometry.shapes, columns, model.dtype, driver.granularity, page_tokens=1)
    expected = our_logits(model, forward, texts)
    make = partial(MappedRectangle, driver=driver, layout=layout)
    self_check(model, forward, texts, expected, make=make)
    # An access to an unmapped address shows only when the device gets there.
    driver.synchronize()
