"""Settings: what composes, what is refused and how, and the way to disk and back."""

import dataclasses
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtrain import overrides
from seqtrain.compose import config_to_yaml, list_configs, load_config, package_dir, read_run_config
from seqtrain.config import ENCODERS, NORMS, TASKS, CnnConfig, RunConfig, TransformerConfig
from seqtrain.errors import ConfigError

CONF = package_dir("conf")
CHOICES = [
    (path.parent.name, path.stem)
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.parent.name not in ("experiment", "launcher")
]
EXPERIMENTS = [path.stem for path in sorted(CONF.glob("experiment/*.yaml"))]


def refusal(*overrides: str, name: str = "config", folder: Path | None = None) -> str:
    """The one message that such settings are refused with."""
    with pytest.raises(ConfigError) as caught:
        load_config(name, overrides, config_dir=folder)
    return str(caught.value)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_of_a_group_composes(group: str, choice: str) -> None:
    assert isinstance(load_config("config", [f"{group}={choice}"]), RunConfig)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_under_both_names(name: str) -> None:
    assert load_config(name) == load_config(f"experiment/{name}")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_opens_with_the_command_that_runs_it(name: str) -> None:
    comment = dict(list_configs()["experiment"])[name]
    assert f"seqtrain train -n {name} --train" in comment


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_leaves_the_files_to_the_user(name: str) -> None:
    data = load_config(name).data
    assert (data.train, data.valid, data.test, data.labels) == ([], [], [], [])


def test_there_is_a_choice_for_every_norm_task_and_encoder() -> None:
    listed = {group: {name for name, _ in names} for group, names in list_configs().items()}
    assert listed["norm"] == set(NORMS)
    assert listed["task"] == {*TASKS, "auto"}
    assert listed["encoder"] == set(ENCODERS)


def test_a_choice_sets_what_it_is_called() -> None:
    assert load_config("config", ["norm=layer"]).norm.name == "layer"
    assert isinstance(load_config("config", ["encoder=transformer"]).encoder, TransformerConfig)
    assert isinstance(load_config().encoder, CnnConfig)
    assert load_config("config", ["task=regression"]).task.name == "regression"


def test_every_config_file_says_what_it_is() -> None:
    assert all(comment for names in list_configs().values() for _, comment in names)


def test_no_config_names_a_class() -> None:
    """Builders, not ``instantiate``: a config that travels with a model must not run code."""
    found = [p for p in CONF.rglob("*.yaml") if "_target_" in p.read_text(encoding="utf-8")]
    assert not found
    assert "_target_" not in config_to_yaml(load_config())


