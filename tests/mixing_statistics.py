"""Functions that reduce, scan, order or normalise over the batch, and products in which examples meet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mixing_case import ALONG, FIXED, MEAN, OTHER, OVER, PAIRS, SUM, flat, sequences, with_targets
from torch import Tensor
from zoo_case import integers

UNKNOWN = r"no rule for"
DATA = r"depends on the data|could not trace"


def whitened(h: Tensor) -> Tensor:
    """Decorrelated by the batch's covariance."""
    centred = h - h.mean(0)
    return centred @ torch.linalg.inv(centred.t() @ centred + torch.eye(5))


def rank_of(h: Tensor) -> Tensor:
    """Every value replaced by its rank in the batch."""
    return h * h.argsort(0).argsort(0)


def bin_of(h: Tensor) -> Tensor:
    """Every value replaced by the bin of the batch's quantiles."""
    return h * torch.bucketize(h.detach(), h.detach().flatten().sort().values)


REDUCED = flat({
    "minus the mean": (MEAN, lambda h: h - h.mean(0)),
    "minus half of the mean": (MEAN, lambda h: h - 0.5 * h.mean(0, keepdim=True)),
    "minus the mean of everything": (OVER, lambda h: h - h.mean()),
    "mean without gradient": (MEAN, lambda h: h - h.detach().mean(0)),
    "plus a tiny part of the sum": (SUM, lambda h: h + 1e-12 * h.sum(0)),
    "times the sum of everything": (SUM, lambda h: h * h.sum()),
    "divided by the sum": (SUM, lambda h: h.exp() / h.exp().sum(0)),
    "nansum": ("a reduction runs over the examples", lambda h: h / h.exp().nansum(0)),
    "nanmean": ("a reduction runs over the examples", lambda h: h - h.nanmean(0)),
    "variance": (OVER, lambda h: h / (1 + h.var(0, correction=0))),
    "standard deviation of everything": (OVER, lambda h: h / (1 + h.std(correction=0))),
    "std_mean": (UNKNOWN + "|" + OVER, lambda h: h - torch.std_mean(h, 0, correction=0)[1]),
    "amax": (OVER, lambda h: h - h.amax(0)),
    "maximum of everything": (OVER, lambda h: h / h.abs().max()),
    "minimum with its index": (OVER, lambda h: h - h.min(0).values),
    "aminmax": (UNKNOWN + "|" + OVER, lambda h: h - torch.aminmax(h, dim=0).min),
    "argmax": (OVER, lambda h: h * h.argmax(0)),
    "product": (OVER, lambda h: h * h.tanh().prod(0)),
    "logsumexp": (OVER, lambda h: h - h.logsumexp(0)),
    "global norm": (OVER, lambda h: h / h.norm()),
    "norm over the batch": (OVER, lambda h: h / h.norm(dim=0)),
    "vector_norm over both": (OVER, lambda h: h / torch.linalg.vector_norm(h)),
    "matrix norm": (OVER + "|" + SUM, lambda h: h / torch.linalg.matrix_norm(h)),
    "median": (OVER, lambda h: h - h.median(0).values),
    "median of everything": (OVER, lambda h: h - h.median()),
    "quantile": (UNKNOWN + "|" + ALONG + "|runs|quantile|used as a value", lambda h: h - h.quantile(0.5, dim=0)),
    "kthvalue": (OVER, lambda h: h - h.kthvalue(2, 0).values),
    "mode": (UNKNOWN + "|" + OVER, lambda h: h - h.round().mode(0).values),
    "any": (OVER, lambda h: h * (h > 1).any(0)),
    "count_nonzero": (UNKNOWN + "|" + OVER, lambda h: h * (h > 0).count_nonzero(0)),
    "how many are positive": (OVER + "|" + SUM, lambda h: h / (1 + (h > 0).sum())),
    "item of the maximum": (OVER + "|" + DATA, lambda h: h / h.max().item()),
    "float of the mean": (DATA, lambda h: h - float(h.mean())),
    "numpy in between": (r"could not trace|constant", lambda h: h - torch.from_numpy(h.detach().numpy()).mean(0)),
})  # fmt: skip

