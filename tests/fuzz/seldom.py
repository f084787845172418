"""Functions of torch that models use seldom, as templates: {0} a value, {d} and so on as in operations, {n} its last size."""

from __future__ import annotations

from fuzz.builder import Builder, Unfit, Value
from fuzz.operations import Operation, filled, has_ties

NUMBERS = (
    "torch.special.expit({0})", "torch.special.erfcx({0}.sigmoid())", "torch.special.i0e({0})", "torch.special.i1({0} * 0.5)",
    "torch.special.ndtr({0})", "torch.special.log_ndtr({0})", "torch.special.entr({0}.sigmoid())",
    "torch.lgamma({0}.abs() + 0.5)", "torch.digamma({0}.abs() + 0.5)", "torch.erfinv({0}.tanh() * 0.9)",
    "torch.asin({0}.tanh() * 0.9)", "torch.sinc({0})", "torch.acosh({0}.square() + 1.1)", "torch.asinh({0})",
    "torch.atanh({0}.tanh() * 0.9)", "torch.deg2rad({0}) * 20", "{0}.frac() + {0}", "{0}.exp2().clamp(max=3)",
    "torch.logaddexp2({0}, -{0})", "torch.copysign({0}, {0} + 0.3)", "torch.remainder({0}, 1.5) * {0}",
    "F.hardshrink({0}, 0.3)", "F.softshrink({0}, 0.3)", "F.threshold({0}, 0.1, 0.5)", "F.celu({0}, 0.7)",
    "F.rrelu({0}, training=False)", "torch.special.polygamma(1, {0}.sigmoid() + 0.5)", "{0}.round() * {0}",
    "torch.rsub({0}, 2.0)", "torch.bucketize({0}.detach(), torch.tensor([-1.0, 0.0, 1.0]).double()) * {0}",
    "torch.frexp({0})[0]", "torch.searchsorted(torch.tensor([-1.0, 0.0, 1.0]).double(), {0}.detach().contiguous()) * {0}",
    "{0}.sub(0.5, alpha=2)", "torch.complex({0}, {0}.cos()).abs()",
    "(torch.complex({0}, {0} + 1) * torch.complex({0}, 1 - {0}).conj()).imag", "torch.complex({0}, {0} * 2).angle()",
    "torch.exp(1j * {0}).real", "torch.view_as_real(torch.complex({0}, {0}.sin())).sum(-1)",
    "torch.view_as_complex(torch.stack([{0}, {0}.cos()], -1)).imag", "torch.empty_like({0}).copy_({0}.tanh())",
    "{0}.clone().fill_(0.5) * {0}", "{0}.new_empty({0}.shape).zero_() + {0}", "{0}.new_ones({0}.shape) * {0}",
    "torch.where({0} > 0, torch.tensor(0.5).double(), {0})", "torch.full({0}.shape, 0.5).double() * {0}",
    "torch.zeros({0}.shape).double() + {0}", "torch.ones({0}.shape).double() * {0}",
    "{0}.masked_fill({0} > 1, torch.tensor(0.5).double())", "torch.empty({0}.shape).double().copy_({0})",
    "torch.distributions.Normal({0}, 1.5).log_prob({0}.detach() * 2)",
    "torch.distributions.Laplace({0}, 1.5).log_prob({0}.detach() * 2)", "torch.distributions.Bernoulli(logits={0}).entropy()",
    "torch.distributions.Gamma({0}.exp(), 1.5).log_prob({0}.detach().exp())",
    "{0}.double().to(torch.float32).to(torch.float64)", "torch.special.gammainc(torch.full_like({0}, 2.0), {0}.sigmoid())",
    "torch.threshold({0}, -0.2, 0.0)", "torch.clamp_min({0}, -0.3)", "{0}.addcdiv({0}, {0}.square() + 1, value=0.5)",
)  # fmt: skip

