"""What `python -m dpcompile demo` prints, in the order of the work: compile, explain, time, train, verify."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from dpcompile import PrivateModule, dpcompile
from dpcompile.demo.digits import digits_task
from dpcompile.demo.task import Task
from dpcompile.demo.text import text_task
from dpcompile.demo.timing import ROUNDS, step_times
from dpcompile.demo.train import new_generator, train

VERIFIED_EXAMPLES = 8
NO_CLAIM = (
    "No (epsilon, delta) is claimed: batches are Poisson samples and noise is added once per step, but this "
    "run has no accountant and no cryptographic generator. The losses, clipped shares and accuracies that it "
    "shows are not private."
)


def run_demo(seed: int | None) -> bool:
    """Run both tasks; whether every verification passed."""
    console = Console()
    start = time.perf_counter()
    torch.set_num_threads(1)  # models this small only lose by sharing their work
    torch.manual_seed(0 if seed is None else seed)  # initial weights
    is_equal = run_task(console, digits_task(), seed, show_graph=True)
    is_equal &= run_task(console, text_task(), seed, show_graph=False)
    console.rule("done")
    console.print(NO_CLAIM, soft_wrap=True)
    console.print(f"{time.perf_counter() - start:.0f} s in total, torch {torch.__version__}, one thread")
    return is_equal


def run_task(console: Console, task: Task, seed: int | None, show_graph: bool) -> bool:
    """Compile, explain, time, train and verify one task; whether the verification passed."""
    parameters = sum(p.numel() for p in task.model.parameters())
    console.rule(f"[bold]{task.title}")
    console.print(f"{len(task.train[0])} training examples (one {task.example} each), {parameters} parameters")
    private = compile_task(console, task)
    print(private.report())
    if show_graph:
        console.rule("the rewritten graph", style="dim")
        private.print_readable()
    console.print(times_table(step_times(private, task), task))
    run_training(console, private, task, seed)
    return run_verification(console, private, task)


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


def run_training(console: Console, private: PrivateModule, task: Task, seed: int | None) -> None:
    """Train with a progress bar and say what it brought."""
    console.print(
        f"\ntraining: {task.steps} steps of about {task.batch_size} examples (each of {len(task.train[0])} "
        f"drawn independently), clip norm {task.max_grad_norm:g}, noise {task.noise_multiplier:g} of it",
        soft_wrap=True,
    )
    before = task.accuracy()
    steps = []
    with tqdm(train(private, task, new_generator(seed)), total=task.steps, unit="step", ncols=110) as bar:
        for step in bar:
            steps.append(step)
            bar.set_postfix(B=step.examples, loss=f"{step.loss:.3f}", clipped=f"{step.share_clipped:.0%}")
    clipped = sum(step.share_clipped for step in steps) / len(steps)
    console.print(
        f"loss {steps[0].loss:.3f} -> {steps[-1].loss:.3f}; held-out accuracy {before:.1%} -> "
        f"{task.accuracy():.1%}; {clipped:.0%} of the examples were clipped; batches of "
        f"{min(s.examples for s in steps)} to {max(s.examples for s in steps)} examples, no recompilation\n",
        soft_wrap=True,
    )


def run_verification(console: Console, private: PrivateModule, task: Task) -> bool:
    """Compare one batch with the per-example loop and print the errors."""
    result = private.verify(*task.first_examples(VERIFIED_EXAMPLES), examples=VERIFIED_EXAMPLES)
    console.rule("verification", style="dim")
    print(result)
    return result.ok
