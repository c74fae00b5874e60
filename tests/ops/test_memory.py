"""The memory of what the compiled operators return."""

import platform
import subprocess
import sys

import pytest
import torch

import uniformer_kernels as uk


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is glibc's")
def test_memory_given_back_serves_the_next_tensor_of_its_size() -> None:
    """Also if something small, that stays, has settled beside it: else a heap grows for ever.

    In a process of its own, whose heap has no gaps that others left.
    """
    code = """if True:
        import torch, uniformer_kernels as uk
        x, weight = torch.ones(1, 1, 1, 256, 96), torch.ones(96, 1, 1, 1, 1)
        addresses, small = set(), []
        for _ in range(100):
            y = uk.depthwise_conv3d(x, weight)  # 96 KiB: too small to be mapped for itself
            small.append(torch.empty(1))
            addresses.add(y.data_ptr())
            del y
        print(len(addresses))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10


@pytest.mark.parametrize("tokens", [0, 1, 3, 256])
def test_memory_is_aligned_and_contiguous(tokens: int) -> None:
    y = uk.depthwise_conv3d(torch.ones(1, 1, 1, tokens, 96), torch.ones(96, 1, 1, 1, 1))
    assert y.data_ptr() % 64 == 0
    assert y.stride() == torch.empty(y.shape).stride()
    assert torch.equal(y, torch.ones(y.shape))
