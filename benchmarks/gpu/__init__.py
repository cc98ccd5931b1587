"""What an NVIDIA GPU has to show: one module for each part, the models and queries they share, and their results."""

import contextlib
import sys
import types

with contextlib.suppress(ImportError):
    import llguidance  # noqa: F401
if "llguidance" not in sys.modules:
    # Constrained answers are not measured here. It is here because baton's grammar imports it, and any module of this
    # package may import that.
    sys.modules["llguidance"] = types.ModuleType("llguidance")