def test_overrides_reach_their_field() -> None:
    config = load_config("config", ["optim.lr=0.5", "data.ignore_labels=[U,X]", "norm.eps=1e-3"])
    assert (config.optim.lr, config.data.ignore_labels, config.norm.eps) == (0.5, ["U", "X"], 1e-3)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("trainer.max_epoch=3", "trainer.max_epochs"),
        ("+trainer.max_epoch=3", "trainer.max_epochs"),
        ("lr=3", "optim.lr"),
        ("max_dilation=3", "encoder.max_dilation"),
        ("+encoder.kernel_sizes=3", "encoder.kernel_size"),
        ("norm=masked_bacth", "masked_batch"),
        ("norm.name=masked_bacth", "masked_batch"),
        ("encoder=cn", "cnn"),
        ("data=motif", "motifs"),
        ("task.pooling=mean_maxx", "mean_max"),
        ("task.name=clasification", "classification"),
        ("batching.kind=bucket", "bucketed"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(override: str, wanted: str) -> None:
    message = refusal(override)
    assert re.search(rf"Did you mean '{re.escape(wanted)}'\?", message), message


@pytest.mark.parametrize("override", ["+typo=1", "typo=1", "+data._target_=os.system"])
def test_an_unknown_setting_is_refused_even_with_a_plus(override: str) -> None:
    key = override.lstrip("+").split("=")[0]
    assert f"unknown setting {key!r}" in refusal(override)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.max_epochs=abc"], "trainer.max_epochs=abc"),
        (["trainer.max_epochs=2.5"], "trainer.max_epochs=2.5"),
        (["trainer.max_epochs=0"], "trainer.max_epochs: expected 1 or more, found 0"),
        (["trainer.seed=null"], "trainer.seed"),
        (["trainer.seed=-1"], "trainer.seed: expected 0 or more"),
        (["trainer.checkpoint_minutes=-1"], "trainer.checkpoint_minutes: expected 0 or more"),
        (["trainer.device=gpu"], "trainer.device: expected auto, cpu"),
        (["optim.lr=0"], "optim.lr: expected a number above 0"),
        (["optim.lr=nan"], "optim.lr: expected a number above 0"),
        (["optim.lr=inf"], "optim.lr: expected a number above 0"),
        (["optim.clip_norm=-1"], "optim.clip_norm: expected 0 or more"),
        (["optim.beta1=1"], "optim.beta1: expected a number in [0, 1)"),
        (["norm.eps=0"], "norm.eps: expected a number above 0"),
        (["norm.momentum=7"], "norm.momentum: expected a number in (0, 1]"),
        (["data.valid_fraction=1"], "data.valid_fraction: expected a number in [0, 1)"),
        (["data.valid_fraction=0.6", "data.test_fraction=0.4"], "valid_fraction + data.test_fr"),
        (["data.train=one.fasta"], "data.train=one.fasta"),
        (["encoder.kernel_size=4"], "expected an odd number, found 4"),
        (["encoder=transformer", "encoder.embed_dim=10"], "multiple of 2 * encoder.num_heads"),
        (["data.overlong=skip"], "nothing is too long"),
        (["encoder=transformer", "encoder.ffn_ratio=0"], "encoder.ffn_ratio: expected"),
        (["encoder=transformer", "encoder.kernel_size=3"], "another encoder"),
        (["encoder=cnn", "encoder.num_heads=3"], "another encoder"),
        (["task=regression", "task.label_smoothing=0.1"], "does not use it"),
        (["task=multilabel", "task.class_weights=balanced"], "does not use it"),
        (["task=classification", "task.loss=huber"], "does not use it"),
        (["task=residue_classification", "task.pooling=mean"], "does not use it"),
        (["task=mlm", "task.pooling=mean"], "does not use it"),
        (["task=mlm", "task.head_dropout=0.2"], "does not use it"),
        (["task=mlm", "task.class_weights=balanced"], "does not use it"),
        (["task=regression", "task.mask_fraction=0.3"], "does not use it"),
        (["task=mlm", "task.mask_fraction=0"], "task.mask_fraction: expected a number in (0, 1)"),
        (["task=mlm", "task.mask_fraction=1"], "task.mask_fraction: expected a number in (0, 1)"),
        (["hydra.run.dir=/tmp"], "hydra.run.dir"),
        (["hydra/launcher=x"], "hydra/launcher"),
        (["experiment=ncrna"], "-n ncrna"),
        (["foo"], "foo"),
        (["a=["], "a=["),
        (["=3"], "=3: "),
        (["trainer=3"], "trainer=3: "),
        (["lr=0.1"], "Did you mean 'optim.lr'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(overrides: list[str], words: str) -> None:
    message = refusal(*overrides)
    assert words in message
    assert "\n" not in message


def test_an_unknown_config_is_answered_with_all_that_there_are() -> None:
    message = refusal(name="ncrn")
    assert "Did you mean 'ncrna'?" in message
    assert all(name in message for name in EXPERIMENTS)


def test_values_are_taken_as_they_stand() -> None:
    """Paths never go through the override grammar, which would misread them."""
    paths = ["a,b=c.fasta", "x[1].fa", "we${ird}.fa", "${oc.env:HOME}", "1e5", "null", "- a"]
    config = load_config(values={"data.train": paths, "data.label_column": "null"})
    assert config.data.train == paths
    assert config.data.label_column == "null"


def test_a_path_given_replaces_those_of_the_config() -> None:
    values = {"data.train": ["mine.fasta"], "data.valid": []}
    data = load_config(values=values).data
    assert (data.train, data.valid) == (["mine.fasta"], [])


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["encoder=transformer", "encoder.num_heads=2", "encoder.embed_dim=12"],
        ["encoder.kernel_size=3", "norm=layer", "optim.lr=1e-5", "trainer.max_epochs=3"],
        ["data.ignore_labels=[U]", "norm.eps=1e-12", "task.pooling=attention"],
    ],
)
def test_saved_settings_read_back_the_same(tmp_path: Path, overrides: list[str]) -> None:
    config = load_config("config", overrides)
    path = tmp_path / "config.yaml"
    path.write_text(config_to_yaml(config), encoding="utf-8")
    found = read_run_config(path)
    assert found == config
    assert type(found.encoder) is type(config.encoder)


printable = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\x85"))


@given(texts=st.lists(printable | st.sampled_from(["${", "\\${x}", "yes", "~", "1e3"]), max_size=4))
@settings(max_examples=25)
def test_saved_paths_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    config = load_config(values={"data.train": texts})
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    path.write_text(config_to_yaml(config), encoding="utf-8")
    assert config.data.train == texts
    assert read_run_config(path).data.train == texts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "- 1",
        "3",
        "a: [",
        "encoder: {name: cnn}\ntypo: 1\n",
        "encoder: {name: rnn}\n",
        "encoder: {name: cnn, embed_dim: x}\n",
        "encoder: {name: [cnn]}\n",
        "!!python/object/apply:os.system ['true']\n",
        "encoder: {name: cnn}\ndata: {_target_: os.system}\n",
        "\x00",
    ],
)
def test_a_damaged_config_of_a_run_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        read_run_config(path)


