"""Memory in two steps: addresses are reserved first, and pages are mapped to them one by one, later.

The port follows the CUDA driver's virtual memory management (CUDA driver API, section of that name);
`baton/testing/host_driver.py` does the same with a CPU's memory. Memory that is reserved and not mapped must not be
touched: that kills a GPU's context, or the process.
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

    Raises torch.OutOfMemoryError if there is no memory, and RuntimeError with the driver's own words.
    """

    @property
    def granularity(self) -> int: ...

    def reserve(self, size: int) -> Reserved:
        """Reserves so many bytes of addresses, without memory."""

    def create(self, size: int) -> Any:
        """Makes a page of so many bytes, mapped nowhere, with arbitrary content."""

    def map(self, address: int, size: int, pages: Sequence[Any]) -> None:
        """Maps pages of `size` bytes each, one after the other from this address on, to be read and written.

        Maps all of them, or none.
        """

    def unmap(self, address: int, size: int) -> None:
        """Unmaps pages, which stay whole. No work that touches them may be under way, see `synchronize`."""

    def release(self, page: Any) -> None:
        """Gives back a page that is mapped nowhere."""

    def free(self, address: int, size: int) -> None:
        """Gives back addresses that nothing is mapped to."""

    def synchronize(self) -> None:
        """Returns when all work that the device was given is done."""

    def make_room(self) -> None:
        """Makes other parts of this process give back memory that they keep for later."""


class CudaDriver:
    """A GPU's memory, through cuda-bindings. Raises RuntimeError if they are not installed."""

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
        for properties in (self._kind, self._access):
            properties.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
            properties.location.id = index
        least = cuda.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        self._granularity = int(_asked(cuda.cuMemGetAllocationGranularity, self._kind, least))

    @property
    def granularity(self) -> int:
        return self._granularity

    def reserve(self, size: int) -> Reserved:
        address = int(_asked(cuda.cuMemAddressReserve, size, 0, 0, 0))
        holder = _Addresses(address, size)
        # Torch may ask the driver whose address it is, which the driver only knows for pages.
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

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    def make_room(self) -> None:
        torch.cuda.empty_cache()


class _Addresses:
    """What torch makes a tensor of without copying (CUDA array interface, version 3)."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}


def _asked(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call of the driver, without its status."""
    status, *answer = call(*arguments)
    if status == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise torch.OutOfMemoryError(f"{call.__name__}: the device has no memory left")
    if status != cuda.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{call.__name__}: {status}")
    return answer[0] if answer else None


def trial(driver: Driver) -> None:
    """Raises RuntimeError if memory that is mapped piecewise does not hold what was written; takes milliseconds."""
    size = driver.granularity
    reserved = driver.reserve(4 * size)
    pages = [driver.create(size) for _ in range(2)]
    rows = reserved.tensor.view(torch.bfloat16).view(4, -1)
    # The first page, and one after a hole; the latter then moves to where the hole was.
    for row, page in ((0, pages[0]), (2, pages[1])):
        driver.map(reserved.address + row * size, size, [page])
        rows[row].fill_(3.0 + row)
    values = [float(rows[row].float().mean()) for row in (0, 2)]
    driver.synchronize()
    driver.unmap(reserved.address + 2 * size, size)
    driver.map(reserved.address + size, size, pages[1:])
    rows[1].copy_(rows[0])
    values += [float(rows[1, -1]), float(rows[0, 0])]
    driver.synchronize()
    driver.unmap(reserved.address, 2 * size)
    for page in pages:
        driver.release(page)
    driver.free(reserved.address, 4 * size)
    if values != [3.0, 5.0, 3.0, 3.0]:
        raise RuntimeError(f"what was written was not read: {values}")
