"""From settings to objects: every choice is built as it says."""

from typing import Any

import pytest
import torch
from tiny_models import CODECS, TOKENIZER, draw_tokens, encoder_config, tiny_config

from seqtrain.build import (
    build_encoder,
    build_model,
    build_norm,
    build_optimizer,
    build_pooling,
)
from seqtrain.compose import load_config
from seqtrain.config import ENCODERS, NORMS, POOLINGS, EncoderConfig, NormConfig, OptimConfig
from seqtrain.data.labels import LabelCodec, is_residue
from seqtrain.nn.heads import ClassHead, MultilabelHead, RegressionHead
from seqtrain.nn.norms import MaskedGroupNorm, MaskedLayerNorm

HEADS = {
    "classification": ClassHead,
    "multilabel": MultilabelHead,
    "regression": RegressionHead,
    "residue_classification": ClassHead,
    "mlm": ClassHead,
    "residue_regression": RegressionHead,
}


@pytest.mark.parametrize("name", NORMS)
def test_every_norm_is_built_with_its_settings(name: str) -> None:
    """And is called as ``norm(x, mask)`` on ``(B, L, C)``."""
    norm = build_norm(NormConfig(name, eps=0.25, momentum=0.5, num_groups=3))(6)
    x, mask = torch.randn(2, 5, 6), torch.ones(2, 5, dtype=torch.bool)
    assert norm(x, mask).shape == x.shape
    if name != "none":
        assert norm.eps == 0.25
    if "batch" in name:
        assert norm.momentum == 0.5
    if name == "masked_group":
        assert isinstance(norm, MaskedGroupNorm)
        assert norm.num_groups == 3


@pytest.mark.parametrize("name", NORMS)
def test_every_norm_learns_scale_and_shift_of_each_channel(name: str) -> None:
    norm = build_norm(NormConfig(name, num_groups=3))(6)
    shapes = {key: tuple(p.shape) for key, p in norm.named_parameters()}
    wanted: dict[str, Any] = {"weight": (6,), "bias": (6,)}
    if name == "none":
        wanted = {}
    if name == "rms":
        wanted = {"weight": (6,)}
    assert shapes == wanted


def test_the_two_layer_norms_differ_in_what_they_are_over() -> None:
    kinds = {}
    for name in ("layer", "masked_layer"):
        norm = build_norm(NormConfig(name))(6)
        assert isinstance(norm, MaskedLayerNorm)
        kinds[name] = norm.over
    assert kinds == {"layer": "position", "masked_layer": "sequence"}


def test_norms_begin_alike_so_that_arms_of_a_comparison_share_their_weights() -> None:
    """They draw no random numbers: what is drawn after them is the same whatever the norm."""
    found = {}
    for name in NORMS:
        torch.manual_seed(0)
        model = build_model(tiny_config("cnn", name), TOKENIZER, CODECS["classification"])
        shared = {k: v for k, v in model.named_parameters() if ".norm." not in k}
        found[name] = shared
    wanted = found.pop("masked_batch")
    for name, shared in found.items():
        assert shared.keys() == wanted.keys()
        assert all(torch.equal(shared[k], wanted[k]) for k in wanted), name


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("task", sorted(CODECS))
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_combination_is_built_and_answers(encoder: str, task: str, pooling: str) -> None:
    by_residue = is_residue(task)
    config = tiny_config(encoder, pooling=None if by_residue else pooling)
    model = build_model(config, TOKENIZER, CODECS[task]).eval()
    assert type(model.head) is HEADS[task]
    assert (model.pooling is None) is by_residue
    tokens, lengths = draw_tokens([4, 9])
    assert model(tokens, lengths).isfinite().all()


@pytest.mark.parametrize("name", ["config", "ncrna", "peptide", "solubility", "bioactivity"])
def test_every_experiment_builds(name: str) -> None:
    config = load_config(name)
    config.encoder.embed_dim, config.task.pooling = 16, "mean_max"
    config.encoder.num_layers = config.encoder.num_layers or 2
    task = config.task.name or "classification"
    model = build_model(config, TOKENIZER, CODECS[task]).eval()
    tokens, lengths = draw_tokens([4, 9])
    assert model(tokens, lengths).isfinite().all()


def test_the_residue_experiment_builds() -> None:
    config = load_config("topology")
    config.encoder.embed_dim, config.encoder.num_layers = 16, 2
    model = build_model(config, TOKENIZER, CODECS["residue_classification"]).eval()
    tokens, lengths = draw_tokens([4, 9])
    assert model(tokens, lengths).shape == (2, 9, 3)


def test_a_seed_gives_the_same_weights() -> None:
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(build_model(tiny_config(), TOKENIZER, CODECS["classification"]).state_dict())
    name = "encoder.embedding.weight"
    assert torch.equal(models[0][name], models[1][name])
    assert not torch.equal(models[0][name], models[2][name])


def test_the_scale_of_a_regression_comes_from_the_codec() -> None:
    codec = LabelCodec("regression", mean=40.0, std=2.5)
    model = build_model(tiny_config(), TOKENIZER, codec)
    assert isinstance(model.head, RegressionHead)
    assert (model.head.target_mean.item(), model.head.target_std.item()) == (40.0, 2.5)


def test_the_feed_forward_layer_is_as_wide_as_asked() -> None:
    config = load_config("config", ["encoder=transformer", "encoder.ffn_ratio=2.5"]).encoder
    config.embed_dim, config.num_layers = 16, 1
    encoder = build_encoder(config, NormConfig(), 20)
    assert encoder.blocks[0].ffn[0].out_features == 40


def test_dropouts_are_those_of_the_settings() -> None:
    config = tiny_config()
    config.encoder.dropout, config.task.head_dropout = 0.3, 0.7
    model = build_model(config, TOKENIZER, CODECS["classification"])
    assert {b.dropout.p for b in model.encoder.blocks} == {0.3}
    assert model.head.dropout.p == 0.7


def unknown_norm() -> NormConfig:
    config = NormConfig()
    config.name = "median"
    return config


@pytest.mark.parametrize(
    "build",
    [
        lambda: build_norm(unknown_norm()),
        lambda: build_pooling("median", 4),
        lambda: build_encoder(EncoderConfig(embed_dim=4, num_layers=1), NormConfig(), 9),
        lambda: build_model(tiny_config(), TOKENIZER, LabelCodec("dance", ("a", "b"))),
    ],
    ids=["norm", "pooling", "encoder", "task"],
)
def test_what_is_not_known_is_a_broken_promise(build: Any) -> None:
    with pytest.raises(ValueError, match="no "):
        build()


def test_the_optimizer_takes_its_settings() -> None:
    model = build_model(tiny_config(), TOKENIZER, CODECS["classification"])
    optimizer = build_optimizer(OptimConfig(lr=0.5, weight_decay=0.25), model)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.25]


def test_an_encoder_config_of_each_name_is_known() -> None:
    assert {encoder_config(name).name for name in ENCODERS} == set(ENCODERS)
