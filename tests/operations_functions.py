"""Rows of operations: common functions of tensors, and parameters in unusual places."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributions as D
import torch.nn.functional as F
from operations import Row, Using, layer, row
from torch import Tensor, linalg, nn, special
from zoo_case import Draw, floats, integers

F64 = torch.float64


def padding(length: int) -> Draw:
    """A mask bool[B, length] that is true behind each example's own length."""
    return lambda size, dtype, generator: torch.arange(length) >= torch.randint(2, length + 1, (size, 1), generator=generator)


def using(name: str, call: Callable[..., Any], *draws: Draw, refused: str = "", **shapes: tuple[int, ...]) -> Row:
    """A row of a function of parameters m.w, m.v, ... of these shapes, and x."""
    return layer(
        name,
        lambda: Using(call, **{n: nn.Parameter(torch.randn(*s, dtype=F64)) for n, s in shapes.items()}),
        *draws,
        refused=refused,
    )


def both(function: Callable[[Tensor, int], Tensor], x: Tensor) -> Tensor:
    """Along the first and along the second dimension of an example."""
    return torch.cat([function(x, 1).flatten(1), function(x, 2).flatten(1)], 1)


def q(x: Tensor) -> Tensor:
    """Two heads of three features."""
    return x.unflatten(-1, (2, 3)).transpose(1, 2)


def filled(x: Tensor) -> Tensor:
    """A write through a mask."""
    y = x.clone()
    y[y < 0] = 0.5
    return y


def recurrence(m: Any, x: Tensor) -> Tensor:
    """A linear recurrence with learned decay."""
    state, states = torch.zeros_like(x[:, 0]), []
    for step in x.unbind(1):
        state = state * m.w.sigmoid() + step
        states.append(state)
    return torch.stack(states, 1)


def sampled(mode: str, x: Tensor, grid: Tensor) -> Tensor:
    """A resampling with each way to treat places outside."""
    kinds = ("zeros", "border", "reflection")
    return torch.stack([F.grid_sample(x, grid.tanh() * 1.2, mode=mode, padding_mode=p, align_corners=False) for p in kinds], 1)


def reduced(how: str, x: Tensor, index: Tensor) -> Tensor:
    """Reductions into places, with and without what is there."""
    return x.scatter_reduce(1, index, x[:, :3] * 2, how) + x.scatter_reduce(1, index, x[:, 2:] * 2, how, include_self=False)


def padded(mode: str, x: Tensor) -> Tensor:
    """Padding of one, two and three dimensions."""
    one, two = F.pad(x[:, 0, 0], (1, 2), mode=mode), F.pad(x[:, 0], (1, 2, 0, 1), mode=mode)
    return torch.cat([part.flatten(1) for part in (one, two, F.pad(x, (1, 2, 0, 1, 1, 1), mode=mode))], 1)


def definite(x: Tensor) -> Tensor:
    """A positive definite matrix per example."""
    return x @ x.mT + torch.eye(x.shape[-2], dtype=F64)


def regular(x: Tensor) -> Tensor:
    """A matrix far from singular per example."""
    return x + 5 * torch.eye(x.shape[-1], dtype=F64)


UNARY = [
    "abs",
    "acos",
    "angle",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "ceil",
    "cos",
    "cosh",
    "deg2rad",
    "erf",
    "exp",
    "expm1",
    "floor",
    "frac",
    "log",
    "log10",
    "log2",
    "neg",
    "positive",
    "rad2deg",
    "reciprocal",
    "round",
    "rsqrt",
    "sigmoid",
    "sign",
    "sin",
    "sinc",
    "sinh",
    "sqrt",
    "square",
    "tan",
    "tanh",
    "trunc",
    "relu",
    "exp2",
    "nan_to_num",
    "frexp",
]
SPECIAL = [
    "erf",
    "erfc",
    "erfcx",
    "erfinv",
    "expit",
    "exp2",
    "expm1",
    "log1p",
    "logit",
    "digamma",
    "gammaln",
    "entr",
    "i0",
    "i0e",
    "i1",
    "i1e",
    "ndtr",
    "log_ndtr",
    "ndtri",
    "sinc",
]
BINARY = [
    "add",
    "sub",
    "mul",
    "div",
    "maximum",
    "minimum",
    "fmax",
    "fmin",
    "fmod",
    "remainder",
    "pow",
    "atan2",
    "hypot",
    "copysign",
    "logaddexp",
    "logaddexp2",
    "xlogy",
    "float_power",
    "rsub",
]


def unary(x: Tensor) -> list[Tensor]:
    """Functions of one number."""
    found = [getattr(torch, name)(x.sigmoid()) for name in UNARY]
    return [(y[0] if isinstance(y, tuple) else y) * x for y in found]


def specials(x: Tensor) -> list[Tensor]:
    """Functions of torch.special."""
    return [getattr(special, name)(x.sigmoid() * 0.9 + 0.05) * x for name in SPECIAL]


def binary(x: Tensor) -> list[Tensor]:
    """Functions of two numbers."""
    return [getattr(torch, name)(x.sigmoid() + 0.5, x.cos() + 1.7) * x for name in BINARY]


