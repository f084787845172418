"""The certificate: what was shown of a compiled step, by which checks, and what it was shown under.

    private.certificate()           prints as text
    private.certificate().json()    the same as data

The schema is versioned: readers check `schema` and `version`; a version changes when a field changes its meaning or goes,
not when one is added.

    schema, version   "dpcompile-certificate", 1
    made_with         versions of dpcompile, torch and python
    verdict           what is certified, in words
    graph             SHA-256 of the captured and of the final graph as text, and how many nodes they have
    operations        how often each operation is applied to values that depend on the batch; on_shared_values: other calls
    parameters        name, shape, equation of the site, strategies of norm and sum
    without_gradient  trainable parameters that no loss depends on, but for those that passes took away
    frozen            parameters and buffers that are not trained
    checks            name, whether it passed (null: switched off), and what was done
    assumptions       what the verdict takes for granted
    selection         which parts are trained: the passes in words, and per parameter how its part is told (null without passes)
    clipping          kind, formula of the factor, and per group (one for kinds with one factor) parameters and clip norm
    sensitivity       of `grads`: l2, under which relation of neighbours, and the slack of rounding relative to l2
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from dpcompile.analysis.evidence import Evidence
from dpcompile.kernels.clipping import SLACK
from dpcompile.measure.cache import own_version
from dpcompile.pipeline import Compiled, Stage

SCHEMA: Final = "dpcompile-certificate"
VERSION: Final = 1
INDEPENDENT: Final = (
    "every example's loss depends on that example alone, whatever the batch size, and grads is the sum over examples of "
    "gradients that are clipped one by one"
)
ALWAYS: Final = (
    "one example (one index along the batch axis) is the unit of privacy",
    "the code that runs is the code that was traced: what a trace read is watched, but not the environment or other files",
    "losses, norms, clip factors and flags are not published; grads are divided by a public number after noise was added",
)


@dataclass(frozen=True)
class Certificate:
    """A compiled step's certificate; `document` is what `json()` writes."""

    document: dict[str, Any]

    def json(self) -> str:
        """The certificate as JSON; the fields are described in dpcompile.certificate."""
        return json.dumps(self.document, indent=1) + "\n"

    def __str__(self) -> str:
        found = self.document
        made = ", ".join(f"{name} {version}" for name, version in found["made_with"].items())
        counts = ", ".join(f"{name} {count}x" for name, count in found["operations"].items())
        bound = found["sensitivity"]
        lines = [f"certificate ({made})", f"verdict: {found['verdict']}"]
        lines += [f"trained in part: {text}" for text in (found["selection"] or {"passes": ()})["passes"]]
        lines += [f"clipping: {found['clipping']['kind']}, {found['clipping']['formula']}"]
        lines += [f"sensitivity of {bound['of']}: {bound['l2']:g} in L2, {bound['neighbours']}, slack {bound['slack']:g}"]
        lines += [f"check {check['name']}: {words(check['passed'])}; {check['detail']}" for check in found["checks"]]
        lines += [f"assumed: {text}" for text in found["assumptions"]]
        lines += [f"parameter {p['name']} {p['shape']}: {p['equation']}, {p['norm']} + {p['sum']}" for p in found["parameters"]]
        parts = (found["selection"] or {"parts": {}})["parts"]
        lines += [f"parameter {name}: pruned as a whole" for name, part in parts.items() if part["is_gone"]]
        lines += [f"parameter {name}: no gradient path" for name in found["without_gradient"]]
        lines += [f"rests on: {counts}; {found['on_shared_values']} calls on values without examples"]
        graph = found["graph"]["final"]
        return "\n".join([*lines, f"graph: {graph['nodes']} nodes, sha256 {graph['sha256'][:16]}"])


def words(passed: bool | None) -> str:
    """A check's outcome."""
    return "switched off" if passed is None else "passed" if passed else "FAILED"


def certificate(
    compiled: Compiled, max_grad_norm: float, assumed: Sequence[str] = (), chosen: Mapping[str, Any] | None = None
) -> Certificate:
    """The certificate of a compiled step; `assumed` are further assumptions of the caller.

    chosen: {"passes", "parts", "assumptions"} of what is trained of the parameters, None if all of it is.
    """
    facts = compiled.evidence
    selected = () if chosen is None else chosen["assumptions"]
    gone = () if chosen is None else [name for name, part in chosen["parts"].items() if part["is_gone"]]
    return Certificate(
        {
            "schema": SCHEMA,
            "version": VERSION,
            "made_with": {"dpcompile": own_version(), "torch": torch.__version__, "python": platform.python_version()},
            "verdict": INDEPENDENT if not assumed else f"{INDEPENDENT}, if what is assumed of the loss holds",
            "graph": {"captured": digest(compiled.stages[0]), "final": digest(compiled.stages[-1])},
            "operations": dict(facts.operations),
            "on_shared_values": facts.shared,
            "parameters": parameters(compiled),
            "without_gradient": [name for name in compiled.unused if name not in gone],
            "frozen": list(facts.frozen),
            "checks": checks(compiled.stages, facts),
            "assumptions": [*assumptions(facts), *selected, *assumed],
            "selection": None if chosen is None else {name: chosen[name] for name in ("passes", "parts")},
            "clipping": compiled.outlook.source.rule.document(names_of(compiled), max_grad_norm),
            "sensitivity": {
                "l2": max_grad_norm,
                "neighbours": "add or remove one example",
                "of": "grads",
                "slack": SLACK,
            },
        }
    )


def names_of(compiled: Compiled) -> list[str]:
    """All trained parameters, also those without a gradient path."""
    return list(compiled.joint.gradients())


def digest(stage: Stage) -> dict[str, Any]:
    """What identifies a graph."""
    return {"nodes": stage.nodes, "sha256": hashlib.sha256(stage.text.encode()).hexdigest()}


def parameters(compiled: Compiled) -> list[dict[str, Any]]:
    """Every trained parameter with its site and the ways to its norm and sum."""
    rows = [(choice.site, choice.option) for choice in compiled.plan.choices]
    return [
        {"name": site.parameter, "shape": list(site.shape), "equation": site.equation, "norm": option.norm, "sum": option.sum}
        for site, option in rows
    ]


def checks(stages: Sequence[Stage], facts: Evidence) -> list[dict[str, Any]]:
    """The checks of one compilation, all of which have passed or were switched off: what fails is refused."""
    calls, sizes = sum(facts.operations.values()), ", ".join(map(str, facts.sizes))
    numeric = (
        "a few examples made from the first batch were run in other company, at other places and alone, and the model itself "
        "on one example: no value of the graph moved"
    )
    rows = [
        ("rules", True, f"each of {calls} calls on values that depend on the batch has a rule that keeps examples apart"),
        ("batch sizes", True, f"traced with {sizes} examples, every condition on the batch size followed: one graph"),
        ("numbers", True if facts.numeric else None, numeric if facts.numeric else "check_examples=False"),
        ("passes", True, f"the batch size is free after {', '.join(stage.name for stage in stages)}"),
    ]
    return [{"name": name, "passed": passed, "detail": detail} for name, passed, detail in rows]


def assumptions(facts: Evidence) -> list[str]:
    """What the verdict takes for granted."""
    found = [f"{text} holds nothing of the examples" for text in facts.constants]
    found += [f"argument {name} is the same for neighbouring batches" for name in facts.fixed]
    if facts.frozen:
        found.append(f"{len(facts.frozen)} frozen parameters and buffers are public: {', '.join(facts.frozen[:4])}"
                     + (" ..." if len(facts.frozen) > 4 else ""))  # fmt: skip
    return [*found, *ALWAYS]
