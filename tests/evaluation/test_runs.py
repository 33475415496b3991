"""What a trained model says of labelled records."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CODECS
from tiny_runs import tiny_run

from seqtrain.data.dataset import SequenceDataset
from seqtrain.errors import DataError
from seqtrain.evaluation.runs import evaluate_run
from seqtrain.training.checkpoint import load_run


@pytest.mark.parametrize("task", sorted(CODECS))
def test_outputs_that_are_not_finite_are_not_scored_and_the_first_record_is_named(
    tmp_path: Path, task: str
) -> None:
    loaded = load_run(tiny_run(tmp_path, task))
    tokens = [np.array(text, np.uint8) for text in ([3, 4], [5, 6, 7], [5, 9, 8], [9])]
    labels = {
        "classification": 1,
        "multilabel": np.eye(3, dtype=np.float32)[1],
        "regression": 0.5,
    }
    residues = {"residue_regression": np.float32}
    residues |= dict.fromkeys(("residue_classification", "mlm"), np.int64)
    targets = [
        np.ones(len(each), residues[task]) if task in residues else labels[task] for each in tokens
    ]
    records = SequenceDataset.from_lists(
        list("abcd"), tokens, targets, per_residue=task in residues
    )
    evaluate_run(loaded, records, None)
    with torch.no_grad():
        loaded.model.encoder.embedding.weight[9] = torch.nan
    with pytest.raises(DataError, match="record 'c': the model's output is not finite"):
        evaluate_run(loaded, records, None)
