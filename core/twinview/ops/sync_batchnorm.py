"""BatchNorm over the batches of all ranks, on any device; torch's own needs a GPU."""
from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from twinview.ops.means import wide as in_float


class _Normalize(torch.autograd.Function):
    """x [B, C, ...] -> (x - mean) / sqrt(var + eps) with the statistics of all ranks' cells; also mean, var (biased), count.

    A rank may bring no cell (B = 0): it takes part in what the ranks say to each other, and counts for nothing.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [d for d in range(x.ndim) if d != 1]
        wide = in_float(x)
        count = wide.new_tensor([x.numel() / x.shape[1]])
        var, mean = torch.var_mean(wide, dims, correction=0) if wide.numel() else wide.new_zeros(2, x.shape[1])
        every = [torch.empty_like(torch.cat([mean, var, count])) for _ in range(dist.get_world_size())]
        dist.all_gather(every, torch.cat([mean, var, count]))
        means, variances, counts = torch.split(torch.stack(every), [len(mean), len(var), 1], 1)
        total = counts.sum().clamp(min=1)
        share = counts / total
        mean = (share * means).sum(0)
        var = (share * (variances + (means - mean).square())).sum(0)  # within ranks and between them: no difference of large squares
        scale = (var + eps).rsqrt()
        shape = [1, -1] + [1] * (x.ndim - 2)
        normal = (wide - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normal, scale, total)
        count = counts.sum()
        ctx.mark_non_differentiable(mean, var, count)
        return normal.to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        normal, scale, total = ctx.saved_tensors
        dims, shape = [d for d in range(normal.ndim) if d != 1], [1, -1] + [1] * (normal.ndim - 2)
        g = in_float(gradients[0])
        sums = torch.stack([g.sum(dims), (g * normal).sum(dims)])
        dist.all_reduce(sums)
        along, across = (sums / total).view(2, *shape)
        return (scale.view(shape) * (g - along - normal * across)).to(gradients[0].dtype), None


class SyncBatchNorm(_BatchNorm):
    """BatchNorm1d/2d/3d whose training statistics are those of all ranks together: one gather forward, one sum backward.

    Every rank must call it equally often.  The same names in checkpoints as the layer that it stands for.
    """

    def __init__(self, *options: Any, after: nn.Module | None = None) -> None:
        """`options`: of torch's BatchNorm; `after`: what the layer does behind the norm (timm's BatchNormAct2d: its activation)."""
        super().__init__(*options)
        self.after = after or nn.Identity()

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected [B, C, ...], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape and dtype."""
        found: Tensor = self.after(self._normalized(input))
        return found

    def _normalized(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        normal, mean, var, count = cast(tuple[Tensor, Tensor, Tensor, Tensor], _Normalize.apply(input, self.eps))
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                some = (count > 0).to(self.num_batches_tracked.dtype)  # none on any rank: the statistics stay as they are
                self.num_batches_tracked += some
                step = some * (self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.clamp(min=1))
                self.running_mean.lerp_(mean, step.to(mean.dtype))
                self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), step.to(var.dtype))
        if not self.affine:
            return normal
        shape = [1, -1] + [1] * (input.ndim - 2)
        return (normal * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)


def synchronize_batchnorm(module: nn.Module) -> nn.Module:
    """The module with every BatchNorm made synchronous, weights and statistics shared: torch's on a GPU, ours elsewhere.

    A subclass that holds modules, applied behind the norm, is always ours: torch's conversion would lose them.
    """
    if isinstance(module, _BatchNorm):
        if isinstance(module, (SyncBatchNorm, nn.SyncBatchNorm)):
            return module
        first = next(iter([*module.parameters(), *module.buffers()]), None)
        if first is not None and first.is_cuda and not [*module.children()]:
            return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(module))  # type: ignore[no-untyped-call]
        return _twin(module)
    for name, child in module.named_children():
        setattr(module, name, synchronize_batchnorm(child))
    return module


def _twin(norm: _BatchNorm) -> SyncBatchNorm:
    tracks = norm.running_mean is not None
    twin = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, tracks, after=nn.Sequential(*norm.children()))
    twin._parameters.update(norm._parameters)
    twin._buffers.update(norm._buffers)
    return twin.train(norm.training)