def test_a_config_of_a_run_is_never_interpolated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run directory from a stranger must not read out the environment."""
    monkeypatch.setenv("SECRET", "x")
    path = tmp_path / "config.yaml"
    path.write_text("encoder: {name: cnn}\ndata: {train: ['${oc.env:SECRET}']}\n", encoding="utf-8")
    assert read_run_config(path).data.train == ["${oc.env:SECRET}"]


class TestOwnFolder:
    """``--config-dir``: the user's own folder, searched before ``conf/``."""

    def write(self, folder: Path, name: str, text: str) -> None:
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def test_its_configs_build_on_ours(self, tmp_path: Path) -> None:
        text = "defaults: [config, _self_]\ntrainer: {max_epochs: 77}\n"
        self.write(tmp_path, "mine", text)
        config = load_config("mine", ["norm=layer"], config_dir=tmp_path)
        assert (config.trainer.max_epochs, config.norm.name) == (77, "layer")

    def test_its_experiments_are_found(self, tmp_path: Path) -> None:
        text = "# @package _global_\ndefaults:\n  - override /norm: layer\noptim: {lr: 7}\n"
        self.write(tmp_path, "experiment/mine", text)
        config = load_config("mine", config_dir=tmp_path)
        assert (config.norm.name, config.optim.lr) == ("layer", 7)

    def test_its_files_come_before_ours_of_the_same_name(self, tmp_path: Path) -> None:
        self.write(tmp_path, "trainer/default", "num_threads: 55\n")
        self.write(tmp_path, "experiment/ncrna", "# @package _global_\noptim: {lr: 7}\n")
        assert load_config(config_dir=tmp_path).trainer.num_threads == 55
        assert load_config("ncrna", config_dir=tmp_path).optim.lr == 7

    def test_a_whole_copy_of_conf_works(self, tmp_path: Path) -> None:
        shutil.copytree(CONF, tmp_path / "conf")
        assert load_config(config_dir=tmp_path / "conf") == load_config()

    def test_it_is_listed_with_ours(self, tmp_path: Path) -> None:
        self.write(tmp_path, "norm/mine", "# My own\nname: layer\n")
        names = dict(list_configs(tmp_path)["norm"])
        assert names["mine"] == "My own"
        assert set(names) > set(NORMS)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("trainer: {max_epochs: 3}\n", "defaults: [config, _self_]"),
            ("", "defaults: [config, _self_]"),
            ("- 1\n", "mine"),
            ("trainer: {max_epochs: [\n", "mine.yaml"),
            ("defaults: [config, _self_]\ntrainer: {max_epoch: 3}\n", "'trainer.max_epochs'"),
            ("defaults: [config, _self_, nothing]\n", "nothing"),
        ],
    )
    def test_a_bad_file_in_it_is_refused(self, tmp_path: Path, text: str, words: str) -> None:
        self.write(tmp_path, "mine", text)
        assert words in refusal(name="mine", folder=tmp_path)

    def test_a_binary_file_in_it_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
        assert refusal(name="mine", folder=tmp_path)

    def test_a_folder_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        assert str(tmp_path / "none") in refusal(folder=tmp_path / "none")
        with pytest.raises(ConfigError, match="no such folder"):
            list_configs(tmp_path / "none")


def test_settings_are_plain_yaml() -> None:
    text = config_to_yaml(load_config())
    assert yaml.safe_load(text)["norm"]["name"] == "masked_batch"