DRAWN = (
    "{0} + 0 * torch.rand_like({0})", "{0} + 0 * torch.randn_like({0})", "torch.where(torch.rand({0}.shape) < 2, {0}, 0.0)",
    "{0} * torch.bernoulli(torch.ones_like({0}))", "F.dropout({0}, 0.0, training=True)",
    "F.feature_dropout({0}, 0.0, training=True)", "{0} + 0 * torch.randint_like({0}, 3)",
    "{0} + 0 * torch.randint(0, 3, {0}.shape)", "{0} + 0 * torch.randn({0}.shape)", "{0} + 0 * torch.normal({0}.detach(), 1.0)",
    "{0} + 0 * torch.normal({0}.detach(), torch.ones_like({0}))", "{0} + 0 * torch.normal(0.0, torch.ones_like({0}))",
    "{0} + 0 * torch.empty_like({0}).uniform_()", "{0} + 0 * torch.empty_like({0}).normal_()",
    "{0} + 0 * torch.empty_like({0}).exponential_()", "{0} + 0 * torch.empty_like({0}).log_normal_()",
    "{0} + 0 * torch.empty_like({0}).geometric_(0.5)", "{0} + 0 * torch.poisson(torch.ones_like({0}))",
    "{0} + 0 * torch.empty_like({0}).bernoulli_(0.5)",

    "F.alpha_dropout({0}, 0.0, training=True)", "{0} + 0 * torch.empty_like({0}).random_(0, 5)",
    "{0} + 0 * torch.empty_like({0}).bernoulli_(torch.full_like({0}, 0.5))", "F.rrelu({0}, 0.2, 0.2 + 1e-15, training=True)",
    "{0} + 0 * torch.empty_like({0}).cauchy_().tanh()",
    "{0} + 0 * torch.distributions.Gamma(torch.ones_like({0}), 1.0).sample()",
)  # fmt: skip

ALONG = (
    "{0}.mode({d})[0] * 0.5 + {0}.sum({d})", "{0}.nanmedian({d})[0]", "{0}.quantile(0.3, {d})",
    "{0}.argmin({d}, keepdim=True) * {0} * 0.1", "torch.fft.fft({0}, dim={d}).real",
    "torch.fft.rfft({0}, dim={d}).imag.sum({d})", "torch.fft.irfft(torch.fft.rfft({0}, dim={d}) * 2, n={n}, dim={d})",
    "torch.fft.fftshift({0}, dim={d})", "{0}.norm(1, dim={d})", "{0}.norm(3, dim={d})", "{0}.norm(float('inf'), dim={d})",
    "{0}.index_copy({d}, torch.tensor([{i}]), {0}.narrow({d}, {j}, 1) * 2)",
    "{0}.scatter({d}, {0}.argmax({d}, keepdim=True), 2.0)", "{0}.scatter_reduce({d}, {0}.argsort({d}), {0} * 2, 'mean')",
    "{0}.scatter_reduce({d}, {0}.argsort({d}), {0} * 2, 'amax')",
    "{0}.index_reduce({d}, torch.tensor([{i}]), {0}.narrow({d}, {j}, 1) * 2, 'mean')", "{0}.argsort({d}) * {0} * 0.1",
    "{0}.argsort(dim={d}, stable=True) * {0} * 0.1", "{0}.unsafe_chunk(2, {d})[0]", "torch.unsafe_split({0}, {k}, {d})[0]",
    "{0}.diag_embed(0, -2, -1).sum(-1)", "torch.searchsorted({0}.detach().sort(-1)[0], {0}.detach().contiguous()) * {0}",
    "{0}.repeat_interleave(torch.arange({n}) + 1, {d}, output_size=sum(range({n} + 1)))",
    "{0}.as_strided({0}.shape, {0}.stride()) * 2", "{0}.roll((1, 2), ({d}, {d}))", "torch.std({0}, {d}) + {0}.sum({d})",
    "{0}.nanquantile(0.4, {d})", "{0}.softmax({d}, dtype=torch.float64) * {0}", "torch.var_mean({0}, {d}, correction=0)[0]",
    "({0} > 0).any({d}) * {0}.sum({d})", "({0} > -1).all({d}) * {0}.sum({d})", "{0}.cumprod({d}).clamp(-2, 2)",
    "torch.cumulative_trapezoid({0}, dim={d})", "{0}.renorm(2, 0, 0.5)", "F.pad({0}, (1, -1), value=0.5)",
)  # fmt: skip

