"""The only file that touches torch's private interfaces; each use has its reason here.

make_fx, functional_call and the sympy symbols are public. What is not, and why it is needed:
  FakeTensorMode, ShapeEnv          one symbolic batch size with a hint of our own and everything else static, and the
                                    user's line at which a condition on it was met
  fx.experimental._config           `backed_size_oblivious`: a branch on B == 1 must leave a guard
  compiler._is_compiling_flag       transformers branches on mask data unless it believes it is compiled
  autograd stack-trace hooks        the only carrier of source lines from forward to backward nodes
  _ops.OpOverload                   the type of a node's ATen operation, with schema and tags
  _inductor.compile_fx              one compilation for every batch size (torch.compile specialises and recompiles)
  _python_dispatcher                keeps the batch symbol free in im2col's fake kernel
  Distribution._validate_args       whether distributions check values by default, which a trace cannot do
  _detect_is_causal_mask            reads the values of a mask for a hint that nothing depends on
  _pack_padded_sequence             what a trace shows of packing, which is refused
  _select_conv_backend              asks for the batch size (torch 2.11: is B >= 16?) to choose how a convolution runs
  _ASMoutput                        the result type of nn.AdaptiveLogSoftmaxWithLoss
  associative_scan's generic form   reads element counts as numbers, which would fix the batch size
  module._global_*_hooks, FakeTensor  hooks on all modules, which a trace runs; what must not stay in the user's objects
  overrides' stack of modes         modes around the call, which see every function of torch that a trace comes by
  TorchDispatchMode                 sees every operation of the user's own run, also those inside fused functions
  Optimizer._optimizer_step_post_hooks  their order: what a step must not change is put back before others look
  _functorch's vmap fallback        which operations torch.vmap runs example by example, and its advice on that at every call
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import sympy
import torch
import torch._higher_order_ops.associative_scan  # bound by its full name: the package has a function of that name
import torch.fx.experimental._config as fx_config
import torch.utils._pytree as pytree
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._functorch._aot_autograd.logging_utils import setup_stacktrace_preservation_hooks
from torch._guards import TracingContext, tracing
from torch._inductor.compile_fx import compile_fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.modules.adaptive import _ASMoutput
from torch.utils._python_dispatch import TorchDispatchMode

from dpcompile.scan import doubling_scan

Fakes = FakeTensorMode
adaptive_output = _ASMoutput
pack_padded_sequence = torch._pack_padded_sequence
OpOverload = torch._ops.OpOverload
flatten = pytree.tree_flatten  # leaves and structure of nested tuples, lists, dicts and registered containers
function_modes: Callable[[], list[Any]] = torch.overrides._get_current_function_mode_stack


class LocatedShapes(ShapeEnv):
    """A shape environment that remembers the user's line at which it came to rely on a condition, or fixed a symbol."""

    def __init__(self, locate: Callable[[], str]) -> None:
        super().__init__()
        self.locate, self.lines = locate, dict[Any, str]()

    def _log_guard(self, prefix: str, g: Any, forcing_spec: bool) -> None:
        self.lines.setdefault(g, self.locate())
        super()._log_guard(prefix, g, forcing_spec)

    def _set_replacement(self, a: sympy.Symbol, tgt: sympy.Expr, msg: str) -> None:
        self.lines.setdefault(a, self.locate())
        super()._set_replacement(a, tgt, msg)


def new_fakes(locate: Callable[[], str] = str) -> FakeTensorMode:
    """A fake mode with a shape environment of its own; `locate` names the user's line that is running.

    Without its cache: with a symbolic size, making and reading an entry takes longer than running the operation (a fifth
    of the time of a compilation).
    """
    mode = FakeTensorMode(shape_env=LocatedShapes(locate), allow_non_fake_inputs=True)
    mode.cache_enabled = False
    return mode


