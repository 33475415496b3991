"""Slow, obvious versions, each written without the code that it checks."""

import numpy as np
import torch
from torch import Tensor, nn


def real_rows(x: Tensor, mask: Tensor) -> Tensor:
    """The real positions of ``(B, ..., C)`` packed end to end, ``(N, C)``."""
    return torch.stack([x[tuple(at)] for at in mask.nonzero()])


def batch_norm_by_channel(
    x: Tensor, mask: Tensor, eps: float = 1e-5, min_count: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalized ``(B, L, C)``, mean and unbiased variance, one channel after the other in numpy.

    ``mask`` has the shape of ``x``. A channel with too few real positions comes out as zeros.
    """
    out = np.zeros(x.shape)
    mean, var = np.zeros(x.shape[-1]), np.zeros(x.shape[-1])
    for c in range(x.shape[-1]):
        real = mask[..., c].cpu().numpy()
        values = x[..., c].detach().cpu().double().numpy()[real]
        if len(values) >= min_count:
            mean[c] = values.mean()
            var[c] = values.var(ddof=1) if len(values) > 1 else 0
            out[..., c][real] = (values - mean[c]) / np.sqrt(values.var() + eps)
    return torch.from_numpy(out), torch.from_numpy(mean), torch.from_numpy(var)


def batch_norm_gradient(
    x: Tensor, grad: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dγ and dβ of batch norm over packed rows ``(N, C)``, in closed form."""
    invstd = 1 / (x.var(0, correction=0) + eps).sqrt()
    normal = (x - x.mean(0)) * invstd
    dx = weight * invstd * (grad - grad.mean(0) - normal * (grad * normal).mean(0))
    return dx, (grad * normal).sum(0), grad.sum(0)


def variance_with_padding_counted(x: Tensor, mask: Tensor) -> Tensor:
    """The widely copied formula that is wrong: each padded position adds the mean squared."""
    weight = mask[..., None].to(x.dtype)
    n = weight.sum()
    mean = (x * weight).sum((0, 1)) / n
    return ((x * weight - mean) ** 2).sum((0, 1)) / n


def each_sequence_alone(layer: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """``layer`` over every sequence of ``(B, L, C)`` by itself, as ``(1, C, 2 n)``.

    Twice in a row, which changes no mean and no variance: torch refuses to normalize one value.
    """
    out = torch.zeros_like(x)
    for b, real in enumerate(mask):
        if real.any():
            alone = x[b, real]
            out[b, real] = layer(torch.cat([alone, alone]).T[None])[0].T[: len(alone)]
    return out


def whitened(z: np.ndarray) -> np.ndarray:
    """Complex rows ``(N,)`` with mean 0 and the identity for covariance, by eigendecomposition."""
    pairs = np.stack([z.real, z.imag])
    pairs = pairs - pairs.mean(axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(pairs @ pairs.T / len(z))
    real, imag = vectors @ np.diag(values**-0.5) @ vectors.T @ pairs
    return real + 1j * imag