ALONG: dict[str, Callable[[Tensor, int], Tensor]] = {
    "sums of prefixes": lambda x, d: x.cumsum(d) + x.cumprod(d) + x.logcumsumexp(d), "extremes of prefixes": lambda x, d: x.cummax(d)[0] * x.cummin(d)[0],
    "sort": lambda x, d: x.sort(d)[0] * x.sort(dim=d, descending=True, stable=True)[0], "topk": lambda x, d: x.topk(2, d)[0], "kthvalue": lambda x, d: x.kthvalue(2, d)[0] + x.kthvalue(2, d, keepdim=True)[0].sum(d),
    "median": lambda x, d: x.median(d)[0] + x.nanmedian(d)[0], "mode": lambda x, d: x.mode(d)[0], "quantile": lambda x, d: x.quantile(0.3, d) + x.nanquantile(0.4, d), "take_along_dim": lambda x, d: torch.take_along_dim(x, x.argsort(d), d),
    "extremes": lambda x, d: x.max(d)[0] + x.min(d)[0] * x.amax(d) + torch.aminmax(x, dim=d)[0], "differences": lambda x, d: x.diff(dim=d).sum(d) + torch.trapezoid(x, dim=d), "prod": lambda x, d: x.prod(d),
    "moments": lambda x, d: x.var(d) + x.std(d, unbiased=False) + torch.var_mean(x, d)[0] + torch.std_mean(x, d)[0] + x.nansum(d) + x.nanmean(d), "logsumexp": lambda x, d: x.logsumexp(d), "normalize": lambda x, d: F.normalize(x, dim=d),
    "norms": lambda x, d: x.norm(1, dim=d) + x.norm(2, dim=d) + x.norm(3, dim=d) + x.norm(math.inf, dim=d) + linalg.vector_norm(x, dim=d), "count_nonzero": lambda x, d: x.sum(d) * (x > 0).count_nonzero(dim=d),
}  # fmt: skip
MATRICES: dict[str, Callable[[Tensor], Any]] = {
    "inverse": lambda x: linalg.inv(regular(x)), "solve": lambda x: linalg.solve(regular(x), x), "solve for a vector": lambda x: linalg.solve(regular(x), x[..., 0]), "solve from the right": lambda x: linalg.solve(regular(x), x, left=False),
    "one right side": lambda x: linalg.solve(regular(x), torch.eye(4, dtype=F64)), "one matrix": lambda x: linalg.solve(regular(torch.ones(4, 4, dtype=F64)), x), "det": lambda x: linalg.det(regular(x)), "slogdet": lambda x: linalg.slogdet(regular(x))[1],
    "cholesky": lambda x: linalg.cholesky(definite(x)), "cholesky_inverse": lambda x: torch.cholesky_inverse(linalg.cholesky(definite(x))), "cholesky_solve": lambda x: torch.cholesky_solve(x, linalg.cholesky(definite(x))), "matrix_exp": torch.matrix_exp,
    "svdvals": linalg.svdvals, "svd": lambda x: linalg.svd(x, full_matrices=False)[0].abs(), "eigh": lambda x: linalg.eigh(definite(x))[1].abs(), "eigvalsh": lambda x: linalg.eigvalsh(definite(x)), "eigvals": lambda x: linalg.eigvals(x).abs(), "qr": lambda x: linalg.qr(x)[1],
    "pinv": linalg.pinv, "matrix_power": lambda x: linalg.matrix_power(x, 3), "lu": lambda x: linalg.lu(regular(x))[2], "lu_solve": lambda x: linalg.lu_solve(*linalg.lu_factor(regular(x)), x), "solve_triangular": lambda x: linalg.solve_triangular(regular(x).triu(), x, upper=True),
    "householder_product": lambda x: linalg.householder_product(x, x[:, 0].abs()), "nuclear norm": lambda x: linalg.norm(x, "nuc", dim=(1, 2)), "Frobenius norm": linalg.matrix_norm,
}  # fmt: skip
DISTRIBUTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Normal": lambda x: D.Normal(x, x.exp()).log_prob(x * 2), "Categorical": lambda x: D.Categorical(logits=x).log_prob(x.argmax(1)), "Bernoulli": lambda x: D.Bernoulli(logits=x).log_prob((x > 0).to(x.dtype)), "Beta": lambda x: D.Beta(x.exp(), x.exp() + 1).log_prob(x.sigmoid()),
    "Gamma": lambda x: D.Gamma(x.exp(), x.exp() + 1).log_prob(x.exp()), "StudentT": lambda x: D.StudentT(x.exp() + 1, x, x.exp()).log_prob(x * 2), "Poisson": lambda x: D.Poisson(x.exp()).log_prob((x.detach().abs() * 3).floor()), "Laplace": lambda x: D.Laplace(x, x.exp()).log_prob(x * 2),
    "Dirichlet": lambda x: D.Dirichlet(x.exp()).log_prob(x.softmax(1)), "MultivariateNormal": lambda x: D.MultivariateNormal(x, covariance_matrix=definite(x[..., None])).log_prob(x * 2), "MixtureSameFamily": lambda x: D.MixtureSameFamily(D.Categorical(logits=x), D.Normal(x, x.exp())).log_prob(x[:, 0]),
    "OneHotCategorical": lambda x: D.OneHotCategorical(logits=x).log_prob(F.one_hot(x.argmax(1), 5).to(x.dtype)), "Geometric": lambda x: D.Geometric(logits=x).log_prob((x.detach().abs() * 3).floor()), "divergence": lambda x: D.kl_divergence(D.Normal(x, x.exp()), D.Normal(0.0, 1.0)),
}  # fmt: skip

