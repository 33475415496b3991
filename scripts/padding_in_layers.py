"""Hold what a plain batch norm sees inside a network against the closed form, and draw it.

    python scripts/padding_in_layers.py [OUT.png]

Real positions have mean μ and variance v in a channel, padding holds the constant c (zero before a
transformer's first norm, the convolution's bias in a CNN), and a batch has r = N/n positions for
each real one. Then the norm takes for mean and variance

    c + (μ - c)/r    and    (v + (μ - c)²(1 - 1/r))/r,

and real positions leave it with a mean and a spread that depend on the batch's padding. Each panel
holds one data set of scripts/make_controlled.py: lines are the closed form, points are batches.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from make_controlled import Knobs, write_controlled
from torch import Tensor, nn

from seqtrain.build import build_model
from seqtrain.compose import load_config
from seqtrain.data.batching import collate, plan_batches
from seqtrain.nn.blocks import ConvBlock
from seqtrain.nn.plain_norms import PlainBatchNorm
from seqtrain.pipeline import Plan, plan_run

BATCH_SIZE = 4
NUM_BATCHES = 60
SHARES = (0.1, 0.5, 0.9)
"""Of one residue in the background: the more, the larger is μ²/v."""


@dataclass(frozen=True)
class Seen:
    """One norm in one batch; every tensor is ``(C,)``, in float64."""

    layer: str
    r: float
    constant: Tensor
    """What padding holds."""
    mean: Tensor
    var: Tensor
    """Of real positions, before the norm."""
    all_mean: Tensor
    all_var: Tensor
    """Of all positions: what the norm takes them for."""
    out_mean: Tensor
    out_std: Tensor
    """Of real positions, after the norm."""

    def theory(self) -> tuple[Tensor, Tensor]:
        """Mean and variance that the norm takes, by the closed form."""
        return closed_form(self.mean, self.var, self.r, self.constant)


def closed_form(
    mean: Tensor, var: Tensor, r: float | Tensor, constant: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean and variance over all positions when all but one in r of them hold a constant."""
    apart = mean - constant
    return constant + apart / r, (var + apart**2 * (1 - 1 / r)) / r


def plan_of(folder: Path, knobs: Knobs, overrides: list[str]) -> Plan:
    """A controlled data set under the settings of the study, with plain batch norms."""
    write_controlled(folder, knobs)
    parts = ("train", "valid", "test")
    values = {f"data.{part}": [str(folder / f"{part}.fasta")] for part in parts}
    values["data.labels"] = [str(folder / "labels.tsv")]
    fixed = ["norm=batch", "encoder.dropout=0", *overrides]
    return plan_run(load_config("study", fixed, values=values))


def watch(plan: Plan, batch_size: int = BATCH_SIZE, seed: int = 0) -> Iterator[Seen]:
    """Every batch norm of a freshly built network, in the first random batches."""
    torch.manual_seed(seed)
    model = build_model(plan.config, plan.data.tokenizer, plan.data.codec).train()
    train = plan.data.train
    batches = plan_batches(
        train.lengths, "random", max_tokens=10**9, max_sequences=batch_size, seed=seed
    )
    constants = {
        f"{name}.norm": block.conv.bias
        for name, block in model.encoder.named_modules()
        if isinstance(block, ConvBlock)
    }
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            kept[name] = inputs[0].detach().double(), output.detach().double()

        norms[name].register_forward_hook(hook)

    norms = {n: m for n, m in model.encoder.named_modules() if isinstance(m, PlainBatchNorm)}
    for name in norms:
        keep(name)
    for index in batches[:NUM_BATCHES]:
        batch = collate(train, index)
        model(batch.tokens, batch.lengths)
        for name, (x, y) in kept.items():
            real, out = x[batch.mask], y[batch.mask]
            every = x.flatten(0, 1)
            constant = constants.get(name)
            yield Seen(
                name,
                batch.mask.numel() / batch.num_residues,
                (x.new_zeros(x.shape[-1]) if constant is None else constant.detach()).double(),
                real.mean(0),
                real.var(0, correction=0),
                every.mean(0),
                every.var(0, correction=0),
                out.mean(0),
                out.std(0, correction=0),
            )


def deviation(seen: list[Seen]) -> float:
    """Largest distance of the means in standard deviations, or of the variances in themselves."""
    worst = 0.0
    for s in seen:
        mean, var = s.theory()
        worst = max(worst, float(((s.all_mean - mean) / s.all_var.sqrt()).abs().max()))
        worst = max(worst, float((s.all_var / var - 1).abs().max()))
    return worst


def main(path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, share in zip(axes, SHARES, strict=True):
        knobs = Knobs(length_spread=1.0, common_share=share)
        with tempfile.TemporaryDirectory() as folder:
            plan = plan_of(Path(folder), knobs, ["encoder=transformer"])
        seen = list(watch(plan))
        first = [s for s in seen if s.layer == "blocks.0.attention_norm"]
        print(f"share {share}: transformer, first norm, worst deviation {deviation(first):.1e}")
        pooled = torch.stack([s.mean for s in first]).mean(0)
        spread = torch.stack([s.var for s in first]).mean(0)
        ratio = (pooled**2 / spread).numpy()
        channel = int(np.argsort(ratio)[len(ratio) * 3 // 4])
        r = torch.linspace(1, 1 / (1 - 0.8), 100, dtype=torch.float64)
        mean, var = closed_form(pooled[channel], spread[channel], r)
        sign = float(pooled[channel].sign())
        lines = ((pooled[channel] - mean) / var.sqrt() * sign, (spread[channel] / var).sqrt())
        points = (
            [float(s.out_mean[channel]) * sign for s in first],
            [float(s.out_std[channel]) for s in first],
        )
        names = ("mean", "standard deviation")
        for line, dots, name, color in zip(lines, points, names, ("C0", "C1"), strict=True):
            axis.plot(100 * (1 - 1 / r), line, color=color, label=name)
            axis.plot([100 * (1 - 1 / s.r) for s in first], dots, ".", color=color, ms=4)
        axis.axhline(0, color="gray", lw=0.6, ls=":")
        axis.axhline(1, color="gray", lw=0.6, ls=":")
        axis.set(xlabel="padding of the batch, %", title=f"μ²/v = {ratio[channel]:.1f}")
    axes[0].set_ylabel("real positions after the norm")
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/study/layers.png"))
