"""The settings: what exists, its unit, its default, and what is refused.

The dataclasses are the schema and hold every default; ``conf/`` holds choices among them, and
:mod:`seqtrain.compose` reads it. ``None`` means *chosen from the data*: :mod:`seqtrain.defaults`
chooses, says why, and the run keeps it.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from seqtrain.data.corruption import MASK_FRACTION
from seqtrain.data.labels import TASKS, is_regression, is_residue
from seqtrain.errors import ConfigError


def one_of(value: str | None, name: str, choices: Sequence[str]) -> None:
    """Refuse a name that is not among the choices.

    Raises:
        ConfigError: says them, and the nearest one.
    """
    if value is not None and value not in choices:
        nearest = difflib.get_close_matches(str(value), choices, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigError(f"{name}: expected one of {', '.join(choices)}, found {value!r}.{hint}")


def _between(value: float | None, name: str, low: float, high: float, why: str) -> None:
    """Refuse a number outside of [low, high]; ``why`` says what the upper bound is for."""
    if value is not None and not value >= low:
        raise ConfigError(f"{name}: expected {low} or more, found {value}.")
    _at_most(value, name, high, why)


def _above_zero(value: float | None, name: str, high: float, why: str) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"{name}: expected a number above 0, found {value}.")
    _at_most(value, name, high, why)


def _at_most(value: float | None, name: str, high: float, why: str) -> None:
    if value is not None and value > high:
        raise ConfigError(f"{name}: expected {high:,} or less, found {value:,}: {why}.")


def _fraction(value: float, name: str) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{name}: expected a number in [0, 1), found {value}.")


def check_device(value: str, name: str) -> None:
    """Refuse what is no device's name; whether this machine has it is another question.

    Raises:
        ConfigError: says which names there are.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise ConfigError(f"{name}: expected auto, cpu, mps, cuda or cuda:N, found {value!r}.")


NORMS = (
    "masked_batch",
    "batch",
    "leaky_batch",
    "masked_instance",
    "masked_group",
    "masked_layer",
    "layer",
    "rms",
    "masked_batch_renorm",
    "none",
)
POOLINGS = ("mean", "max", "mean_max", "attention", "position")
BATCHINGS = ("packed", "bucketed", "random")
HEAD_DROPOUT = 0.1
MOST_POSITIONS = 10**9
MOST_CHANNELS = 65_536
MOST_EPOCHS = 10**6
_TOO_MANY = "no machine holds as many at a time"
_TOO_WIDE = "no machine holds a model of so many channels"
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
LOGGERS = ("tensorboard", "none")


@dataclass
class DataConfig:
    """Which files, which columns, which part is for what."""

    train: list[str] = field(default_factory=list)
    """FASTA files to train on, ``-`` is standard input; or stores of ``seqtrain data tokenize``. A
    path that starts with ``bundled:`` lies in the data that comes with seqtrain."""
    valid: list[str] = field(default_factory=list)
    """Files of the same kind for early stopping and choosing the best checkpoint."""
    test: list[str] = field(default_factory=list)
    """Files of the same kind, scored once, after training."""
    labels: list[str] = field(default_factory=list)
    """Label tables, or labels FASTA files; none: labels are read from the headers."""
    splits: list[str] = field(default_factory=list)
    """Tables of record id and split, as ``seqtrain data split`` writes them."""
    id_column: str | None = None
    """Column of the label table that holds record ids; none: found by name."""
    label_column: str | None = None
    """Column that holds the label or target; none: found by name."""
    split_column: str | None = None
    """Column, or key in headers, that says train, valid or test; none: found by name; ``none`` or
    an empty text: neither is read."""
    ignore_labels: list[str] = field(default_factory=list)
    """Residue labels that count neither in the loss nor in a metric."""
    decimal: str | None = None
    """``point`` or ``comma`` before the fractions of numbers; none: inferred from the labels."""
    on_error: str = "fail"
    """Policy for records whose label is missing: ``fail``, or ``skip``, counted."""
    unseen: str = "error"
    """Policy for a class that occurs outside the training part alone: ``error``, or ``miss``:
    its records count as missed."""
    max_length: int | None = None
    """Longest sequence, in residues, that is taken as it is; none: no limit."""
    overlong: str = "error"
    """What happens to longer ones: ``error``, ``truncate`` or ``skip``, counted."""
    valid_fraction: float = 0.1
    """Share of the training records set aside when no validation part is given."""
    test_fraction: float = 0.0
    """Share set aside for the test when no test part is given."""
    split_method: str = "stratified"
    """How missing parts are made: ``random``, ``stratified`` (at random where there are no labels)
    or ``similarity``."""

    def __post_init__(self) -> None:
        one_of(self.decimal, "data.decimal", ("point", "comma"))
        one_of(self.on_error, "data.on_error", ("fail", "skip"))
        one_of(self.unseen, "data.unseen", ("error", "miss"))
        one_of(self.overlong, "data.overlong", ("error", "truncate", "skip"))
        one_of(self.split_method, "data.split_method", ("random", "stratified", "similarity"))
        _between(self.max_length, "data.max_length", 1, MOST_POSITIONS, _TOO_MANY)
        if self.overlong != "error" and self.max_length is None:
            raise ConfigError(
                f"data.overlong={self.overlong}: nothing is too long without data.max_length=N. "
                "Set both or neither."
            )
        _fraction(self.valid_fraction, "data.valid_fraction")
        _fraction(self.test_fraction, "data.test_fraction")
        _fraction(
            self.valid_fraction + self.test_fraction, "data.valid_fraction + data.test_fraction"
        )