VECTORS = (
    "torch.cdist({0}, torch.arange(2.0 * {n}).reshape(2, {n}).double())", "F.pairwise_distance({0}, {0}.roll(1, 1))",
    "{0}.diag_embed()", "{0}.diag_embed(1, 1, 2)", "{0}.unsqueeze(2) * {0}.unsqueeze(1)",
    "{0}.gather(1, {0}.argsort(1)[:, :1])", "torch.distributions.Categorical(logits={0}).entropy().unsqueeze(1)",
    "torch.distributions.Dirichlet({0}.exp()).log_prob({0}.detach().softmax(1)).unsqueeze(1)",
    "{0} * F.one_hot({0}.argmax(1), {n})", "{0}.masked_fill({0} < {0}.topk(1, 1)[0], 0.0)",
    "{0} @ torch.ones({n}, {n}).double().triu()",
    "torch.stft({0}, 2, return_complex=True, window=torch.ones(2).double()).abs().square()",
    "{0}.unflatten(1, ({n}, 1)).squeeze(2)", "torch.cross({0}[:, :3], {0}[:, :3].roll(1, 1), dim=1)",
    "{0}[torch.arange({0}.shape[0])[:, None], {0}.argsort(1)]", "torch.cat([{0}, {0}.cos()]).tanh().chunk(2)[0]",
    "torch.vstack([{0}, {0}]).view(2, {0}.shape[0], {n}).sum(0)", "torch.stack([{0}, {0}.sin()]).sum(0)",

    "(torch.multinomial({0}.detach().softmax(1), 1) * 0 + 1) * {0}", "torch.addmm({0}, {0}, torch.eye({n}).double())",
    "torch.mv({0}, torch.arange({n}).double()).unsqueeze(1) * 0.3",
    "torch.addmv({0}[:, 0], {0}, torch.ones({n}).double()).unsqueeze(1)", "{0}.T.t() * 2",
    "{0}.new_zeros({0}.shape[0], 3) + {0}[:, :1]", "torch.column_stack([{0}, {0}[:, 0]])",
    "torch.tensordot({0}, torch.ones({n}, 2).double(), 1)",
)  # fmt: skip

MATRICES = (
    "torch.linalg.inv({R})", "torch.linalg.solve({R}, {0})", "torch.linalg.solve({R}, {0}[..., 0])",
    "torch.linalg.det({R}).unsqueeze(1) * 1e-2", "torch.linalg.slogdet({R})[1].unsqueeze(1)", "torch.linalg.cholesky({P})",
    "torch.cholesky_inverse(torch.linalg.cholesky({P}))", "torch.cholesky_solve({0}, torch.linalg.cholesky({P}))",
    "torch.matrix_exp({0} * 0.3)", "torch.linalg.svdvals({0})", "torch.linalg.eigvalsh({P})", "torch.linalg.eigh({P})[1].abs()",
    "torch.linalg.qr({R})[1].abs()", "torch.linalg.pinv({R})", "torch.linalg.matrix_power({0} * 0.5, 3)",
    "torch.linalg.lu({R})[2]", "torch.linalg.lu_solve(*torch.linalg.lu_factor({R}), {0})",
    "torch.linalg.solve_triangular({R}.triu(), {0}, upper=True)",
    "torch.linalg.householder_product({0}, {0}[:, 0].abs()) * 0.3", "torch.linalg.matrix_norm({0}).unsqueeze(1)",
    "torch.linalg.eigvals({R}).abs().sum(-1, keepdim=True)", "torch.triangular_solve({0}, {R}.triu())[0]",
    "torch.linalg.eig({R})[0].real.sum(-1, keepdim=True)", "torch.ormqr({0}, {0}[:, 0].abs(), {0}) * 0.1",
    "torch.linalg.svd({0}, full_matrices=False)[0].abs()",
)  # fmt: skip

