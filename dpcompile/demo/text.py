"""A small character-level GPT with tied embeddings on the Python documentation that ships inside pydoc_data.

The text is real and needs no network. The token embedding is the output layer too, so its gradient comes from
two places whose cross term counts in the norm.
"""

from __future__ import annotations

from pydoc_data import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpcompile.demo.task import Data, Task

LENGTH = 64  # characters that a model sees at once
HELD_OUT_EXAMPLES = 256


def text_task() -> Task:
    """Blocks of the documentation to train on, later blocks held out."""
    train, held_out, vocabulary = load_blocks()
    return Task(
        title="character GPT (tied embeddings) on the Python documentation",
        example=f"block of {LENGTH} characters",
        model=GPT(vocabulary, width=64, heads=4, depth=2),
        loss=mean_over_tokens,
        train=train,
        held_out=held_out,
        batch_size=64,
        epochs=1,
        max_grad_norm=1.0,
        target_epsilon=8.0,
        target_delta=1e-4,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
    )


class Block(nn.Module):
    """Pre-norm transformer block with causal attention, f32[B, T, width] -> f32[B, T, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then the two-layer network, each added to its input."""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class GPT(nn.Module):
    """Characters i64[B, T] -> logits f32[B, T, vocabulary]."""

    def __init__(self, vocabulary: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.1)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the next character at every position."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def mean_over_tokens(model: nn.Module, ids: Tensor, following: Tensor) -> Tensor:
    """Losses f32[B]: cross entropy averaged over each block's own characters."""
    values = F.cross_entropy(model(ids).flatten(0, 1), following.flatten(), reduction="none")
    return values.view_as(following).mean(1)


def load_blocks() -> tuple[Data, Data, int]:
    """Blocks i64[N, T] with the characters that follow, i64[N, T], and the number of different characters."""
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    characters = sorted(set(text))
    index = {character: i for i, character in enumerate(characters)}
    ids = torch.tensor([index[character] for character in text])
    count = (len(ids) - 1) // LENGTH
    inputs = ids[: count * LENGTH].view(count, LENGTH)
    targets = ids[1 : count * LENGTH + 1].view(count, LENGTH)
    cut = count - HELD_OUT_EXAMPLES
    return (inputs[:cut], targets[:cut]), (inputs[cut:], targets[cut:]), len(characters)