def fake(mode: FakeTensorMode, tensor: torch.Tensor, batch_dim: int | None, hint: int) -> torch.Tensor:
    """A fake of `tensor`: static, or of size `hint` (symbolic) at `batch_dim`, in the same memory format."""
    if batch_dim is None:
        return mode.from_tensor(tensor.detach(), static_shapes=True)
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dim: (-strides[dim], dim))
    sizes = [hint if dim == batch_dim else tensor.shape[dim] for dim in range(tensor.dim())]
    dense = tensor.new_empty([sizes[dim] for dim in order]).permute([order.index(dim) for dim in range(len(order))])
    dynamic = [DimDynamic.DYNAMIC if dim == batch_dim else DimDynamic.STATIC for dim in range(tensor.dim())]
    return mode.from_tensor(dense, symbolic_context=StatelessSymbolicContext(dynamic_sizes=dynamic))


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[Any]:
    """An attribute of torch's with another value, put back on the way out; gives its own."""
    own = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield own
    finally:
        setattr(owner, name, own)


@contextlib.contextmanager
def tracing_context(mode: FakeTensorMode) -> Iterator[None]:
    """Everything that must hold while a step is traced; restored on the way out."""
    module, scanning = sys.modules["torch._higher_order_ops.associative_scan"], partial(doubling_scan, pytree.tree_leaves)
    with (
        replaced(torch.compiler, "_is_compiling_flag", True),
        replaced(torch.backends.opt_einsum, "enabled", False),  # its planner reads sizes as numbers
        replaced(module, "generic_associative_scan", scanning),
        fx_config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]  # installed when it is imported
        enable_python_dispatcher(),
        mode,
        fx.traceback.preserve_node_meta(),
    ):
        yield


@contextlib.contextmanager
def unguarded_convolutions(mode: FakeTensorMode) -> Iterator[None]:
    """Fake convolutions whose choice of how to run relies on no batch size, for stand-ins of kernels: their results have the
    same sizes either way. A user's own convolutions keep the condition: it is part of what is traced."""
    shapes = mode.shape_env
    assert shapes is not None

    def select(*args: Any, **options: Any) -> Any:
        with shapes.suppress_guards():
            return own(*args, **options)

    with replaced(torch._C, "_select_conv_backend", select) as own:
        yield


@contextlib.contextmanager
def unchecked_distributions() -> Iterator[None]:
    """torch.distributions without the checks of values that are on by default."""
    distribution = torch.distributions.Distribution
    checks = distribution._validate_args
    distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        distribution.set_default_validate_args(checks)


@contextlib.contextmanager
def vmap_fallback(is_allowed: bool) -> Iterator[None]:
    """Whether torch.vmap runs what has no batched form example by example, without advice on stderr, or raises RuntimeError."""
    functorch: Any = torch._C._functorch  # its annotations lack these
    before = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(is_allowed)
    functorch._set_vmap_fallback_warning_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(before)
        functorch._set_vmap_fallback_warning_enabled(True)


def is_fake(value: object) -> bool:
    """Whether this is a tensor without data, as traces use them."""
    return isinstance(value, FakeTensor)


def kinds_of_global_hooks() -> list[dict[int, Callable[..., Any]]]:
    """The hooks that are registered for all modules, by kind."""
    names = ("forward_pre", "forward", "backward_pre", "backward")
    return [getattr(torch.nn.modules.module, f"_global_{name}_hooks") for name in names]


def global_hooks() -> list[Callable[..., Any]]:
    """The hooks that are registered for all modules."""
    return [hook for kind in kinds_of_global_hooks() for hook in kind.values()]


def unchecked_masks() -> contextlib.AbstractContextManager[Any]:
    """Transformers that do not read a mask to find out whether it is causal, which is a hint only: the mask counts."""
    return replaced(
        torch.nn.modules.transformer, "_detect_is_causal_mask", lambda mask, is_causal=None, size=None: is_causal is True
    )


