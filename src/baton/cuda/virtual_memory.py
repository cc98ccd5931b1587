"""Memory in two steps: addresses that are reserved, and pages that are mapped to them one by one, later.

The port is what CUDA's driver calls virtual memory management (CUDA driver API, section of that name);
`baton/testing/host_driver.py` does the same with a CPU's memory.
What is reserved and not mapped must not be touched: it kills a GPU's context, or the process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

try:
    from cuda.bindings import driver as cuda
except ImportError:
    cuda = None


@dataclass(frozen=True, slots=True)
class Reserved:
    """Addresses. `tensor` `[size]` in bytes over all of them keeps `holder` alive, and nothing else does."""

    tensor: Tensor
    address: int
    holder: object


class Driver(Protocol):
    """One device's memory. Sizes and addresses are multiples of `granularity` bytes; a page is a handle.

    Raises torch.OutOfMemoryError where there is no memory, and RuntimeError with the driver's own word.
    """

    @property
    def granularity(self) -> int: ...

    def reserve(self, size: int) -> Reserved:
        """So many bytes of addresses, nothing behind them."""

    def create(self, size: int) -> Any:
        """A page of so many bytes, nowhere to be seen; what is in it may be anything."""

    def map(self, address: int, size: int, pages: Sequence[Any]) -> None:
        """Pages of `size` bytes each, one behind the other from this address on, to be read and written.

        All of them, or none.
        """

    def unmap(self, address: int, size: int) -> None:
        """The pages stay whole. No work that touches them may be under way, see `settle`."""

    def release(self, page: Any) -> None:
        """Gives a page back that is mapped nowhere."""

    def free(self, address: int, size: int) -> None:
        """Gives back addresses that nothing is mapped to."""

    def settle(self) -> None:
        """Returns when all work that the device was given is done."""

    def make_room(self) -> None:
        """Has others in this process give back what they keep for later."""


class CudaDriver:
    """A GPU's, through cuda-bindings. Raises RuntimeError where they are not installed."""

    def __init__(self, device: torch.device) -> None:
        if cuda is None:
            raise RuntimeError("cuda-bindings are not installed")
        # The driver's calls do not make a context; torch does, with its first work.
        torch.cuda.synchronize(device)
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        self._kind = cuda.CUmemAllocationProp()
        self._kind.type = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._access = cuda.CUmemAccessDesc()
        self._access.flags = cuda.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        for told in (self._kind, self._access):
            told.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
            told.location.id = index
        least = cuda.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        self._granularity = int(_asked(cuda.cuMemGetAllocationGranularity, self._kind, least))

    @property
    def granularity(self) -> int:
        return self._granularity

    def reserve(self, size: int) -> Reserved:
        address = int(_asked(cuda.cuMemAddressReserve, size, 0, 0, 0))
        holder = _Addresses(address, size)
        # Torch may ask the driver whose address it is, which it knows of pages alone.
        page = self.create(self.granularity)
        self.map(address, self.granularity, [page])
        tensor = torch.as_tensor(holder, device=self._device)
        self.unmap(address, self.granularity)
        self.release(page)
        if tensor.data_ptr() != address:
            raise RuntimeError("torch copies what it is handed by address")
        return Reserved(tensor, address, holder)

    def create(self, size: int) -> Any:
        return _asked(cuda.cuMemCreate, size, self._kind, 0)

    def map(self, address: int, size: int, pages: Sequence[Any]) -> None:
        done = 0
        try:
            for page in pages:
                _asked(cuda.cuMemMap, address + done, size, 0, page, 0)
                done += size
            _asked(cuda.cuMemSetAccess, address, done, [self._access], 1)
        except Exception:
            if done:
                cuda.cuMemUnmap(address, done)
            raise

    def unmap(self, address: int, size: int) -> None:
        _asked(cuda.cuMemUnmap, address, size)

    def release(self, page: Any) -> None:
        _asked(cuda.cuMemRelease, page)

    def free(self, address: int, size: int) -> None:
        _asked(cuda.cuMemAddressFree, address, size)

    def settle(self) -> None:
        torch.cuda.synchronize(self._device)

    def make_room(self) -> None:
        torch.cuda.empty_cache()


class _Addresses:
    """What torch makes a tensor of without copying (CUDA array interface, version 3)."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}


def _asked(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call of the driver answers besides its status."""
    status, *answer = call(*arguments)
    if status == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise torch.OutOfMemoryError(f"{call.__name__}: the device has no memory left")
    if status != cuda.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{call.__name__}: {status}")
    return answer[0] if answer else None


def trial(driver: Driver) -> None:
    """Raises RuntimeError where memory that is mapped bit by bit does not hold what was written; a few milliseconds."""
    size = driver.granularity
    reserved = driver.reserve(4 * size)
    pages = [driver.create(size) for _ in range(2)]
    rows = reserved.tensor.view(torch.bfloat16).view(4, -1)
    # The first page, and one behind a hole, which then goes to where the hole was.
    for row, page in ((0, pages[0]), (2, pages[1])):
        driver.map(reserved.address + row * size, size, [page])
        rows[row].fill_(3.0 + row)
    found = [float(rows[row].float().mean()) for row in (0, 2)]
    driver.settle()
    driver.unmap(reserved.address + 2 * size, size)
    driver.map(reserved.address + size, size, pages[1:])
    rows[1].copy_(rows[0])
    found += [float(rows[1, -1]), float(rows[0, 0])]
    driver.settle()
    driver.unmap(reserved.address, 2 * size)
    for page in pages:
        driver.release(page)
    driver.free(reserved.address, 4 * size)
    if found != [3.0, 5.0, 3.0, 3.0]:
        raise RuntimeError(f"what was written was not read: {found}")
