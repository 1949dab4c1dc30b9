"""git and DVC: whether this folder is a project that `dvc repro` can run."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from devil_pipe.pipeline.config import read_yaml
from devil_pipe.pipeline.doctor.configured import is_project
from devil_pipe.pipeline.doctor.finding import Finding, Wish, install, note, ok, problem
from devil_pipe.store.errors import UsageError

PIPELINE, TMP = Path("dvc.yaml"), Path(".dvc/tmp")
COMMAND = "devil-pipe"


def git(_: Wish) -> Iterator[Finding]:
    """git itself, and whether it takes this folder for a repository."""
    if not is_project():
        return
    if shutil.which("git") is None:
        advice = "install git with the system's packages (Debian: apt install git), or let DVC do without it"
        yield _without_git("git is not installed", advice)
        return
    asked = ["git", "rev-parse", "--is-inside-work-tree"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    if not done.returncode:
        yield ok("project.git", "this folder is in a git repository")
    elif "safe.directory" in done.stderr:
        mend = shlex.join(["git", "config", "--global", "--add", "safe.directory", str(Path.cwd())])
        yield problem("project.git", "git refuses this repository, which belongs to another user", mend)
    else:
        yield _without_git("this folder is in no git repository", "then results go with a commit")


def _without_git(what: str, advice: str) -> Finding:
    """DVC stops without git, unless it is told to do without."""
    config = Path(".dvc/config")
    if config.is_file() and "no_scm" in config.read_text(encoding="utf-8", errors="replace"):
        return note("project.git", f"{what}; DVC does without (no_scm in {config})")
    if shutil.which("git") is None:
        return problem("project.git", what, advice=advice)
    return problem("project.git", f"{what}, and DVC expects one", "git init", advice)


def dvc(_: Wish) -> Iterator[Finding]:
    """DVC, its files here, and the name by which it starts our commands."""
    if not is_project():
        return
    try:
        yield ok("project.dvc", f"DVC {version('dvc')}")
    except PackageNotFoundError:
        yield problem("project.dvc", "DVC is not installed", install("dvc>=3.60"))
    if not Path(".dvc").is_dir():
        inside = [] if Path(".git").exists() else ["--subdir"] if _in_git() else ["--no-scm"]
        yield problem("project.dvc", "this folder is no DVC project (no .dvc/)", shlex.join(["dvc", "init", *inside]))
    if not PIPELINE.is_file():
        advice = "`devil-pipe new` writes one into a folder of its own; copy it from there"
        yield problem("project.dvc", f"{PIPELINE}: no such file, so `dvc repro` has nothing to run", advice=advice)
    else:
        try:
            read_yaml(PIPELINE)
        except UsageError as error:
            yield problem("project.dvc", str(error), advice="put the file back as it was: `git checkout dvc.yaml`")
    yield from _command()
    yield from _locks()


def _in_git() -> bool:
    return any((folder / ".git").exists() for folder in Path.cwd().parents)


def _command() -> Iterator[Finding]:
    """DVC's stages say `devil-pipe`, so a shell has to find this one."""
    bin_, found = Path(sys.executable).parent, shutil.which(COMMAND)
    mend = f'export PATH={shlex.quote(str(bin_))}:"$PATH"'
    if found is None:
        yield problem("project.command", f"a shell does not find `{COMMAND}`, by which DVC starts the stages", mend)
    elif Path(found).parent.resolve() != bin_.resolve():
        yield note("project.command", f"a shell finds another `{COMMAND}`: {found}; DVC would start that one", mend)


def _locks() -> Iterator[Finding]:
    """Locks of a DVC that runs, or that ran and was killed."""
    lock, paths = TMP / "lock", TMP / "rwlock"
    if lock.is_file() and (holder := _held(lock)):
        what = f"another DVC is at work here (PID {holder}); commands of DVC wait for it or stop"
        yield note("project.lock", what, f"ps -p {holder}" if holder.isdecimal() else "")
    if not paths.is_file():
        return
    remove = shlex.join(["rm", str(paths)])
    try:
        values = json.loads(paths.read_text(encoding="utf-8"))
        writers, readers = dict(values.get("write") or {}), dict(values.get("read") or {})
        holders = [*writers.values(), *(one for several in readers.values() for one in several)]
        running = {int(one["pid"]): str(one["cmd"]) for one in holders}
    except (ValueError, TypeError, KeyError, AttributeError):
        advice = "a DVC was killed while it wrote it; no DVC may be running when you remove it"
        yield problem("project.lock", f"{paths}: cannot be read, and every command of DVC stops at it", remove, advice)
        return
    for pid, command in running.items():
        if not _alive(pid):
            yield note("project.lock", f"{paths}: `{command}` (PID {pid}) was killed; DVC takes its lock back itself")
        elif _is_other(pid):
            what = f"{paths}: held for `{command}` by PID {pid}, which is another process by now"
            yield problem("project.lock", what, remove, "DVC takes the number for its own, and waits for ever")
        else:
            yield note("project.lock", f"`{command}` (PID {pid}) is at work here", f"ps -p {pid}")


def _held(lock: Path) -> str:
    """The process that holds a lock file; empty where nobody does."""
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return file.read(20).decode(errors="replace").strip() or "unknown"
    return ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _is_other(pid: int) -> bool:
    """Whether a process can be seen to be no DVC."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"dvc" not in words
