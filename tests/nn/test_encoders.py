"""Encoders: how far they see, what they leave at padding, what they are made of."""

import pytest
import torch
from tiny_models import TOKENIZER, draw_tokens, encoder_config, tiny_model

from seqtrain.build import build_encoder
from seqtrain.config import ENCODERS, CnnConfig, NormConfig, TransformerConfig
from seqtrain.data.tokenizer import PAD
from seqtrain.masking import lengths_to_mask
from seqtrain.nn.blocks import ConvBlock, TransformerBlock
from seqtrain.nn.encoders import CnnEncoder, TransformerEncoder
from seqtrain.nn.layout import padded_layout

LAYER = NormConfig("layer")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_hidden_states_are_exact_zeros_at_padding_and_nowhere_else(encoder: str) -> None:
    model = tiny_model(encoder).encoder
    tokens, lengths = draw_tokens([4, 9, 1])
    with torch.no_grad():
        hidden = model(tokens, padded_layout(lengths, tokens.shape[1]))
    mask = lengths_to_mask(lengths)
    assert hidden.shape == (3, 9, 8)
    assert not hidden[~mask].any()
    assert hidden[mask].abs().min() > 0


@pytest.mark.parametrize(
    ("layers", "largest", "wanted"),
    [
        (6, 16, [1, 2, 4, 8, 16, 1]),
        (7, 4, [1, 2, 4, 1, 2, 4, 1]),
        (3, 1, [1, 1, 1]),
        (4, 3, [1, 2, 1, 2]),
        (2, 100, [1, 2]),
    ],
)
def test_dilations_double_up_to_the_largest_and_start_again(
    layers: int, largest: int, wanted: list[int]
) -> None:
    config = CnnConfig(embed_dim=4, num_layers=layers, max_dilation=largest)
    encoder = build_encoder(config, LAYER, 9)
    assert [block.conv.dilation[0] for block in encoder.blocks] == wanted


def seen_from(encoder: torch.nn.Module, place: int, length: int = 41) -> list[int]:
    """Which residues change the hidden state at ``place``, by its gradient."""
    tokens, lengths = draw_tokens([length], seed=3)
    layout = padded_layout(lengths, length)
    embedded: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    hook = encoder.embedding.register_forward_hook(keep)
    hidden = encoder(tokens, layout)
    hook.remove()
    hidden[0, place].square().sum().backward()
    gradient = embedded[0].grad
    assert gradient is not None
    return gradient[0].abs().sum(dim=1).nonzero().flatten().tolist()


def test_a_cnn_sees_as_far_as_its_kernels_reach() -> None:
    """Dilations 1, 2, 4 with kernels of 3: one + two + four to each side."""
    torch.manual_seed(0)
    config = CnnConfig(embed_dim=32, num_layers=3, kernel_size=3, max_dilation=4)
    encoder = build_encoder(config, LAYER, TOKENIZER.vocab_size).eval()
    assert seen_from(encoder, 20) == list(range(13, 28))
    assert seen_from(encoder, 0) == list(range(8))


def test_a_transformer_sees_everything() -> None:
    torch.manual_seed(0)
    config = TransformerConfig(embed_dim=8, num_layers=1, num_heads=2)
    encoder = build_encoder(config, LAYER, TOKENIZER.vocab_size).eval()
    assert seen_from(encoder, 20) == list(range(41))


def test_a_transformer_ends_with_a_norm() -> None:
    """Pre-norm blocks leave the sum of all updates; it is normalized once more at the end."""
    torch.manual_seed(0)
    config = TransformerConfig(embed_dim=8, num_layers=2, num_heads=2)
    encoder = build_encoder(config, LAYER, TOKENIZER.vocab_size).eval()
    tokens, lengths = draw_tokens([12])
    with torch.no_grad():
        hidden = encoder(tokens, padded_layout(lengths, 12))
    torch.testing.assert_close(hidden.mean(dim=-1), torch.zeros(1, 12), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        hidden.var(dim=-1, correction=0), torch.ones(1, 12), atol=1e-2, rtol=0
    )


@pytest.mark.parametrize(
    ("name", "kind"), [("cnn", CnnEncoder), ("transformer", TransformerEncoder)]
)
def test_an_encoder_has_the_blocks_that_it_is_asked_for(name: str, kind: type) -> None:
    config = encoder_config(name)
    encoder = build_encoder(config, LAYER, 30)
    assert type(encoder) is kind
    assert len(encoder.blocks) == config.num_layers
    block = {"cnn": ConvBlock, "transformer": TransformerBlock}[name]
    assert all(isinstance(b, block) for b in encoder.blocks)
    assert encoder.embedding.weight.shape == (30, 8)
    assert not encoder.embedding.weight[PAD].any()
    assert {m.p for m in encoder.modules() if hasattr(m, "p")} == {config.dropout}


def test_blocks_share_nothing() -> None:
    encoder = build_encoder(encoder_config("cnn"), LAYER, 30)
    parameters = [id(p) for p in encoder.parameters()]
    assert len(parameters) == len(set(parameters))
    first, second = encoder.blocks[0].conv.weight, encoder.blocks[1].conv.weight
    assert not torch.equal(first, second)
