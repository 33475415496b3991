"""Reproduce what goes wrong in other ways to normalize padded batches, beside what is right.

    python scripts/norm_faults.py

Each line is a fault with its figure and the figure of seqtrain.nn.norms on the same data. The
faulty formulas are written out here, as short as they get; none is anybody's code.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqtrain.nn.norms import (
    MaskedBatchNorm1d,
    MaskedBatchRenorm1d,
    MaskedComplexBatchNorm1d,
    fold_masked_conv_bn,
    masked_batch_norm,
    masked_moments,
    masked_norm,
)
from seqtrain.nn.norms.masks import place_mask


def report(fault: str, wrong: object, right: object) -> None:
    def shown(value: object) -> str:
        if isinstance(value, Tensor):
            value = value.item()
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    print(f"{fault:<74}  {shown(wrong):>12}  {shown(right):>12}")


def padded(mean: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """``(B, L, C)`` of unit variance, zeros at 43 % padding, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(100) < 57).expand(32, 100)
    x = torch.randn(32, 100, 1, generator=generator) + mean
    return x * mask[..., None], mask


def variance_counts_padding() -> None:
    for mean in (1.0, 5.0):
        x, mask = padded(mean)
        weight = mask[..., None]
        true = x[mask].var(correction=0)
        mu = (x * weight).sum() / weight.sum()
        wrong = ((x * weight - mu) ** 2).sum() / weight.sum()
        right = masked_moments(x, weight, (0, 1)).variance()
        report(
            f"sum((x*mask - mean)^2)/n over the true variance, mean {mean}",
            wrong / true,
            right / true,
        )


def cancellation() -> None:
    torch.manual_seed(0)
    x = torch.randn(5000) + 1e4
    true = x.double().var(correction=0)
    right = masked_moments(x, None, [0]).variance()
    report(
        "E[x^2] - E[x]^2 in float32 at mean 1e4, over the true variance",
        (x.square().mean() - x.mean() ** 2) / true,
        right / true,
    )


def rows_in_float32() -> None:
    torch.manual_seed(0)
    x = torch.randn(8000, 4) + 1e5
    true = x.double().var(0)
    plain = nn.BatchNorm1d(4, momentum=1.0)
    plain(x)
    ours = MaskedBatchNorm1d(4, momentum=1.0)
    ours(x, torch.ones(8000, dtype=torch.bool))
    errors = [((norm.running_var / true) - 1).abs().max() for norm in (plain, ours)]
    report("relative error of the variance, torch over (N, C) on the CPU, mean 1e5", *errors)


def multiplication_lets_nan_through() -> None:
    x, mask = padded(1.0)
    x = x.masked_fill(~mask[..., None], torch.nan)
    leaked = torch.isnan(x * mask[..., None]).sum()
    out = MaskedBatchNorm1d(1, channel_dim=-1)(x, mask)
    report("NaN left by x * mask, and by selection", leaked, out.isnan().sum())


def trailing_alignment() -> None:
    x, mask = (
        torch.zeros(3, 3, 3),
        torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]], dtype=torch.bool),
    )
    right = place_mask(mask, x, 1).expand(3, 3, 3)
    report(
        "positions misread by broadcasting (B, L) to (B, C, L), B = L = C = 3",
        (mask.expand(3, 3, 3) != right).sum(),
        0,
    )


def padding_not_zeroed_again() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv1d(4, 8, 5, padding=2), nn.Conv1d(8, 4, 5, padding=2)
    norm = MaskedBatchNorm1d(8)
    nn.init.normal_(norm.bias)
    mask = torch.arange(60) < torch.tensor([[60], [20]])
    x = torch.randn(2, 4, 60) * mask[:, None]
    norm(first(x), mask)
    norm.eval()
    alone = second(norm(first(x[1:, :, :20])))
    leaky = second(norm(first(x)))[1:, :, :20]
    ours = second(norm(first(x), mask))[1:, :, :20]
    report(
        "conv, norm, conv: batched against alone, zeros not restored",
        *((y - alone).abs().max() for y in (leaky, ours)),
    )
    norm.weight.data.normal_()
    folded = fold_masked_conv_bn(first.eval(), norm)
    target = norm(first(x), mask)
    report(
        "norm folded into the convolution, without and with the mask after it",
        *((y - target).abs().max() for y in (folded(x), folded(x, mask))),
    )


def narrow_counts_and_buffers() -> None:
    mask = torch.ones(70_000, 1, dtype=torch.bool)
    report(
        "70,000 positions counted in float16",
        mask.half().sum(),
        masked_moments(torch.ones(70_000, 1).half(), mask, [0]).n,
    )
    buffer = torch.ones((), dtype=torch.bfloat16)
    for _ in range(1000):
        buffer = buffer + 0.002 * (2.0 - buffer)
    norm = MaskedBatchNorm1d(1, momentum=0.002, channel_dim=-1).bfloat16()
    norm.running_mean.fill_(1.0)
    x, real = torch.full((1, 2, 1), 2.0).bfloat16(), torch.ones(1, 2, dtype=torch.bool)
    for _ in range(1000):
        norm(x, real)
    report(
        "running mean on its way from 1 to 2, 1,000 steps of 0.002, bfloat16",
        buffer.float(),
        norm.running_mean,
    )


