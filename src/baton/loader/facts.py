"""What the engine's settings need to know of a loaded model and this machine."""

from __future__ import annotations

from baton.core.host import cores, free_memory_bytes
from baton.core.settings import Facts
from baton.cuda.page_layout import PageLayout
from baton.kv.rectangle import footprint, is_lazy
from baton.loader.loaded import Loaded
from baton.model.device import free_bytes


def facts_of(loaded: Loaded) -> Facts:
    shapes, context, mapped = loaded.geometry.shapes, loaded.context_tokens, None
    if loaded.driver is not None:
        mapped = PageLayout(shapes, context, loaded.dtype, loaded.driver.granularity).footprint
        # Memory left over from loading must not count as in use.
        loaded.driver.make_room()
    return Facts(
        context_tokens=context,
        footprint=footprint(shapes, context, loaded.dtype, loaded.device),
        free_bytes=free_bytes(loaded.device),
        device=loaded.device.type,
        dtype=str(loaded.dtype).removeprefix("torch."),
        cores=cores(),
        lazy_memory=is_lazy(loaded.device),
        swap_free_bytes=free_memory_bytes() if loaded.device.type == "cuda" else None,
        mapped_footprint=mapped,
        context_source=loaded.context_source,
    )
