"""What an error of a device library means: a table of texts. Imports no such library.

An error of CUDA or ROCm is of one of three kinds. The device has no memory left: a smaller batch may fit. It refuses
this one call, and other calls still work. Or it is lost for this process: every later call fails too.
"""

from __future__ import annotations

import re
from typing import Literal

DeviceErrorKind = Literal["out_of_memory", "refused", "lost"]

#: Classes of torch by name.
_MEMORY_CLASSES = frozenset({"OutOfMemoryError"})
_DEVICE_CLASSES = frozenset({"AcceleratorError"})

#: Texts of errors, in the order in which they are tried. Case does not matter.
TEXTS: tuple[tuple[DeviceErrorKind, str], ...] = (
    # ---- memory: torch, the runtime (graphs, pinned memory, contexts), then the libraries
    ("out_of_memory", r"\bout of memory\b"),
    ("out_of_memory", r"DefaultCPUAllocator|can't allocate memory|not enough memory: you tried to allocate"),
    ("out_of_memory", r"cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"),
    ("out_of_memory", r"hipErrorOutOfMemory|hipErrorMemoryAllocation"),
    (
        "out_of_memory",
        r"(CU|HIP)(BLAS|SOLVER|SPARSE|DNN|FFT|RAND)_(STATUS_)?(INTERNAL_ERROR_\w+_)?ALLOC(ATION)?_FAILED",
    ),
    ("out_of_memory", r"CU(SPARSE|BLAS)_STATUS_INSUFFICIENT_RESOURCES|CUDNN_STATUS_SUBLIBRARY_LOADING_FAILED"),
    ("out_of_memory", r"rocblas_status_memory_error|miopenStatusAllocFailed|HIPBLASLT?_STATUS_ALLOC_FAILED"),
    # No memory for the workspace of cuBLAS: its handle cannot be made.
    ("out_of_memory", r"(CUBLAS|HIPBLAS)_STATUS_NOT_INITIALIZED when calling `?(cublas|hipblas)Create"),
    # cuDNN and MIOpen try their engines in turn; without memory for a workspace, none is left.
    ("out_of_memory", r"unable to find an engine to execute this computation|miopenStatusUnknownError"),
    # torch asks NVML how much memory is free when an allocation has failed.
    ("out_of_memory", r"NVML_SUCCESS == r.*INTERNAL ASSERT FAILED.*CUDACachingAllocator"),
    # ---- refused: the call was not started, and the device is as before
    (
        "refused",
        r"(CUDA|HIP)( driver)? error: invalid (configuration argument|argument|resource handle|device function)",
    ),
    ("refused", r"Triton Error \[(CUDA|HIP)\]: (invalid (argument|value|image)|device kernel image is invalid)"),
    ("refused", r"Triton Error \[(CUDA|HIP)\]: (operation not supported|no kernel image|too many resources)"),
    ("refused", r"(CUDA|HIP)( driver)? error: (operation not supported|too many resources requested for launch)"),
    ("refused", r"(CUDA|HIP) error: no kernel image is available|hipErrorNoBinaryForGpu"),
    (
        "refused",
        r"operation (not permitted|would make the legacy stream depend).*captur|StreamCapture(Unsupported|Invalid)",
    ),
    ("refused", r"(CUBLAS|CUBLASLT|HIPBLAS|HIPBLASLT)_STATUS_(NOT_SUPPORTED|INVALID_VALUE|ARCH_MISMATCH)"),
    ("refused", r"CUDNN_STATUS_(NOT_SUPPORTED|BAD_PARAM|NO_EXECUTION_PLANS)\w*|miopenStatus(NotImplemented|BadParm)"),
    # ---- lost: everything else that a runtime or a library reports
    ("lost", r"\b(CUDA|HIP|cuDNN|MIOpen|cuBLAS|NCCL)( driver)? error\b"),
    # Compiled passes call the driver through Triton, which has a spelling of its own.
    ("lost", r"\bTriton Error \[(CUDA|HIP)\]"),
    (
        "lost",
        r"(CUDNN|CUBLAS|CUSOLVER|CUSPARSE|CUFFT|HIPBLAS)_(STATUS_)?(EXECUTION_FAILED|EXEC_FAILED|INTERNAL_ERROR|MAPPING_ERROR)",
    ),
    ("lost", r"device-side assert|illegal memory access|misaligned address|unspecified launch failure"),
    ("lost", r"uncorrectable ECC error|GPU is lost|fallen off the bus|hipErrorLaunchFailure"),
)
_COMPILED = [(kind, re.compile(text, re.IGNORECASE | re.DOTALL)) for kind, text in TEXTS]


def device_error_kind(error: BaseException) -> DeviceErrorKind | None:
    """Return what the error says about the device; None if it says nothing.

    Only `MemoryError`, `RuntimeError` and its subclasses count: libraries raise those, and the texts of others may
    quote a request.
    """
    if isinstance(error, MemoryError):
        return "out_of_memory"
    if not isinstance(error, RuntimeError):
        return None
    names = {each.__name__ for each in type(error).__mro__}
    if names & _MEMORY_CLASSES:
        return "out_of_memory"
    text = str(error)
    found = next((kind for kind, pattern in _COMPILED if pattern.search(text)), None)
    return found or ("lost" if names & _DEVICE_CLASSES else None)