ALONG_BATCH = flat({
    "softmax": (ALONG, lambda h: h.softmax(0)),
    "log_softmax": (ALONG, lambda h: h.log_softmax(0)),
    "gumbel softmax": (UNKNOWN + "|" + ALONG, lambda h: F.gumbel_softmax(h, dim=0)),
    "softmin": (ALONG, lambda h: F.softmin(h, dim=0)),
    "cumsum": (ALONG, lambda h: h.cumsum(0)),
    "cumprod": (ALONG + "|" + FIXED, lambda h: h.tanh().cumprod(0)),
    "cummax": (ALONG, lambda h: h.cummax(0).values),
    "logcumsumexp": (ALONG, lambda h: h.logcumsumexp(0)),
    "sort": (ALONG, lambda h: h.sort(0).values),
    "stable sort of everything": (ALONG, lambda h: h.flatten().sort(stable=True).values.view(-1, 5)),
    "ranks": (ALONG, rank_of),
    "bins by quantiles of the batch": (ALONG + "|sorted sequence", bin_of),
    "topk": (ALONG + "|runs", lambda h: h + h.topk(1, 0).values),
    "glu": (r"holds the examples|halv|could not trace|trace", lambda h: F.glu(torch.cat([h, h]), 0)),
    "difference of neighbours": (r"by their place in the batch", lambda h: torch.diff(h, dim=0, prepend=h[:1])),
    "gradient along the batch": (r"by their place|" + FIXED, lambda h: torch.gradient(h, dim=0)[0]),
    "fourier transform along the batch": (UNKNOWN + "|" + ALONG + "|" + FIXED, lambda h: torch.fft.fft(h, dim=0).real),
    "renorm of features": (r"norms over all dimensions but one", lambda h: h.renorm(2, 1, 1.0)),
    "interpolation along the batch": (r"examples lie there|batch", lambda h: F.interpolate(h.t()[None], size=h.shape[0] + 1)[0].t()[:-1]),
    "pooling along the batch": (r"examples lie there", lambda h: F.avg_pool1d(h.t()[None], 3, 1, 1)[0].t()),
    "max pooling along the batch": (r"examples lie there|" + FIXED, lambda h: F.max_pool1d(h.t()[None], 3, 1, 1)[0].t()),
    "convolution along the batch": (
        r"channels or the image of a convolution", lambda h: F.conv1d(h.t()[None], torch.ones(5, 5, 3), padding=1)[0].t()),
    "convolution with the batch as an image": (
        r"channels or the image of a convolution", lambda h: F.conv2d(h[None, None], torch.ones(1, 1, 3, 3), padding=1)[0, 0]),
    "reflection along the batch": (r"examples lie there|batch", lambda h: F.pad(h.t()[None], (1, 0), mode="reflect")[0].t()[:-1]),
    "grid_sample over the batch": (
        r"different axes|batch", lambda h: F.grid_sample(h[None, None], torch.zeros(1, 3, 5, 2), align_corners=False)[0, 0] + h),
})  # fmt: skip