@dataclass
class TokenizerConfig:
    """How letters become tokens, and what happens to the odd ones. Every use is counted."""

    alphabet: str | None = None
    """``protein``, ``dna`` or ``rna``; none: detected."""
    ambiguous: str = "unknown"
    """IUPAC ambiguity codes and rare residues (B J O U X Z; N R Y ...): ``unknown``, ``keep``
    or ``error``."""
    gap: str = "drop"
    """``-`` and ``.``: ``drop``, ``unknown`` or ``error``."""
    stop: str = "drop"
    """``*``: ``drop``, ``unknown`` or ``error``."""
    other: str = "error"
    """Any other letter: ``error`` or ``unknown``."""

    def __post_init__(self) -> None:
        one_of(self.alphabet, "tokenizer.alphabet", ("protein", "dna", "rna"))
        one_of(self.ambiguous, "tokenizer.ambiguous", ("unknown", "keep", "error"))
        one_of(self.gap, "tokenizer.gap", ("drop", "unknown", "error"))
        one_of(self.stop, "tokenizer.stop", ("drop", "unknown", "error"))
        one_of(self.other, "tokenizer.other", ("error", "unknown"))


@dataclass
class BatchingConfig:
    """How records are put together into batches."""

    kind: str = "packed"
    """``packed`` (chance decides who meets whom, no padding), ``bucketed`` (similar lengths
    together, little padding) or ``random`` (chance, padded to the longest)."""
    max_tokens: int | None = None
    """Largest batch, in positions, padding counted; none: chosen from the lengths."""
    max_sequences: int | None = None
    """Largest batch, in records; none: no limit beside ``max_tokens``."""

    def __post_init__(self) -> None:
        one_of(self.kind, "batching.kind", BATCHINGS)
        _between(self.max_tokens, "batching.max_tokens", 1, MOST_POSITIONS, _TOO_MANY)
        _between(self.max_sequences, "batching.max_sequences", 1, MOST_POSITIONS, _TOO_MANY)


@dataclass
class NormConfig:
    """Which normalization stands in the encoder."""

    name: str = "masked_batch"
    """One of the names of norms; see docs/norms.md."""
    eps: float = 1e-5
    """Added to the variance, inside the root."""
    momentum: float = 0.1
    """Share of the newest batch in the running statistics of batch norms."""
    num_groups: int = 8
    """Groups of channels of ``masked_group``; ``embed_dim`` is a multiple."""

    def __post_init__(self) -> None:
        one_of(self.name, "norm.name", NORMS)
        _between(self.num_groups, "norm.num_groups", 1, MOST_CHANNELS, _TOO_WIDE)
        _above_zero(self.eps, "norm.eps", 1, "variances are about 1, and eps is added to them")
        if not 0 < self.momentum <= 1:
            raise ConfigError(f"norm.momentum: expected a number in (0, 1], found {self.momentum}.")

    def check_applies(self) -> None:
        """Refuse a setting that the norm would silently ignore.

        Not part of construction: a comparison sets one norm after the other in the same settings.

        Raises:
            ConfigError: a setting differs from its default and the norm does not read it.
        """
        unread = {
            "num_groups": self.name != "masked_group",
            "momentum": not self.name.endswith(("batch", "renorm")),
            "eps": self.name == "none",
        }
        for key, is_ignored in unread.items():
            if is_ignored and getattr(self, key) != getattr(NormConfig, key):
                raise ConfigError(
                    f"norm.{key}={getattr(self, key)}: the norm {self.name!r} does not use it. "
                    "Leave it out."
                )


