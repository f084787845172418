"""Plans as JSON: what was chosen for which parameter, with the shape and equation that the choice was made for.

A saved plan can be edited (norm, sum, microbatch) and passed back as `plan=`. It fits a model as long as every parameter
that it names is still there with the same shape and equation, and names all of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from dpcompile.ir.errors import StrategyError
from dpcompile.ir.site import Site

FORMAT: Final = 1


@dataclass(frozen=True)
class SavedChoice:
    """The strategies for one parameter, and what identifies it."""

    parameter: str
    equation: str
    shape: tuple[int, ...]
    norm: str
    sum: str


@dataclass(frozen=True)
class SavedPlan:
    """A plan without prices; hardware and batch size say what it was made for, and are not checked.

    copies: whether the step runs with one copy of the parameters for every example.
    """

    choices: tuple[SavedChoice, ...]
    hardware: str
    batch_size: int
    microbatch: int | None = None
    copies: bool = False

    def strategies(self) -> dict[str, tuple[str, str]]:
        """{parameter: (norm, sum)}."""
        return {choice.parameter: (choice.norm, choice.sum) for choice in self.choices}

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8")

    def misfits(self, sites: Sequence[Site]) -> list[str]:
        """Why the plan does not fit these sites, one line each."""
        present = {site.parameter: site for site in sites}
        named = Counter(choice.parameter for choice in self.choices)
        lines = [f"{name} is not in the plan" for name in present if name not in named]
        lines += [f"{name} is in the plan {times} times" for name, times in named.items() if times > 1]
        lines += [
            f'copies of the parameters give gradients for ("materialize", "reuse"), and {c.parameter} has ("{c.norm}", "{c.sum}")'
            for c in self.choices
            if self.copies and (c.norm, c.sum) != ("materialize", "reuse")
        ]
        for choice in self.choices:
            site = present.get(choice.parameter)
            if site is None:
                lines.append(f"{choice.parameter} is not a parameter with a gradient")
            elif (site.equation, site.shape) != (choice.equation, choice.shape):
                was, now = f"{choice.equation} {list(choice.shape)}", f"{site.equation} {list(site.shape)}"
                lines.append(f"{choice.parameter} was {was} and is {now}")
        return lines

    def check(self, sites: Sequence[Site]) -> None:
        """Refuse a plan of another model."""
        lines = self.misfits(sites)
        if lines:
            more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
            raise StrategyError(
                f"the plan does not fit the model: {'; '.join(lines[:3])}{more}. "
                "Compile without plan= and save the plan anew, or edit the plan"
            )


def load_plan(path: str | Path) -> SavedPlan:
    """Read a plan that was saved; StrategyError where the file is not one."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        return parsed(document)
    except OSError as error:
        raise StrategyError(f"the plan {str(path)!r} cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StrategyError(f"{path} is not a plan that dpcompile has saved ({type(error).__name__}: {error})") from error


def parsed(document: Any) -> SavedPlan:
    """A plan from its JSON document."""
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']}, this version reads {FORMAT}")
    choices = tuple(SavedChoice(**{**choice, "shape": tuple(choice["shape"])}) for choice in document["choices"])
    for choice in choices:
        if not all(isinstance(text, str) for text in (choice.parameter, choice.norm, choice.sum)):
            raise TypeError(f"strategies of {choice.parameter} are not texts")
    copies = document.get("copies", False)
    if not isinstance(copies, bool):
        raise TypeError(f"copies is {copies!r}, not true or false")
    return SavedPlan(choices, document["hardware"], document["batch_size"], document["microbatch"], copies)
