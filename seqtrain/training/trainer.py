"""Steps, epochs, the best checkpoint, and going on after an interruption, bit for bit."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import Any

import numpy as np
import torch

from seqtrain.data.batching import Batch, collate, plan_batches
from seqtrain.data.corruption import Corruption
from seqtrain.data.dataset import SequenceDataset
from seqtrain.errors import CheckpointError, TrainingError
from seqtrain.nn.model import SequenceModel
from seqtrain.training.checkpoint import load_checkpoint, save_checkpoint
from seqtrain.training.device import autocast
from seqtrain.training.events import EpochEvent, Observer, StepEvent
from seqtrain.training.guard import Place
from seqtrain.training.metrics import HIGHER_IS_BETTER, ConfusionCounts
from seqtrain.training.objective import Objective
from seqtrain.training.optim import build_schedule
from seqtrain.training.outputs import predict_outputs, score_outputs
from seqtrain.training.prefetch import made_ahead
from seqtrain.training.restore import (
    check_alike,
    check_optimizer,
    load_training_state,
    newest_whole,
    remove_leftovers,
)
from seqtrain.training.run_dir import RunDir

STOPPING = b"\nseqtrain: stopping when this step is done and saved; once more stops at once\n"


@dataclass(frozen=True)
class TrainerSettings:
    """How long, how much at once, and when to stop. Units as in the configuration."""

    max_epochs: int
    patience: int
    monitor: str
    batching: str
    max_tokens: int
    max_sequences: int | None
    num_classes: int
    accumulate: int = 1
    clip_norm: float = 1.0
    warmup_fraction: float = 0.05
    precision: torch.dtype = torch.float32
    checkpoint_minutes: float = 5.0
    seed: int = 0


@dataclass
class Progress:
    """Where a run stands; all that a resumed run needs beside tensors."""

    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Finished batches of the running epoch."""
    step: int = 0
    """Finished optimizer steps."""
    best: float | None = None
    """Best value of the monitored metric so far."""
    best_epoch: int = 0
    loss_sum: float = 0.0
    """Of the running epoch."""
    loss_count: float = 0.0
    residues: int = 0
    """Real residues of the running epoch."""
    positions: int = 0
    """Positions of the running epoch, padding counted."""
    seconds: float = 0.0
    """Of all training so far, validation included."""
    done: bool = False


