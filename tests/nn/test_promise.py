"""The promise: a sequence's result does not depend on what it was batched with."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import draw_tokens, tiny_model
from torch import Tensor, nn

from seqtrain.config import ENCODERS, NORMS, POOLINGS
from seqtrain.data.labels import IGNORE, is_residue
from seqtrain.data.tokenizer import PAD
from seqtrain.masking import lengths_to_mask
from seqtrain.nn.blocks import ConvBlock, SelfAttention, TransformerBlock
from seqtrain.nn.layout import packed_layout, padded_layout
from seqtrain.nn.model import SequenceModel
from seqtrain.training.losses import sequence_loss

SAFE_NORMS = [norm for norm in NORMS if norm != "leaky_batch"]
MASKED_NORMS = [norm for norm in NORMS if norm.startswith("masked")]
HEADS = [
    *((pooling, "classification") for pooling in POOLINGS),
    ("-", "residue_classification"),
    ("-", "residue_regression"),
    ("-", "mlm"),
]
CASES = [(encoder, norm) for encoder in ENCODERS for norm in NORMS if norm in SAFE_NORMS]
MASKED_CASES = [(encoder, norm) for encoder, norm in CASES if norm in MASKED_NORMS]

batches = st.lists(st.integers(1, 60), min_size=1, max_size=6)
heads = st.sampled_from(HEADS)
seeds = st.integers(0, 2**16)
paddings = st.integers(0, 40)


def real_rows(logits: Tensor, lengths: Tensor, task: str, packed: bool = False) -> list[Tensor]:
    """Logits of each sequence, without those of padding."""
    if not is_residue(task):
        return list(logits)
    if packed:
        return list(logits[0].split(lengths.tolist()))
    return [row[:length] for row, length in zip(logits, lengths.tolist(), strict=True)]


def logits_alone(model: SequenceModel, tokens: Tensor, lengths: Tensor) -> list[Tensor]:
    """Logits of each sequence in a batch of its own, without any padding."""
    return [
        model(row[None, :length], length[None])[0]
        for row, length in zip(tokens, lengths, strict=True)
    ]


def packed_tokens(tokens: Tensor, lengths: Tensor) -> Tensor:
    """All residues end to end in one row."""
    return tokens[lengths_to_mask(lengths, tokens.shape[1])][None]


def largest_shift(found: list[Tensor], wanted: list[Tensor]) -> float:
    """How far any logit lies from that of the same sequence in another batch; NaN is far.

    In units of the largest logit where that is above 1.
    """
    shift = torch.cat([(a - b).flatten() for a, b in zip(found, wanted, strict=True)]).abs()
    scale = max(1.0, float(torch.cat([b.flatten() for b in wanted]).abs().max()))
    return float(shift.nan_to_num(torch.inf).max()) / scale


@contextmanager
def poisoned_padding(model: SequenceModel, lengths: Tensor) -> Iterator[None]:
    """NaN at padding: in the embedding, and in whatever a norm or a pooling is about to read."""
    with torch.no_grad():
        model.encoder.embedding.weight[PAD] = torch.nan

    def poison(module: nn.Module, inputs: tuple, output: Tensor | None = None) -> object:
        target = inputs[0] if output is None else output
        mask = lengths_to_mask(lengths, target.shape[1])
        spoilt = target.masked_fill(~mask[..., None], torch.nan)
        return (spoilt, *inputs[1:]) if output is None else spoilt

    hooks = []
    for module in model.modules():
        if isinstance(module, ConvBlock):
            hooks.append(module.conv.register_forward_hook(poison))
        if isinstance(module, SelfAttention | TransformerBlock):
            hooks.append(module.register_forward_hook(poison))
    if model.pooling is not None:
        hooks.append(model.pooling.register_forward_pre_hook(poison))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_alone_padded_and_packed(
    model: SequenceModel, task: str, lengths: list[int], seed: int, extra: int
) -> None:
    tokens, counts = draw_tokens(lengths, seed, max(lengths) + extra)
    with torch.no_grad():
        alone = logits_alone(model, tokens, counts)
        padded = real_rows(model(tokens, counts), counts, task)
        packed = real_rows(model(packed_tokens(tokens, counts), counts, True), counts, task, True)
        assert largest_shift(padded, alone) < 1e-5
        assert largest_shift(packed, alone) < 1e-5
        model.encoder.embedding.weight[PAD] = torch.nan
        poisoned = real_rows(model(tokens, counts), counts, task)
        assert largest_shift(poisoned, alone) < 1e-5


@pytest.mark.parametrize(("encoder", "norm"), CASES)
@given(head=heads, lengths=batches, seed=seeds, extra=paddings)
@settings(max_examples=12)
def test_logits_alone_equal_those_in_any_batch_with_every_norm(
    encoder: str, norm: str, head: tuple[str, str], lengths: list[int], seed: int, extra: int
) -> None:
    model = tiny_model(encoder, norm, *head, seed)
    check_alone_padded_and_packed(model, head[1], lengths, seed, extra)


@pytest.mark.parametrize(("pooling", "task"), HEADS)
@pytest.mark.parametrize("encoder", ENCODERS)
@given(lengths=batches, seed=seeds, extra=paddings)
@settings(max_examples=6)
def test_logits_alone_equal_those_in_any_batch_with_every_head(
    encoder: str, pooling: str, task: str, lengths: list[int], seed: int, extra: int
) -> None:
    model = tiny_model(encoder, "masked_batch", pooling, task, seed)
    check_alone_padded_and_packed(model, task, lengths, seed, extra)


@pytest.mark.parametrize(("encoder", "norm"), MASKED_CASES)
@given(head=heads, lengths=batches, seed=seeds, extra=paddings)
@settings(max_examples=8)
def test_nan_in_hidden_states_at_padding_reaches_no_logit(
    encoder: str, norm: str, head: tuple[str, str], lengths: list[int], seed: int, extra: int
) -> None:
    model = tiny_model(encoder, norm, *head, seed)
    tokens, counts = draw_tokens(lengths, seed, max(lengths) + extra)
    with torch.no_grad():
        alone = logits_alone(model, tokens, counts)
        with poisoned_padding(model, counts):
            found = real_rows(model(tokens, counts), counts, head[1])
    assert largest_shift(found, alone) < 1e-5


def test_leaky_batch_breaks_the_promise() -> None:
    """The control: were the models above too tame to show padding, this one would pass too.

    A convolution reads what the norm left behind the end; attention masks it.
    """
    model = tiny_model("cnn", "leaky_batch")
    tokens, lengths = draw_tokens([5, 30, 60], seed=1)
    with torch.no_grad():
        found, alone = list(model(tokens, lengths)), logits_alone(model, tokens, lengths)
    assert largest_shift(found, alone) > 1e-2


@given(norm=st.sampled_from(SAFE_NORMS), lengths=batches, seed=seeds, extra=paddings)
@settings(max_examples=20)
def test_attention_of_each_sequence_equals_masked_attention(
    norm: str, lengths: list[int], seed: int, extra: int
) -> None:
    encoder = tiny_model("transformer", norm, seed=seed).encoder
    tokens, counts = draw_tokens(lengths, seed, max(lengths) + extra)
    layout = padded_layout(counts, tokens.shape[1])
    assert layout.spans is not None
    with torch.no_grad():
        each, masked = encoder(tokens, layout), encoder(tokens, layout._replace(spans=None))
    torch.testing.assert_close(each, masked, atol=1e-5, rtol=0)


@given(norm=st.sampled_from(SAFE_NORMS), lengths=batches, seed=seeds)
@settings(max_examples=20)
def test_packed_attention_of_each_sequence_equals_that_in_grids(
    norm: str, lengths: list[int], seed: int
) -> None:
    """Grids are what a GPU computes; here they are run on the CPU."""
    encoder = tiny_model("transformer", norm, seed=seed).encoder
    tokens, counts = draw_tokens(sorted(lengths, reverse=True), seed)
    layout = packed_layout(counts, tokens.device)
    assert layout.spans is not None
    tokens = packed_tokens(tokens, counts)
    with torch.no_grad():
        each, grids = encoder(tokens, layout), encoder(tokens, layout._replace(spans=None))
    torch.testing.assert_close(each, grids, atol=1e-5, rtol=0)


@pytest.mark.parametrize("encoder", ENCODERS)
@given(norm=st.sampled_from(SAFE_NORMS), head=heads, lengths=batches, seed=seeds, data=st.data())
@settings(max_examples=12)
def test_permuting_the_batch_permutes_the_logits(
    encoder: str,
    norm: str,
    head: tuple[str, str],
    lengths: list[int],
    seed: int,
    data: st.DataObject,
) -> None:
    model = tiny_model(encoder, norm, *head, seed)
    tokens, counts = draw_tokens(lengths, seed)
    order = data.draw(st.permutations(range(len(lengths))))
    with torch.no_grad():
        wanted = real_rows(model(tokens, counts), counts, head[1])
        found = real_rows(model(tokens[order], counts[order]), counts[order], head[1])
    assert largest_shift(found, [wanted[i] for i in order]) < 1e-5


def draw_targets(task: str, lengths: list[int], seed: int, width: int) -> Tensor:
    """Random targets; those of residues do not depend on the width and leave some out."""
    generator = torch.Generator().manual_seed(seed + 1)
    if task == "regression":
        return torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    if task == "multilabel":
        return torch.randint(0, 2, (len(lengths), 3), generator=generator).double()
    if task == "classification":
        return torch.randint(0, 3, (len(lengths),), generator=generator)
    targets = torch.full((len(lengths), width), IGNORE)
    for row, length in zip(targets, lengths, strict=True):
        drawn = torch.randint(-1, 3, (length,), generator=generator)
        row[:length] = torch.where(drawn < 0, IGNORE, drawn)
    if task == "residue_regression":
        return torch.where(targets == IGNORE, torch.nan, targets.double())
    return targets


def training_step(
    model: SequenceModel,
    task: str,
    lengths: list[int],
    seed: int,
    pad_to: int = 0,
    *,
    poison: bool = False,
    packed: bool = False,
) -> dict[str, Tensor]:
    """Loss, all gradients and all buffers after one step in float64, dropout on."""
    model = model.double().train()
    tokens, counts = draw_tokens(lengths, seed, pad_to)
    targets = draw_targets(task, lengths, seed, tokens.shape[1])
    if packed and is_residue(task):
        targets = packed_tokens(targets, counts)
    torch.manual_seed(seed)
    if packed:
        logits = model(packed_tokens(tokens, counts), counts, True)
    else:
        with poisoned_padding(model, counts) if poison else nullcontext():
            logits = model(tokens, counts)
    total, count = sequence_loss(task, logits, targets)
    loss = total / count.clamp(min=1)
    loss.backward()
    found = {"loss": loss.detach()}
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return found | {name: b.double().clone() for name, b in model.named_buffers()}


def assert_same_step(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


ALL_TASKS = [*HEADS, ("mean_max", "multilabel"), ("attention", "regression")]


@pytest.mark.parametrize(("encoder", "norm"), MASKED_CASES)
@given(
    head=st.sampled_from(ALL_TASKS),
    lengths=batches,
    seed=seeds,
    extra=st.integers(1, 80),
    poison=st.booleans(),
)
@settings(max_examples=8)
def test_masked_norms_train_alike_however_much_padding_there_is(
    encoder: str,
    norm: str,
    head: tuple[str, str],
    lengths: list[int],
    seed: int,
    extra: int,
    poison: bool,
) -> None:
    """Same statistics, loss and gradients with little padding, with much, and with none."""

    def step(pad_to: int, **form: bool) -> dict[str, Tensor]:
        model = tiny_model(encoder, norm, *head, seed)
        return training_step(model, head[1], lengths, seed, pad_to, **form)

    wanted = step(0)
    assert_same_step(step(max(lengths) + extra, poison=poison), wanted, 1e-9)
    assert_same_step(step(0, packed=True), wanted, 1e-9)


@pytest.mark.parametrize("norm", ["batch", "leaky_batch"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_plain_batch_norm_does_not_train_alike_under_padding(encoder: str, norm: str) -> None:
    """The control: dropping the mask moves statistics, loss and gradients."""

    def step(pad_to: int) -> dict[str, Tensor]:
        model = tiny_model(encoder, norm)
        return training_step(model, "classification", [9, 30, 14], 0, pad_to)

    wanted, found = step(0), step(60)
    assert abs(float(found["loss"] - wanted["loss"])) > 1e-4
    statistics = [name for name in wanted if name.endswith("running_mean")]
    assert statistics
    assert all((found[n] - wanted[n]).abs().max() > 1e-4 for n in statistics)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_padding_has_no_gradient(encoder: str) -> None:
    model = tiny_model(encoder)
    found = training_step(model, "classification", [3, 17], 0, 40, poison=True)
    assert not found["gradient of encoder.embedding.weight"][PAD].any()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_training_step_reaches_every_weight_and_statistic(encoder: str) -> None:
    """Equal steps would prove nothing if they were all zero."""
    model = tiny_model(encoder, "masked_batch")
    before = {name: buffer.double().clone() for name, buffer in model.named_buffers()}
    found = training_step(model, "classification", [9, 30, 14], 0)
    for name, value in found.items():
        if name in before and "running" in name:
            assert not torch.equal(value, before[name]), name
        elif name.startswith("gradient") and not name.endswith("conv.bias"):
            # (The norm takes the bias of the convolution away again.)
            assert value.abs().max() > 1e-8, name


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_paddings_token_embeds_as_never_matters(encoder: str) -> None:
    """It begins as zeros, but weights may come from elsewhere."""
    model = tiny_model(encoder)
    with torch.no_grad():
        model.encoder.embedding.weight.normal_()
        tokens, lengths = draw_tokens([30, 9, 4], seed=1)
        packed = model(packed_tokens(tokens, lengths), lengths, True)
        torch.testing.assert_close(packed, model(tokens, lengths), atol=1e-5, rtol=1e-5)
        for row, own in zip(packed, logits_alone(model, tokens, lengths), strict=True):
            torch.testing.assert_close(row, own, atol=1e-5, rtol=1e-5)
