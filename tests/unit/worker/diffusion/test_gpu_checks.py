"""Whether a worker can use its GPU."""

from __future__ import annotations

import pytest
import torch

from worker.engine import UnsupportedModel
from worker.engines.gpu_checks import check_build, computes_bfloat16, is_assigned, is_same_gpu, open_gpu
from worker.engines.torch_device import limit_cpu_threads


@pytest.mark.skipif(torch.version.cuda is not None, reason="this build of torch has CUDA")
@pytest.mark.parametrize("check", [check_build, open_gpu])
def test_build_without_cuda_is_named(check: object) -> None:
    assert callable(check)
    with pytest.raises(UnsupportedModel, match=r"is built for CPUs only; for a GPU install a build of torch with CUDA"):
        check(torch.device("cuda:0"))


def test_cpu_needs_no_check() -> None:
    check_build(torch.device("cpu"))
    open_gpu(torch.device("cpu"))
    assert computes_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize(("device", "before", "after"), [("cpu", 8, 1), ("cuda:0", 8, 4), ("cuda:0", 2, 2)])
def test_workers_share_the_cores(device: str, before: int, after: int) -> None:
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(before)
        limit_cpu_threads(torch.device(device))
        assert torch.get_num_threads() == after
    finally:
        torch.set_num_threads(usual)


@pytest.mark.parametrize(
    ("devices", "visible", "expected"),
    [("3", 1, True), ("3", 8, False), ("0", 2, False), ("0,1", 2, True), ("GPU-5d3c", 1, True), ("", 8, True)],
)
def test_process_sees_only_its_gpu(devices: str, visible: int, expected: bool) -> None:
    assert is_assigned({"CUDA_VISIBLE_DEVICES": devices}, visible) == expected


@pytest.mark.parametrize(
    ("found", "assigned", "expected"),
    [
        ("5d3c-01", "GPU-5d3c-01", True),
        ("GPU-5d3c-01", "GPU-5d3c-01", True),
        ("5d3c-02", "GPU-5d3c-01", False),
        ("", "GPU-5d3c-01", True),
        ("5d3c-01", "", True),
    ],
)
def test_another_gpu_than_assigned_is_noticed(found: str, assigned: str, expected: bool) -> None:
    assert is_same_gpu(found, assigned) == expected


def test_without_the_variable_all_gpus_are_its_own() -> None:
    assert is_assigned({}, 8)