@dataclass
class EncoderConfig:
    """What every encoder has."""

    name: str = ""
    """``cnn`` or ``transformer``; set by the choice ``encoder=...``."""
    embed_dim: int | None = None
    """Channels of the hidden states; none: chosen from the number of residues."""
    num_layers: int | None = None
    """Blocks; none: 6 of a cnn and 4 of a transformer."""
    dropout: float = 0.1
    """Share of channels dropped in each block while training."""
    pretrained: str | None = None
    """Run or bundle, of any task, whose encoder training begins with; none: random weights. What
    is left open of encoder, norm and tokenizer is then as it is there, but for dropout and
    alphabet."""

    def __post_init__(self) -> None:
        if self.pretrained == "":
            raise ConfigError("encoder.pretrained: expected a run or bundle, found nothing.")
        _between(self.embed_dim, "encoder.embed_dim", 1, MOST_CHANNELS, _TOO_WIDE)
        _between(self.num_layers, "encoder.num_layers", 1, 1000, "a deeper one does not train")
        _fraction(self.dropout, "encoder.dropout")


@dataclass
class CnnConfig(EncoderConfig):
    """A residual dilated CNN."""

    name: str = "cnn"
    kernel_size: int = 7
    """Residues that one convolution sees; odd."""
    max_dilation: int = 16
    """Dilations double from block to block, 1, 2, 4 ..., up to this and then start again at 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        far = "it would reach beyond nearly every sequence"
        _between(self.kernel_size, "encoder.kernel_size", 1, 255, far)
        _between(self.max_dilation, "encoder.max_dilation", 1, 4096, far)
        if self.kernel_size % 2 == 0:
            raise ConfigError(
                f"encoder.kernel_size: expected an odd number, found {self.kernel_size}; "
                f"an even kernel has no centre residue. Use {self.kernel_size + 1}."
            )


@dataclass
class TransformerConfig(EncoderConfig):
    """A pre-norm transformer with rotary positions."""

    name: str = "transformer"
    num_heads: int = 4
    """Attention heads; each has ``embed_dim / num_heads`` channels, an even number."""
    ffn_ratio: float = 4.0
    """Channels of the feed-forward layer over ``embed_dim``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _between(self.num_heads, "encoder.num_heads", 1, 1024, "each head needs channels")
        _above_zero(self.ffn_ratio, "encoder.ffn_ratio", 64, "4 is usual")


ENCODERS: Mapping[str, type[EncoderConfig]] = {"cnn": CnnConfig, "transformer": TransformerConfig}


@dataclass
class TaskConfig:
    """What is predicted, and how the loss counts it."""

    name: str | None = None
    """``classification``, ``multilabel``, ``regression``, ``residue_classification``,
    ``residue_regression`` or ``mlm`` (masked language modelling, without labels); none: inferred
    from the labels."""
    pooling: str | None = None
    """``mean``, ``max``, ``mean_max``, ``attention`` or ``position`` (each position has its own
    weights, for variants of one sequence); none: ``mean_max``; unused by residues."""
    positions: int | None = None
    """Residues, from the first, that ``pooling=position`` has weights for; later ones count as
    nothing; none: the longest training record."""
    head_dropout: float = HEAD_DROPOUT
    """Share of pooled channels dropped before the last layer while training."""
    label_smoothing: float = 0.0
    """Share of each target spread over the other classes; not for regressions."""
    class_weights: str = "none"
    """``none`` or ``balanced`` (inverse class frequency); classification tasks only."""
    loss: str = "mse"
    """Regression only: ``mse`` or ``huber``, on targets scaled to unit variance."""
    mask_fraction: float = MASK_FRACTION
    """Share of the letters of each training record that are hidden, others in each epoch; mlm
    only. Evaluation always hides the same 15 %, so that scores compare."""

    def __post_init__(self) -> None:
        one_of(self.name, "task.name", TASKS)
        one_of(self.pooling, "task.pooling", POOLINGS)
        _between(self.positions, "task.positions", 1, 10**6, "each position takes weights")
        one_of(self.class_weights, "task.class_weights", ("none", "balanced"))
        one_of(self.loss, "task.loss", ("mse", "huber"))
        _fraction(self.head_dropout, "task.head_dropout")
        _fraction(self.label_smoothing, "task.label_smoothing")
        if not 0 < self.mask_fraction < 1:
            raise ConfigError(
                f"task.mask_fraction: expected a number in (0, 1), found {self.mask_fraction}."
            )
        if self.positions is not None and self.pooling not in (None, "position"):
            raise ConfigError(
                f"task.positions={self.positions}: task.pooling={self.pooling} does not use it. "
                "Leave it out, or set task.pooling=position."
            )
        if self.name is not None:
            self.check_applies(self.name)

    def check_applies(self, name: str) -> None:
        """Refuse a setting that the task would silently ignore.

        Raises:
            ConfigError: a setting differs from its default and the task does not read it.
        """
        is_classes = name in ("classification", "residue_classification")
        is_numbers, by_residue = is_regression(name), is_residue(name)
        unread = {
            "label_smoothing": self.label_smoothing != 0 and is_numbers,
            "class_weights": self.class_weights != "none" and not is_classes,
            "loss": self.loss != "mse" and not is_numbers,
            "pooling": self.pooling is not None and by_residue,
            "positions": self.positions is not None and by_residue,
            "head_dropout": self.head_dropout != HEAD_DROPOUT and by_residue,
            "mask_fraction": self.mask_fraction != MASK_FRACTION and name != "mlm",
        }
        for key, is_ignored in unread.items():
            if is_ignored:
                raise ConfigError(
                    f"task.{key}={getattr(self, key)}: the task {name!r} does not use it. "
                    "Leave it out."
                )


