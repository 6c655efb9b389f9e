"""The few calls of the CUDA driver that inference needs, through ctypes: libcuda comes with every NVIDIA driver.

TensorRT brings no way to allocate memory from Python, and neither cuda-python nor PyCUDA is part of a Jetson's
JetPack. The primary context is used, which is the one that TensorRT's own runtime uses.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemae.spec.errors import EngineRuntimeError

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_Pointer = ctypes.c_uint64  # CUdeviceptr


def driver() -> Any:
    """Return the CUDA driver library. Raises EngineRuntimeError when there is none."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise EngineRuntimeError(
            f"there is no CUDA driver on this machine ({name})",
            expected="an NVIDIA GPU with its driver",
            fix="install the NVIDIA driver, or use another engine of the bundle with --engine",
        ) from error


class Cuda:
    """Hold the first GPU's primary context and one stream. All sizes are bytes, all pointers plain integers."""

    def __init__(self, library: Any) -> None:
        self._lib = library
        self._device, self._context, self._stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._do("cuInit", ctypes.c_uint(0))
        count = ctypes.c_int()
        self._do("cuDeviceGetCount", ctypes.byref(count))
        if count.value < 1:
            raise EngineRuntimeError(
                "the CUDA driver finds no GPU", expected="one visible NVIDIA GPU", fix="check CUDA_VISIBLE_DEVICES"
            )
        self._do("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(0))
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self.make_current()
        self._do("cuStreamCreate", ctypes.byref(self._stream), ctypes.c_uint(1))  # 1: no waiting for the default stream

    @property
    def stream(self) -> int:
        return self._stream.value or 0

    def make_current(self) -> None:
        """Make the context current in the calling thread; a session may be called from any."""
        self._do("cuCtxSetCurrent", self._context)

    def capability(self) -> str:
        """Return the compute capability, such as "8.7"."""
        return ".".join(str(self._attribute(which)) for which in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR))

    def facts(self) -> dict[str, str]:
        """Return what a compiled plan is bound to: GPU name, compute capability and driver."""
        name, driver_version = ctypes.create_string_buffer(128), ctypes.c_int()
        self._do("cuDeviceGetName", name, ctypes.c_int(128), self._device)
        self._do("cuDriverGetVersion", ctypes.byref(driver_version))
        return {"gpu": name.value.decode(), "capability": self.capability(), "driver": str(driver_version.value)}

    def allocate(self, size: int) -> int:
        pointer = _Pointer()
        self._do("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer.value

    def free(self, pointer: int) -> None:
        self._do("cuMemFree_v2", _Pointer(pointer))

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return a host array in page-locked memory: copies from and to it run on the stream, beside the caller.

        From ordinary memory the driver copies through such a buffer of its own, and waits. `free_pinned` gives it back.
        """
        pointer, size = ctypes.c_void_p(), int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._do("cuMemAllocHost_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        memory = (ctypes.c_byte * size).from_address(pointer.value or 0)
        return np.frombuffer(memory, dtype).reshape(shape)

    def free_pinned(self, array: NDArray[Any]) -> None:
        """Give an array of `pinned` back; neither it nor a view of it may be used afterwards."""
        self._do("cuMemFreeHost", ctypes.c_void_p(array.ctypes.data))

    def to_device(self, pointer: int, array: NDArray[Any]) -> None:
        """Queue a copy of a contiguous array to the device; the array must live until `wait`."""
        source = ctypes.c_void_p(array.ctypes.data)
        self._do("cuMemcpyHtoDAsync_v2", _Pointer(pointer), source, ctypes.c_size_t(array.nbytes), self._stream)

    def to_host(self, array: NDArray[Any], pointer: int) -> None:
        """Queue a copy from the device into a contiguous array, which is valid after `wait`."""
        sink = ctypes.c_void_p(array.ctypes.data)
        self._do("cuMemcpyDtoHAsync_v2", sink, _Pointer(pointer), ctypes.c_size_t(array.nbytes), self._stream)

    def wait(self) -> None:
        self._do("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        self._do("cuStreamDestroy_v2", self._stream)
        self._do("cuDevicePrimaryCtxRelease_v2", self._device)

    def _attribute(self, which: int) -> int:
        value = ctypes.c_int()
        self._do("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(which), self._device)
        return value.value

    def _do(self, call: str, *arguments: Any) -> None:
        code = getattr(self._lib, call)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self._lib.cuGetErrorName(ctypes.c_int(code), ctypes.byref(text))
            name = np.bytes_(text.value or b"unknown").decode()
            raise EngineRuntimeError(
                f"{call} failed with CUDA error {code} ({name})",
                expected="a working NVIDIA GPU and driver with free memory",
                fix="check `nvidia-smi` (on Jetson `tegrastats`), or use another engine with --engine",
            )
