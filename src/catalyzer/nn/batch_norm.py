"""Batch norm with optional statistics over the batches of all processes; torch's own works on GPUs only."""

import torch
from torch import Tensor, nn

from catalyzer.nn.collectives import sum_over_processes


class BatchNorm(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, with mean and variance over the batches of all processes if `synchronized` is set.

    Then several processes train like one with their batches joined. Otherwise each normalizes its own batch, without
    communication. The batches of all processes must have the same size.

    Shape:
        `(n, d)` to the same.

    >>> BatchNorm(3).train()(torch.eye(3)).sum(0).abs().max() < 1e-5
    tensor(True)
    """

    synchronized = False

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.synchronized and torch.distributed.is_initialized()):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float()
            # Means of means, since all batches are of one size; the second pass avoids the cancellation of E[x²] - E[x]².
            world = torch.distributed.get_world_size()
            mean = sum_over_processes(wide.mean(0)) / world
            variance = sum_over_processes((wide - mean).square().mean(0)) / world
            with torch.no_grad():
                n = world * len(x)
                self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
                self.running_var.lerp_(variance * n / (n - 1), self.momentum)  # type: ignore[union-attr, arg-type]
                self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            scale = self.weight * torch.rsqrt(variance + self.eps)
            return ((wide - mean) * scale + self.bias).to(x.dtype)
