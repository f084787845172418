"""How often steps are timed: short ones several times in their turn, long ones in a few rounds, very long ones on all threads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import measure, worker
from benchmarks import threads as threads_of
from benchmarks.cases import Case, floats, per_class
from benchmarks.contest import CLOSE, MOST_ROUNDS, contenders, prolonged, rounds_in
from benchmarks.measure import FEW_ROUNDS, LONG_SECONDS, MOST_REPEATS, TURN_SECONDS, Step, interleaved
from benchmarks.worker import ENOUGH_SECONDS, Options, prepare

CASE = Case("two pixels", lambda: nn.Sequential(nn.Flatten(), nn.Linear(2, 10)), floats(2), per_class, 3, 1.0)


def step_named(name: str) -> Step:
    """A step that says who it is."""
    return lambda: {name: torch.zeros(())}


def played(monkeypatch: pytest.MonkeyPatch, seconds: Mapping[str, float]) -> list[tuple[str, int]]:
    """Every call of a step, in the order of calls, with its threads; each takes as long as is said here."""
    calls: list[tuple[str, int]] = []

    def seconds_of(step: Step, threads: int, device: str) -> float:
        (name,) = step()
        calls.append((name, threads))
        return seconds[name]

    monkeypatch.setattr(measure, "seconds_of", seconds_of)
    monkeypatch.setattr(worker, "seconds_of", seconds_of)
    return calls


def test_a_step_is_timed_as_often_as_its_length_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"tiny": 1e-4, "short": TURN_SECONDS / 3, "second": 0.9, "seconds": 2.0, "long": LONG_SECONDS + 1}
    calls = played(monkeypatch, seconds)
    rounds = FEW_ROUNDS + 4
    samples = interleaved({name: (step_named(name), 1) for name in seconds}, rounds, "cpu")
    timed = {"tiny": MOST_REPEATS * rounds, "short": 3 * rounds, "second": rounds, "seconds": FEW_ROUNDS, "long": FEW_ROUNDS}
    assert {name: len(found) for name, found in samples.items()} == timed
    assert all(set(found) == {seconds[name]} for name, found in samples.items())
    untimed = {name: sum(call == name for call, _ in calls) - timed[name] for name in seconds}
    twice = {"tiny": rounds + timed["tiny"], "short": rounds + timed["short"]}
    assert untimed == {**twice, "second": rounds, "seconds": FEW_ROUNDS, "long": 0}


def test_a_step_that_fails_beside_the_others_leaves_them_their_times() -> None:
    left = iter(range(3))

    def failing() -> Mapping[str, Tensor]:
        if next(left, None) is None:
            raise torch.OutOfMemoryError("no memory")
        return {}

    steps: dict[str, tuple[Step, int]] = {"failing": (failing, 1), "other": (step_named("other"), 1)}
    failed: dict[str, Exception] = {}
    samples = interleaved(steps, 3, "cpu", failed)
    assert set(samples) == {"other"} and isinstance(failed["failing"], torch.OutOfMemoryError)
    with pytest.raises(torch.OutOfMemoryError):
        interleaved(steps, 3, "cpu")


def test_what_fails_while_it_is_timed_is_the_methods_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def interleave(steps: Mapping[str, Any], rounds: int, device: str, failed: dict[str, Exception]) -> dict[str, list[float]]:
        failed["dpcompile eager"] = torch.OutOfMemoryError("no memory")
        return {"ordinary eager": [1.0]}

    monkeypatch.setattr(worker, "interleaved", interleave)
    options = Options("", ("ordinary eager", "dpcompile eager"), 1, (1,), "cpu", 300)
    methods = worker.measure_time(CASE, options)["methods"]
    assert methods["ordinary eager"]["median_ms"] == 1e3
    assert methods["dpcompile eager"]["failure"] == "OutOfMemoryError: no memory"


def test_no_step_always_follows_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    names, rounds = "abcdefgh", 7
    calls = played(monkeypatch, dict.fromkeys(names, TURN_SECONDS))
    interleaved({name: (step_named(name), 1) for name in names}, rounds, "cpu")
    order = [name for name, _ in calls][::2]  # the untimed ones
    assert order == [name for name, _ in calls][1::2]
    turns = [order[start : start + len(names)] for start in range(0, len(order), len(names))]
    assert len(turns) == rounds and all(sorted(turn) == list(names) for turn in turns)
    before = {name: {turn[turn.index(name) - 1] for turn in turns if turn[0] != name} for name in names}
    assert all(len(found) >= 3 for found in before.values())


@pytest.mark.parametrize(("seconds", "tried"), [(ENOUGH_SECONDS + 1, [2]), (ENOUGH_SECONDS - 1, [2, 1])])
def test_a_step_of_many_seconds_is_tried_with_all_threads_alone(
    monkeypatch: pytest.MonkeyPatch, seconds: float, tried: list[int]
) -> None:
    made: list[int] = []

    def make(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> Step:
        made.append(torch.get_num_threads())
        return step_named("only")

    played(monkeypatch, {"only": seconds})
    monkeypatch.setattr(threads_of, "have_cores", lambda threads, device: True)
    monkeypatch.setattr(worker, "ALL_METHODS", {"only": SimpleNamespace(make=make, is_private=True)})
    monkeypatch.setattr(worker, "checked", lambda step, is_private, reference: 0.0)
    result: dict[str, Any] = {}
    _, threads = prepare(CASE, "only", None, Options("", ("only",), 1, (1, 2), "cpu", 300), result)  # type: ignore[arg-type]
    assert made == tried and threads == result["threads"] == 2 and result["error"] == 0.0


def test_a_number_of_threads_is_chosen_again_where_threads_had_no_core_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program holds a core from behind the first wait until the second."""
    seen = iter([True, False, False, True, True])  # before, behind (busy), before, before, behind
    asked: list[int] = []

    def have_cores(threads: int, device: str) -> bool:
        asked.append(threads)
        return next(seen)

    monkeypatch.setattr(threads_of, "have_cores", have_cores)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    seconds = {"all": 0.9, "one": 0.5}
    played(monkeypatch, seconds)
    times = iter([0.9, 0.3])
    turns = threads_of.taking_turns
    monkeypatch.setattr(threads_of, "taking_turns", lambda tried, device: seconds.update(all=next(times)) or turns(tried, device))
    tried: dict[str, tuple[Step, int]] = {"all": (step_named("all"), 2), "one": (step_named("one"), 1)}
    assert threads_of.fastest(tried, "cpu") == "all" and asked == [2] * 5


