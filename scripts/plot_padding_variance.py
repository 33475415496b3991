"""Draw what padding does to the variance that a batch norm takes, measured against theory.

    python scripts/plot_padding_variance.py [OUT.png]

Points are measured on random sequences, lines are the closed forms. Left the widely copied masked
variance, which adds μ² for every padded position; right a plain norm over zero-filled padding.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from seqtrain.nn.norms import masked_moments

MEANS = torch.linspace(0, 6, 13)
SHARES = (0.1, 0.25, 0.43, 0.6, 0.8)
COLORS = plt.get_cmap("viridis")([0.0, 0.22, 0.45, 0.68, 0.88])
SEQUENCES, LENGTH = 64, 200


def copied_formula(x: Tensor, mask: Tensor) -> Tensor:
    """Padding is multiplied away before the mean is subtracted, not after."""
    n = mask.sum()
    mean = (x * mask).sum() / n
    return ((x * mask - mean) ** 2).sum() / n


def plain_norm(x: Tensor, mask: Tensor) -> Tensor:
    """The variance over all positions, with zeros at padding."""
    return (x * mask).var(correction=0)


def copied_theory(mean: Tensor, r: float) -> Tensor:
    """1 + (N - n)/n · μ² at unit variance, r = N/n."""
    return 1 + (r - 1) * mean**2


def plain_theory(mean: Tensor, r: float) -> Tensor:
    """(1 + μ²(1 - 1/r))/r at unit variance."""
    return (1 + mean**2 * (1 - 1 / r)) / r


def main(path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(SEQUENCES, LENGTH, generator=generator)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    panels = (
        (axes[0], copied_formula, copied_theory, "Masked variance as it is widely copied"),
        (axes[1], plain_norm, plain_theory, "Plain norm over zero-filled padding"),
    )
    worst = 0.0
    for axis, measure, theory, title in panels:
        for share, color in zip(SHARES, COLORS, strict=True):
            real = round(LENGTH * (1 - share))
            mask = (torch.arange(LENGTH) < real).expand(SEQUENCES, LENGTH)
            deviations, ratios = [], []
            for mean in MEANS:
                x = noise + mean
                moments = masked_moments(x, mask, (0, 1))
                ratios.append((measure(x, mask) / moments.variance()).item())
                deviations.append((moments.mean / moments.variance().sqrt()).item())
            expected = theory(torch.tensor(deviations), LENGTH / real)
            worst = max(worst, (torch.tensor(ratios) / expected - 1).abs().max().item())
            fine = torch.linspace(0, 6, 200)
            axis.plot(fine, theory(fine, LENGTH / real), color=color, linewidth=1.2)
            axis.plot(
                deviations, ratios, "o", color=color, markersize=4, label=f"{share:.0%} padding"
            )
        axis.axhline(1, color="0.6", linewidth=1, linestyle="--", zorder=0)
        axis.set(title=title, xlabel="mean of the real positions, in standard deviations")
        axis.set_yscale("log")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("variance taken / true variance")
    axes[0].legend(loc="upper left", frameon=False, fontsize=9)
    axes[1].annotate("true variance", (4.6, 1.06), color="0.45", fontsize=9)
    figure.savefig(path, dpi=130)
    print(f"{path}: points differ from the closed forms by at most {worst:.1e}")


if __name__ == "__main__":
    default = Path(__file__).parents[1] / "docs" / "norms-padding-variance.png"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
