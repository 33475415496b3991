"""Packed, bucketed and random batches of the same records: the same numbers, by the real path."""

import numpy as np
import pytest
import torch
from tiny_models import CODECS, tiny_model
from tiny_training import tiny_dataset

from seqtrain.config import ENCODERS
from seqtrain.data.batching import collate, plan_batches
from seqtrain.data.dataset import SequenceDataset
from seqtrain.training.device import autocast
from seqtrain.training.objective import Objective
from seqtrain.training.outputs import Outputs, predict_outputs, score_outputs

TASKS = sorted(CODECS)
CPU = torch.device("cpu")
FORMS = ("packed", "bucketed", "random")


def order_of(form: str, dataset: SequenceDataset) -> np.ndarray:
    """All records as one batch, in the order that such a plan gives."""
    (index,) = plan_batches(dataset.lengths, form, max_tokens=10**6, seed=3)
    return index


def training_step(
    form: str,
    encoder: str,
    norm: str,
    task: str,
    dtype: torch.dtype = torch.float64,
    device: torch.device = CPU,
    precision: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Loss, gradients and buffers of one batch; dropout, which draws by row, is off."""
    model, dataset = tiny_model(encoder, norm, task=task).to(device, dtype), tiny_dataset(task)
    model.train()
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    batch = collate(dataset, order_of(form, dataset), packed=form == "packed").to(device)
    objective = Objective(task)
    with autocast(device, precision):
        total, count = objective(model, batch, model(batch.tokens, batch.lengths, batch.packed))
    loss = total / count
    loss.backward()
    found = {"loss": loss.detach()}
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return found | {name: buffer.double() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("norm", ["masked_batch", "masked_batch_renorm", "masked_layer"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_same_records_train_alike_in_every_form(encoder: str, norm: str, task: str) -> None:
    wanted = training_step("random", encoder, norm, task)
    assert any(value.abs().max() > 1e-3 for name, value in wanted.items() if "gradient" in name)
    for form in ("packed", "bucketed"):
        found = training_step(form, encoder, norm, task)
        for name, value in wanted.items():
            # The loss is computed in float32 from the logits on.
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
        for name in (n for n in wanted if "running" in n):
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_in_single_precision_too(encoder: str) -> None:
    """In which users train, and the kernels of the CPU run."""
    wanted = training_step("random", encoder, "masked_batch", "classification", torch.float32)
    for form in ("packed", "bucketed"):
        found = training_step(form, encoder, "masked_batch", "classification", torch.float32)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_gpu_trains_as_the_cpu_does(encoder: str, form: str, precision: torch.dtype) -> None:
    model = (encoder, "masked_batch", "classification", torch.float32)
    wanted = training_step(form, *model)
    found = training_step(form, *model, torch.device("cuda"), precision)
    tolerance = 1e-3 if precision == torch.float32 else 0.1
    for name, value in wanted.items():
        atol = tolerance * max(1e-2, float(value.abs().max()))
        torch.testing.assert_close(found[name].cpu(), value, rtol=tolerance, atol=atol, msg=name)


def test_plain_batch_norm_trains_otherwise_where_it_counts_padding() -> None:
    """The control: the comparison above is not blind."""
    forms = [training_step(form, "cnn", "batch", "classification") for form in ("packed", "random")]
    name = "encoder.blocks.0.norm.running_mean"
    assert (forms[0][name] - forms[1][name]).abs().max() > 1e-4


def outputs_in_random_batches(task: str, encoder: str, dataset: SequenceDataset) -> Outputs:
    """As ``predict_outputs``, for a plan that it does not offer."""
    model, objective = tiny_model(encoder, task=task), Objective(task)
    is_residue = dataset.per_residue
    size = len(dataset.tokens) if is_residue else len(dataset)
    values, losses = None, np.zeros(2)
    for index in plan_batches(dataset.lengths, "random", max_tokens=90, seed=1):
        batch = collate(dataset, index)
        with torch.no_grad():
            logits = model(batch.tokens, batch.lengths)
            losses += [float(part) for part in objective(model, batch, logits)]
            rows = model.head.readout(logits)
        rows = rows[batch.mask] if is_residue else rows
        values = np.empty((size, *rows.shape[1:]), np.float32) if values is None else values
        values[dataset.positions(index) if is_residue else index] = rows.numpy()
    assert values is not None
    return Outputs(values, losses[0] / losses[1])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_evaluation_numbers_are_the_same_in_every_form(encoder: str, task: str) -> None:
    dataset = tiny_dataset(task, 40)
    number = CODECS[task].num_outputs
    wanted = score_outputs(outputs_in_random_batches(task, encoder, dataset), dataset, task, number)
    for packed, max_tokens in ((True, 90), (True, 10**6), (False, 90)):
        model, objective = tiny_model(encoder, task=task), Objective(task)
        outputs = predict_outputs(model, dataset, objective, max_tokens=max_tokens, packed=packed)
        assert score_outputs(outputs, dataset, task, number) == pytest.approx(
            wanted, rel=1e-6, abs=1e-5
        )