NORMALISED = flat({
    "F.normalize over the batch": (OVER, lambda h: F.normalize(h, dim=0)),
    "F.batch_norm": (r"batch normalisation in training mode", lambda h: F.batch_norm(h, None, None, training=True)),
    "layer_norm over the batch": (r"batch size|normalisation runs over|normalise|batch", lambda h: F.layer_norm(h.t(), (h.shape[0],)).t()),
    "layer_norm over everything": (r"normalisation runs over|batch", lambda h: F.layer_norm(h, tuple(h.shape))),
    "rms_norm over the batch": (r"batch|runs over", lambda h: F.rms_norm(h.t(), (h.shape[0],)).t()),
    "group_norm with the batch as channels": (r"group normalisation over the examples", lambda h: F.group_norm(h[None], 1)[0]),
    "instance_norm with the batch as length": (r"batch normalisation|normalis|holds|batch", lambda h: F.instance_norm(h.t()[None])[0].t()),
    "local_response_norm over the batch": (r"examples lie there|batch", lambda h: F.local_response_norm(h[None], 3)[0]),
    "standardised by hand": (MEAN, lambda h: (h - h.mean(0)) / (h.var(0) + 1e-5).sqrt()),
    "whitened": (MEAN, whitened),
    "centred by a product with ones": (SUM + "|weights that do not belong", lambda h: h - torch.ones(1, h.shape[0]) @ h),
    "covariance": (MEAN + "|" + SUM + "|size|batch", lambda h: h @ torch.cov(h.t())),
    "corrcoef": (MEAN + "|" + SUM + "|size|batch", lambda h: h @ torch.corrcoef(h.t())),
})  # fmt: skip

PRODUCTS = flat({
    "Gram matrix": (PAIRS, lambda h: (h @ h.t()) @ h),
    "second moment": (SUM, lambda h: h @ (h.t() @ h)),
    "second moment by einsum": (SUM, lambda h: torch.einsum("bi,ij->bj", h, torch.einsum("bi,bj->ij", h, h))),
    "pairs by einsum": (PAIRS, lambda h: torch.einsum("bi,ci->bc", h, h).softmax(1) @ h),
    "sum over b by einsum": (SUM, lambda h: h * torch.einsum("bi->i", h)),
    "outer product of a column": (PAIRS, lambda h: torch.outer(h[:, 0], h[:, 0]) @ h),
    "kronecker product": (PAIRS + "|batch|different axes", lambda h: torch.kron(h, h)[:, :5][: h.shape[0]]),
    "tensordot over the batch": (SUM, lambda h: h @ torch.tensordot(h, h, ([0], [0]))),
    "bmm with the batch contracted": (SUM, lambda h: h @ torch.bmm(h.t()[None], h[None])[0]),
    "addmm with itself": (PAIRS, lambda h: torch.addmm(h, h @ h.t(), h)),
    "dot of two columns": (SUM, lambda h: h * torch.dot(h[:, 0], h[:, 1])),
    "trace of the Gram matrix": (PAIRS, lambda h: h * torch.trace(h @ h.t())),
    "matrix of ones": (PAIRS + "|ones", lambda h: torch.ones(h.shape[0], h.shape[0]) @ h),
    "differences of all pairs": (r"every example meets every other", lambda h: (h[:, None] - h[None]).square().sum(1)),
    "cosine similarity of all pairs": (r"every example meets every other|expanded over the batch once more", lambda h: F.cosine_similarity(h[:, None], h[None], dim=2) @ h),
    "cdist": (PAIRS + "|" + OTHER, lambda h: torch.cdist(h, h) @ h),
    "pdist": (UNKNOWN + "|" + PAIRS, lambda h: h * F.pdist(h).sum()),
    "fast weights from the batch": (SUM, lambda h: F.linear(h, h.t() @ h)),
    "weights of a convolution from the batch": (
        r"weight depends on the batch", lambda h: F.conv1d(h[:, None], (h.t() @ h)[:1, None, :3].contiguous(), padding=1)[:, 0]),
    "least squares on the batch": (UNKNOWN + "|" + SUM + "|" + DATA, lambda h: h @ torch.linalg.lstsq(h.detach(), h.detach()[:, :1]).solution.t().expand(5, 5)),
    "qr of the batch": (UNKNOWN + "|" + OTHER, lambda h: torch.linalg.qr(h).Q),
    "singular values of the batch": (UNKNOWN + "|" + DATA, lambda h: h * torch.linalg.svdvals(h)),
    "attention over the batch": (PAIRS + "|different axes", lambda h: F.scaled_dot_product_attention(h[None, None], h[None, None], h[None, None])[0, 0]),
    "attention by hand": (PAIRS, lambda h: (h @ h.t()).softmax(-1) @ h),
    "bilinear of example and neighbour": (r"carries values", lambda h: F.bilinear(h, h.roll(1, 0), torch.ones(5, 5, 5))),
    "distance to the neighbour": (r"carries values", lambda h: h * F.pairwise_distance(h, h.roll(1, 0))[:, None]),
})  # fmt: skip