def rows_blown_up() -> None:
    x = torch.full((1, 1000), 0.1)
    x[0, ::3] = torch.nextafter(x[0, 0], torch.ones(()))
    report(
        "largest value of a row of 0.1 and its neighbour, normalized",
        ((x - x.mean()) / x.std()).abs().max(),
        masked_norm(x, None, -1).abs().max(),
    )


def unweighted_ranks() -> None:
    torch.manual_seed(0)
    ranks = [torch.randn(n) * 1.2 + shift for n, shift in ((900, 0.0), (40, 2.0), (300, -1.0))]
    pooled = torch.cat(ranks)
    mean = torch.stack([r.mean() for r in ranks]).mean()
    wrong = torch.stack([r.square().mean() for r in ranks]).mean() - mean**2
    report(
        "variance over ranks: plain mean of moments, and pooled", wrong, pooled.var(correction=0)
    )


def batches_counted_alike() -> None:
    torch.manual_seed(0)
    norms = [
        MaskedBatchNorm1d(1, momentum=0.02, channel_dim=-1, stat_weighting=w)
        for w in ("batches", "tokens")
    ]
    total, count = 0.0, 0
    for step in range(600):
        length = 100 if step % 2 == 0 else 10
        x = torch.randn(1, length, 1) + (0.0 if length == 100 else 0.5)
        total, count = total + x.sum().item(), count + length
        for norm in norms:
            norm(x, torch.ones(1, length, dtype=torch.bool))
    report(
        "error of the running mean where short batches differ from long ones",
        *((norm.running_mean - total / count).abs() for norm in norms),
    )


def complex_mistakes() -> None:
    torch.manual_seed(0)
    z = torch.randn(20_000, 1, dtype=torch.complex64)
    norm = MaskedComplexBatchNorm1d(1)
    power = norm(z).abs().square().mean()
    norm.weight.data[:, :2] = 2**0.5
    report(
        "mean |y|^2 of complex whitening, gamma starting at sqrt(2)",
        norm(z).abs().square().mean(),
        power,
    )
    eval_once = MaskedComplexBatchNorm1d(1, eps=0.1).eval()
    eval_twice = MaskedComplexBatchNorm1d(1, eps=0.2).eval()
    expected = z / (0.5 + 0.1) ** 0.5 * 0.5**0.5
    report(
        "eps = 0.1 counted twice in evaluation: largest difference",
        *((norm(z) - expected).abs().max() for norm in (eval_twice, eval_once)),
    )


def leak() -> None:
    norm = MaskedBatchNorm1d(1, channel_dim=-1)
    rebound, depth = torch.zeros(1), 0
    for _ in range(100):
        x = torch.randn(2, 3, 1, requires_grad=True)
        rebound = 0.9 * rebound + 0.1 * x.mean((0, 1))
        norm(x, torch.ones(2, 3, dtype=torch.bool))
    node = rebound.grad_fn
    while node is not None:
        depth += 1
        node = node.next_functions[0][0]
    report(
        "length of the graph behind a running mean after 100 steps",
        depth,
        0 if norm.running_mean.grad_fn is None else 1,
    )


def third_derivative() -> None:
    torch.manual_seed(0)
    data, direction, weights = torch.randn(3, 6, 1, dtype=torch.float64)
    mask = torch.ones(6, dtype=torch.bool)

    def second(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        x = x.detach().requires_grad_() if x.is_leaf else x
        (first,) = torch.autograd.grad(norm(x).pow(3).sum(), x, create_graph=True)
        (again,) = torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)
        return (again * weights).sum()

    errors = []
    for norm in (
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: masked_batch_norm(x, mask, training=True),
    ):
        at = data.clone().requires_grad_() * 1
        (third,) = torch.autograd.grad(second(norm, at), at)
        up, down = (second(norm, data + sign * 1e-5 * direction) for sign in (1, -1))
        difference, analytic = (up - down) / 2e-5, (third * direction).sum()
        errors.append((analytic / difference - 1).abs())
    report("relative error of a third derivative, torch's batch norm", *errors)


def recomputed_factors() -> None:
    torch.manual_seed(0)

    def plain(weight: Tensor, buffer: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            factor = buffer * 2
            buffer.copy_(0.5 * buffer + x.mean())
        return (weight * factor * x).sum()

    x, errors = torch.randn(3), []
    weight = torch.ones(3, requires_grad=True)
    torch.compile(plain, backend="aot_eager")(weight, torch.ones(3), x).backward()
    errors.append((weight.grad - 2 * x).abs().max())
    grads = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, backend="aot_eager")):
        norm = MaskedBatchRenorm1d(3, warmup_batches=0)
        torch.manual_seed(1)
        wrap(norm)(torch.randn(8, 3) * 2 + 1, torch.ones(8, dtype=torch.bool)).pow(
            3
        ).sum().backward()
        grads.append(norm.weight.grad)
    errors.append((grads[0] - grads[1]).abs().max())
    report("gradient error where torch.compile reads a buffer after its update", *errors)


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'fault':<74}  {'wrong':>12}  {'seqtrain':>12}")
    for fault in (
        variance_counts_padding,
        cancellation,
        rows_in_float32,
        multiplication_lets_nan_through,
        trailing_alignment,
        padding_not_zeroed_again,
        narrow_counts_and_buffers,
        rows_blown_up,
        unweighted_ranks,
        batches_counted_alike,
        complex_mistakes,
        leak,
        third_derivative,
        recomputed_factors,
    ):
        fault()


if __name__ == "__main__":
    main()