@dataclass
class OptimConfig:
    """AdamW with a linear warm-up and a cosine to zero."""

    lr: float | None = None
    """Highest learning rate; none: chosen for the encoder."""
    weight_decay: float = 0.01
    """Decoupled decay of matrices; norms and biases are not decayed."""
    beta1: float = 0.9
    """Memory of the mean gradient."""
    beta2: float = 0.999
    """Memory of the squared gradient."""
    warmup_fraction: float = 0.05
    """Share of all steps during which the learning rate rises."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; 0: no clipping."""

    def __post_init__(self) -> None:
        steps = "each step moves every weight by about as much; 0.002 is usual"
        _above_zero(self.lr, "optim.lr", 1000, steps)
        decay = "each step takes lr times as much of every weight; 0.01 is usual"
        _between(self.weight_decay, "optim.weight_decay", 0, 100, decay)
        _between(self.clip_norm, "optim.clip_norm", 0, 1e9, "0 says that nothing is clipped")
        _fraction(self.beta1, "optim.beta1")
        _fraction(self.beta2, "optim.beta2")
        _fraction(self.warmup_fraction, "optim.warmup_fraction")


@dataclass
class TrainerConfig:
    """How long, on what, and when to stop."""

    max_epochs: int | None = None
    """Passes over the training part at most; none: chosen from its size."""
    patience: int | None = None
    """Epochs without a better monitored metric before training stops; none: a third of
    ``max_epochs``, at least 5; 0: never."""
    monitor: str | None = None
    """Metric of the validation part that picks the best checkpoint; none: mcc, macro_auroc, r2,
    macro_f1 or perplexity, by the task."""
    accumulate: int = 1
    """Batches whose gradients are summed before a step, weighted by what each one counts."""
    precision: str = "auto"
    """``float32``, ``bfloat16`` or ``float16`` for matrix work; statistics stay in float32.
    ``auto``: bfloat16 where a GPU computes it, else float32."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    compile: bool = False
    """Compile the encoder's blocks by torch.compile: takes a minute and needs a CUDA device."""
    num_threads: int = 0
    """CPU threads; 0: torch's own choice."""
    seed: int = 0
    """Seed of weights, splits, batches and dropout."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints within an epoch, so that a killed run loses no more than that."""

    def __post_init__(self) -> None:
        _between(self.max_epochs, "trainer.max_epochs", 1, MOST_EPOCHS, "it would not end")
        _between(self.patience, "trainer.patience", 0, MOST_EPOCHS, "0 says: never stop early")
        summed = "a step would sum that many batches, more than an epoch has"
        _between(self.accumulate, "trainer.accumulate", 1, 10_000, summed)
        _between(self.num_threads, "trainer.num_threads", 0, 1024, "no machine has as many CPUs")
        _between(self.seed, "trainer.seed", 0, 2**63 - 1, "it is kept in 63 bits")
        minutes, year = "trainer.checkpoint_minutes", 525_600
        _between(self.checkpoint_minutes, minutes, 0, year, "that is a year")
        one_of(self.precision, "trainer.precision", PRECISIONS)
        check_device(self.device, "trainer.device")


@dataclass
class LoggerConfig:
    """Loggers beside the run's own ``metrics.jsonl`` and the terminal."""

    name: str = "tensorboard"
    """``tensorboard``: event files in the run directory; ``none``."""

    def __post_init__(self) -> None:
        one_of(self.name, "logger", LOGGERS)


@dataclass
class RunConfig:
    """Everything that one run depends on."""

    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def check_widths(self) -> None:
        """Refuse channels that heads or groups cannot share, once their number is known.

        Raises:
            ConfigError: says what they must be a multiple of.
        """
        encoder, norm = self.encoder, self.norm
        wanted = {}
        if isinstance(encoder, TransformerConfig):
            wanted["2 * encoder.num_heads (rotary positions turn pairs)"] = 2 * encoder.num_heads
        if norm.name == "masked_group":
            wanted["norm.num_groups"] = norm.num_groups
        for what, divisor in wanted.items():
            if encoder.embed_dim is not None and encoder.embed_dim % divisor:
                raise ConfigError(
                    f"encoder.embed_dim: expected a multiple of {what} = {divisor}, found "
                    f"{encoder.embed_dim}."
                )


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain nested dictionaries and lists, ready for YAML or JSON."""
    return dataclasses.asdict(config)