FUNCTIONS: tuple[Row, ...] = (
    row("einsum pair", lambda x: torch.einsum("bij,bkj->bik", x, x), floats(3, 5)),
    row("einsum diag", lambda x: torch.einsum("bii->bi", x), floats(3, 3)),
    row("einsum outer", lambda x: torch.einsum("bi,bj,bk->bijk", x, x, x), floats(3)),
    row("einsum cov", lambda x: torch.einsum("bti,btj->bij", x - x.mean(1, keepdim=True), x - x.mean(1, keepdim=True)) / 6, floats(7, 3)),
    row("bmm", lambda x: torch.bmm(x, x.transpose(1, 2)), floats(3, 5)),
    row("addbmm within", lambda x: torch.stack([x @ x.mT, x @ x.mT], 1).sum(1), floats(3, 5)),
    row("matmul vec", lambda x: (x @ x[:, 0, :, None])[..., 0], floats(3, 5)),
    row("outer per example", lambda x: x.unsqueeze(2) * x.unsqueeze(1), floats(5)),
    row("tensordot", lambda x: torch.tensordot(x, torch.ones(5, 3, 2, dtype=F64), dims=([2, 1], [0, 1])), floats(3, 5)),
    row("multi_dot", lambda x: linalg.multi_dot([x, torch.ones(5, 3, dtype=F64), torch.ones(3, 2, dtype=F64)]), floats(5)),
    row("sdpa", lambda x: F.scaled_dot_product_attention(q(x), q(x), q(x)), floats(5, 6)),
    row("sdpa causal", lambda x: F.scaled_dot_product_attention(q(x), q(x), q(x), is_causal=True), floats(5, 6)),
    row("sdpa bool mask shared", lambda x: F.scaled_dot_product_attention(q(x), q(x), q(x), attn_mask=torch.ones(5, 5, dtype=torch.bool).tril()), floats(5, 6)),
    row("sdpa bool mask own", lambda x, k: F.scaled_dot_product_attention(q(x), q(x), q(x), attn_mask=~k[:, None, None]), floats(5, 6), padding(5)),
    row("sdpa float mask own", lambda x, k: F.scaled_dot_product_attention(q(x), q(x), q(x), attn_mask=k[:, None]), floats(5, 6), floats(5, 5)),
    row("sdpa mask of gradients", lambda x: F.scaled_dot_product_attention(q(x), q(x), q(x), attn_mask=x[:, None, :, :5]), floats(5, 6)),
    row("sdpa 3d", lambda x: F.scaled_dot_product_attention(x, x, x), floats(5, 6)),
    row("sdpa gqa", lambda x: F.scaled_dot_product_attention(q(x), q(x)[:, :1], q(x)[:, :1], enable_gqa=True), floats(5, 6)),
    row("sdpa cross", lambda x, y: F.scaled_dot_product_attention(q(x), q(y), q(y)), floats(5, 6), floats(3, 6)),
    row("sdpa value width", lambda x: F.scaled_dot_product_attention(q(x), q(x), q(x)[..., :2]), floats(5, 6)),
    row("affine_grid", lambda x, t: F.grid_sample(x, F.affine_grid(t, [x.shape[0], 2, 4, 3], align_corners=False), align_corners=False), floats(2, 5, 7), floats(2, 3)),
    row("affine_grid 3d", lambda x, t: F.grid_sample(x, F.affine_grid(t, x.shape, align_corners=False), align_corners=False), floats(2, 3, 4, 5), floats(3, 4)),
    row("fft", torch.fft.fft, floats(3, 7)),
    row("rfft", torch.fft.rfft, floats(3, 7)),
    row("rfft of the transpose", lambda x: torch.fft.rfft(x.mT).mT, floats(7, 3)),
    row("irfft", lambda x: torch.fft.irfft(torch.fft.rfft(x) * 2j, n=7), floats(3, 7)),
    row("rfft2", torch.fft.rfft2, floats(3, 5)),
    row("fftn", lambda x: torch.fft.fftn(x, dim=(1, 2)), floats(3, 5)),
    row("rfftn", lambda x: torch.fft.rfftn(x, dim=(1, 2, 3)), floats(2, 3, 5)),
    row("irfftn", lambda x: torch.fft.irfftn(torch.fft.rfftn(x, dim=(1, 2)), dim=(1, 2)), floats(4, 6)),
    row("hfft", lambda x: torch.fft.hfft(torch.complex(x, x)), floats(5)),
    row("fftshift", lambda x: torch.fft.fftshift(x, dim=1), floats(5)),
    row("stft", lambda x: torch.stft(x, 4, return_complex=True, window=torch.hann_window(4, dtype=F64)), floats(13)),
    row("fft convolution", lambda x: torch.fft.irfft(torch.fft.rfft(x, n=13) * torch.fft.rfft(x, n=13), n=13), floats(7)),
    row("complex", lambda x: torch.complex(x, x.cos()), floats(5)),
    row("polar", lambda x: torch.polar(x.abs() + 0.1, x), floats(5)),
    row("view_as_complex", torch.view_as_complex, floats(5, 2)),
    row("view_as_real", lambda x: torch.view_as_real(torch.complex(x, x)), floats(5)),
    row("complex abs angle", lambda x: (torch.complex(x, x + 1).abs() + torch.complex(x, x + 1).angle()), floats(5)),
    row("conj", lambda x: (torch.complex(x, x).conj() * torch.complex(x, 1 - x)), floats(5)),
    row("real imag", lambda x: torch.complex(x, x * 2).real + torch.complex(x, x * 2).imag, floats(5)),
    row("complex matmul", lambda x: torch.complex(x, x) @ torch.complex(x, -x).mH, floats(3, 5)),
    row("complex exp", lambda x: torch.exp(1j * x), floats(5)),
    row("rotary", lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones(7, 3, dtype=F64), torch.arange(21.0, dtype=F64).view(7, 3))).flatten(-2), floats(7, 6)),
    row("argmax one hot", lambda x: x * F.one_hot(x.argmax(1), 5), floats(5)),
    row("topk indices scatter", lambda x: torch.zeros_like(x).scatter(1, x.topk(2, 1)[1], x.topk(2, 1)[0]), floats(5)),
    row("top-k mask", lambda x: x.masked_fill(x < x.topk(2, 1)[0][:, -1:], 0.0), floats(5)),
    row("roll", lambda x: x.roll((1, 2), (1, 2)), floats(3, 5)),
    row("flip", lambda x: x.flip((1, 2)), floats(3, 5)),
    row("rot90", lambda x: x.rot90(1, (1, 2)), floats(3, 5)),
    row("pad value", lambda x: F.pad(x, (1, 2), value=2.5), floats(3, 5)),
    row("pad negative", lambda x: F.pad(x, (-1, 2)), floats(3, 5)),
    row("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), floats(4, 3, 5)),
    row("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), floats(1, 4, 6)),
    row("channel_shuffle", lambda x: F.channel_shuffle(x, 3), floats(6, 2, 5)),
    row("unfold fold", lambda x: F.fold(F.unfold(x, 2), (4, 5), 2), floats(2, 4, 5)),
    row("tensor unfold", lambda x: x.unfold(1, 3, 2), floats(7, 2)),
    row("gather", lambda x, i: x.gather(1, i), floats(5), integers(5, 3)),
    row("scatter", lambda x, i: torch.zeros_like(x).scatter(1, i, x[:, :3]), floats(5), integers(5, 3)),
    row("scatter value", lambda x, i: x.scatter(1, i, 2.0), floats(5), integers(5, 1)),
    row("scatter_add", lambda x, i: x.scatter_add(1, i, x[:, :3] ** 2), floats(5), integers(5, 3)),
    row("index_add", lambda x: x.index_add(1, torch.tensor([0, 2, 0]), x[:, :3], alpha=0.5), floats(5)),
    row("index_select", lambda x: x.index_select(1, torch.tensor([0, 2, 0])), floats(5)),
    row("index_copy", lambda x: x.index_copy(1, torch.tensor([0, 2]), x[:, 3:] * 2), floats(5)),
    row("index_fill", lambda x: x.index_fill(1, torch.tensor([0, 2]), 1.5), floats(5)),
    row("index list", lambda x: x[:, [0, 2, 0]], floats(5)),
    row("index two lists", lambda x: x[:, [0, 2], [1, 1]], floats(3, 5)),
    row("index none", lambda x: x[:, None, ..., 0], floats(3, 5)),
    row("batched index", lambda x, i: x[torch.arange(x.shape[0])[:, None], i], floats(5), integers(5, 3)),
    row("batched index mid", lambda x, i: x[torch.arange(x.shape[0]), :, i], floats(3, 5), integers(5)),
    row("setitem mask", filled, floats(5)),
    row("where", lambda x: torch.where(x > 0, x, 2 * x), floats(5)),
    row("clamp", lambda x: x.clamp(-0.5, 0.5), floats(5)),
    row("clamp tensor", lambda x: x.clamp(min=x[:, :1], max=x[:, :1] + 1), floats(5)),
    row("masked_fill", lambda x: x.masked_fill(x > 0.5, -1.0), floats(5)),
    row("tril", lambda x: x.tril(-1), floats(4, 5)),
    row("triu", lambda x: x.triu(1), floats(4, 5)),
    row("diag_embed", lambda x: x.diag_embed(), floats(5)),
    row("diag_embed offset", lambda x: x.diag_embed(1, 1, 2), floats(5)),
    row("diagonal", lambda x: x.diagonal(0, 1, 2), floats(4, 5)),
    row("diagonal offset", lambda x: x.diagonal(1, -2, -1), floats(4, 5)),
    row("trace by diagonal", lambda x: x.diagonal(0, 1, 2).sum(1), floats(4, 4)),
    row("diagonal_scatter", lambda x: torch.diagonal_scatter(x, x[:, 0, :4], 0, 1, 2), floats(4, 5)),
    row("slice_scatter", lambda x: x.slice_scatter(x[:, :2], 1, 1, 3), floats(5)),
    row("select_scatter", lambda x: x.select_scatter(x[:, 0], 1, 2), floats(5)),
    row("cdist rows", lambda x: torch.cdist(x, torch.ones(2, 5, dtype=F64)), floats(5)),
    row("cross", lambda x: torch.cross(x, x.roll(1, 1), dim=-1), floats(5, 3)),
    row("cross dim 1", lambda x: linalg.cross(x, x * x, dim=1), floats(3, 5)),
    row("cosine_similarity", lambda x: F.cosine_similarity(x[:, None], x[:, :, None], dim=-1), floats(3, 5)),
    row("pairwise_distance", lambda x: F.pairwise_distance(x, x.roll(1, 1)), floats(5)),
    row("special.gammainc", lambda x: special.gammainc(torch.full_like(x, 2.0), x.sigmoid()), floats(5)),
    row("special.polygamma", lambda x: special.polygamma(1, x.sigmoid() + 0.5), floats(5)),
    row("special.multigammaln", lambda x: special.multigammaln(x.sigmoid() + 2, 2), floats(5)),
    row("pow scalar", lambda x: x ** 3 + 2 ** x, floats(5)),
    row("pow tensor", lambda x: (x.abs() + 0.1) ** x, floats(5)),
    row("lerp", lambda x: torch.lerp(x, x * x, 0.3), floats(5)),
    row("addcmul", lambda x: torch.addcmul(x, x, x, value=0.5), floats(5)),
    row("straight through", lambda x: x + (x.round() - x).detach(), floats(5)),
    row("kl", lambda x: F.kl_div(x.log_softmax(1), x.roll(1, 1).softmax(1), reduction="none"), floats(5)),
    row("searchsorted", lambda x: x * torch.searchsorted(torch.tensor([-1.0, 0.0, 1.0], dtype=F64), x.detach()), floats(5)),
    row("searchsorted own", lambda x: x * torch.searchsorted(x.detach().sort(1)[0], x.detach()), floats(5)),
    row("bucketize", lambda x: x * torch.bucketize(x.detach(), torch.tensor([-1.0, 0.0, 1.0], dtype=F64)), floats(5)),
    row("renorm", lambda x: x.renorm(2, 0, 0.5), floats(5)),
    row("renorm dim 1", lambda x: x.renorm(2, 1, 0.5), floats(5), refused="renorm"),
    row("repeat_interleave", lambda x: x.repeat_interleave(2, 1), floats(3, 5)),
    row("repeat_interleave tensor", lambda x: x.repeat_interleave(torch.tensor([1, 2, 3]), 1, output_size=6), floats(3, 5)),
    row("repeat", lambda x: x.repeat(1, 2, 3), floats(3, 5)),
    row("expand", lambda x: x[:, None].expand(-1, 3, -1), floats(5)),
    row("split", lambda x: x.split(2, 1)[1], floats(5)),
    row("split sizes", lambda x: x.split([2, 3], 1)[1], floats(5)),
    row("chunk", lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), floats(5)),
    row("unbind", lambda x: x.unbind(1)[1], floats(3, 5)),
    row("stack", lambda x: torch.stack([x, x * x], 2), floats(3, 5)),
    row("tensor_split", lambda x: x.tensor_split(3, 1)[2], floats(7)),
    row("tensor_split at", lambda x: x.tensor_split((1, 4), 1)[1], floats(7)),
    row("movedim", lambda x: x.movedim(1, -1), floats(3, 5, 2)),
    row("swapaxes", lambda x: x.swapaxes(1, 2), floats(3, 5)),
    row("vstack", lambda x: torch.vstack([x, x]).view(2, x.shape[0], 5).sum(0), floats(5)),
    row("unflatten", lambda x: x.unflatten(1, (2, 3)), floats(6)),
    row("ravel examples", lambda x: x.flatten(0, 1).tanh().view(x.shape[0], 3, 5), floats(3, 5)),
    row("squeeze", lambda x: x.squeeze(1), floats(1, 5)),
    row("adjoint", lambda x: x.adjoint() @ x, floats(3, 5)),
    *(row(f"{name} along positions and features", partial(both, function), floats(3, 5)) for name, function in ALONG.items()),
    *(row(f"linalg {name}", function, floats(4, 4)) for name, function in MATRICES.items()),
    *(row(f"distribution {name}", function, floats(5)) for name, function in DISTRIBUTIONS.items()),
    row("unary functions", unary, floats(5)), row("special functions", specials, floats(5)), row("binary functions", binary, floats(5)),
    *(row(f"grid_sample {mode}", partial(sampled, mode), floats(2, 5, 7), floats(3, 4, 2)) for mode in ("bilinear", "nearest", "bicubic")),
    *(row(f"scatter_reduce {how}", partial(reduced, how), floats(5), integers(5, 3)) for how in ("sum", "prod", "mean", "amax", "amin")),
    *(row(f"pad {mode}", partial(padded, mode), floats(2, 3, 5, 4)) for mode in ("constant", "reflect", "replicate", "circular")),
    *(row(f"cdist p={p}", lambda x, p=p: torch.cdist(x, x[:, :2] * 2 + 1, p=p), floats(3, 5)) for p in (1, 2, 3, math.inf)),
    row("siamese", lambda x, y: torch.cat([x, y]).tanh().chunk(2)[0] * torch.cat([x, y]).cos().split(x.shape[0])[1], floats(5), floats(5)),
    row("fft along the batch", lambda x: torch.fft.fft(x, dim=0), floats(5), refused="batch"), row("sort along the batch", lambda x: x.sort(0)[0], floats(5), refused="sort"),
    row("take over the batch", lambda x: torch.take(x, torch.arange(3)[None].expand(x.shape[0], 3)), floats(5), refused="take"), row("boolean indexing", lambda x: x[x > 0].sum() + x, floats(5), refused="depends on the data"),
    row("histogram", lambda x: x * torch.histc(x)[:1], floats(5), refused="histc"), row("flipud", lambda x: x.flipud(), floats(5), refused="flip"),
    row("half of the batch", lambda x: torch.cat([x.chunk(2)[0], x.chunk(2)[1]]), floats(5), refused="batch"), row("least squares", lambda x: linalg.lstsq(x, x)[0], floats(4, 4), refused="lstsq"),
    using("W @ x", lambda m, x: m.w @ x, floats(5, 7), w=(3, 5)),
    using("W @ vec", lambda m, x: (m.w @ x.unsqueeze(2)).squeeze(2), floats(5), w=(3, 5)),
    using("x @ W.T conv style", lambda m, x: torch.einsum("oi,bit->bot", m.w, x), floats(5, 7), w=(3, 5)),
    using("batched W @ x", lambda m, x: m.w @ x, floats(2, 5, 7), w=(2, 3, 5)),
    using("heads einsum", lambda m, x: torch.einsum("btd,hdk->bhtk", x, m.w), floats(7, 5), w=(2, 5, 3)),
    using("baddbmm with parameter", lambda m, x: torch.baddbmm(m.c, x, m.w.expand(x.shape[0], -1, -1)), floats(7, 5), w=(5, 3), c=(1, 1, 3)),
    using("experts", lambda m, x: torch.einsum("bd,edk,be->bk", x, m.w, x.softmax(1)[:, :2]), floats(5), w=(2, 5, 3)),
    using("conv functional own weight", lambda m, x: F.conv2d(x, m.w), floats(2, 4, 5), w=(3, 2, 2, 2)),
    using("parameter prod", lambda m, x: x * m.w.prod(), floats(5), w=(3,)),
    using("parameter cumsum", lambda m, x: x * m.w.cumsum(0), floats(5), w=(5,)),
    using("parameter softmax", lambda m, x: x @ m.w.softmax(1), floats(5), w=(5, 3)),
    using("parameter norm", lambda m, x: x @ (m.w / m.w.norm(dim=0)), floats(5), w=(5, 3)),
    using("parameter triu", lambda m, x: x @ m.w.triu(), floats(5), w=(5, 3)),
    using("parameter diag", lambda m, x: x @ torch.diag(m.w), floats(5), w=(5,)),
    using("parameter diag_embed", lambda m, x: x @ torch.diag_embed(m.w), floats(5), w=(5,)),
    using("parameter flip", lambda m, x: x * m.w.flip(0), floats(5), w=(5,)),
    using("parameter roll", lambda m, x: x * m.w.roll(2), floats(5), w=(5,)),
    using("parameter sort", lambda m, x: x * m.w.sort()[0], floats(5), w=(5,)),
    using("parameter gather", lambda m, x: x * m.w.gather(0, torch.tensor([0, 0, 3, 1, 2])), floats(5), w=(5,)),
    using("parameter index", lambda m, x: x * m.w[torch.tensor([0, 0, 3, 1, 2])], floats(5), w=(5,)),
    using("parameter cat", lambda m, x: x @ torch.cat([m.w, m.v], 1), floats(5), w=(5, 2), v=(5, 3)),
    using("parameter stack", lambda m, x: x @ torch.stack([m.w, m.v], 1), floats(5), w=(5,), v=(5,)),
    using("parameter repeat", lambda m, x: x * m.w.repeat(2)[:5], floats(5), w=(3,)),
    using("parameter repeat_interleave", lambda m, x: x * m.w.repeat_interleave(2), floats(6), w=(3,)),
    using("parameter outer", lambda m, x: x @ torch.outer(m.w, m.v), floats(5), w=(5,), v=(3,)),
    using("parameter kron", lambda m, x: x @ torch.kron(m.w, m.v), floats(6), w=(2, 3), v=(3, 2)),
    using("parameter einsum self", lambda m, x: x @ torch.einsum("ij,kj->ik", m.w, m.w), floats(5), w=(5, 3)),
    using("parameter inv", lambda m, x: x @ torch.inverse(m.w + 4 * torch.eye(5, dtype=F64)), floats(5), w=(5, 5)),
    using("parameter matrix_exp", lambda m, x: x @ torch.matrix_exp(m.w), floats(5), w=(5, 5)),
    using("parameter cholesky", lambda m, x: x @ torch.linalg.cholesky(m.w @ m.w.T + torch.eye(5, dtype=F64)), floats(5), w=(5, 5)),
    using("parameter solve", lambda m, x: x @ torch.linalg.solve(m.w + 4 * torch.eye(5, dtype=F64), m.v), floats(5), w=(5, 5), v=(5, 3)),
    using("parameter logdet", lambda m, x: x * torch.logdet(m.w @ m.w.T + torch.eye(5, dtype=F64)), floats(5), w=(5, 5)),
    using("parameter det", lambda m, x: x * torch.linalg.det(m.w), floats(5), w=(5, 5)),
    using("parameter svdvals", lambda m, x: x[:, :3] * torch.linalg.svdvals(m.w), floats(5), w=(5, 3)),
    using("parameter eigh", lambda m, x: x * torch.linalg.eigvalsh(m.w + m.w.T), floats(5), w=(5, 5)),
    using("parameter qr", lambda m, x: x @ torch.linalg.qr(m.w)[0], floats(5), w=(5, 3)),
    using("parameter pinv", lambda m, x: x[:, :3] @ torch.linalg.pinv(m.w), floats(5), w=(5, 3)),
    using("parameter solve x", lambda m, x: torch.linalg.solve(m.w + 4 * torch.eye(5, dtype=F64), x.mT), floats(3, 5), w=(5, 5)),
    using("parameter solve_triangular x", lambda m, x: torch.linalg.solve_triangular(m.w.triu() + 4 * torch.eye(5, dtype=F64), x.mT, upper=True), floats(3, 5), w=(5, 5)),
    using("parameter fft", lambda m, x: torch.fft.irfft(torch.fft.rfft(x, n=12) * torch.fft.rfft(m.w, n=12), n=12), floats(7), w=(7,)),
    using("parameter complex", lambda m, x: x.to(torch.complex128) @ torch.view_as_complex(m.w), floats(5), w=(5, 3, 2)),
    using("global filter", lambda m, x: torch.fft.irfft2(torch.fft.rfft2(x, dim=(2, 3)) * torch.view_as_complex(m.w), s=(4, 4), dim=(2, 3)), floats(2, 4, 4), w=(2, 4, 3, 2)),
    using("parameter interpolate", lambda m, x: x + F.interpolate(m.w, size=(3, 5), mode="bicubic"), floats(2, 3, 5), w=(1, 2, 2, 2)),
    using("parameter interpolate bilinear", lambda m, x: x + F.interpolate(m.w, size=(3, 5), mode="bilinear"), floats(2, 3, 5), w=(1, 2, 2, 2)),
    using("parameter pad", lambda m, x: x * F.pad(m.w, (1, 1)), floats(5), w=(3,)),
    using("parameter unfold", lambda m, x: x @ m.w.unfold(0, 3, 1), floats(5), w=(7,)),
    using("toeplitz", lambda m, x: x @ m.w[torch.arange(5)[:, None] - torch.arange(5) + 4], floats(5), w=(9,)),
    using("relative bias", lambda m, x: torch.softmax(x @ x.mT + m.w[torch.arange(5)[:, None] - torch.arange(5) + 4], -1), floats(5, 3), w=(9,)),
    using("relative bias heads", lambda m, x: F.scaled_dot_product_attention(q(x), q(x), q(x), attn_mask=m.w[torch.arange(5)[:, None] - torch.arange(5) + 4].permute(2, 0, 1)[None]), floats(5, 6), w=(9, 2)),
    using("parameter as_strided", lambda m, x: x * m.w.as_strided((5,), (2,)), floats(5), refused="as_strided_scatter", w=(9,)),
    using("parameter masked_fill", lambda m, x: x @ m.w.masked_fill(torch.eye(5, dtype=torch.bool), 0.0), floats(5), w=(5, 5)),
    using("parameter where", lambda m, x: x * torch.where(m.w > 0, m.w, m.v), floats(5), w=(5,), v=(5,)),
    using("parameter clamp", lambda m, x: x * m.w.clamp(-1, 1), floats(5), w=(5,)),
    using("parameter scatter", lambda m, x: x * torch.zeros(5, dtype=F64).scatter(0, torch.tensor([0, 2]), m.w), floats(5), w=(2,)),
    using("parameter index_put", lambda m, x: x @ torch.zeros(5, 5, dtype=F64).index_put((torch.triu_indices(5, 5)[0], torch.triu_indices(5, 5)[1]), m.w), floats(5), w=(15,)),
    using("parameter cross", lambda m, x: torch.cross(x, m.w.expand_as(x), dim=-1), floats(3), w=(3,)),
    using("parameter cdist", lambda m, x: torch.cdist(x, m.w), floats(7, 5), w=(3, 5)),
    using("prototypes cdist", lambda m, x: torch.cdist(x, m.w), floats(5), w=(3, 5)),
    using("prototypes diff", lambda m, x: (x[:, None] - m.w).square().sum(2), floats(5), w=(3, 5)),
    using("gaussian kernel", lambda m, x: torch.exp(-torch.cdist(x, m.w).square()), floats(7, 5), w=(3, 5)),
    using("cosine classifier", lambda m, x: F.linear(F.normalize(x), F.normalize(m.w)), floats(5), w=(3, 5)),
    using("cosine similarity", lambda m, x: F.cosine_similarity(x[:, None], m.w, dim=-1), floats(5), w=(3, 5)),
    using("low rank", lambda m, x: x @ (m.w @ m.v), floats(5), w=(5, 2), v=(2, 3)),
    using("fm", lambda m, x: ((x @ m.w).square() - x.square() @ m.w.square()).sum(1, keepdim=True), floats(5), w=(5, 3)),
    using("grid parameter", lambda m, x: F.grid_sample(x, m.w.tanh().expand(x.shape[0], -1, -1, -1), align_corners=False), floats(2, 5, 7), w=(1, 3, 4, 2)),
    using("table lookup by grid", lambda m, x: F.grid_sample(m.w.expand(x.shape[0], -1, -1, -1), x.tanh(), align_corners=False), floats(3, 4, 2), w=(1, 2, 5, 7)),
    using("parameter take_along", lambda m, x, i: m.w.expand(x.shape[0], -1).gather(1, i) * x, floats(3), integers(5, 3), w=(5,)),
    using("parameter index_select ids", lambda m, x, i: m.w.index_select(0, i.flatten()).view(x.shape) * x, floats(3, 2), integers(5, 3), w=(5, 2)),
    using("parameter F.embedding_bag", lambda m, i: F.embedding_bag(i, m.w), integers(5, 3), w=(5, 2)),
    using("parameter one_hot mm", lambda m, i: F.one_hot(i, 5).to(m.w.dtype) @ m.w, integers(5, 3), w=(5, 2)),
    using("parameter logcumsumexp", lambda m, x: x * m.w.logcumsumexp(0), floats(5), refused="sum over the batch", w=(5,)),
    using("parameter cumprod", lambda m, x: x * m.w.cumprod(0), floats(5), w=(5,)),
    using("parameter std", lambda m, x: x * m.w.std(), floats(5), w=(5,)),
    using("weight standardisation", lambda m, x: F.conv1d(x, (m.w - m.w.mean((1, 2), keepdim=True)) / m.w.std((1, 2), keepdim=True)), floats(2, 5), w=(3, 2, 3)),
    using("parameter max", lambda m, x: x * m.w.max(0)[0], floats(5), w=(3, 5)),
    using("parameter amax", lambda m, x: x * m.w.amax(), floats(5), w=(3, 5)),
    using("parameter logsumexp", lambda m, x: x * m.w.logsumexp(0), floats(5), w=(3, 5)),
    using("parameter glu", lambda m, x: x * F.glu(m.w, 0), floats(5), w=(10,)),
    using("parameter layer_norm", lambda m, x: x * F.layer_norm(m.w, (5,)), floats(5), w=(5,)),
    using("parameter group_norm", lambda m, x: x * F.group_norm(m.w, 2)[0], floats(4, 3), w=(1, 4, 3)),
    using("parameter conv of parameter", lambda m, x: F.conv1d(x, F.conv1d(m.w, m.v)), floats(2, 5), w=(3, 2, 4), v=(2, 2, 2)),
    using("parameter unfold F", lambda m, x: x @ F.unfold(m.w, 2)[0], floats(4), w=(1, 1, 3, 3)),
    using("parameter tril indices", lambda m, x: x @ m.w[torch.tril_indices(5, 5)[0], torch.tril_indices(5, 5)[1]].view(5, 3), floats(5), w=(5, 5)),
    using("parameter quantised", lambda m, x: x @ (m.w + (m.w.round() - m.w).detach()), floats(5), w=(5, 3)),
    using("parameter prelu", lambda m, x: F.prelu(x, m.w), floats(4, 5), w=(4,)),
    using("parameter lerp", lambda m, x: torch.lerp(x, x * x, m.w), floats(5), w=(5,)),
    using("parameter addcmul", lambda m, x: torch.addcmul(x, x, m.w), floats(5), w=(5,)),
    using("parameter pow", lambda m, x: (x.abs() + 1) ** m.w, floats(5), w=(5,)),
    using("parameter logaddexp", lambda m, x: torch.logaddexp(x, m.w), floats(5), w=(5,)),
    using("parameter maximum", lambda m, x: torch.maximum(x, m.w), floats(5), w=(5,)),
    using("parameter atan2", lambda m, x: torch.atan2(x, m.w), floats(5), w=(5,)),
    using("ssm scan", recurrence, floats(5, 3), w=(3,)),
    using("parameter expand batch", lambda m, x: torch.cat([m.w.expand(x.shape[0], -1, -1), x], 1), floats(3, 5), w=(1, 2, 5)),
    using("parameter repeat batch", lambda m, x: torch.cat([m.w.repeat(x.shape[0], 1, 1), x], 1), floats(3, 5), w=(1, 2, 5)),
    using("parameter repeat batch as batch", lambda m, x: m.w.unsqueeze(0).repeat(x.shape[0], 1, 1) @ x, floats(3, 5), w=(2, 3)),
    using("bmm of expanded", lambda m, x: torch.bmm(m.w.expand(x.shape[0], -1, -1), x), floats(3, 5), w=(1, 2, 3)),
    using("group linear", lambda m, x: torch.bmm(x.transpose(0, 1), m.w).transpose(0, 1), floats(3, 5), w=(3, 5, 2)),
    using("tied transpose", lambda m, x: (x @ m.w).tanh() @ m.w.T, floats(5), w=(5, 3)),
    using("parameter unbind", lambda m, x: x * m.w.unbind(0)[1] + m.w.unbind(0)[0], floats(5), w=(2, 5)),
    using("parameter chunk", lambda m, x: x @ m.w.chunk(2, 1)[1], floats(5), w=(5, 6)),
    using("parameter split", lambda m, x: (x @ m.w.split(2, 0)[0].T).repeat(1, 1), floats(5), w=(3, 5)),
    using("parameter movedim", lambda m, x: x @ m.w.movedim(0, 1), floats(5), w=(3, 5)),
    using("parameter view", lambda m, x: x @ m.w.view(5, 3), floats(5), w=(15,)),
    using("parameter mean", lambda m, x: x * m.w.mean(0), floats(5), w=(3, 5)),
    using("parameter vandermonde", lambda m, x: x @ (m.w[:, None] ** torch.arange(3)), floats(5), w=(5,)),
    using("parameter tril+exp diag", lambda m, x: x @ (m.w.tril(-1) + torch.diag(m.w.diagonal().exp())), floats(5), w=(5, 5)),
    using("sinkhorn", lambda m, x: x @ (m.w - m.w.logsumexp(1, keepdim=True)).log_softmax(0).exp(), floats(5), w=(5, 5)),
)  # fmt: skip
