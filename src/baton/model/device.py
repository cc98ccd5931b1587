"""Facts about a device, and what follows from them before anything is tried on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from baton.core.config import AUTO
from baton.core.errors import SettingError
from baton.core.host import free_memory_bytes

# NVIDIA's Ampere: the first GPUs with bfloat16, and the oldest that the kernels' products are compiled for.
_AMPERE = (8, 0)
# The first with float8.
_ADA = (8, 9)


@dataclass(frozen=True, slots=True)
class Device:
    """`kind`: as torch names it. `capability`: of an NVIDIA GPU, else None. `hip`: AMD's, which torch calls cuda."""

    kind: str
    capability: tuple[int, int] | None = None
    hip: bool = False

    @property
    def captures(self) -> bool:
        """Whether work can be captured as a graph of CUDA or HIP."""
        return self.kind == "cuda"

    @property
    def bfloat16(self) -> bool:
        """Whether it multiplies bfloat16 numbers directly."""
        return self.capability is None or self.capability >= _AMPERE

    @property
    def float8(self) -> bool:
        """Whether it multiplies e4m3 numbers, with a scale for each row."""
        return self.capability is not None and self.capability >= _ADA

    def groups(self, dtype: torch.dtype) -> bool:
        """Whether torch's grouped product of experts runs on the device alone.

        Elsewhere it reads the groups' sizes on the host, which captured work must not do: torch 2.11, GroupedBlas.cpp.
        """
        if not self.captures:
            return True
        return dtype is torch.bfloat16 and self.capability is not None and self.capability[0] in (9, 10)

    def why_no_triton(self, installed: bool) -> str:
        """Why Triton kernels are not tried; nothing if they are."""
        if self.kind != "cuda":
            return f"Triton's kernels are not for {self.kind}"
        if self.capability is not None and self.capability < _AMPERE:
            return f"Triton's kernels need compute capability 8.0, this GPU's is {_dotted(self.capability)}"
        return "" if installed else "Triton is not installed: pip install 'baton-llm[cuda]'"

    def dtype(self, asked: str, saved: str) -> str:
        """The number format for a model that was saved in this one; all by name.

        By default GPUs compute in 16 bits: as saved if that is 16, else in bfloat16 if they have it. Other devices
        compute as saved. Raises SettingError for a format that the device does not have.
        """
        if asked == AUTO:
            if self.kind != "cuda" or saved == "float16":
                return saved
            return "bfloat16" if self.bfloat16 else "float16"
        if asked == "bfloat16" and not self.bfloat16:
            message = f"--dtype bfloat16: this GPU's compute capability {_dotted(self.capability)} has none (8.0 has): "
            raise SettingError(message + "take float16 or float32", param="dtype")
        return asked


def device_of(device: torch.device) -> Device:
    """The facts of a device of this machine."""
    if device.type != "cuda":
        return Device(device.type)
    hip = torch.version.hip is not None
    return Device("cuda", None if hip else torch.cuda.get_device_capability(device), hip)


def _dotted(capability: tuple[int, int] | None) -> str:
    return ".".join(map(str, capability or ()))


def free_bytes(device: torch.device) -> int:
    """Returns what this process may still take of the memory that holds keys and values."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory_bytes()
