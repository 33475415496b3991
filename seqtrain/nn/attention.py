"""Attention among the residues of each sequence, in the form that each layout computes fastest.

Queries, keys and values are ``(B, L, H, D)``.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqtrain.nn.crew import share
from seqtrain.nn.layout import Layout

Span = tuple[int, int, int]
"""Row, first column and length of a sequence."""


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """What the heads of each position gather within its sequence, all ``(B, L, H, D)``."""
    if layout.spans is not None:
        # One sequence after the other: no work on padding, no mask to read. Faster on a CPU.
        out: Tensor = _EachSequence.apply(q, k, v, layout.spans)  # type: ignore[no-untyped-call]
        return out
    if not layout.is_packed:
        assert layout.mask is not None, "a padded batch has a mask"
        return _attend_masked(q, k, v, layout.mask)
    form = _attend_by_flash if _has_flash(q) else _attend_in_grids
    return form(q, k, v, layout)


class _EachSequence(torch.autograd.Function):
    """The sequences on a CPU one by one, each on a thread of its own; zeros at padding."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span]) -> Tensor:
        # The operator reads heads as if their channels lay side by side.
        q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
        covered = sum(length for *_, length in spans) == q.shape[0] * q.shape[1]
        out = q.new_empty(q.shape) if covered else q.new_zeros(q.shape)
        sums: dict[Span, Tensor] = {}

        def attend_one(span: Span) -> None:
            parts = (_heads_first(t, span) for t in (q, k, v))
            found, sums[span] = _forward(*parts)
            _heads_first(out, span).copy_(found)

        _over_spans(attend_one, spans)
        ctx.save_for_backward(q, k, v, out, *(sums[span] for span in spans))
        ctx.spans, ctx.covered = spans, covered
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *found = ctx.saved_tensors
        sums = dict(zip(ctx.spans, found, strict=True))
        grads = [t.new_empty(t.shape) if ctx.covered else t.new_zeros(t.shape) for t in (q, k, v)]

        def differentiate_one(span: Span) -> None:
            given, *parts = (_heads_first(t, span) for t in (grad, q, k, v, out))
            for target, value in zip(
                grads, _backward(given, *parts, sums[span], 0.0, False), strict=True
            ):
                _heads_first(target, span).copy_(value)

        _over_spans(differentiate_one, ctx.spans)
        return *grads, None


_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _over_spans(work: Any, spans: Sequence[Span]) -> None:
    """Sequences that outweigh a thread's share by torch's threads together, the others shared out.

    The longest first, so that none is left over for the end.
    """
    ordered = sorted(spans, key=lambda span: -span[2])
    total = sum(length**2 for *_, length in ordered)
    large = sum(length**2 * torch.get_num_threads() > total for *_, length in ordered)
    for span in ordered[:large]:
        work(span)
    share(work, ordered[large:])


def _heads_first(x: Tensor, span: Span) -> Tensor:
    """The part of one sequence, ``(1, H, n, D)``."""
    row, first, length = span
    return x.detach()[row : row + 1, first : first + length].transpose(1, 2)


def _attend_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """All sequences at once; padded keys are masked out."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    # nn.MultiheadAttention's key_padding_mask means the opposite; this one is True = attend.
    keys = None if mask is None else mask[:, None, None, :]
    out: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2)
    return out


def _attend_in_grids(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """The sequences of each grid of a packed batch at once."""
    heads = q.shape[2:]
    gathered = []
    for parts in zip(*(layout.in_grids(x.flatten(2)) for x in (q, k, v)), strict=True):
        grid = parts[0][0]
        q, k, v = (grid.pad(rows).unflatten(2, heads) for _, rows in parts)
        gathered.append(grid.unpad(_attend_masked(q, k, v, grid.mask).flatten(2)))
    out: Tensor = torch.cat(gathered)[None].unflatten(2, heads)
    return out


def _has_flash(x: Tensor) -> bool:
    """True if torch's attention for sequences end to end computes this."""
    return (
        x.device.type == "cuda"
        and x.dtype in (torch.float16, torch.bfloat16)
        and x.shape[-1] % 8 == 0
        and x.shape[-1] <= 256
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
        and find_spec("torch.nn.attention.varlen") is not None
    )


def _attend_by_flash(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """FlashAttention over sequences end to end (Dao 2023, arXiv:2307.08691)."""
    from torch.nn.attention.varlen import varlen_attn

    assert layout.ends is not None, "only a packed batch has sequences side by side"
    bounds = F.pad(layout.ends, (1, 0)).int()
    q, k, v = (x.squeeze(0) for x in (q, k, v))
    # In one piece, so that a sequence's result does not depend on the longest of its batch.
    out = varlen_attn(q, k, v, bounds, bounds, layout.longest, layout.longest, num_splits=1)
    assert isinstance(out, Tensor)
    return out[None]