@contextlib.contextmanager
def provenance() -> Iterator[None]:
    """Carry forward provenance to backward nodes; anomaly mode does that and warns about its cost."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Anomaly Detection")
        with torch.autograd.detect_anomaly(check_nan=False):
            yield


def keep_provenance(losses: torch.Tensor) -> None:
    """Make the backward of `losses` remember which forward operation each node belongs to."""
    if losses.grad_fn is not None:
        setup_stacktrace_preservation_hooks([losses.grad_fn])


def trace(function: Callable[..., Any], arguments: Sequence[Any]) -> fx.GraphModule:
    """make_fx with symbolic sizes, under the present fake mode."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute")  # a fake is made of tensors that are no leaves, too
        return make_fx(function, tracing_mode="symbolic")(*arguments)


def require(condition: Any) -> None:
    """Tell the shape environment that a condition on sizes holds."""
    torch._check(condition)


def guards(mode: FakeTensorMode) -> list[sympy.Basic]:
    """The conditions on sizes that tracing relied on."""
    assert mode.shape_env is not None
    return [guard.expr for guard in mode.shape_env.guards]


def line_of(mode: FakeTensorMode, item: sympy.Basic) -> str:
    """The user's line at which a condition was met, or a symbol fixed; empty if none was running."""
    assert isinstance(mode.shape_env, LocatedShapes)
    return mode.shape_env.lines.get(item, "")


def specialised(mode: FakeTensorMode) -> dict[sympy.Symbol, sympy.Expr]:
    """Symbols that tracing replaced by numbers or by other symbols."""
    assert mode.shape_env is not None
    return dict(mode.shape_env.replacements)


def compile_inductor(mode: FakeTensorMode, module: fx.GraphModule) -> Callable[..., Any]:
    """One inductor compilation that is right for every batch size from 1 on, from its cache on disk where it is known."""
    vars(mode.shape_env)["locate"] = str  # the user's lines belong to the trace; a closure has no key in the cache
    arguments = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    with tracing(TracingContext(mode)), torch.no_grad():
        compiled = compile_fx(module, arguments)
    assert callable(compiled), type(compiled)
    return compiled


def unflatten(leaves: Sequence[Any], structure: Any) -> Any:
    """The inverse of `flatten`."""
    return pytree.tree_unflatten(list(leaves), structure)


def leaf_paths(tree: Any) -> list[str]:
    """A readable path for every leaf, in the order of `flatten`."""
    return [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(tree)[0]]


def broadcast_prefix(prefix: Any, tree: Any) -> list[Any]:
    """One entry of `prefix` for every leaf of `tree`, as vmap's in_dims; None entries mean shared."""
    leaves = pytree._broadcast_to_and_flatten(prefix, pytree.tree_structure(tree), is_leaf=lambda x: x is None)
    if leaves is None:
        raise ValueError("not a prefix of the batch")
    return list(leaves)


class Watch(TorchDispatchMode):
    """Call `before(operation, args)` ahead of every ATen operation inside the context, `after(operation, args, result)` after."""

    def __init__(self, before: Callable[..., None] | None = None, after: Callable[..., None] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own carries no annotations
        self.before, self.after = before, after

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.before is not None:
            self.before(func, args)
        found = func(*args, **(kwargs or {}))
        if self.after is not None:
            self.after(func, (args, kwargs), found)
        return found


class Around(TorchDispatchMode):
    """Run every ATen operation inside the context within a context of its own."""

    def __init__(self, context: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own carries no annotations
        self.context = context

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self.context():
            return func(*args, **(kwargs or {}))


def first_post_hook(optimizer: torch.optim.Optimizer, hook: Callable[..., None]) -> torch.utils.hooks.RemovableHandle:
    """Have a hook called behind every step of an optimizer, ahead of the hooks that it has; without effect on one that was not
    made by Optimizer's own constructor, whose steps call no hooks."""
    if not hasattr(optimizer, "_optimizer_step_post_hooks"):
        return torch.utils.hooks.RemovableHandle(OrderedDict())
    handle = optimizer.register_step_post_hook(hook)
    optimizer._optimizer_step_post_hooks.move_to_end(handle.id, last=False)  # type: ignore[attr-defined]  # an OrderedDict
    return handle
