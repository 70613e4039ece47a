"""What the errors of CUDA, ROCm and their libraries mean."""

from __future__ import annotations

import pytest
import torch

from worker.device_errors import DeviceErrorKind, device_error_kind

_HINT = "\nCUDA kernel errors might be asynchronously reported at some other API call"

#: The errors as torch 2.13 and its libraries raise them.
ERRORS: list[tuple[Exception, DeviceErrorKind | None]] = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ..."), "out_of_memory"),
    (torch.OutOfMemoryError("HIP out of memory. Tried to allocate 20.00 MiB."), "out_of_memory"),
    (torch.OutOfMemoryError("XPU out of memory."), "out_of_memory"),
    (MemoryError(), "out_of_memory"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't ..."), "out_of_memory"),
    (torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"), "out_of_memory"),
    (torch.AcceleratorError("HIP error: out of memory\nSearch for `hipErrorOutOfMemory'"), "out_of_memory"),
    (RuntimeError("CUDA driver error: out of memory"), "out_of_memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out_of_memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), "out_of_memory"),
    (RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"), "out_of_memory"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out_of_memory"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "out_of_memory"),
    (RuntimeError("GET was unable to find an engine to execute this computation"), "out_of_memory"),
    (RuntimeError("cuSOLVER error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`"), "out_of_memory"),
    (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), "out_of_memory"),
    (RuntimeError("CUDA error: insufficient resources when calling `cusparseCreate`: out of memory"), "out_of_memory"),
    (RuntimeError("miopenStatusAllocFailed"), "out_of_memory"),
    (RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1154'), "out_of_memory"),
    (torch.AcceleratorError("CUDA error: invalid configuration argument" + _HINT), "refused"),
    (RuntimeError("CUDA error: invalid configuration argument" + _HINT), "refused"),
    (torch.AcceleratorError("HIP error: invalid configuration argument"), "refused"),
    (torch.AcceleratorError("CUDA error: invalid argument"), "refused"),
    (RuntimeError("CUDA error: too many resources requested for launch"), "refused"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul`"), "refused"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasGemmEx`"), "refused"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if ..."), "refused"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"), "refused"),
    (torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing"), "refused"),
    (torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"), "refused"),
    (torch.AcceleratorError("CUDA error: an illegal memory access was encountered" + _HINT), "lost"),
    (torch.AcceleratorError("CUDA error: device-side assert triggered"), "lost"),
    (torch.AcceleratorError("CUDA error: unspecified launch failure"), "lost"),
    (torch.AcceleratorError("CUDA error: misaligned address"), "lost"),
    (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), "lost"),
    (torch.AcceleratorError("HIP error: the operation cannot be performed in the present state"), "lost"),
    (torch.AcceleratorError("an error of a kind that nobody knows"), "lost"),
    (RuntimeError("CUDA error: an error of a kind that nobody knows"), "lost"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "lost"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), "lost"),
    (RuntimeError("cuFFT error: CUFFT_EXEC_FAILED"), "lost"),
    (RuntimeError("CUDA driver error: unknown error"), "lost"),
    (RuntimeError("CUDA driver error: initialization error"), "lost"),
    (RuntimeError("CUDA driver error: invalid argument"), "refused"),
    (RuntimeError("Triton Error [CUDA]: out of memory"), "out_of_memory"),
    (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), "lost"),
    (RuntimeError("Triton Error [CUDA]: unknown error"), "lost"),
    (RuntimeError("Triton Error [CUDA]: context is destroyed"), "lost"),
    (RuntimeError("Triton Error [HIP]: the operation timed out"), "lost"),
    (RuntimeError("Triton Error [CUDA]: invalid argument"), "refused"),
    (RuntimeError("Triton Error [CUDA]: device kernel image is invalid"), "refused"),
    (RuntimeError("Triton Error [CUDA]: operation not supported"), "refused"),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"), None),
    (ValueError("the prompt 'CUDA error: out of memory' is too long"), None),
    (KeyError("CUDA error"), None),
]


@pytest.mark.parametrize(("error", "kind"), ERRORS, ids=lambda value: str(value)[:50])
def test_error_says_what_became_of_the_device(error: Exception, kind: DeviceErrorKind | None) -> None:
    assert device_error_kind(error) == kind
