"""What a user would write without seqtrain: torch's layers, padded to the longest of a batch."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from seqtrain.data.dataset import SequenceDataset
from seqtrain.data.tokenizer import PAD


class PlainModel(nn.Module):
    """An embedding, a body, the mean over real residues and a linear layer.

    Args:
        body: ``(B, L, C)`` and the mask to ``(B, L, C)``.
        vocab_size: Tokens, padding included.
        embed_dim: Channels.
        num_classes: Logits.
    """

    def __init__(self, body: nn.Module, vocab_size: int, embed_dim: int, num_classes: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim, padding_idx=PAD)
        self.body = body
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, tokens: Int64[Tensor, "B L"]) -> Float[Tensor, "B K"]:
        """Logits."""
        mask = tokens != PAD
        hidden = self.body(self.embedding(tokens), mask).masked_fill(~mask[..., None], 0)
        logits: Tensor = self.head(hidden.sum(dim=1) / mask.sum(dim=1, keepdim=True))
        return logits


class PlainCnn(nn.Module):
    """Residual ``Conv1d``, ``BatchNorm1d`` and ``ReLU``, over ``(B, C, L)``."""

    def __init__(self, embed_dim: int, num_layers: int, kernel_size: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(embed_dim, embed_dim, kernel_size, padding=kernel_size // 2),
                nn.BatchNorm1d(embed_dim),
                nn.ReLU(),
            )
            for _ in range(num_layers)
        )

    def forward(self, x: Float[Tensor, "B L C"], _mask: Tensor) -> Float[Tensor, "B L C"]:
        """Hidden states."""
        x = x.transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        return x.transpose(1, 2)


class PlainTransformer(nn.Module):
    """``nn.TransformerEncoder`` with learnt positions and ``src_key_padding_mask``."""

    def __init__(self, embed_dim: int, num_layers: int, num_heads: int, max_length: int):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(max_length, embed_dim) * 0.02)
        layer = nn.TransformerEncoderLayer(
            embed_dim,
            num_heads,
            4 * embed_dim,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        norm = nn.LayerNorm(embed_dim)
        self.encoder = nn.TransformerEncoder(layer, num_layers, norm, enable_nested_tensor=False)

    def forward(self, x: Float[Tensor, "B L C"], mask: Tensor) -> Float[Tensor, "B L C"]:
        """Hidden states."""
        x = x + self.positions[: x.shape[1]]
        hidden: Tensor = self.encoder(x, src_key_padding_mask=~mask)
        return hidden


def pad_batch(
    dataset: SequenceDataset, index: Int64[np.ndarray, " B"]
) -> tuple[Int64[Tensor, "B L"], Int64[Tensor, " B"]]:
    """Tokens padded to the longest, and classes."""
    rows = [torch.from_numpy(dataset.residues(i).astype(np.int64)) for i in index.tolist()]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    assert dataset.targets is not None, "a benchmark's records are labelled"
    return tokens, torch.from_numpy(dataset.targets[index])


def random_batches(number: int, batch_size: int, seed: int = 0) -> list[Int64[np.ndarray, " _"]]:
    """Shuffled records, so many at a time: a ``DataLoader`` with ``shuffle=True``."""
    order = np.random.default_rng(seed).permutation(number)
    return np.split(order, range(batch_size, number, batch_size))


def bucketed_batches(
    lengths: Int64[np.ndarray, " N"], batch_size: int
) -> list[Int64[np.ndarray, " _"]]:
    """Records sorted by length, so many at a time: the least padding there can be."""
    order = np.argsort(lengths, kind="stable")
    return np.split(order, range(batch_size, len(order), batch_size))


class PlainTrainer:
    """The usual loop: pad, forward, cross entropy, backward, clip, AdamW."""

    def __init__(
        self,
        model: PlainModel,
        dataset: SequenceDataset,
        lr: float,
        precision: torch.dtype = torch.float32,
    ):
        self.model, self.dataset = model.train(), dataset
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        self.device = next(model.parameters()).device
        self.precision = precision

    def step(self, index: Int64[np.ndarray, " B"]) -> float:
        """One optimizer step on these records; returns the loss."""
        tokens, classes = (part.to(self.device) for part in pad_batch(self.dataset, index))
        self.optimizer.zero_grad()
        narrow = self.precision != torch.float32
        with torch.autocast(self.device.type, self.precision, enabled=narrow):
            loss = F.cross_entropy(self.model(tokens), classes)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()
