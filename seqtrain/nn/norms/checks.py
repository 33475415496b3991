"""Refusals that the masked forms owe because torch's kernels, which would refuse, do not run."""

from collections.abc import Sequence

from torch import Tensor


def check_floating(input: Tensor) -> None:
    """Raise as torch's norms do for features that are no real floating-point numbers.

    Raises:
        NotImplementedError: torch's choice, which is a ``RuntimeError``.
    """
    if not input.is_floating_point():
        raise NotImplementedError(
            f"masked norms are not implemented for {input.dtype}: convert the features to a "
            "floating-point dtype"
        )


def check_rank(input: Tensor, least: int) -> None:
    """Raise for an input without the dimensions that statistics are taken over.

    Raises:
        ValueError: It has fewer than ``least``.
    """
    if input.ndim < least:
        raise ValueError(f"expected an input of at least {least} dimensions, found {input.ndim}")


def check_eps(eps: float, *, positive: bool = False) -> None:
    """Raise for an ``eps`` that leaves roots of numbers below 0 or, if ``positive``, of 0.

    Raises:
        ValueError: It is too small.
    """
    if not eps >= 0 or (positive and eps == 0):  # NaN is refused too
        wanted = "positive in training" if positive else "at least 0"
        raise ValueError(f"expected eps to be {wanted}, found {eps}")


def check_dims(dims: Sequence[int]) -> None:
    """Raise for no dimensions at all, which sums would take for all of them.

    Raises:
        ValueError: ``dims`` is empty.
    """
    if not dims:
        raise ValueError("expected at least one dimension to normalize along, found none")
