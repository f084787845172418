"""Rows of operations: modules of torch.nn, its losses and its parametrizations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from operations import Row, Using, layer
from operations_functions import padding
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from zoo_case import booleans, floats, integers, probabilities, signs

F64 = torch.float64


def using(name: str, call: Callable[..., Any], *draws: Any, refused: str = "", **parts: Any) -> Row:
    """A row of a function of modules m.<name>; `parts` makes them."""
    return layer(name, lambda: Using(call, **{key: make() for key, make in parts.items()}), *draws, refused=refused)


def pooled(dims: int, x: Tensor) -> list[Tensor]:
    """Every pooling of 1, 2 or 3 dimensions."""
    f: Callable[[str], Any] = lambda name: getattr(F, f"{name}{dims}d")  # noqa: E731
    most, places = f("max_pool")(x, 2, return_indices=True)
    return [most, f("max_unpool")(most, places, 2, output_size=x.shape[2:]), f("max_pool")(x, 3, stride=2, padding=1, ceil_mode=True), f("max_pool")(x, 2, stride=1, dilation=2),
            f("avg_pool")(x, 3, stride=2, padding=1, ceil_mode=True, count_include_pad=False), f("lp_pool")(x.abs() + 0.1, 2, 2),
            f("adaptive_avg_pool")(x, 2), f("adaptive_max_pool")(x, 2), f("adaptive_max_pool")(x, 3)]  # fmt: skip


def resized(dims: int, x: Tensor) -> list[Tensor]:
    """Every way to resize 1, 2 or 3 dimensions, to a size and by a factor."""
    modes = [
        "nearest",
        "nearest-exact",
        "area",
        {1: "linear", 2: "bilinear", 3: "trilinear"}[dims],
        *(["bicubic"] if dims == 2 else []),
    ]
    found = [F.interpolate(x, size=(4, 7, 3)[:dims], mode=mode) for mode in modes] + [
        F.interpolate(x, scale_factor=1.7, mode=mode) for mode in modes
    ]
    return found + [
        F.interpolate(x, scale_factor=1.7, mode=mode, align_corners=True) for mode in modes if "linear" in mode or "cubic" in mode
    ]


def packed(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    """A recurrent layer on sequences of several lengths."""
    sequences = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return nn.utils.rnn.pad_packed_sequence(m.r(sequences)[0], batch_first=True, total_length=4)[0]


def attended(options: dict[str, Any], m: Any, x: Tensor, behind: Tensor) -> Any:
    """Self-attention with and without weights, under a mask and padding."""
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    given: dict[str, dict[str, Any]] = {
        "mask": {"attn_mask": mask},
        "padding": {"key_padding_mask": behind},
        "causal": {"attn_mask": mask, "is_causal": True},
        "plain": {},
    }
    return [m.a(x, x, x, need_weights=weights, **given[kind], **options)[0] for kind in given for weights in (True, False)]


weight_norm: Callable[..., nn.Module] = parametrizations.weight_norm  # dim=None is allowed, though its annotation says int


def lazy(module: nn.Module, *shape: int) -> nn.Module:
    """A lazy module that has seen its input."""
    module(torch.randn(2, *shape))
    return module


def tracked(module: nn.Module) -> nn.Module:
    """In evaluation mode."""
    return module.eval()


ENCODER: dict[str, Any] = {"d_model": 6, "nhead": 2, "dim_feedforward": 7, "dropout": 0.0, "batch_first": True}
CONVOLUTIONS = {
    1: (nn.Conv1d, nn.ConvTranspose1d, (11,)),
    2: (nn.Conv2d, nn.ConvTranspose2d, (5, 4)),
    3: (nn.Conv3d, nn.ConvTranspose3d, (4, 3, 3)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "strided": {"stride": 2, "padding": 1}, "same": {"padding": "same", "kernel_size": 2}, "valid": {"padding": "valid"}, "reflect": {"padding": 1, "padding_mode": "reflect"}, "circular same": {"padding": "same", "padding_mode": "circular"},
    "replicate": {"padding": 1, "padding_mode": "replicate"}, "dilated": {"padding": 2, "dilation": 2}, "grouped": {"groups": 2}, "depthwise": {"groups": 4, "out_channels": 8},
}  # fmt: skip
ACTIVATIONS = (nn.ELU(0.7), nn.Hardshrink(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Hardswish(), nn.LeakyReLU(), nn.LogSigmoid(), nn.ReLU6(), nn.RReLU().eval(), nn.SELU(), nn.CELU(0.6), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Softplus(2, 3),
               nn.Softshrink(), nn.Softsign(), nn.Tanhshrink(), nn.Threshold(0.1, 0.5), nn.GLU(1), nn.Softmin(1), nn.LogSoftmax(1), nn.Softmax2d(), nn.PReLU(4), nn.LocalResponseNorm(2))  # fmt: skip
TRANSPOSED: dict[str, dict[str, Any]] = {
    "strided": {"stride": 2, "padding": 1, "output_padding": 1},
    "grouped": {"groups": 2, "dilation": 2},
}
MODULES: tuple[Row, ...] = (
    *(layer(f"Conv{d}d {name}", partial(kind, **({"in_channels": 4, "out_channels": 6, "kernel_size": 3 if d < 3 else 2} | options)), floats(4, *size))
      for d, (kind, _, size) in CONVOLUTIONS.items() for name, options in OPTIONS.items() if d == 2 or name in ("same", "replicate", "circular same")),
    *(layer(f"ConvTranspose{d}d {name}", partial(kind, 4, 6, 3, **options), floats(4, *(2, 3, 2)[:d]))
      for d, (_, kind, _) in CONVOLUTIONS.items() for name, options in TRANSPOSED.items() if d == 2 or name == "strided"),
    layer("LazyLinear", lambda: lazy(nn.LazyLinear(3), 5), floats(5)), layer("LazyConv2d", lambda: lazy(nn.LazyConv2d(3, 2), 2, 5, 3), floats(2, 5, 3)), layer("LazyBatchNorm1d", lambda: tracked(lazy(nn.LazyBatchNorm1d(), 4)), floats(4)),
    layer("Bilinear on sequences", lambda: nn.Bilinear(3, 5, 2), floats(7, 3), floats(7, 5)),
    layer("Embedding, rescaled", lambda: nn.Embedding(7, 3, max_norm=1.0), integers(7, 5), refused="max_norm"), layer("EmbeddingBag, rescaled", lambda: nn.EmbeddingBag(7, 3, max_norm=1.0), integers(7, 5), refused="max_norm"),
    using("EmbeddingBag with weights", lambda m, x, w: m.e(x, per_sample_weights=w), integers(7, 5), floats(5), e=lambda: nn.EmbeddingBag(7, 3, mode="sum")),
    using("EmbeddingBag with offsets of the batch", lambda m, x, y: m.e(x.reshape(-1), y.reshape(-1)), integers(7, 5), integers(7, 1), refused="offsets", e=lambda: nn.EmbeddingBag(7, 3)),
    layer("InstanceNorm3d", lambda: nn.InstanceNorm3d(4, affine=True), floats(4, 3, 2, 2)), layer("InstanceNorm1d, tracked, evaluating", lambda: tracked(nn.InstanceNorm1d(4, affine=True, track_running_stats=True)), floats(4, 5)),
    layer("InstanceNorm1d, tracked", lambda: nn.InstanceNorm1d(4, track_running_stats=True), floats(4, 5), refused="batch"), layer("BatchNorm3d, evaluating", lambda: tracked(nn.BatchNorm3d(4)), floats(4, 3, 2, 2)),
    layer("GroupNorm of vectors", lambda: nn.GroupNorm(2, 4), floats(4)), layer("RMSNorm over two dimensions", lambda: nn.RMSNorm((7, 5)), floats(7, 5)),
    *(layer(f"activation {type(m).__name__}", partial(lambda m: m, m), floats(4, 3, 5)) for m in ACTIVATIONS),
    *(layer(f"pooling in {d} dimensions", partial(lambda d: Using(lambda m, x: pooled(d, x)), d), floats(2, *(8, 6, 5)[:d])) for d in (1, 2, 3)),
    *(layer(f"resizing in {d} dimensions", partial(lambda d: Using(lambda m, x: resized(d, x)), d), floats(2, *(3, 5, 4)[:d])) for d in (1, 2, 3)),
    layer("Fold and Unfold", lambda: nn.Sequential(nn.Unfold((2, 3), dilation=(1, 2), padding=1, stride=2), nn.Fold((4, 5), (2, 3), dilation=(1, 2), padding=1, stride=2)), floats(3, 4, 5)),
    layer("shuffles", lambda: nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2)), floats(8, 3, 5)),
    layer("CosineSimilarity", lambda: nn.CosineSimilarity(1), floats(5, 3), floats(5, 3)), layer("PairwiseDistance", lambda: nn.PairwiseDistance(1, keepdim=True), floats(5), floats(5)),
    using("LSTM, packed", packed, floats(4, 3), integers(4, low=1), refused="packed sequence", r=lambda: nn.LSTM(3, 5, batch_first=True)),
    using("cells", lambda m, x, h: [m.l(x, (h, h))[0], m.g(x, h), m.r(x, h)], floats(3), floats(5), l=lambda: nn.LSTMCell(3, 5), g=lambda: nn.GRUCell(3, 5), r=lambda: nn.RNNCell(3, 5)),
    using("LSTM from given states", lambda m, x, h: m.r(x, (h.transpose(0, 1), h.transpose(0, 1)))[1][1].transpose(0, 1), floats(4, 3), floats(1, 5), r=lambda: nn.LSTM(3, 5, batch_first=True)),
    using("LSTM with a projection from given states", lambda m, x, h, c: m.r(x, (h.transpose(0, 1), c.transpose(0, 1)))[1][0].transpose(0, 1), floats(4, 3), floats(2, 3), floats(2, 5), r=lambda: nn.LSTM(3, 5, proj_size=3, bidirectional=True, bias=False, batch_first=True)),
    *(layer(f"MultiheadAttention {name}", partial(lambda o: Using(partial(attended, {}), a=nn.MultiheadAttention(6, 2, batch_first=True, **o)), options), floats(5, 6), padding(5))
      for name, options in (("plain", {}), ("with extra keys", {"add_bias_kv": True, "add_zero_attn": True, "bias": False}))),
    using("MultiheadAttention, weights of heads", lambda m, x, y: m.a(x, y, y[..., :3], average_attn_weights=False), floats(5, 6), floats(7, 4), a=lambda: nn.MultiheadAttention(6, 2, kdim=4, vdim=3, batch_first=True)),
    using("TransformerEncoder, causal mask", lambda m, x, k: m.t(x, mask=torch.ones(5, 5, dtype=torch.bool).triu(1), src_key_padding_mask=k), floats(5, 6), padding(5), t=lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**ENCODER), 1)),
    using("TransformerDecoder, masks", lambda m, x, y, k: m.t(x, y, tgt_mask=torch.ones(5, 5, dtype=torch.bool).triu(1), memory_key_padding_mask=k), floats(5, 6), floats(3, 6), padding(3),
          t=lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(**ENCODER), 1)),
    using("Transformer", lambda m, x, y: m.t(x.transpose(0, 1), y.transpose(0, 1)).transpose(0, 1), floats(5, 6), floats(3, 6), t=lambda: nn.Transformer(6, 2, 1, 1, 7, dropout=0.0, norm_first=True)),
    using("AdaptiveLogSoftmaxWithLoss", lambda m, x, y: m.a(x, y).output, floats(5), integers(11), a=lambda: nn.AdaptiveLogSoftmaxWithLoss(5, 11, [3, 7], head_bias=True, div_value=2.0)),
    using("AdaptiveLogSoftmaxWithLoss, all classes", lambda m, x: m.a.log_prob(x), floats(5), a=lambda: nn.AdaptiveLogSoftmaxWithLoss(5, 11, [3, 7], div_value=2.0)),
    using("AdaptiveLogSoftmaxWithLoss, reduced", lambda m, x, y: m.a(x, y).loss.expand(x.shape[0], 1), floats(5), integers(11), refused="mean", a=lambda: nn.AdaptiveLogSoftmaxWithLoss(5, 11, [3, 7])),
    using("losses of three operands", lambda m, x, y, s: [F.margin_ranking_loss(x, y, s, 0.1, reduction="none"), F.triplet_margin_loss(x, y, y * s, reduction="none", swap=True), F.cosine_embedding_loss(x, y, s[:, 0], reduction="none"),
          F.gaussian_nll_loss(x, y, (x * s).exp(), full=True, reduction="none"), F.gaussian_nll_loss(x, y, y[:, :1].abs(), reduction="none")], floats(5), floats(5), signs(5)),
    using("margin losses", lambda m, x, y: [F.multi_margin_loss(x, y, reduction="none"), F.multi_margin_loss(x, y, p=2, margin=0.7, weight=torch.arange(1.0, 6.0, dtype=F64), reduction="none"), F.hinge_embedding_loss(x[:, 0], 2.0 * (y > 1) - 1, reduction="none")],
          floats(5), integers(5)),
    using("classification losses", lambda m, x, y, p: [F.cross_entropy(x, y, reduction="none", label_smoothing=0.1, weight=torch.arange(1.0, 6.0, dtype=F64), ignore_index=1), F.cross_entropy(x, p, reduction="none", label_smoothing=0.1),
          F.nll_loss(x, y, reduction="none"), F.kl_div(x.log_softmax(1), p, reduction="none"), F.poisson_nll_loss(x, p, full=True, reduction="none")], floats(5), integers(5), probabilities(5)),
    using("elementwise losses", lambda m, x, y: [F.binary_cross_entropy(x.sigmoid(), y, reduction="none"), F.binary_cross_entropy_with_logits(x, y, pos_weight=torch.arange(1.0, 6.0, dtype=F64), reduction="none"), F.soft_margin_loss(x, 2 * y - 1, reduction="none"),
          F.multilabel_soft_margin_loss(x, y, reduction="none"), F.smooth_l1_loss(x, y, beta=0.5, reduction="none"), F.huber_loss(x, y, reduction="none"), F.l1_loss(x, y, reduction="none")], floats(5), booleans(5)),
    *(layer(f"orthogonal weights {width}x4 by {how}", partial(lambda how, width: parametrizations.orthogonal(nn.Linear(4, width), orthogonal_map=how), how, width), floats(7, 4)) for how, width in (("cayley", 4), ("householder", 4), ("matrix_exp", 4), ("matrix_exp", 3))),
    layer("weight norm of a whole weight", lambda: weight_norm(nn.Linear(5, 3), dim=None), floats(7, 5)), layer("weight norm of a transposed convolution", lambda: parametrizations.weight_norm(nn.ConvTranspose1d(2, 3, 2), dim=1), floats(2, 5)),
    layer("spectral norm of a convolution", lambda: tracked(parametrizations.spectral_norm(nn.Conv2d(2, 3, 2))), floats(2, 3, 4)),
)  # fmt: skip
