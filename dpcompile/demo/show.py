"""What `python -m dpcompile demo` prints, in the order of the work: compile, explain, time, train, verify."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from dpcompile import PrivateModule, dpcompile
from dpcompile.demo.digits import digits_task
from dpcompile.demo.task import Task
from dpcompile.demo.text import text_task
from dpcompile.demo.timing import ROUNDS, step_times
from dpcompile.demo.train import Progress, Training

VERIFIED_EXAMPLES = 8
NOT_PRIVATE = (
    "The statements are about the trained parameters. The losses, clipped shares and accuracies shown here are computed from"
    " the data and are not private; the noise comes from torch's generator, seeded by the operating system, which is not "
    "cryptographic (PrivacyEngine(secure_mode=True) is)."
)
POINTS = 8
"""How often accuracy is measured while training, for the plot."""
Curve = list[tuple[float, float]]


def run_demo(seed: int | None, plot: Path) -> bool:
    """Run both tasks; whether every verification passed."""
    console = Console()
    start = time.perf_counter()
    torch.set_num_threads(1)  # models this small only lose by sharing their work
    torch.manual_seed(0 if seed is None else seed)  # initial weights
    is_equal, digits = run_task(console, digits_task(), seed, show_graph=True)
    also, text = run_task(console, text_task(), seed, show_graph=False)
    draw_curves({"handwritten digits": digits, "next characters": text}, plot)
    console.rule("done")
    console.print(NOT_PRIVATE, soft_wrap=True)
    console.print(f"accuracy against epsilon: {plot}", soft_wrap=True)
    console.print(f"{time.perf_counter() - start:.0f} s in total, torch {torch.__version__}, one thread")
    return is_equal and also


def run_task(console: Console, task: Task, seed: int | None, show_graph: bool) -> tuple[bool, Curve]:
    """Compile, explain, time, train and verify one task; whether the verification passed, and accuracy against epsilon."""
    parameters = sum(p.numel() for p in task.model.parameters())
    console.rule(f"[bold]{task.title}")
    console.print(f"{len(task.train[0])} training examples (one {task.example} each), {parameters} parameters")
    private = compile_task(console, task)
    print(private.report())
    if show_graph:
        console.rule("the rewritten graph", style="dim")
        private.print_readable()
    console.print(times_table(step_times(private, task), task))
    curve = run_training(console, private, task, seed)
    return run_verification(console, private, task), curve


def compile_task(console: Console, task: Task) -> PrivateModule:
    """Trace, analyse, plan and rewrite; say how long it took."""
    start = time.perf_counter()
    batch = task.first_examples(task.batch_size)
    private = dpcompile(task.model, loss=task.loss, max_grad_norm=task.max_grad_norm, example_batch=batch)
    console.print(f"compiled in {time.perf_counter() - start:.1f} s, once for every batch size\n")
    return private


def times_table(times: Mapping[str, float], task: Task) -> Table:
    """Median step times, and each in units of the ordinary step."""
    table = Table(title=f"one step, {task.batch_size} examples, medians of {ROUNDS} interleaved rounds")
    for column in ("method", "ms", "x ordinary"):
        table.add_column(column, justify="left" if column == "method" else "right")
    unit = next(iter(times.values()))
    for name, seconds in times.items():
        table.add_row(name, f"{seconds * 1e3:.1f}", f"{seconds / unit:.2f}")
    return table


def run_training(console: Console, private: PrivateModule, task: Task, seed: int | None) -> Curve:
    """Train with a progress bar, say what it brought and what it cost; (epsilon, accuracy) on the way."""
    training = Training.of(task, private, seed)
    console.print(
        f"\ntraining: {training.steps} steps of about {task.batch_size} examples (each of {len(task.train[0])} drawn "
        f"independently), clip norm {task.max_grad_norm:g}, noise {training.noise_multiplier:.3g} of it, for epsilon "
        f"{task.target_epsilon:g}",
        soft_wrap=True,
    )
    curve, steps = [(0.0, task.accuracy())], list[Progress]()
    measured = {round(training.steps * (point + 1) / POINTS) for point in range(POINTS)}
    with tqdm(training.run(), total=training.steps, unit="step", ncols=110) as bar:
        for step in bar:
            steps.append(step)
            if step.steps in measured:
                curve.append((training.engine.get_epsilon(task.target_delta), task.accuracy()))
            bar.set_postfix(
                B=step.examples, loss=f"{step.loss:.3f}", clipped=f"{step.share_clipped:.0%}", epsilon=f"{curve[-1][0]:.2f}"
            )
    say_results(console, curve, steps)
    console.print(training.engine.statement(task.target_delta) + "\n", soft_wrap=True)
    return curve


def say_results(console: Console, curve: Curve, steps: list[Progress]) -> None:
    """What the training brought."""
    clipped = sum(step.share_clipped for step in steps) / len(steps)
    console.print(
        f"loss {steps[0].loss:.3f} -> {steps[-1].loss:.3f}; held-out accuracy {curve[0][1]:.1%} -> "
        f"{curve[-1][1]:.1%}; {clipped:.0%} of the examples were clipped; batches of "
        f"{min(s.examples for s in steps)} to {max(s.examples for s in steps)} examples, no recompilation\n",
        soft_wrap=True,
    )


def draw_curves(curves: Mapping[str, Curve], path: Path) -> None:
    """Accuracy against the epsilon that was spent for it, one line per task, as a picture."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot([epsilon for epsilon, _ in curve], [100 * accuracy for _, accuracy in curve], marker="o", label=name)
    axes.set_xlabel("epsilon spent (delta = 1e-4)")
    axes.set_ylabel("held-out accuracy in %")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def run_verification(console: Console, private: PrivateModule, task: Task) -> bool:
    """Compare one batch with the per-example loop and print the errors."""
    result = private.verify(*task.first_examples(VERIFIED_EXAMPLES), examples=VERIFIED_EXAMPLES)
    console.rule("verification", style="dim")
    print(result)
    return result.ok
