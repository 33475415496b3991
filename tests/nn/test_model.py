"""The whole model: shapes of logits, and what it takes."""

import pytest
import torch
from tiny_models import CODECS, draw_tokens, tiny_model

from seqtrain.config import ENCODERS
from seqtrain.masking import lengths_to_mask

SHAPES = {
    "classification": (3, 3),
    "multilabel": (3, 3),
    "regression": (3,),
    "residue_classification": (3, 9, 3),
    "residue_regression": (3, 9),
    "mlm": (3, 9, 20),
}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("task", sorted(CODECS))
def test_logits_have_the_shape_of_the_task(task: str, encoder: str) -> None:
    model = tiny_model(encoder, task=task)
    tokens, lengths = draw_tokens([4, 9, 1])
    assert model(tokens, lengths).shape == SHAPES[task]
    packed = tokens[lengths_to_mask(lengths)][None]
    flat = {"residue_classification": (1, 14, 3), "residue_regression": (1, 14), "mlm": (1, 14, 20)}
    shape = flat.get(task, SHAPES[task])
    assert model(packed, lengths, True).shape == shape


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_token_lies_in_the_padding_never_matters(encoder: str) -> None:
    model = tiny_model(encoder)
    tokens, lengths = draw_tokens([4, 9, 1])
    other = torch.where(lengths_to_mask(lengths), tokens, 5)
    assert torch.equal(model(other, lengths), model(tokens, lengths))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_long_sequence_among_short_ones_is_no_other(encoder: str) -> None:
    model = tiny_model(encoder)
    tokens, lengths = draw_tokens([1, 3000, 2])
    with torch.no_grad():
        alone = model(tokens[:1, :1], lengths[:1])
        torch.testing.assert_close(model(tokens, lengths)[:1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_without_a_residue_is_refused(
    encoder: str, lengths: list[int], packed: bool
) -> None:
    tokens = torch.zeros(1 if packed else len(lengths), 0, dtype=torch.long)
    with pytest.raises(ValueError, match="at least one residue, found none"):
        tiny_model(encoder)(tokens, torch.tensor(lengths, dtype=torch.long), packed)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_residue_can_change_the_answer(encoder: str) -> None:
    """Mean pooling of a short sequence hears the first, the last and those between."""
    model = tiny_model(encoder, pooling="mean")
    tokens, lengths = draw_tokens([7])
    with torch.no_grad():
        logits = model(tokens, lengths)
        for place in range(7):
            changed = tokens.clone()
            changed[0, place] = tokens[0, place] % 20 + 1
            assert not torch.allclose(model(changed, lengths), logits, atol=1e-6)