def test_one_turn_decides_between_numbers_of_threads_that_do_not_take_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = played(monkeypatch, {"all": 0.5, "one": 0.5 * CLOSE + 1e-9})
    tried: dict[str, tuple[Step, int]] = {"all": (step_named("all"), 2), "one": (step_named("one"), 1)}
    assert {key: len(found) for key, found in threads_of.taking_turns(tried, "cpu").items()} == {"all": 1, "one": 1}
    assert len(calls) == 4  # each once untimed
    played(monkeypatch, {"all": 0.5, "one": 0.5 * CLOSE - 1e-9})
    assert all(len(found) >= threads_of.TURNS for found in threads_of.taking_turns(tried, "cpu").values())


def test_a_patient_wait_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(threads_of, "have_cores", lambda threads, device: False)
    monkeypatch.setattr(time, "perf_counter", lambda: 10.0 * next(clock))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    threads_of.wait_for_cores(2, "cpu")
    assert next(clock) == 4  # asked at the start, then after 10, 20 and 30 seconds


def test_the_fastest_private_methods_and_the_ordinary_step_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"ordinary": 0.1, "one": 0.2, "two": 0.2 * CLOSE - 1e-9, "slow": 0.2 * CLOSE + 1e-9}
    calls = played(monkeypatch, seconds)
    steps: dict[str, tuple[Step, int]] = {name: (step_named(name), 1) for name in seconds}
    samples = interleaved(steps, 3, "cpu")
    before = [name for name, _ in calls]
    calls.clear()
    whole = 2 * (seconds["ordinary"] + seconds["one"] + seconds["two"])
    longer = prolonged(samples, steps, ("one", "two", "slow"), 5.5 * whole, "cpu")
    assert {name: len(found) for name, found in longer.items()} == {"ordinary": 8, "one": 8, "two": 8, "slow": 3}
    assert {name for name, _ in calls} == {"ordinary", "one", "two"}
    assert sum(seconds[name] for name, _ in calls) == pytest.approx(5 * whole)
    assert [name for name, _ in calls[: len(before)]] != before
    assert prolonged(samples, steps, ("one", "slow"), 60.0, "cpu") == samples  # nobody beside it
    assert prolonged(samples, steps, (), 60.0, "cpu") == samples
    assert prolonged(samples, steps, seconds, 0.0, "cpu") == samples
    assert rounds_in(1e6, [0.1]) == MOST_ROUNDS and rounds_in(1.0, []) == 0


def test_what_fails_while_it_runs_on_keeps_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    played(monkeypatch, {"one": 0.2, "two": 0.2})
    steps: dict[str, tuple[Step, int]] = {name: (step_named(name), 1) for name in ("one", "two")}
    samples = interleaved(steps, 2, "cpu")
    left = iter(range(3))

    def failing() -> Mapping[str, Tensor]:
        if next(left, None) is None:
            raise torch.OutOfMemoryError("no memory")
        return {"two": torch.zeros(())}

    longer = prolonged(samples, {**steps, "two": (failing, 1)}, ("one", "two"), 60.0, "cpu")
    assert longer["two"] == samples["two"] and len(longer["one"]) > len(samples["one"])


def test_a_busy_moment_keeps_nobody_from_running_on() -> None:
    samples = {"one": [1.0, 1.0, 1.1], "disturbed": [0.95 * CLOSE, 1.9, 2.4], "slow": [1.05 * CLOSE, 2.0, 2.0]}
    assert contenders(samples) == {"one", "disturbed"}
    assert contenders({"one": [1.0], "slow": [2.0]}) == contenders({"one": [1.0]}) == contenders({}) == set()
