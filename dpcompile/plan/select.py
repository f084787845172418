"""Choose per site the fastest possible option, or what the user asked for; say why, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from dpcompile.cost.hardware import Hardware
from dpcompile.cost.prices import sizes_of
from dpcompile.cost.roofline import seconds
from dpcompile.ir.errors import StrategyError
from dpcompile.ir.site import Site
from dpcompile.plan.plan import Choice, Option, Plan
from dpcompile.strategies import NORMS, SUMS

Wanted = str | Mapping[str, str | tuple[str, str]]

TIE: Final = 1.15
"""Predictions closer than this factor are equal, for they err by more."""

SAVING: Final = 2**25
"""Bytes kept less that decide between equal predictions; below 32 MiB the faster prediction is taken."""


def choose(sites: Sequence[Site], hardware: Hardware, batch_size: int, strategy: Wanted = "auto",
           microbatch: int | None = None) -> Plan:  # fmt: skip
    """The plan for these sites on this hardware at this batch size."""
    check_names(strategy, sites)
    size = min(microbatch or batch_size, max(batch_size, 1))
    choices = tuple(choose_site(site, hardware, size, wanted_for(site, strategy)) for site in sites)
    if isinstance(strategy, str) and strategy != "auto" and not any(c.option.norm == strategy for c in choices):
        reasons = {dict(choice.declined).get(strategy, "") for choice in choices}
        raise StrategyError(
            f"strategy {strategy!r} cannot be applied to any parameter of this model "
            f"({'; '.join(sorted(filter(None, reasons)))}). "
            'Use strategy="auto", or another of ' + ", ".join(NORMS)
        )
    return Plan(choices, hardware.name, batch_size, microbatch)


def check_names(strategy: Wanted, sites: Sequence[Site]) -> None:
    """Refuse names that do not exist."""
    entries = strategy.values() if isinstance(strategy, Mapping) else ()
    if not isinstance(strategy, (str, Mapping)) or not all(map(is_entry, entries)):
        raise StrategyError(f"strategy must be a name or {{parameter or glob: norm or (norm, sum)}}, got {strategy!r}")
    names = (
        [strategy] if isinstance(strategy, str) else [n for v in strategy.values() for n in ((v,) if isinstance(v, str) else v)]
    )
    for name in names:
        if name not in ("auto", *NORMS, *SUMS):
            raise StrategyError(f"there is no strategy {name!r}; norms: auto, {', '.join(NORMS)}; sums: {', '.join(SUMS)}")
    if not isinstance(strategy, str):
        for pattern in strategy:
            if not any(fnmatchcase(site.parameter, pattern) for site in sites):
                raise StrategyError(f"strategy names {pattern!r}, which matches no parameter of the model")


def is_entry(value: object) -> bool:
    """A norm, or a norm and a sum."""
    return isinstance(value, str) or (isinstance(value, tuple) and len(value) == 2 and all(isinstance(n, str) for n in value))


def wanted_for(site: Site, strategy: Wanted) -> tuple[str, str, bool]:
    """(norm, sum, is it required): a single name applies where it can, a mapping must apply."""
    if isinstance(strategy, str):
        return strategy, "auto", False
    for pattern, value in strategy.items():
        if fnmatchcase(site.parameter, pattern):
            norm, total = (value, "auto") if isinstance(value, str) else value
            return norm, total, True
    return "auto", "auto", False


def choose_site(site: Site, hardware: Hardware, batch_size: int, wanted: tuple[str, str, bool]) -> Choice:
    """The cheapest option of one site among those wanted."""
    options, declined = options_of(site, hardware, batch_size)
    norm, total, required = wanted
    fitting = [o for o in options if norm in ("auto", o.norm) and total in ("auto", o.sum)]
    if not fitting and required:
        reason = dict(declined).get(norm) or dict(declined).get(
            f"{norm}+{total}", f"the sum {total} does not fit the norm {norm}"
        )
        raise StrategyError(f"strategy ({norm}, {total}) cannot be applied to {site.parameter}: {reason}")
    best = best_of(fitting or options)
    others = tuple(option for option in options if option is not best)
    asked = norm != "auto" and fitting
    return Choice(site, best, "asked for" if asked else reason_for(best, others), others, tuple(declined))


def best_of(options: Sequence[Option]) -> Option:
    """The fastest option, or an equally fast one that keeps much less memory."""
    fastest = min(options, key=lambda option: option.seconds)
    equal = [option for option in options if option.seconds <= TIE * fastest.seconds]
    leanest = min(equal, key=lambda option: option.cost.resident_bytes)
    saved = fastest.cost.resident_bytes - leanest.cost.resident_bytes
    return leanest if saved >= SAVING else fastest


def options_of(site: Site, hardware: Hardware, batch_size: int) -> tuple[list[Option], list[tuple[str, str]]]:
    """Every norm with every sum that fits it, priced, and the reasons of those that do not fit."""
    options: list[Option] = []
    declined: list[tuple[str, str]] = []
    sizes = sizes_of(site, batch_size)
    for norm in NORMS.values():
        reason = norm.declines(site)
        if reason is not None:
            declined.append((norm.name, reason))
            continue
        first = norm.cost(site).at(sizes)
        for total in SUMS.values():
            reasons = [total.declines(term.contraction, norm) for term in site.terms]
            refused = next((r for r in reasons if r is not None), None)
            if refused is not None:
                declined.append((f"{norm.name}+{total.name}", refused))
                continue
            second = [total.cost(term.contraction).at(sizes) for term in site.terms]
            spent = seconds(first, hardware) + sum(seconds(cost, hardware) for cost in second)
            whole = first
            for cost in second:
                whole = whole + cost
            options.append(Option(norm.name, total.name, whole, spent))
    return options, declined


def reason_for(best: Option, others: Sequence[Option]) -> str:
    """One sentence: how much the next best option would cost more."""
    if not others:
        return "the only way"
    second = min(others, key=lambda option: option.seconds)
    ratio = second.seconds / max(best.seconds, 1e-12)
    if ratio < 1:
        return f"keeps less memory than {second.norm}+{second.sum}, which is predicted only {1 / ratio:.2f}x faster"
    return f"{second.norm}+{second.sum} is predicted {ratio:.1f}x slower"