class Trainer:
    """Trains one model on one device.

    Args:
        model: On its device.
        objective: The loss.
        optimizer: Over the model's parameters.
        settings: How long and how much at once.
        train: Labelled records.
        valid: Labelled records that choose the best checkpoint.
        run: Where checkpoints go.
        observers: Those who are told.
        corruption: Hides residues of the training records, others in each epoch; None: training
            reads them as they are.
    """

    def __init__(
        self,
        model: SequenceModel,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        settings: TrainerSettings,
        train: SequenceDataset,
        valid: SequenceDataset,
        run: RunDir,
        observers: Sequence[Observer] = (),
        corruption: Corruption | None = None,
    ):
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.settings, self.train, self.valid = settings, train, valid
        self.run, self.observers, self.corruption = run, observers, corruption
        self.device = next(model.parameters()).device
        self.progress = Progress()
        self.steps_per_epoch = -(-len(self._plan(0)) // settings.accumulate)
        # Plans differ by a batch or two from epoch to epoch; the schedule stays at zero beyond.
        self.num_steps = self.steps_per_epoch * settings.max_epochs
        self.schedule = build_schedule(optimizer, self.num_steps, settings.warmup_fraction)
        is_half = settings.precision == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=is_half)
        self._stop = False
        self._place: Place | None = None
        self._since_save = time.monotonic()

    def fit(self) -> Progress:
        """Train until the last epoch or until patience ends; returns where the run stands.

        Raises:
            TrainingError: a loss was not finite; nothing was updated with it.
            KeyboardInterrupt: the run was interrupted; its last checkpoint is written.
        """
        self._place = Place(self.run.path)
        with self._graceful_interrupt():
            while not self.progress.done:
                self._fit_epoch()
                self._end_epoch()
                self._interrupt_if_asked()
        return self.progress

    def resume(self) -> None:
        """Put everything back to where the newest whole checkpoint left it.

        Raises:
            CheckpointError: there is none, or it is damaged or of another model.
        """
        folder = newest_whole(self.run)
        state = load_checkpoint(folder, self.model)
        tensors = load_training_state(folder)
        try:
            self.progress = Progress(**state["progress"])
            check_optimizer(self.optimizer, tensors["optimizer"])
            self.optimizer.load_state_dict(tensors["optimizer"])
            check_alike(self.schedule.state_dict(), tensors["schedule"], "schedule")
            self.schedule.load_state_dict(tensors["schedule"])
            self._follow_schedule()
            self.scaler.load_state_dict(tensors["scaler"])
            torch.set_rng_state(tensors["rng"])
            if "cuda_rng" in tensors and self.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["cuda_rng"], self.device)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: the checkpoint is damaged: {error!r}.") from error
        remove_leftovers(self.run)
        self.progress.done = self._is_over()

    def _follow_schedule(self) -> None:
        """Give the optimizer the rate of this step, which a longer training has another of."""
        rates = []
        for group, base, factor in zip(
            self.optimizer.param_groups,
            self.schedule.base_lrs,
            self.schedule.lr_lambdas,
            strict=True,
        ):
            group["lr"] = base * factor(self.schedule.last_epoch)
            rates.append(group["lr"])
        self.schedule._last_lr = rates

    def _is_over(self) -> bool:
        """True if the last epoch is done, or patience has run out at the end of one."""
        progress, settings = self.progress, self.settings
        waited = progress.epoch - progress.best_epoch
        out_of_patience = 0 < settings.patience <= waited
        return progress.epoch >= settings.max_epochs or out_of_patience

    def _plan(self, epoch: int) -> list[np.ndarray]:
        settings = self.settings
        return plan_batches(
            self.train.lengths,
            settings.batching,
            max_tokens=settings.max_tokens,
            max_sequences=settings.max_sequences,
            seed=settings.seed,
            epoch=epoch,
        )

    def _fit_epoch(self) -> None:
        self.model.train()
        plan, accumulate = self._plan(self.progress.epoch), self.settings.accumulate
        groups = (
            plan[i : i + accumulate] for i in range(self.progress.batch, len(plan), accumulate)
        )
        for group in made_ahead(self._collate, groups, self.device):
            self.step(group)
            self.progress.batch += len(group)
            if self.progress.batch < len(plan):  # the end of the epoch saves in any case
                self._save_if_due()

    def _collate(self, group: Sequence[np.ndarray]) -> list[Batch]:
        return [self._batch(index) for index in group]

    def _batch(self, index: np.ndarray) -> Batch:
        packed = self.settings.batching == "packed"
        if self.corruption is None:
            return collate(self.train, index, packed=packed)
        hidden = self.corruption(self.train.subset(index), self.progress.epoch)
        batch = collate(hidden, np.arange(len(index)), packed=packed)
        return replace(batch, index=torch.from_numpy(index)[batch.index])

    def _save_if_due(self) -> None:
        waited = time.monotonic() - self._since_save
        if self._stop or waited > 60 * self.settings.checkpoint_minutes:
            self.save()
        self._interrupt_if_asked()

    def _interrupt_if_asked(self) -> None:
        """Called where the last checkpoint is that of this very step."""
        if self._stop:
            raise KeyboardInterrupt

    def step(self, batches: Sequence[Batch]) -> None:
        """One optimizer step; the gradient is that of the mean over all that the batches count.

        The host reads from the device once, when everything before the update is under way.
        """
        began = time.monotonic()
        self.optimizer.zero_grad(set_to_none=True)
        losses, counts = self._backward(batches)
        norm = self._average_gradient(torch.stack(counts).sum())
        *sums, grad_norm = torch.stack([*losses, *counts, norm]).tolist()
        loss_sum, loss_count = sum(sums[: len(batches)]), sum(sums[len(batches) :])
        self._check_finite("loss", loss_sum, batches)
        if not self.scaler.is_enabled():  # which leaves out such a step by itself
            self._check_finite("norm of the gradient", grad_norm, batches)
        self._update(norm)
        self._count(batches, loss_sum, loss_count, time.monotonic() - began)
        self._tell_step(batches, loss_sum / max(loss_count, 1e-12), grad_norm, began)

    def _backward(self, batches: Sequence[Batch]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Add up gradients; the sum of losses of each batch, and what it counts."""
        losses, counts = [], []
        for batch in batches:
            on_device = batch.to(self.device, non_blocking=True)
            with autocast(self.device, self.settings.precision):
                logits = self.model(on_device.tokens, on_device.lengths, on_device.packed)
            total, count = self.objective(self.model, on_device, logits)
            self.scaler.scale(total).backward()
            losses.append(total.detach())
            counts.append(count)
        return losses, counts

    def _average_gradient(self, loss_count: torch.Tensor) -> torch.Tensor:
        """Divide the summed gradient by the count; returns its norm."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.scaler.unscale_(self.optimizer)
        torch._foreach_div_(gradients, loss_count.clamp(min=1e-12))
        return torch.nn.utils.get_total_norm(gradients)

    def _update(self, grad_norm: torch.Tensor) -> None:
        """Clip and step."""
        if self.settings.clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(
                self.model.parameters(), self.settings.clip_norm, grad_norm
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()

    def _count(
        self, batches: Sequence[Batch], loss_sum: float, loss_count: float, seconds: float
    ) -> None:
        progress = self.progress
        progress.step += 1
        progress.loss_sum += loss_sum
        progress.loss_count += loss_count
        progress.residues += sum(batch.num_residues for batch in batches)
        progress.positions += sum(batch.mask.numel() for batch in batches)
        progress.seconds += seconds

    def _rate(self) -> float:
        """The highest learning rate of the run."""
        return float(max(self.schedule.base_lrs))

    def _check_finite(self, what: str, value: float, batches: Sequence[Batch]) -> None:
        if np.isfinite(value):
            return
        ids = [self.train.ids[i] for batch in batches for i in batch.index.tolist()]
        shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        raise TrainingError(
            f"step {self.progress.step + 1}: the {what} is {value}, so no step was taken. "
            f"The records of this step: {shown}. Set optim.lr lower than {self._rate():g}, for "
            "instance to a tenth; or look at these records."
        )

    def _tell_step(
        self, batches: Sequence[Batch], loss: float, grad_norm: float, began: float
    ) -> None:
        progress = self.progress
        event = StepEvent(
            step=progress.step,
            num_steps=self.num_steps,
            epoch=progress.epoch + 1,
            loss=loss,
            lr=float(self.schedule.get_last_lr()[0]),
            grad_norm=grad_norm,
            residues_per_second=sum(b.num_residues for b in batches)
            / max(time.monotonic() - began, 1e-9),
            padding_share=1 - progress.residues / max(progress.positions, 1),
        )
        for observer in self.observers:
            observer.on_step(event)

    def _end_epoch(self) -> None:
        began = time.monotonic()
        progress, settings = self.progress, self.settings
        metrics, confusion = self._validate()
        value = metrics[settings.monitor]
        is_best = _is_better(value, progress.best, settings.monitor)
        progress.epoch += 1
        progress.batch = 0
        if is_best:
            progress.best, progress.best_epoch = value, progress.epoch
        progress.done = self._is_over()
        progress.seconds += time.monotonic() - began
        event = EpochEvent(
            epoch=progress.epoch,
            num_epochs=settings.max_epochs,
            step=progress.step,
            train_loss=progress.loss_sum / max(progress.loss_count, 1e-12),
            valid=metrics,
            monitor=settings.monitor,
            is_best=is_best,
            best=value if progress.best is None else progress.best,
            residues_per_second=progress.residues * progress.epoch / max(progress.seconds, 1e-9),
            padding_share=1 - progress.residues / max(progress.positions, 1),
            seconds=progress.seconds,
            model=self.model,
            confusion=confusion,
        )
        for observer in self.observers:
            observer.on_epoch(event)
        progress.loss_sum = progress.loss_count = 0.0
        progress.residues = progress.positions = 0
        if is_best:
            self._save("best", {"progress": asdict(progress), "valid": metrics})
        self.save()

    def _validate(self) -> tuple[dict[str, float], np.ndarray | None]:
        """Metrics of the validation part, and its confusion counts where there are classes."""
        task, settings = self.objective.task, self.settings
        outputs = predict_outputs(
            self.model,
            self.valid,
            self.objective.plain(),
            max_tokens=settings.max_tokens,
            precision=settings.precision,
            packed=settings.batching == "packed",
        )
        metrics = score_outputs(outputs, self.valid, task, settings.num_classes)
        if task not in ("classification", "residue_classification"):
            return metrics, None
        assert self.valid.targets is not None
        counts = ConfusionCounts(settings.num_classes)
        counts.update(outputs.values.argmax(axis=1), self.valid.targets)
        return metrics, counts.matrix

    def save(self) -> None:
        """Write the last checkpoint: where the run stands now."""
        self._save("last", {"progress": asdict(self.progress)})
        self._since_save = time.monotonic()

    def _save(self, name: str, state: dict[str, Any]) -> None:
        """Write a checkpoint from which training can continue."""
        if self._place is not None:
            self._place.check()
        tensors: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            tensors["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        # Another number of threads takes sums in another order: a resumed run says so.
        state = {**state, "threads": torch.get_num_threads()}
        save_checkpoint(self.run.checkpoint(name), self.model, state, tensors)

    @contextmanager
    def _graceful_interrupt(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM ends the run after this step; the next one at once."""

        before: dict[signal.Signals, Any] = {}

        def give_back() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def ask_to_stop(signum: int, frame: FrameType | None) -> None:
            if self._stop:
                give_back()  # a third one is for whoever handled signals before
                handler = before.get(signal.Signals(signum))
                (handler if callable(handler) else signal.default_int_handler)(signum, frame)
            self._stop = True
            # Not print: the signal may have come in the middle of one.
            os.write(2, STOPPING)

        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, ask_to_stop)
        except ValueError:  # not in the main thread: whoever started the thread handles signals
            yield
            return
        try:
            yield
        finally:
            give_back()


def _is_better(value: float, best: float | None, monitor: str) -> bool:
    """True if ``value`` beats ``best``.

    The first value does, and NaN never beats a number. While the metric is not defined, every
    epoch is the best so far, so that the newest weights are kept and patience does not run out.
    """
    if best is None or np.isnan(best):
        return True
    return value > best if HIGHER_IS_BETTER[monitor] else value < best
