"""Sites: where a parameter's gradient is contracted over the batch, and what happens to it afterwards.

A contraction is one node that sums per-example values over the batch. Its family says how the per-example
gradient is formed from the operands, written as an equation with b = example, t = position:

    Dense          "bti,bto->oi"   matrix product of layer input a and output gradient g
    Convolution    "bit,bot->oi"   the same on unfolded inputs, per group
    Rows           "bt,bte->ve"    rows of a table chosen by ids (embedding)
    Total          "bt...->..."    a plain sum (bias, scale, position table)
    LayerScale     "btn,btn->n"    scale of a layer normalisation
    ChannelScale   "bct,bct->c"    scale of a group normalisation
    Opaque         any other operation, differentiated through vmap

A site is one parameter: its contractions (several for a tied or reused weight) and the linear tail from them to
the gradient. A tail is isometric when it only rearranges, so that norms can be taken before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from dpcompile.ir.projection import Projection


@dataclass(frozen=True, slots=True)
class Operand:
    """A per-example value: its examples lie along `dim`, whose size is outer * B * inner."""

    node: fx.Node
    dim: int
    outer: int = 1
    inner: int = 1

    @property
    def folded(self) -> int:
        """How many positions per example are folded into the examples' dimension."""
        return self.outer * self.inner


@dataclass(frozen=True, slots=True)
class Dense:
    """gradient[p, d] = sum over examples and positions of g[t, p] a[t, d]; with `groups` a stack of such products."""

    node: fx.Node
    a: Operand
    g: Operand
    positions: int
    d: int
    p: int
    groups: int = 1
    equation: str = "bti,bto->oi"


@dataclass(frozen=True, slots=True)
class Convolution:
    """Weight gradient of a convolution: x f[N, C, *], g f[N, D, *]; `folded` images per example."""

    node: fx.Node
    x: Operand
    g: Operand
    geometry: Any
    weight_shape: tuple[int, ...]
    positions: int
    input_positions: int
    equation: str = "bit,bot->oi"


@dataclass(frozen=True, slots=True)
class Rows:
    """Table gradient [V, d]: every g[t] is added to row ids[t], except padding_idx (-1: none).

    signed: negative ids count from the end of the table, as in advanced indexing.
    """

    node: fx.Node
    ids: Operand
    g: Operand
    positions: int
    rows: int
    width: int
    padding_idx: int
    signed: bool = False
    equation: str = "bt,bte->ve"


@dataclass(frozen=True, slots=True)
class Total:
    """A sum over the examples and possibly other dimensions `dims` of x; result `shape`."""

    node: fx.Node
    x: Operand
    dims: tuple[int, ...]
    shape: tuple[int, ...]
    elements: int
    equation: str = "bt...->..."


@dataclass(frozen=True, slots=True)
class LayerScale:
    """Scale gradient of a layer normalisation: sum of g * (x - mean) * rstd before the normalised dimensions."""

    node: fx.Node
    x: Operand
    g: Operand
    mean: Operand | None
    rstd: Operand
    normalised: tuple[int, ...]
    elements: int
    equation: str = "btn,btn->n"


@dataclass(frozen=True, slots=True)
class ChannelScale:
    """Scale gradient of a group normalisation: sum of g * (x - mean) * rstd over an image, per channel."""

    node: fx.Node
    x: Operand
    g: Operand
    mean: Operand
    rstd: Operand
    channels: int
    elements: int
    equation: str = "bct,bct->c"


@dataclass(frozen=True, slots=True)
class Opaque:
    """Any other operation that sums over examples: materialised through vmap, one example per call."""

    node: fx.Node
    operands: tuple[Operand, ...]
    shape: tuple[int, ...]
    equation: str = "?"


Contraction = Dense | Convolution | Rows | Total | LayerScale | ChannelScale | Opaque


@dataclass(frozen=True, slots=True)
class Term:
    """One contraction of a site with its way through an isometric tail: transposed or not, and a factor.

    placement: "same", "transposed" or "moved" (rearranged in another way, so cross terms have no closed form).
    """

    contraction: Contraction
    placement: str = "same"
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Site:
    """One parameter's gradient.

    terms: its contractions. tail: the nodes from the contractions to the gradient. isometric: whether norms can be
    taken before the tail. projection: a tail that works row by row, or why it is not known to; empty where there is none.
    """

    parameter: str
    gradient: fx.Node
    terms: tuple[Term, ...]
    tail: tuple[fx.Node, ...]
    isometric: bool
    shape: tuple[int, ...]
    projection: Projection | str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def equation(self) -> str:
        """The equations of the contractions, joined by +."""
        return " + ".join(term.contraction.equation for term in self.terms)

    def __str__(self) -> str:
        return f"{self.parameter}: {self.equation} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Cut:
    """A place from which backward can be run a second time: all gradients of these parameters flow through `frontier`."""

    frontier: Operand
    parameters: tuple[str, ...]
