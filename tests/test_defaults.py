"""What is chosen from the data when the user says nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqtrain.compose import load_config
from seqtrain.config import RunConfig, TransformerConfig, config_to_dict
from seqtrain.defaults import choose_settings
from seqtrain.errors import ConfigError
from seqtrain.pipeline import flatten

TASKS = ["classification", "multilabel", "regression", "residue_classification", "mlm"]
lengths_drawn = st.lists(st.integers(1, 50_000), min_size=1, max_size=50)


def own_data(*overrides: str) -> RunConfig:
    return load_config("config", ["data=files", *overrides])


def chosen(lengths: list[int], task: str = "classification", *overrides: str) -> RunConfig:
    config, _ = choose_settings(own_data(*overrides), np.array(lengths), task, "protein")
    return config


@pytest.mark.parametrize("encoder", ["cnn", "transformer"])
@given(lengths=lengths_drawn, task=st.sampled_from(TASKS))
def test_nothing_that_training_needs_is_left_open(
    encoder: str, lengths: list[int], task: str
) -> None:
    config = chosen(lengths, task, f"encoder={encoder}")
    trainer, batching = config.trainer, config.batching
    needed = [
        config.tokenizer.alphabet,
        config.task.name,
        config.encoder.embed_dim,
        config.encoder.num_layers,
        batching.max_tokens,
        config.optim.lr,
        trainer.max_epochs,
        trainer.patience,
        trainer.monitor,
    ]
    if not task.startswith("residue") and task != "mlm":
        needed.append(config.task.pooling)
    assert None not in needed
    assert trainer.max_epochs is not None
    assert trainer.patience is not None
    assert trainer.patience >= 5
    assert 8 <= trainer.max_epochs <= 40
    assert batching.max_tokens is not None
    assert 1024 <= batching.max_tokens <= 16384


@given(lengths=lengths_drawn)
def test_every_choice_is_told_with_its_reason_and_nothing_else_changes(lengths: list[int]) -> None:
    before = own_data()
    config, choices = choose_settings(before, np.array(lengths), "classification", "rna")
    old, new = flatten(config_to_dict(before)), flatten(config_to_dict(config))
    changed = {key: value for key, value in new.items() if old[key] != value}
    assert changed == {choice.key: choice.value for choice in choices}
    assert all(old[choice.key] is None and choice.reason for choice in choices)
    assert before == own_data()


def test_what_the_user_said_stays() -> None:
    overrides = [
        "encoder.embed_dim=24",
        "encoder.num_layers=2",
        "batching.max_tokens=7",
        "optim.lr=0.5",
        "trainer.max_epochs=3",
        "trainer.patience=0",
        "trainer.monitor=loss",
        "task.pooling=max",
        "tokenizer.alphabet=dna",
    ]
    _, choices = choose_settings(
        own_data(*overrides), np.array([5, 9]), "classification", "protein"
    )
    assert [choice.key for choice in choices] == ["task.name"]


def test_more_data_asks_for_a_wider_model() -> None:
    sizes = [chosen([residues]).encoder.embed_dim for residues in (50_000, 500_000, 5_000_000)]
    assert sizes == [64, 96, 128]


def test_batches_hold_about_32_records_and_an_epoch_about_40_batches() -> None:
    assert chosen([104] * 10_000).batching.max_tokens == 3328  # 32 * 104, a multiple of 256
    assert chosen([1000] * 100).batching.max_tokens == 2560  # 100,000 / 40


def test_little_data_gets_many_epochs_and_much_data_few() -> None:
    assert chosen([100] * 100).trainer.max_epochs == 40
    assert chosen([100] * 200_000).trainer.max_epochs == 8


def test_a_transformer_learns_more_slowly() -> None:
    cnn, transformer = chosen([9]), chosen([9], "classification", "encoder=transformer")
    assert isinstance(transformer.encoder, TransformerConfig)
    assert cnn.optim.lr is not None
    assert transformer.optim.lr is not None
    assert transformer.optim.lr < cnn.optim.lr


@pytest.mark.parametrize(
    ("task", "monitor"),
    [
        ("classification", "mcc"),
        ("multilabel", "macro_auroc"),
        ("regression", "r2"),
        ("residue_classification", "macro_f1"),
    ],
)
def test_the_metric_that_is_watched_is_that_of_the_task(task: str, monitor: str) -> None:
    assert chosen([9], task).trainer.monitor == monitor


@pytest.mark.parametrize(
    ("override", "task"),
    [
        ("task.label_smoothing=0.1", "regression"),
        ("task.class_weights=balanced", "multilabel"),
        ("task.loss=huber", "classification"),
        ("task.pooling=max", "residue_classification"),
        ("task.head_dropout=0.5", "residue_classification"),
    ],
)
def test_a_setting_that_the_task_found_does_not_read_is_refused(override: str, task: str) -> None:
    with pytest.raises(ConfigError, match="does not use it"):
        chosen([9], task, override)


@pytest.mark.parametrize(
    "overrides",
    [
        ("encoder=transformer", "encoder.num_heads=5"),
        ("norm=masked_group", "norm.num_groups=7"),
    ],
)
def test_a_chosen_width_that_heads_or_groups_cannot_share_is_refused(
    overrides: tuple[str, ...],
) -> None:
    with pytest.raises(ConfigError, match=r"embed_dim: expected a multiple of .* found 64"):
        chosen([9], "classification", *overrides)


def test_a_readout_of_positions_gets_as_many_as_the_longest_record_has() -> None:
    config = chosen([90, 91, 88], "regression", "task.pooling=position")
    assert config.task.positions == 91
    assert chosen([90], "regression").task.positions is None


def test_positions_without_their_readout_are_refused() -> None:
    with pytest.raises(ConfigError, match="positions"):
        own_data("task.pooling=mean", "task.positions=9")
