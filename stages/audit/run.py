"""Run every check on a trained run, and save what was found."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from devil_pipe.stages.audit import (
    absent,
    controls,
    deletion,
    pointing,
    random_features,
    randomisation,
    round_trip,
    synonyms,
    wrong_layer,
)
from devil_pipe.stages.audit.config import AuditConfig
from devil_pipe.stages.audit.findings import Check, Finding, Needs, Verdict
from devil_pipe.stages.audit.opened import Audited
from devil_pipe.stages.common.files import write_json
from devil_pipe.stages.common.progress import log
from devil_pipe.stages.evaluate.run import Trained, open_run
from devil_pipe.store.errors import UsageError

CHECKS: tuple[Check, ...] = (
    controls.CHECK,
    round_trip.CHECK,
    pointing.CHECK,
    absent.CHECK,
    synonyms.CHECK,
    randomisation.CHECK,
    random_features.CHECK,
    wrong_layer.CHECK,
    deletion.CHECK,
)
"""A new check is a file of this folder with a CHECK, and its line here."""


@dataclasses.dataclass(frozen=True)
class Report:
    """All findings, in the order in which a reader wants them: what failed first."""

    facts: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(item.check.name for item in self.findings if item.verdict is Verdict.FAIL)

    def as_json(self) -> dict[str, Any]:
        """What audit.json holds."""
        return {**self.facts, "failed": list(self.failed), "checks": [_as_json(item) for item in self.findings]}


def chosen(only: Sequence[str]) -> tuple[Check, ...]:
    """The checks of these names, or all. Raises UsageError for a name that is none of them."""
    known = {check.name: check for check in CHECKS}
    if strange := [name for name in only if name not in known]:
        raise UsageError(f"--only: expected some of {', '.join(known)}, got {strange[0]!r}")
    return tuple(check for check in CHECKS if not only or check.name in only)


def run(config: AuditConfig) -> Report:
    """Write audit.json and its pictures under `config.out`.

    Raises:
        UsageError: an unknown check.
        InputError: nothing trained, files that do not belong together, or fewer than four pictures.
    """
    wanted = chosen(config.only)
    trained = open_run(config.run_dir, config.store, config.data_dir, config.runtime.device, config.runtime.precision)
    report = audit(config, trained, wanted)
    write_json(config.out / "audit.json", report.as_json())
    return report


def audit(config: AuditConfig, trained: Trained, checks: Sequence[Check] = CHECKS) -> Report:
    """Run checks on an opened run. Raises InputError as `run`."""
    audited = Audited(config, trained)
    findings = []
    for check in checks:
        begun = time.monotonic()
        measured, needs = None, ""
        try:
            measured = check.measure(audited)
        except Needs as reason:
            needs = str(reason)
        finding = Finding(check, config.seed, round(time.monotonic() - begun, 1), measured, needs)
        log(f"{check.title}: {finding.verdict.value}" + (f": needs {needs}" if needs else ""))
        findings.append(finding)
    order = list(Verdict)
    findings.sort(key=lambda item: order.index(item.verdict))
    return Report(_facts(config, trained), tuple(findings))


def _facts(config: AuditConfig, trained: Trained) -> dict[str, Any]:
    store = trained.card.store
    return {
        "run": config.run,
        "command": config.command,
        "data": config.data_dir.name,
        "data_note": trained.card.data_note,
        "split": config.split,
        "seed": config.seed,
        "training_seed": trained.card.seed,
        "pictures": config.pictures,
        "backbone": store.backbone,
        "weights": store.weights,
        "layers": [layer.name for layer in store.layers],
        "language_model": trained.card.language_model,
        "store_identity": store.digest,
        "interval": f"95 % percentile bootstrap over pictures, {config.resamples} resamples, seed {config.seed}",
        "settings": config.model_dump(mode="json", include={"grid", "distractors", "max_new_tokens", "steps", "only"}),
    }


def _as_json(finding: Finding) -> dict[str, Any]:
    check = {name: getattr(finding.check, name) for name in ("name", "title", "tested", "catches", "rule")}
    found: dict[str, Any] = {
        **check,
        "verdict": finding.verdict.value,
        "seed": finding.seed,
        "seconds": finding.seconds,
    }
    if finding.measured is None:
        return {**found, "needs": finding.needs}
    measured = dataclasses.asdict(finding.measured)
    for values, demand in zip(measured["demands"], finding.measured.demands, strict=True):
        values["met"] = demand.met
    return found | measured
