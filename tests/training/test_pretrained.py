"""A training that begins with the encoder of another: the same states, or one clear refusal."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CODECS, TOKENIZER, draw_tokens, tiny_config, tiny_model
from tiny_training import assert_same_weights, weights

from seqtrain.build import build_model
from seqtrain.compose import load_config
from seqtrain.config import RunConfig
from seqtrain.data.alphabet import RNA
from seqtrain.data.labels import is_residue
from seqtrain.data.tokenizer import Tokenizer
from seqtrain.errors import ConfigError
from seqtrain.nn.layout import padded_layout
from seqtrain.nn.model import SequenceModel
from seqtrain.training.checkpoint import LoadedRun
from seqtrain.training.pretrained import check_fits, load_encoder

PAIRS = [
    ("mlm", "classification"),
    ("mlm", "residue_regression"),
    ("mlm", "mlm"),
    ("classification", "mlm"),
    ("regression", "multilabel"),
]


def fresh(task: str, encoder: str, norm: str) -> SequenceModel:
    torch.manual_seed(11)
    config = tiny_config(encoder, norm, None if is_residue(task) else "mean_max")
    return build_model(config, TOKENIZER, CODECS[task]).eval()


def states(model: SequenceModel) -> torch.Tensor:
    tokens, lengths = draw_tokens([7, 1, 19])
    with torch.no_grad():
        found: torch.Tensor = model.encoder(tokens, padded_layout(lengths, 19, tokens.device))
    return found


@pytest.mark.parametrize(("old", "new"), PAIRS)
@pytest.mark.parametrize("encoder", ["cnn", "transformer"])
@pytest.mark.parametrize("norm", ["masked_batch", "masked_batch_renorm", "layer"])
def test_hidden_states_are_those_of_before(old: str, new: str, encoder: str, norm: str) -> None:
    pretrained, model = tiny_model(encoder, norm, task=old), fresh(new, encoder, norm)
    head = weights(model.head)
    assert not torch.allclose(states(model), states(pretrained), atol=1e-3)
    load_encoder(model, pretrained)
    assert torch.equal(states(model), states(pretrained))
    assert_same_weights(weights(model.head), head)


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_the_row_of_the_mask_is_cut_off_kept_or_left_as_it_was(old: str, new: str) -> None:
    pretrained, model = tiny_model(task=old), fresh(new, "cnn", "masked_batch")
    began = model.encoder.embedding.weight.detach().clone()
    load_encoder(model, pretrained)
    found, known = model.encoder.embedding.weight, pretrained.encoder.embedding.weight
    letters = TOKENIZER.vocab_size
    assert len(found) == letters + (new == "mlm")
    assert torch.equal(found[:letters], known[:letters])
    if new == "mlm":
        assert torch.equal(found[letters], (known if old == "mlm" else began)[letters])


def test_the_pretrained_model_is_not_trained_along() -> None:
    pretrained, model = tiny_model(task="mlm"), fresh("mlm", "cnn", "masked_batch")
    before = weights(pretrained)
    load_encoder(model, pretrained)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    assert_same_weights(weights(pretrained), before)


def run_of(config: RunConfig, tokenizer: Tokenizer = TOKENIZER) -> LoadedRun:
    return LoadedRun(tiny_model(task="mlm"), config, tokenizer, CODECS["mlm"], {}, {})


def refusal(config: RunConfig, pretrained: LoadedRun, tokenizer: Tokenizer = TOKENIZER) -> str:
    config.encoder.pretrained = "runs/pre"
    with pytest.raises(ConfigError) as caught:
        check_fits(config, tokenizer, pretrained)
    return str(caught.value)


class TestFit:
    @pytest.mark.parametrize(
        ("section", "name", "value", "fix"),
        [
            ("encoder", "embed_dim", 16, "encoder.embed_dim=8"),
            ("encoder", "num_layers", 4, "encoder.num_layers=3"),
            ("encoder", "kernel_size", 3, "encoder.kernel_size=5"),
            ("encoder", "max_dilation", 2, "encoder.max_dilation=4"),
            ("norm", "name", "layer", "norm=masked_batch"),
            ("norm", "eps", 1e-3, "norm.eps=1e-05"),
        ],
    )
    def test_the_first_setting_that_differs_is_named_with_its_fix(
        self, section: str, name: str, value: Any, fix: str
    ) -> None:
        pretrained, config = run_of(tiny_config()), tiny_config()
        setattr(getattr(config, section), name, value)
        message = refusal(config, pretrained)
        assert message.startswith(f"{section}.{name}={value}: the encoder of runs/pre")
        assert f"Set {fix}," in message

    def test_another_encoder_is_named_first(self) -> None:
        message = refusal(tiny_config("transformer"), run_of(tiny_config()))
        assert message.startswith("encoder.name=transformer")
        assert "Set encoder=cnn," in message

    def test_another_tokenizer(self) -> None:
        message = refusal(tiny_config(), run_of(tiny_config()), Tokenizer(RNA))
        assert message.startswith("tokenizer.alphabet=rna")
        message = refusal(
            tiny_config(), run_of(tiny_config()), Tokenizer(TOKENIZER.alphabet, ambiguous="keep")
        )
        assert message.startswith("tokenizer.ambiguous=keep")

    def test_what_training_alone_reads_is_free(self) -> None:
        config = tiny_config()
        config.encoder.dropout, config.norm.momentum = 0.5, 0.3
        config.encoder.pretrained = "runs/pre"
        config.task.head_dropout, config.trainer.seed = 0.4, 8
        check_fits(config, TOKENIZER, run_of(tiny_config()))


class TestOpenSettings:
    """What the user says nothing of is as in the pretrained run; what is said stays."""

    def like(self, *overrides: str) -> RunConfig:
        return load_config("config", ["data=files", *overrides])

    def test_they_are_taken_over(self) -> None:
        before = self.like(
            "encoder=transformer",
            "encoder.embed_dim=48",
            "encoder.num_heads=6",
            "encoder.num_layers=2",
            "norm=masked_group",
            "norm.num_groups=4",
            "tokenizer.alphabet=rna",
            "tokenizer.gap=unknown",
        )
        found = load_config("config", ["data=files"], like=before)
        assert (found.encoder, found.norm) == (before.encoder, before.norm)
        assert found.tokenizer.gap == "unknown"
        assert found.tokenizer.alphabet is None, "sequences tell their own, which has to fit"
        assert load_config("config", ["data=files"]) == self.like(), "and forgotten again"

    @pytest.mark.parametrize(
        ("override", "section", "name", "value"),
        [
            ("encoder.num_layers=6", "encoder", "num_layers", 6),
            ("encoder.embed_dim=64", "encoder", "embed_dim", 64),
            ("encoder=cnn", "encoder", "name", "cnn"),
            ("norm=masked_batch", "norm", "name", "masked_batch"),
            ("norm.name=masked_batch", "norm", "name", "masked_batch"),
            ("tokenizer.gap=drop", "tokenizer", "gap", "drop"),
        ],
    )
    def test_what_is_said_stays_be_it_the_default(
        self, override: str, section: str, name: str, value: Any
    ) -> None:
        before = self.like(
            "encoder=transformer",
            "encoder.embed_dim=32",
            "encoder.num_layers=2",
            "norm=layer",
            "tokenizer.gap=unknown",
        )
        found = load_config("config", ["data=files", override], like=before)
        assert getattr(getattr(found, section), name) == value

    def test_an_experiment_that_says_so_stays(self) -> None:
        found = load_config("ncrna", like=self.like("encoder.embed_dim=32"))
        assert found.encoder.embed_dim == 128

    @pytest.mark.parametrize("encoder", ["cnn", "transformer"])
    def test_a_file_that_chooses_encoder_and_norm_stays(self, tmp_path: Path, encoder: str) -> None:
        """Be it the choice of the default config or another."""
        (tmp_path / "experiment").mkdir()
        (tmp_path / "experiment" / "mine.yaml").write_text(
            f"# @package _global_\ndefaults:\n  - override /encoder: {encoder}\n"
            "  - override /norm: rms\n  - override /data: files\n"
        )
        for other in ("encoder=cnn", "encoder=transformer"):
            found = load_config("mine", config_dir=tmp_path, like=self.like(other))
            assert (found.encoder.name, found.norm.name) == (encoder, "rms")

    def test_dropout_and_the_pretrained_of_the_pretrained_are_not(self) -> None:
        before = self.like("encoder.dropout=0.4", "encoder.pretrained=older")
        kept = copy.deepcopy(before)
        found = load_config("config", ["data=files"], like=before)
        assert (found.encoder.dropout, found.encoder.pretrained) == (0.1, None)
        assert before == kept


def test_a_path_is_a_setting_like_others(tmp_path: Path) -> None:
    found = load_config("config", [f"encoder.pretrained={tmp_path}"])
    assert found.encoder.pretrained == str(tmp_path)
