"""Every norm of the command line, chosen by config, trains either encoder.

That each keeps the promise, in training and evaluation, alone, padded and packed, is in
``test_promise.py``.
"""

import pytest
import torch
from tiny_models import CODECS, TOKENIZER, draw_tokens

from seqtrain.build import build_model
from seqtrain.compose import load_config
from seqtrain.nn.model import SequenceModel
from seqtrain.nn.norms import (
    MaskedBatchNorm1d,
    MaskedBatchRenorm1d,
    MaskedGroupNorm,
    MaskedInstanceNorm1d,
    MaskedLayerNorm,
    MaskedRMSNorm,
)
from seqtrain.nn.plain_norms import LeakyBatchNorm, NoNorm, PlainBatchNorm
from seqtrain.training.losses import sequence_loss

NORMS = {
    "masked_batch": MaskedBatchNorm1d,
    "batch": PlainBatchNorm,
    "leaky_batch": LeakyBatchNorm,
    "masked_instance": MaskedInstanceNorm1d,
    "masked_group": MaskedGroupNorm,
    "masked_layer": MaskedLayerNorm,
    "layer": MaskedLayerNorm,
    "rms": MaskedRMSNorm,
    "masked_batch_renorm": MaskedBatchRenorm1d,
    "none": NoNorm,
}
SIZES = {
    "cnn": ["encoder.embed_dim=16", "encoder.num_layers=2", "encoder.kernel_size=3"],
    "transformer": ["encoder.embed_dim=16", "encoder.num_layers=2", "encoder.num_heads=2"],
}


def chosen_model(encoder: str, norm: str) -> SequenceModel:
    """As the command line would build it from names."""
    overrides = [f"encoder={encoder}", f"norm={norm}", *SIZES[encoder], "task.pooling=mean_max"]
    torch.manual_seed(0)
    return build_model(load_config("config", overrides), TOKENIZER, CODECS["classification"])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("encoder", SIZES)
def test_a_norm_chosen_by_name_learns_eight_sequences_by_heart(encoder: str, norm: str) -> None:
    model = chosen_model(encoder, norm)
    norms = [m for m in model.modules() if type(m) is NORMS[norm]]
    assert len(norms) >= 2
    assert all(getattr(m, "channel_dim", -1) == -1 for m in norms)
    over = {"masked_layer": "sequence", "layer": "position"}.get(norm)
    assert over is None or all(m.over == over for m in norms)
    tokens, lengths = draw_tokens([3, 40, 12, 25, 7, 31, 18, 9], seed=3)
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for _ in range(60):
        total, count = sequence_loss("classification", model(tokens, lengths), targets)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    with torch.no_grad():
        # The same forward, so that what training sees is what has been learnt.
        assert (total / count).item() < 0.3
        assert model.eval()(tokens, lengths).isfinite().all()
