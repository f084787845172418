"""What the loops over time share: the order of the steps, the input part of all gates, and dtypes of their buffers."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Order:
    """The order in which a direction visits the steps of a sequence of length T."""

    steps: range
    earlier: slice
    """Of a [T, ...] tensor, the entries that are the predecessor of some step."""
    later: slice
    """The entries that have a predecessor, aligned with `earlier`."""

    @property
    def first(self) -> int:
        """The step that starts from the initial state."""
        return self.steps[0]

    @property
    def last(self) -> int:
        """The step that ends with the final state."""
        return self.steps[-1]


def visiting_order(length: int, reverse: bool) -> Order:
    """Return the order for `length` steps, from the end when `reverse`."""
    if reverse:
        return Order(range(length - 1, -1, -1), slice(1, None), slice(None, -1))
    return Order(range(length), slice(None, -1), slice(1, None))


def input_part(x: Tensor, w_ih: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> Tensor:
    """Return W_ih x + b_ih + b_hh for all steps, in the dtype of the loop: f[T, B, G*H]."""
    flat = x.reshape(x.shape[0] * x.shape[1], x.shape[2])
    bias = b_ih if b_hh is None or b_ih is None else b_ih + b_hh
    product = torch.mm(flat, w_ih.t()) if bias is None else torch.addmm(bias, flat, w_ih.t())
    return wide(product).view(x.shape[0], x.shape[1], w_ih.shape[0])


def wide(tensor: Tensor) -> Tensor:
    """Return float32 for half precision and the tensor itself otherwise."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def incoming(grad: Tensor | None, like: Tensor) -> Tensor:
    """Return the gradient of all outputs in the dtype of `like: f[T, B, H]`; None is zero."""
    return like.new_zeros(()).expand(like.shape) if grad is None else grad.to(like.dtype)


def owned(grad: Tensor | None, like: Tensor) -> Tensor:
    """Return a writable contiguous f[B, H] copy of a final state's gradient."""
    copy = like.new_zeros(like.shape[1:])
    return copy if grad is None else copy.copy_(grad)