GROUPS = (
    with_targets("sums per class", SUM + "|different axes", lambda h, y: h - torch.zeros(3, 5).index_add(0, y, h)[y], integers(3)),
    with_targets("one-hot class means", SUM, lambda h, y: h - F.one_hot(y, 3).to(h.dtype) @ (F.one_hot(y, 3).to(h.dtype).t() @ h), integers(3)),
    with_targets("index_add along the batch", r"across examples", lambda h, y: h.index_add(0, y, h), integers(2)),
    with_targets("scatter along the batch", r"across examples", lambda h, y: h.scatter(0, y[:, None].expand(-1, 5), h), integers(2)),
    with_targets("scatter_add along the batch", r"across examples",
                 lambda h, y: h + torch.zeros_like(h).scatter_add(0, y[:, None].expand(-1, 5), h), integers(2)),
    with_targets("scatter_reduce along the batch", UNKNOWN + "|across examples",
                 lambda h, y: h.scatter_reduce(0, y[:, None].expand(-1, 5), h, "amax"), integers(2)),
    with_targets("index_put along the batch", r"across examples", lambda h, y: h.index_put((y,), h), integers(2)),
    with_targets("histogram of the classes", DATA + "|" + UNKNOWN, lambda h, y: h * torch.bincount(y, minlength=3)[y][:, None], integers(3)),
    with_targets("unique classes", DATA, lambda h, y: h * torch.unique(y).shape[0], integers(3)),
    with_targets("number of each class", SUM, lambda h, y: h / F.one_hot(y, 3).sum(0)[y][:, None], integers(3)),
    with_targets("equal classes", r"every example meets every other", lambda h, y: (y[:, None] == y[None]).to(h.dtype) @ h, integers(3)),
    with_targets("masked_select", DATA, lambda h, y: h * h[y > 0].mean(), integers(3)),
    with_targets("masked mean", SUM, lambda h, y: h - (h * (y > 0)[:, None]).sum(0) / (y > 0).sum(), integers(3)),
    with_targets("embedding of the next example's class", r"carries values", lambda h, y: h + F.embedding(y.roll(1), torch.ones(3, 5)), integers(3)),
    with_targets("largest class", OVER, lambda h, y: h * y.max(), integers(3)),
)  # fmt: skip

EXPERTS = sequences({
    "capacity of experts": (ALONG, lambda h: h * (((h.argmax(2) == 0).flatten().cumsum(0) <= 4).view(-1, 7, 1))),
    "load of experts over all tokens": (SUM + "|" + OVER + "|" + MEAN, lambda h: h * h.softmax(2).mean((0, 1))),
    "tokens sorted by expert": (ALONG, lambda h: h.flatten(0, 1)[h.argmax(2).flatten().argsort()].view(-1, 7, 5)),
    "expert choice over the batch": (ALONG, lambda h: h + h.flatten(0, 1).topk(2, 0).values.sum(0)),
    "softmax over all tokens": (ALONG, lambda h: h.flatten(0, 1).softmax(0).view(-1, 7, 5)),
    "histogram": (UNKNOWN, lambda h: h * torch.histc(h.detach(), 5)),
    "attention over the batch axis": (PAIRS + "|different axes|" + SUM,
        lambda h: F.scaled_dot_product_attention(q := h.transpose(0, 1)[:, None], q, q)[:, 0].transpose(0, 1)),
    "batch norm over folded tokens": (r"batch normalisation in training mode", lambda h: F.batch_norm(h.flatten(0, 1), None, None, training=True).view(-1, 7, 5)),
})  # fmt: skip

STATISTICS = REDUCED + ALONG_BATCH + NORMALISED + PRODUCTS + GROUPS + EXPERTS