PAIRS = (
    "torch.cdist({0}, {0}[:, :2] * 2 + 1, p=1)", "torch.cdist({0}, {0}[:, :2] * 2 + 1)",
    "torch.cdist({0}, {0}[:, :2] * 2 + 1, p=3)", "{0}.rot90(1, (1, 2))",
    "torch.linalg.cross({0}[..., :3], {0}[..., :3].square())",
    "torch.diagonal_scatter({0}, {0}.diagonal(0, 1, 2) * 2, 0, 1, 2)", "{0}.adjoint() @ {0}",
    "torch.baddbmm({0} @ {0}.mT, {0}, {0}.mT, alpha=0.5)", "torch.fft.rfft2({0}).abs().square() * 0.1",
    "F.fold({0}[:, :4, :4].repeat(1, 4, 4)[:, :4, :4], (3, 3), 2)",
    "torch.fft.irfftn(torch.fft.rfftn({0}, dim=(1, 2)), s={0}.shape[1:], dim=(1, 2))",
    "{0}.diagonal(0, 1, 2).sum(1, keepdim=True)", "F.avg_pool1d({0}, 2, ceil_mode=True)", "F.lp_pool1d({0}.abs() + 0.1, 2, 2)",
    "F.max_unpool1d(*F.max_pool1d({0}, 2, return_indices=True), 2)", "F.interpolate({0}, size=5, mode='nearest-exact')",
    "F.interpolate({0}, scale_factor=1.7, mode='linear')", "F.interpolate({0}, size=3, mode='nearest')",
    "F.adaptive_avg_pool1d({0}, 1)", "F.max_pool1d({0}, 2, stride=1, dilation=2)", "{0}[:, [0, 1], [1, 0]]",
    "{0}.index_put((torch.arange({0}.shape[0]), {0}.sum(2).argmax(1)), {0}[:, 0] * 2)",
)  # fmt: skip

VOLUMES = (
    "F.avg_pool3d({0}, 2)", "F.max_pool3d({0}, 2)", "F.max_pool3d({0}, 3, 2, 1)", "F.adaptive_avg_pool3d({0}, 1)",
    "F.adaptive_avg_pool3d({0}, 2)", "F.adaptive_max_pool3d({0}, 2)", "F.interpolate({0}, size=(2, 3, 2), mode='trilinear')",
    "F.interpolate({0}, size=(2, 3, 2))", "F.interpolate({0}, size=(2, 3, 2), mode='nearest-exact')",
    "F.pad({0}, (1, 0, 1, 0, 0, 1), mode='replicate')", "F.pad({0}, (1, 0, 1, 0, 0, 1), mode='reflect')",
    "F.pad({0}, (0, 1, 0, 1))", "{0}.mean((2, 3, 4))", "{0}.flatten(3)", "{0}.flatten(2)", "{0}.permute(0, 2, 1, 3, 4)",
    "{0}[:, :, 0]", "F.max_unpool3d(*F.max_pool3d({0}, 2, return_indices=True), 2)", "F.instance_norm({0})", "{0}.amax(-1)",
    "F.interpolate({0}, scale_factor=1.5)",
    "F.grid_sample({0}, torch.linspace(-0.9, 0.9, 24).reshape(1, 2, 2, 2, 3).to({0}).expand({0}.shape[0], -1, -1,"
    " -1, -1), align_corners=False)",
)  # fmt: skip

