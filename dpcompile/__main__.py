"""The command line: `python -m dpcompile demo` and `python -m dpcompile explain MODULE:FACTORY`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from dpcompile import DPCompileError, dpcompile

app = typer.Typer(
    help="Compile PyTorch models for differentially private training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    seed: Annotated[int | None, typer.Option(help="Fix weights, batches and noise (by default noise is fresh).")] = None,
) -> None:
    """Compile, explain, time, train and verify two small models on real data (under two minutes)."""
    from dpcompile.demo.show import run_demo  # noqa: PLC0415  (needs scikit-learn, which `explain` does not)

    if not run_demo(seed):
        raise typer.Exit(1)


@app.command()
def explain(
    factory: Annotated[
        str,
        typer.Argument(metavar="MODULE:FACTORY", help="FACTORY(batch_size) returns (model, loss, batch)."),
    ],
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per step that the plan is made for.")] = 64,
    max_grad_norm: Annotated[float, typer.Option(help="The clip norm C.")] = 1.0,
) -> None:
    """Print the strategy table and the rewritten graph of the model that a factory makes."""
    try:
        model, loss, batch = load_factory(factory)(batch_size)
    except TypeError as error:
        raise typer.BadParameter(f"{factory}({batch_size}) must return (model, loss, batch): {error}") from None
    try:
        private = dpcompile(model, loss=loss, max_grad_norm=max_grad_norm, example_batch=tuple(batch))
    except DPCompileError as refusal:
        typer.echo(f"{type(refusal).__name__}: {refusal}", err=True)
        raise typer.Exit(1) from None
    print(private.report())
    private.print_readable()


def load_factory(path: str) -> Callable[[int], tuple[Any, Any, Any]]:
    """The function behind `package.module:name`; modules of the current directory are found too."""
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise typer.BadParameter(f"{path!r} is not MODULE:FACTORY, for example mymodels:make_cnn")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise typer.BadParameter(str(error)) from None
    if not callable(found):
        raise typer.BadParameter(f"{path} is not callable; FACTORY(batch_size) must return (model, loss, batch)")
    return found


if __name__ == "__main__":
    app()
