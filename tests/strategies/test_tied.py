"""The tied table of a language model: rows, products and their cross terms, without a table per example."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from captured import captured_case
from oracle import errors, expect
from torch import Tensor, fx, nn
from torch.nn import functional as F
from zoo import ZOO

from dpcompile import dpcompile
from dpcompile.ir.graph import size_expression
from dpcompile.kernels import dense, embedding

VOCABULARY, WIDTH, POSITIONS = 509, 32, 11
TABLE = "transformer.wte.weight"


class TiedTransformer(nn.Module):
    """One block of a transformer between a table and its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        """i64[B, T] to f[B, T, V]."""
        return F.linear(self.block(self.table(ids)), self.table.weight)


def of_tokens(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross entropy of the next token, f[B]."""
    logits = model(ids)[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none").view(ids.shape[0], -1).mean(1)


def largest_per_example(graph: fx.Graph) -> float:
    """The most elements per example in any result but logits and their gradients."""
    found = 0.0
    for node in graph.nodes:
        fake = node.meta.get("val")
        if isinstance(fake, Tensor) and any(size_expression(size).free_symbols for size in fake.shape):
            at_one = [size_expression(size) for size in fake.shape]
            found = max(found, float(math.prod(int(s.subs(dict.fromkeys(s.free_symbols, 1))) for s in at_one)))
    return found


@pytest.mark.parametrize("strategy", ["auto", {"table.weight": "cross"}, "bookkeep"], ids=str)
def test_a_tied_table_is_never_formed_per_example(strategy: Any) -> None:
    torch.manual_seed(0)
    model, ids = TiedTransformer().double(), torch.randint(VOCABULARY, (5, POSITIONS))
    right = expect(model, of_tokens, (ids,))
    private = dpcompile(model, loss=of_tokens, strategy=strategy, max_grad_norm=right.max_grad_norm)
    assert max(errors(private(ids), right).values()) < 1e-9
    chosen = {choice.site.parameter: choice.option for choice in private.plan.choices}
    assert (chosen["table.weight"].norm, chosen["table.weight"].sum) == ("cross", "bookkeep")
    assert largest_per_example(private.graph_module.graph) < VOCABULARY * WIDTH


def test_materialising_it_would_be_seen() -> None:
    private = dpcompile(TiedTransformer(), loss=of_tokens, strategy={"table.weight": "materialize"})
    private(torch.randint(VOCABULARY, (5, POSITIONS)))
    assert largest_per_example(private.graph_module.graph) >= VOCABULARY * WIDTH


def test_gpt2_takes_cross_terms_by_force() -> None:
    case = next(case for case in ZOO if case.name == "GPT-2, eager")
    model, loss = case.build(torch.float64)
    batch, kwargs = case.batch(3, torch.float64), case.kwargs(3, torch.float64)
    right = expect(model, loss, batch, kwargs, case.batch_dim)
    private = dpcompile(model, loss=loss, strategy={TABLE: "cross"}, max_grad_norm=right.max_grad_norm, batch_dim=case.batch_dim)
    assert max(errors(private(*batch, **kwargs), right).values()) < 1e-9
    called = {getattr(node.target, "kernel", node.target) for node in private.graph_module.graph.nodes}
    assert embedding.cross_rows_dense in called and embedding.materialize_rows not in called
    assert len(captured_case("GPT-2, eager").site(TABLE).terms) == 2 and dense.sqnorm_gram in called
