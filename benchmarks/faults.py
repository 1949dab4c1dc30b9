"""A thousand injected faults over extract and train: what a person finds after each, and whether a row is wrong.

`python benchmarks/faults.py --trials 1000 --seed 0` goes on where it was stopped; its trials lie in the scratch folder.
Linux alone: it needs a C compiler, LD_PRELOAD and fork.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

from _faults_kinds import STAGES, draw
from _faults_process import Commands
from _faults_project import ENCODINGS, PICTURES, SHARD_ROWS
from _faults_trial import BAD, GOOD, Laboratory
from _measure import write

MARKS = ("<!-- faults -->", "<!-- /faults -->")
OUTCOMES = (*GOOD, *BAD)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the trials that are missing, write the result, and print the table; 1 where one ended as it must not."""
    given = _parser().parse_args(arguments)
    given.scratch.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends as well
    file = given.scratch / f"trials-{given.seed}.jsonl"
    wanted = _numbers(given.only) if given.only else range(given.trials)
    done = {trial["number"] for trial in _read(file)} if not given.only else set()
    if missing := [number for number in wanted if number not in done]:
        make_trials(given.scratch, file, given.seed, missing)
    last = {trial["number"]: trial for trial in _read(file)}  # a trial that was made again counts as it ended last
    trials = [last[number] for number in sorted(last) if number < given.trials]
    bad = [trial for trial in trials if trial["outcome"] in BAD]
    if not given.only or given.write:
        _write(given, trials)
        _show(trials)
    print(table(trials))
    for trial in bad:
        print(json.dumps(trial, ensure_ascii=False))
    return int(bool(bad))


def make_trials(scratch: Path, file: Path, seed: int, numbers: Iterable[int]) -> None:
    """Make trials, one line of JSON each as soon as it has ended."""
    commit = _commit()
    with Commands(scratch) as commands:
        laboratory = Laboratory(scratch, commands)
        for number in numbers:
            begun = time.monotonic()
            try:
                told = laboratory.run(draw(seed, number))
            except (AssertionError, OSError) as error:
                print(f"trial {number}: the harness failed: {error!r}", file=sys.stderr)
                raise
            told |= {"seconds": round(time.monotonic() - begun, 2), "commit": commit}
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(told, ensure_ascii=False) + "\n")


def table(trials: Sequence[dict[str, Any]]) -> str:
    """Fault × outcome, by stage, as Markdown."""
    lines = [f"| stage | fault | trials | {' | '.join(OUTCOMES)} |", "|---" * (3 + len(OUTCOMES)) + "|"]
    for stage in STAGES:
        mine = [trial for trial in trials if trial["stage"] == stage]
        for kind in dict.fromkeys(sorted(trial["kind"] for trial in mine)):
            counts = Counter(trial["outcome"] for trial in mine if trial["kind"] == kind)
            cells = " | ".join(str(counts[outcome] or "–") for outcome in OUTCOMES)
            lines.append(f"| {stage} | {kind} | {counts.total()} | {cells} |")
    counts = Counter(trial["outcome"] for trial in trials)
    lines.append(f"| all | | {counts.total()} | {' | '.join(str(counts[outcome]) for outcome in OUTCOMES)} |")
    return "\n".join(lines)


def _write(given: argparse.Namespace, trials: Sequence[dict[str, Any]]) -> None:
    counts: dict[str, dict[str, dict[str, int]]] = {}
    files: dict[str, dict[str, int]] = {}
    for trial in trials:
        by_kind = counts.setdefault(trial["stage"], {}).setdefault(trial["kind"], {})
        by_kind[trial["outcome"]] = by_kind.get(trial["outcome"], 0) + 1
        if trial["file"]:
            by_file = files.setdefault(trial["file"], {})
            by_file[trial["outcome"]] = by_file.get(trial["outcome"], 0) + 1
    write(
        "faults",
        command=f"python benchmarks/faults.py --trials {given.trials} --seed {given.seed}",
        seed=given.seed,
        trials=len(trials),
        outcomes=dict(Counter(trial["outcome"] for trial in trials)),
        by_stage_and_fault=counts,
        by_damaged_file=files,
        commits=dict(Counter(trial["commit"] for trial in trials)),
        note=given.note,
        seconds=round(sum(trial["seconds"] for trial in trials)),
        data=f"{PICTURES} drawn pictures, one of them broken, in shards of {SHARD_ROWS}; {' and '.join(ENCODINGS)}",
        models="timm/test_resnet and a Llama of two layers, both with random weights; 8 + 12 training steps",
        compared="every row of every array, bit for bit; weights and card of the checkpoint, byte for byte; the log",
        not_as_they_should=[trial for trial in trials if trial["outcome"] in BAD],
    )


def _show(trials: Sequence[dict[str, Any]]) -> None:
    """Put the table into the page about faults."""
    page = Path(__file__).parents[1] / "docs/faults.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(f"{MARKS[0]}\n")
    after = rest.partition(MARKS[1])[2]
    page.write_text(f"{before}{MARKS[0]}\n{table(trials)}\n{MARKS[1]}{after}", encoding="utf-8")


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _numbers(text: str) -> list[int]:
    """`3,7,20-25` as numbers."""
    spans = [part.split("-") for part in text.split(",")]
    return [number for span in spans for number in range(int(span[0]), int(span[-1]) + 1)]


def _commit() -> str:
    """The source's commit, and whether it had been changed since."""
    here = Path(__file__).parents[1]
    commands = (
        ["git", "rev-parse", "--short", "HEAD"],
        ["git", "status", "--porcelain", "stages", "store", "pipeline"],
    )
    head, changed = (
        subprocess.run(command, cwd=here, capture_output=True, text=True, check=False).stdout.strip()
        for command in commands
    )
    return f"{head or 'unknown'}{' with changes' if changed else ''}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="trials to make again, such as 3,7,20-25")
    parser.add_argument("--write", action="store_true", help="with --only: write the result all the same")
    parser.add_argument("--note", default="", help="what a reader of the result should know of how it came about")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "devil-pipe-faults")
    return parser


if __name__ == "__main__":
    sys.exit(main())
