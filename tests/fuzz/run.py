"""Fuzz what reads foreign bytes: `python -m tests.fuzz.run [NAME …] --seconds 20`, or `make fuzz SECONDS=20`.

Each harness runs in a process of its own. With atheris (Linux) inputs are chosen by the lines they reach, and what was
learned is kept in `.fuzz/corpus/`, so that hours can be spent in parts; with `--runs N --seed S` they are random
and the same every time. A finding's input lies in `.fuzz/findings/NAME/`; `--replay FILE NAME` shows its traceback.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .harnesses import HARNESSES, TOP

GRACE = 300
"""Seconds for imports and the making of valid files, on a busy machine."""


def main() -> int:
    """Run each harness; 1 where any of them found something."""
    asked = _arguments().parse_args()
    asked.out = asked.out.resolve()
    if unknown := sorted(set(asked.names) - HARNESSES.keys()):
        print(f"error: expected some of {', '.join(HARNESSES)}, got {unknown[0]}")
        return 2
    if asked.replay:
        return _replay(asked)
    if asked.child:
        _guided(asked.names[0], asked, asked.child)
    names = asked.names or list(HARNESSES)
    if asked.runs:
        for name in names:
            HARNESSES[name]()  # imported once, before the processes part
    clean = [_harness(name, asked) for name in names]  # all of them, also where the first one finds something
    return int(not all(clean))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="fuzz what reads foreign bytes")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(HARNESSES)}; none: all of them")
    parser.add_argument("--seconds", type=float, default=20, help="for each harness")
    parser.add_argument("--runs", type=int, default=0, help="so many random inputs in place of chosen ones")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs")
    parser.add_argument("--out", type=Path, default=Path(".fuzz"), help="where findings and what was learned are kept")
    parser.add_argument("--replay", type=Path, help="run one kept input again")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser


def _replay(asked: argparse.Namespace) -> int:
    from .driver import replay

    content = asked.replay.read_bytes()
    with tempfile.TemporaryDirectory() as place:
        replay(HARNESSES[asked.names[0]]()(Path(place)), content)
        os.chdir(TOP)
    return 0


def _guided(name: str, asked: argparse.Namespace, scratch: Path) -> None:
    """Be the process of one harness with atheris, which leaves it."""
    import atheris

    with atheris.instrument_imports(include=["devil_pipe"]):
        harness = HARNESSES[name]()
    from .driver import Driver

    (scratch / "files").mkdir()
    driver = Driver(name, harness(scratch / "files"), scratch, asked.out / "findings" / name)
    driver.guided(asked.seconds, asked.out / "corpus" / name)


def _plain(name: str, asked: argparse.Namespace, scratch: Path) -> None:
    """Be the process of one harness with random inputs."""
    from .driver import Driver

    with (scratch.parent / "said").open("wb") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    (scratch / "files").mkdir()
    driver = Driver(name, HARNESSES[name]()(scratch / "files"), scratch, asked.out / "findings" / name)
    driver.plain(asked.runs, asked.seed, asked.seconds)


def _spawned(name: str, asked: argparse.Namespace, scratch: Path) -> str:
    """Run a harness in a process of its own; why it died, if it did."""
    if asked.runs:
        process = multiprocessing.get_context("fork").Process(target=_plain, args=(name, asked, scratch))
        process.start()
        process.join(asked.seconds + GRACE)
        if process.is_alive():
            process.kill()
            process.join()
            return "no end"
        return f"exit {process.exitcode}" if process.exitcode else ""
    command = [sys.executable, "-m", f"{__package__}.run", name, "--child", str(scratch), "--out", str(asked.out)]
    surroundings = os.environ | {"TMPDIR": str(scratch)}
    with (scratch.parent / "said").open("wb") as said:
        try:
            done = subprocess.run(
                [*command, "--seconds", str(asked.seconds)],
                cwd=TOP,
                env=surroundings,
                stdout=said,
                stderr=said,
                timeout=asked.seconds + GRACE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "no end"
    return f"exit {done.returncode}" if done.returncode else ""


def _harness(name: str, asked: argparse.Namespace) -> bool:
    """Run one harness and print what came of it; whether nothing was found."""
    memory = Path("/dev/shm")  # many small files are written and read
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if os.access(memory, os.W_OK) else None))
    try:
        (scratch / "work").mkdir()
        died = _spawned(name, asked, scratch / "work")
        told = _told(scratch / "work" / "status.json")
        findings: list[str] = told.get("findings", [])
        if died:
            kept = _kept(scratch / "work", asked.out / "findings" / name)
            findings.append(f"{died}: {_last(scratch / 'said')} ({kept})")
        runs, seconds = told.get("runs", 0), told.get("seconds", 0)
        print(
            f"{name}: {runs} runs in {seconds} s, {runs / max(seconds, 0.1):.0f} a second, "
            f"{told.get('refused', 0)} refused, {len(findings)} findings",
            flush=True,
        )
        for finding in findings:
            print(f"  {finding}", flush=True)
        return not findings
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _told(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _kept(work: Path, folder: Path) -> str:
    """Keep the input that a process died of."""
    if not (work / "current").exists():
        return "before the first input"
    folder.mkdir(parents=True, exist_ok=True)
    return str(shutil.copy(work / "current", folder / "died.bin"))


def _last(said: Path) -> str:
    text = said.read_text(encoding="utf-8", errors="replace")
    words = ("Timeout (", "Fatal Python error", "Uncaught Python exception", "ERROR: ")
    at = next((at for at in map(text.rfind, words) if at >= 0), -1)
    return " | ".join(text[at:].splitlines()[:14] if at >= 0 else text.splitlines()[-6:])


if __name__ == "__main__":
    sys.exit(main())
