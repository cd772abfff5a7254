"""Differentiable sums and concatenations over all processes, with any backend of torch.distributed."""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # every process's loss depends on every process's x
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of all processes' `x`, in each of them; the gradient of one's `x` is the sum of all processes' gradients."""
    return _Sum.apply(x)


def rows_of_all_processes(x: Tensor) -> Tensor:
    """All processes' `x`, `(n, d)` each, in their order as `(n · processes, d)`; gradients as in `sum_over_processes`."""
    return _Gather.apply(x)