PARAMETERS = (
    "{0} * {w}.cumsum(0)", "{0} * {w}.roll(1)", "{0} * {w}.sort()[0]", "{0} * {w}.prod()", "{0} * {w}.logsumexp(0)",
    "{0} * {w}.std()", "{0} * {w}.amax()", "{0} * {w}.var()", "{0} @ torch.diag({w})", "{0} @ torch.outer({w}, {w}).triu()",
    "{0} @ torch.linalg.inv(torch.outer({w}, {w}) + 40 * torch.eye({n}).double()) * 20", "{0} * {w}.cumprod(0).clamp(-2, 2)",
    "torch.lerp({0}, {0}.cos(), {w})", "torch.logaddexp({0}, {w})", "torch.atan2({0}, {w})", "({0}.abs() + 1) ** {w}.tanh()",
    "{0} * F.layer_norm({w}, ({n},))", "{0} * {w}.index_select(0, torch.arange({n}).flip(0))",
    "{0} * {w}.repeat_interleave(2)[::2]", "{0} * {w}.unfold(0, 1, 1)[:, 0]", "{0} * {w}[torch.tensor([0] * {n})]",
    "{0} * {w}.scatter(0, torch.tensor([0]), 0.5)", "torch.addcmul({0}, {0}, {w})", "{0} * F.pad({w}, (1, 0))[1:]",
    "{0} * ({w} + ({w}.round() - {w}).detach())", "{0} * {w}.masked_fill({w} > 0.5, 0.1)", "{0} * {w}.clamp(-1, 1)",
    "({0}.unsqueeze(-2) - {w}).square().sum(-2)", "{0} * torch.dot({w}, {w}).sqrt()", "{0} * {w}.unsqueeze(0).repeat(2, 1)[1]",
    "{0} * {w}.mean().expand({n})", "{0} * {w}.flip(0).detach() + {w}.sigmoid()", "{0} * {w}.norm(1)",
)  # fmt: skip


def seldom(b: Builder) -> object:
    """Element by element."""
    return b.add("seldom", b.choose(NUMBERS), b.value())


def drawn(b: Builder) -> object:
    """Random numbers that change nothing, so that a loop over single examples agrees whatever it draws."""
    return b.add("drawn", b.choose(DRAWN), b.value())


def along(b: Builder) -> object:
    """Along one dimension of the example."""
    value = b.value(lambda v: v.rank > 1 and not has_ties(v))
    return b.add("seldom along", filled(b, b.choose(ALONG), value), value)


def of_rank(b: Builder, name: str, templates: tuple[str, ...], rank: int) -> Value:
    """A template for values with the examples in front and this many dimensions."""
    value = b.value(lambda v: v.dim == 0 and v.rank == rank and v.shape[-1] > 1 and not has_ties(v))
    return b.add(name, b.choose(templates).replace("{n}", str(value.shape[-1])), value)


def vectors(b: Builder) -> object:
    """Functions of [B, n]."""
    return of_rank(b, "vectors", VECTORS, 2)


def pairs(b: Builder) -> object:
    """Functions of [B, m, n]."""
    return of_rank(b, "pairs", PAIRS, 3)


def volumes(b: Builder) -> object:
    """Pooling, padding and resizing of [B, C, D, H, W]."""
    return of_rank(b, "volumes", VOLUMES, 5)


def matrices(b: Builder) -> object:
    """Functions of a square matrix per example: made regular ({R}), or definite ({P}), where they ask for it."""
    value = b.value(lambda v: v.dim == 0 and v.rank == 3 and not has_ties(v))
    n = min(value.shape[1:])
    if n < 2:
        raise Unfit
    cut = value if value.shape[1] == value.shape[2] else b.add("square", f"{{0}}[:, :{n}, :{n}]", value)
    eye = f"torch.eye({n}).double()"
    template = b.choose(MATRICES).replace("{R}", f"({{0}} * 0.3 + 5 * {eye})").replace("{P}", f"({{0}} @ {{0}}.mT + {eye})")
    return b.add("matrices", template, cut)


def parameters(b: Builder) -> object:
    """Functions of a bare parameter that is as long as the last dimension."""
    value = b.value(lambda v: v.rank > 1 and v.dim != v.rank - 1 and v.shape[-1] > 1)
    template = b.choose(PARAMETERS).replace("{n}", str(value.shape[-1])).replace("{w}", b.parameter(value.shape[-1]))
    return b.add("parameters", template, value)


SELDOM: dict[str, Operation] = {
    "seldom": seldom, "drawn": drawn, "seldom along": along, "vectors": vectors, "pairs": pairs, "matrices": matrices,
    "parameters": parameters,
}  # fmt: skip