@pytest.mark.parametrize(
    "override",
    [
        "encoder.max_dilation=1000000000",
        "encoder.num_layers=1000000000",
        "encoder.embed_dim=1000000",
        "encoder.kernel_size=1001",
        "trainer.num_threads=100000",
        f"trainer.seed={2**63}",
        f"trainer.max_epochs={10**20}",
        f"trainer.patience={10**20}",
        "trainer.accumulate=1000000000",
        "trainer.checkpoint_minutes=1e12",
        "optim.lr=1e9",
        "optim.weight_decay=1e30",
        "optim.clip_norm=1e30",
        "norm.eps=1000",
        "norm.num_groups=10000000",
        f"batching.max_tokens={10**18}",
        f"batching.max_sequences={10**18}",
        f"data.max_length={10**18}",
    ],
)
def test_values_that_no_machine_can_follow_are_refused(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{key}: expected [\d.,]+ or less, found [^:]*: \w+"):
        load_config(overrides=[override])


@pytest.mark.parametrize("override", ["encoder.num_heads=100000", "encoder.ffn_ratio=1e6"])
def test_a_transformer_has_bounds_of_its_own(override: str) -> None:
    with pytest.raises(ConfigError, match="or less"):
        load_config(overrides=["encoder=transformer", override])


def test_every_number_has_a_bound_on_either_side() -> None:
    """A number that is read and never compared is one that a typing error passes through."""
    sections = {item.name: item.type for item in dataclasses.fields(RunConfig)}
    sections["encoder"] = CnnConfig
    for name, kind in [*sections.items(), ("encoder", TransformerConfig)]:
        for item in dataclasses.fields(kind):
            kinds = set(re.findall(r"\w+", str(item.type)))
            numbers: list[float] = [-1, 10**40] if "int" in kinds else []
            numbers += [-1.0, float("nan"), float("inf"), 1e40] if "float" in kinds else []
            for value in numbers:
                with pytest.raises(ConfigError, match=f"{name}.{item.name}"):
                    kind(**{item.name: value})


@pytest.mark.parametrize(
    ("norm", "setting"),
    [("masked_batch", "num_groups=4"), ("layer", "momentum=0.5"), ("none", "eps=0.1")],
)
def test_a_setting_that_the_norm_ignores_is_refused(norm: str, setting: str) -> None:
    config = load_config(overrides=[f"norm={norm}", f"norm.{setting}"])
    with pytest.raises(ConfigError, match="does not use it"):
        config.norm.check_applies()


@pytest.mark.parametrize(
    ("norm", "setting"),
    [("masked_group", "num_groups=4"), ("masked_batch_renorm", "momentum=0.5"), ("rms", "eps=0.1")],
)
def test_a_setting_that_the_norm_reads_is_taken(norm: str, setting: str) -> None:
    load_config(overrides=[f"norm={norm}", f"norm.{setting}"]).norm.check_applies()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("~trainer", "settings cannot be deleted. Leave it out."),
        ("~optim.lr", "or write optim.lr=null to have it chosen"),
        ("trainer={}", "expected one of default, smoke."),
        ("trainer=null", "expected one of default, smoke."),
        ("trainer=", "expected one of default, smoke."),
        ("encoder=[cnn]", "expected one of cnn, transformer."),
        ("batching={}", "sets nothing."),
        ("tokenizer=x", "Give single ones, tokenizer.KEY=VALUE."),
        ("a.fasta", "is a file, not a setting. Did you mean --train a.fasta?"),
        ("in/labels.tsv", "is a file, not a setting. Did you mean --labels in/labels.tsv?"),
        ("trainer", "expected a setting as KEY=VALUE"),
        ("my key=1", "expected a setting as KEY=VALUE"),
        ("experiment=peptide", "is chosen with -n peptide."),
        ("optim.lr=0.1,0.2", "expected one value, found several. Train once for each"),
        ("optim.lr=choice(1,2)", "expected one value, found several. Train once for each"),
        ("trainer.seed=1.5", "expected a whole number, found '1.5'."),
        ("trainer.compile=maybe", "expected true or false, found 'maybe'."),
        ("optim.lr=[1]", "expected a number, found '[1]'."),
        ("data.train=x.fasta", "expected a list, such as data.train=[x.fasta]."),
    ],
)
def test_an_override_that_sets_nothing_or_cannot_be_read_says_what_to_write(
    override: str, said: str
) -> None:
    message = refusal(override)
    assert message.startswith(f"{override}: ")
    assert said in message
    for word in ("hydra", "multirun", "mismatched", "Error merging"):
        assert word not in message


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("encoder.pretrained=a=b", "a=b"),
        ("encoder.pretrained='a", "a"),
        ("data.label_column=it's", "it's"),
        ("data.train=[a,b=c.fasta]", ["a,b=c.fasta"]),
    ],
)
def test_the_quotes_that_a_message_proposes_work(override: str, wanted: object) -> None:
    message = refusal(override)
    (proposed,) = shlex.split(message.rsplit("two kinds of quotes: ", 1)[1])
    group, _, name = override.partition("=")[0].partition(".")
    assert getattr(getattr(load_config("config", [proposed]), group), name) == wanted


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("optim.learning_rate", "optim.lr"),
        ("batch_size", "batching.max_sequences"),
        ("epochs", "trainer.max_epochs"),
        ("encoder.hidden_size", "encoder.embed_dim"),
        ("trainer.early_stopping", "trainer.patience"),
        ("data.val_split", "data.valid_fraction"),
    ],
)
def test_other_words_for_a_setting_lead_to_it(key: str, wanted: str) -> None:
    assert f"unknown setting {key!r}. Did you mean {wanted!r}?" in refusal(f"{key}=1")


def test_every_setting_that_a_word_leads_to_exists() -> None:
    assert set(overrides._SYNONYMS) <= set(overrides.all_settings())
