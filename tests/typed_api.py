"""How a user calls the Python interface, for the type checker: nothing here is run."""

from pathlib import Path
from typing import assert_type

import numpy as np
from Bio.SeqRecord import SeqRecord

from seqtrain import TrainedModel, load_model
from seqtrain.api import Answer


def uses(model: TrainedModel, records: list[SeqRecord], flag: bool) -> None:
    assert_type(load_model(["a", Path("b")], calibrated=False), TrainedModel)
    assert_type(model.embed("MKV"), np.ndarray)
    assert_type(model.embed("MKV", per_residue=False, layer=2), np.ndarray)
    assert_type(model.embed("MKV", per_residue=True), list[np.ndarray])
    assert_type(model.embed("MKV", per_residue=flag), np.ndarray | list[np.ndarray])
    assert_type(model.predict(Path("x.fasta")), list[Answer])
    assert_type(model.predict(["MKV", Path("x.fasta"), *records]), list[Answer])
    assert_type(model.predict(records, window=100, overlap=20), list[Answer])
    assert_type(model.predict(iter(["MKV"])), list[Answer])
    answer = next(model.stream(word for word in ["MKV"]))
    assert_type(answer.prediction, str | float | None)
    assert_type(answer.probabilities, dict[str, float] | None)
    model.predict([7])  # type: ignore[list-item]
    model.embed("MKV", residues=True)  # type: ignore[call-overload]
