"""Passes in words: what they take away and by what, and what their soundness takes for granted."""

from __future__ import annotations

import dataclasses
import hashlib

from dpcompile.criteria.choices import Choice, GradientDropping, PrePruning, Ramp


def described(choice: Choice) -> str:
    """A pass in words."""
    rate = f"from {choice.rate.start:.0%} to {choice.rate.end:.0%}" if isinstance(choice.rate, Ramp) else f"{choice.rate:.0%}"
    source = "masks of the user's own"
    if not (isinstance(choice, PrePruning) and choice.masks is not None):
        source = f"{rate} of {choice.granularity} by {choice.criterion}, which reads {choice.rule().source}"
    if isinstance(choice, PrePruning):
        return f"pruned before training: {source}"
    assert isinstance(choice, GradientDropping)
    return f"gradients dropped: {source}; chosen anew every {choice.every} steps"


def identity(choice: Choice) -> str:
    """All that one pass differs from another one in but its batches and its seed, whose generator a checkpoint holds."""
    own = {
        f.name: getattr(choice, f.name) for f in dataclasses.fields(choice) if f.name not in ("public_batch", "example", "seed")
    }
    masks = own.pop("masks", None)
    bits = b"" if masks is None else b"".join(name.encode() + m.cpu().numpy().tobytes() for name, m in sorted(masks.items()))
    told = ", ".join(f"{name}={value!r}" for name, value in own.items())
    return f"{type(choice).__name__}({told}, masks={hashlib.sha256(bits).hexdigest()[:16] if bits else None})"


def assumptions(choice: Choice) -> list[str]:
    """What numbers alone cannot tell: that what the choice was made by holds nothing of the examples."""
    if isinstance(choice, PrePruning) and choice.masks is not None:
        return ["the masks given to PrePruning hold nothing of the examples"]
    told = f"{type(choice).__name__} chooses by {choice.criterion}"
    found = [f"{told}: public_batch holds nothing of the examples"] if choice.rule().needs == "public_batch" else []
    if choice.criterion in {"magnitude", "snip", "synflow", "public gradient"}:
        found.append(f"{told}: weights and buffers hold nothing of the examples but what was released with noise")
    return found
