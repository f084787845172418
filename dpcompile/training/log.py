"""What a private training did, step by step: a progress bar and one JSON line per step.

Everything computed from losses and norms carries NOT_PRIVATE in its name: it says something of the very examples that were drawn,
is covered by no epsilon, and must stay with whoever may see the data.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from dpcompile.training.accountant import check_delta
from dpcompile.training.optimizer import PrivateOptimizer
from dpcompile.training.session import Session

QUANTILES = (0.1, 0.5, 0.9)


class TrainingLog:
    """Watches an optimizer from `with TrainingLog(optimizer, delta=1e-5, path="log.jsonl", total=steps):` on.

    delta: of the epsilon that is shown; it is computed every `every` steps, for it takes a second. path: a file that lines are
    added to. total: steps for the bar; without it there is no bar. rows: what was recorded.
    """

    def __init__(self, optimizer: PrivateOptimizer, *, delta: float, path: str | os.PathLike[str] | None = None,
                 every: int = 20, total: int | None = None) -> None:  # fmt: skip
        check_delta(delta)
        self.optimizer, self.delta, self.every = optimizer, delta, every
        self.path = None if path is None else Path(path)
        self.rows: list[dict[str, Any]] = []
        self.epsilon = optimizer.get_epsilon(delta)
        self.bar = None if total is None else tqdm(total=total, unit="step")

    def __enter__(self) -> TrainingLog:
        self.optimizer.observers.append(self.observe)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.optimizer.observers.remove(self.observe)
        if self.bar is not None:
            self.bar.close()

    def observe(self, session: Session) -> None:
        """Record one logical step."""
        steps = session.completed
        if steps % self.every == 0:
            self.epsilon = self.optimizer.get_epsilon(self.delta)
        row = {
            "step": steps,
            "epsilon": self.epsilon if steps % self.every == 0 else None,
            "noise_multiplier": self.optimizer.noise_multiplier,
            "max_grad_norm": self.optimizer.max_grad_norm,
            **measured(session),
        }
        self.rows.append(row)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if self.bar is not None:
            self.bar.update()
            share = row["share_clipped_NOT_PRIVATE"]
            clipped = "none drawn (not private)" if share is None else f"{share:.0%} (not private)"
            self.bar.set_postfix(epsilon=f"{self.epsilon:.2f}", clipped=clipped)


def measured(session: Session) -> dict[str, Any]:
    """Loss, share clipped and quantiles of the norms over the examples that were drawn; None (JSON's null) for none.

    The loss is None too where it stays outside of the module (criterion(module(x), y)).
    """
    counted = torch.cat([step.counted & ~step.nonfinite for step in session.steps])
    losses = torch.cat([step.losses for step in session.steps])[counted].double()
    norms = torch.cat([step.norms for step in session.steps])[counted].double()
    kept = [step.unclipped if step.unclipped.dim() == 1 else step.unclipped.all(1) for step in session.steps]
    clipped = (~torch.cat(kept))[counted].double()
    levels = torch.tensor(QUANTILES, dtype=torch.float64, device=norms.device)
    quantiles = norms.quantile(levels).tolist() if len(norms) else [None] * len(QUANTILES)
    return {
        "examples_NOT_PRIVATE": int(counted.sum()),
        "loss_NOT_PRIVATE": float(losses.mean()) if session.is_loss_known and len(losses) else None,
        "share_clipped_NOT_PRIVATE": float(clipped.mean()) if len(clipped) else None,
        "norm_quantiles_NOT_PRIVATE": dict(zip(map(str, QUANTILES), quantiles, strict=True)),
    }
