"""The command line: `python -m dpcompile demo`, `audit`, `explain MODULE:FACTORY` and `calibrate`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dpcompile import HARDWARE, DPCompileError, InvalidInput, dpcompile
from dpcompile.capture import user_line
from dpcompile.clip.rule import KINDS
from dpcompile.plan.methods import METHODS

app = typer.Typer(
    help="Compile PyTorch models for differentially private training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    seed: Annotated[int | None, typer.Option(help="Fix weights, batches and noise (by default noise is fresh).")] = None,
    plot: Annotated[Path, typer.Option(help="Where the plot of accuracy against epsilon goes.")] = Path("demo-accuracy.png"),
) -> None:
    """Compile, explain, time, train privately and verify two small models on real data (under two minutes)."""
    from dpcompile.demo.show import run_demo  # noqa: PLC0415  (needs scikit-learn, which `explain` does not)

    if not run_demo(seed, plot):
        raise typer.Exit(1)


@app.command()
def audit(
    seed: Annotated[int | None, typer.Option(help="Fix weights, canaries, batches and noise.")] = None,
    canaries: Annotated[int, typer.Option(min=10, help="Examples that are in by a coin flip.")] = 1000,
    guesses: Annotated[int, typer.Option(min=2, help="How many of them are guessed, in or out; an even number.")] = 200,
) -> None:
    """Train the demo's digits once with canaries, and bound epsilon from below by how many of them can be recognised."""
    from dpcompile.demo.audit import audit_digits  # noqa: PLC0415  (needs scikit-learn, which `explain` does not)

    try:
        found = audit_digits(seed, canaries, guesses)
    except DPCompileError as refusal:
        typer.echo(f"{type(refusal).__name__}: {refusal}", err=True)
        raise typer.Exit(1) from None
    print(f"measured:  {found.audit}\naccounted: {found.statement}")
    if found.audit.lower_bound > found.accounted:
        print("The measured bound is above the accounted epsilon: this training is less private than it says.")
        raise typer.Exit(2)


@app.command()
def explain(
    factory: Annotated[
        str,
        typer.Argument(metavar="MODULE:FACTORY", help="FACTORY(batch_size) returns (model, loss, batch)."),
    ],
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per step that the plan is made for.")] = 64,
    max_grad_norm: Annotated[float, typer.Option(help="The clip norm C.")] = 1.0,
    clipping: Annotated[str, typer.Option(help=f"The kind of clipping: {', '.join(KINDS)}.")] = "flat",
    strategy: Annotated[str, typer.Option(help=f"auto, a method ({', '.join(METHODS)}) or a norm strategy.")] = "auto",
    hardware: Annotated[str | None, typer.Option(help=f"Plan for one of {', '.join(HARDWARE)}.")] = None,
    memory_budget: Annotated[str | None, typer.Option(help='What the step may need, for example "2 GB".')] = None,
    output: Annotated[Path | None, typer.Option(help="Also write the report here: .html, .json or .txt.")] = None,
    formula: Annotated[str | None, typer.Option(help="Print the prices of this parameter as formulas.")] = None,
) -> None:
    """Print the strategy table and the rewritten graph of the model that a factory makes."""
    model, loss, batch = made_by(factory, batch_size)
    try:
        private = dpcompile(
            model,
            loss=loss,
            max_grad_norm=max_grad_norm,
            clipping=clipping,
            strategy=strategy,
            hardware=hardware,
            memory_budget=memory_budget,
            example_batch=batch,
        )
        if private.plan.batch_size != batch_size:
            raise InvalidInput(f"{factory}({batch_size}) gives {private.plan.batch_size} examples, not --batch-size")
        prices = private.report().formula(formula) if formula else ""
        if output is not None:
            private.report().save(output)
    except DPCompileError as refusal:
        typer.echo(f"{type(refusal).__name__}: {refusal}", err=True)
        raise typer.Exit(1) from None
    print(private.report())
    print(prices, end="")
    private.print_readable()


@app.command()
def calibrate(
    seconds: Annotated[float, typer.Option(min=5.0, help="About how long to measure.")] = 180.0,
    device: Annotated[str, typer.Option(help="cpu or cuda; cuda if there is one.")] = "",
) -> None:
    """Measure this machine, so that plans are made for it and not for a table's row; kept in the user's cache folder."""
    from dpcompile.measure.show import run_calibration  # noqa: PLC0415  (scipy's statistics take a second to load)

    try:
        run_calibration(seconds, device)
    except DPCompileError as refusal:
        typer.echo(f"{type(refusal).__name__}: {refusal}", err=True)
        raise typer.Exit(1) from None


def made_by(path: str, batch_size: int) -> tuple[Any, Any, tuple[Any, ...]]:
    """What a factory returns; its own mistakes in one line, with the place where they happened."""
    factory = load_factory(path)
    try:
        made = factory(batch_size)
    except Exception as error:
        raise typer.BadParameter(f"{path}({batch_size}) raised {type(error).__name__}: {error} at {user_line(error)}") from None
    if not (isinstance(made, tuple) and len(made) == 3 and isinstance(made[2], (tuple, list))):
        raise typer.BadParameter(f"{path}({batch_size}) must return (model, loss, batch), the batch a tuple of tensors")
    return made[0], made[1], tuple(made[2])


def load_factory(path: str) -> Callable[[int], tuple[Any, Any, Any]]:
    """The function behind `package.module:name`; modules of the current directory are found too."""
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise typer.BadParameter(f"{path!r} is not MODULE:FACTORY, for example mymodels:make_cnn")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # whatever the user's module raises on the way
        raise typer.BadParameter(f"{type(error).__name__}: {error}") from None
    if not callable(found):
        raise typer.BadParameter(f"{path} is not callable; FACTORY(batch_size) must return (model, loss, batch)")
    return found


if __name__ == "__main__":
    app()
