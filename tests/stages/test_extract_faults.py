"""Stage one under attack: real processes killed at random moments, full disks, lost permissions, broken deliveries.

After each fault: nothing committed is lost, nothing half-written is read, no traceback is shown; and the same command
again makes only what is missing and ends in the bytes of an undisturbed run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from devil_pipe.store.errors import InputError
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.schema import ShardRecord, parse_record

from ..dask_processes import DaskProcesses, alive, kill, wait_until
from ..forked import Commands
from ..small_disk import small_disk
from .webdataset_fixture import sample, write_shard

pytestmark = pytest.mark.slow

TARS, SHARDS = 4, 24  # of 12 and of 2 pictures
STORE = {
    "data": "tiny",
    "backbone": "effnet_lite0",
    "weights": "random",
    "layers": ["s8", "s32"],
    "image_size": 64,
    "shard_rows": 2,
    "runtime": {"batch_size": 1, "decoders": 1, "device": "cpu"},
}
# Root may read and write whatever the permissions say, unless it gives that up.
CAPABILITIES = "-dac_override,-dac_read_search"
PLAIN = ("setpriv", "--bounding-set", CAPABILITIES, "--inh-caps", CAPABILITIES)
THROUGH = PLAIN if os.geteuid() == 0 and shutil.which("setpriv") else ()
IMPORTS = [
    "devil_pipe.stages.extract.run",
    "devil_pipe.stages.extract.cluster",
    "devil_pipe.stages.prepare.run",
    "timm",
]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with Commands(IMPORTS, {"HOME": str(tmp_path_factory.mktemp("home"))}, THROUGH) as running:
        yield running


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    with DaskProcesses(tmp_path_factory.mktemp("dask"), THROUGH) as running:
        yield running


@dataclass
class Project:
    """A prepared data set of tar shards, and what its store is when nothing goes wrong."""

    folder: Path
    commands: Commands
    whole: dict[str, bytes]

    @property
    def store(self) -> Path:
        return self.folder / "stores/tiny"

    def extract(self, *arguments: str, **attack: Any) -> tuple[int, str]:
        return self.commands.run(self.folder, "--quiet", "extract", "tiny", *arguments, **attack)

    def committed(self) -> list[Path]:
        """The markers that a reader could come to."""
        return [path for path in self.store.glob("commits/*/*.json") if path.name[0] != "."]

    def has_committed(self, goal: int) -> Callable[[], bool]:
        return lambda: len(self.committed()) >= goal

    def check_what_counts(self) -> None:
        """Each file under its final name is whole, each marker has its shards, an unfinished store is refused."""
        found = shown(self.store)
        assert {name for name, content in found.items() if self.whole[name] != content} == set()
        for marker in self.committed():
            record = parse_record(ShardRecord, marker.read_bytes(), str(marker))
            for array, file in record.files.items():
                assert (self.store / marker.parent.name / array / f"c.{record.shard}.0.0").stat().st_size == file.size
        if "manifest.json" not in found:
            with pytest.raises(InputError, match="expected a finished store"):
                FeatureStore(self.store)

    def goes_on(self, *arguments: str) -> None:
        """The same command once more: what was committed stays as it is, and the whole is that of a quiet run."""
        before = {path: path.stat().st_mtime_ns for path in self.committed()}
        code, said = self.extract(*arguments)
        assert code == 0, said
        assert shown(self.store) == self.whole
        assert {path: path.stat().st_mtime_ns for path in before} == before


def shown(store: Path) -> dict[str, bytes]:
    """Every file under its final name: partial ones have a dot before theirs. Seconds are no content."""
    names = [path for path in store.rglob("*") if path.name[0] != "." and path.name != "seconds.json"]
    return {str(path.relative_to(store)): path.read_bytes() for path in names if path.is_file()}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Project:
    folder = tmp_path_factory.mktemp("project")
    for tar in range(TARS):
        samples = (sample(f"{tar:02d}{number:03d}", seed=12 * tar + number) for number in range(12))
        write_shard(folder / f"tars/{tar:05d}.tar", samples)
    listing = {"data": ["tiny"], "stores": {"tiny": {"data": "tiny"}}, "runs": {}}
    data = {"source": "webdataset", "webdataset": {"shards": "tars"}}
    for name, values in {"pipeline": listing, "data/tiny": data, "stores/tiny": STORE}.items():
        path = folder / f"configs/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values))
    for command in (("prepare", "tiny"), ("extract", "tiny")):
        code, said = commands.run(folder, *command)
        assert code == 0, said
    made = Project(folder, commands, shown(folder / "stores/tiny"))
    assert len(made.whole) == SHARDS * 3 + 8  # two layers and a marker a shard; key and valid; five zarr.json; manifest
    return made


@pytest.fixture(autouse=True)
def _clean(project: Project) -> None:
    if project.store.exists():
        shutil.rmtree(project.store)


@dataclass
class Attack:
    """SIGKILL for one of the processes, some time after so many shards are committed."""

    project: Project
    dask: DaskProcesses
    victim: str
    goal: int
    worker: int
    delay: float

    def __call__(self, client: int) -> None:
        wait_until(lambda: self.project.has_committed(self.goal)() or not alive(client))
        time.sleep(self.delay)
        process = {"scheduler": self.dask.scheduler, "client": client}.get(self.victim, self.worker)
        if self.victim == "stopped worker":  # stopped for a while, and so killed in the midst of what it was doing
            kill(process, signal.SIGSTOP)
            time.sleep(0.3)
        kill(process)


def test_whoever_is_killed_nothing_is_lost(project: Project, dask: DaskProcesses) -> None:
    draw = random.Random(0)
    victims = ["worker", "scheduler", "client", "stopped worker"] * 3
    goals = draw.sample(range(SHARDS - 4), len(victims))
    ends: list[tuple[str, int, int]] = []
    for victim, goal in zip(victims, goals, strict=True):
        dask.start(workers=2)
        attack = Attack(project, dask, victim, goal, draw.choice(dask.workers), draw.uniform(0, 0.1))
        code, said = project.extract("--scheduler", dask.address, meanwhile=attack)
        assert "Traceback" not in said
        ends.append((victim, code, len(project.committed())))
        project.check_what_counts()
        if victim == "client":
            assert code in (0, -9)
        elif victim == "scheduler" and code:
            assert code == 1
            assert said.splitlines()[-1].startswith(
                f"error: scheduler {dask.address}: the connection was lost; what was"
            )
        else:
            assert code == 0, said
        if code:
            dask.start(workers=2)
            project.goes_on("--scheduler", dask.address)
        assert shown(project.store) == project.whole
        shutil.rmtree(project.store)
    stopped = {victim for victim, code, _ in ends if code}
    assert stopped == {"scheduler", "client"}, f"the kills came too late: {ends}"
    assert len({count for _, code, count in ends if code}) > 2, f"the kills came at one and the same point: {ends}"


def test_the_last_worker_is_lost(project: Project, dask: DaskProcesses) -> None:
    """Nobody takes over until another comes."""
    dask.start(workers=2)

    def attack(client: int) -> None:
        wait_until(project.has_committed(3))
        for worker in dask.workers:
            kill(worker)
        wait_until(lambda: not any(alive(worker) for worker in dask.workers))
        project.check_what_counts()
        dask.start(workers=1)

    code, said = project.extract("--scheduler", dask.address, meanwhile=attack)
    assert code == 0, said
    assert shown(project.store) == project.whole


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(project: Project, dask: DaskProcesses) -> None:
    dask.start(workers=2)
    with small_disk(project.store.parent, kilobytes=300) as resize:
        code, said = project.extract("--scheduler", dask.address)
        assert code == 1
        assert "No space left on device while writing; what was committed before is kept" in said.splitlines()[-1]
        assert "Traceback" not in said
        assert 0 < len(project.committed()) < SHARDS
        project.check_what_counts()
        resize(10_000)
        project.goes_on("--scheduler", dask.address)


@pytest.mark.skipif(os.geteuid() == 0 and not THROUGH, reason="root ignores permissions, and setpriv is not here")
@pytest.mark.parametrize(("what", "mode"), [("stores/tiny", 0o500), ("tars", 0o000)])
def test_permissions_that_go_away_and_come_back(project: Project, dask: DaskProcesses, what: str, mode: int) -> None:
    dask.start(workers=2)
    top = project.folder / what

    def folders() -> list[Path]:
        return [top, *(path for path in top.rglob("*") if path.is_dir())]

    def attack(client: int) -> None:
        wait_until(project.has_committed(2))
        for folder in folders():
            folder.chmod(mode)

    try:
        code, said = project.extract("--scheduler", dask.address, meanwhile=attack)
    finally:
        for folder in folders():
            folder.chmod(0o755)
    assert code == 1
    assert "Permission denied" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert 2 <= len(project.committed()) < SHARDS
    project.check_what_counts()
    project.goes_on("--scheduler", dask.address)


def test_a_tar_delivered_anew_and_broken(project: Project, dask: DaskProcesses) -> None:
    dask.start(workers=2)
    tar = project.folder / "tars/00002.tar"
    good = tar.read_bytes()
    tar.write_bytes(good[: len(good) // 2])
    try:
        code, said = project.extract("--scheduler", dask.address)
    finally:
        tar.write_bytes(good)
    assert code == 1
    assert "tars/00002.tar, got 0: the file changed since it was indexed" in said.splitlines()[-1]
    assert "Traceback" not in said
    project.check_what_counts()
    project.goes_on("--scheduler", dask.address)


def test_a_tar_with_a_broken_header(project: Project, dask: DaskProcesses) -> None:
    """The index knows where the pictures lie, so headers broken later harm nothing; when indexed they are refused."""
    dask.start(workers=2)
    tar = project.folder / "tars/00001.tar"
    good = tar.read_bytes()
    tar.write_bytes(bytes([255]) * 512 + good[512:])
    try:
        project.goes_on("--scheduler", dask.address)
        code, said = project.commands.run(project.folder, "prepare", "tiny")
        assert code == 1
        assert "00001.tar" in said.splitlines()[-1]
        assert "Traceback" not in said
    finally:
        tar.write_bytes(good)
        code, said = project.commands.run(project.folder, "prepare", "tiny")
        assert code == 0, said
    project.goes_on("--scheduler", dask.address)


def started_by(process: int) -> list[int]:
    return [child.pid for child in psutil.Process(process).children(recursive=True)]


def workers_of(client: int) -> list[int]:
    """The worker processes; beside them Python keeps one that tracks shared resources."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(client).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child.pid)
    return found


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "a worker is killed", "a tar is gone"])
def test_processes_of_this_machine_end_with_the_command(project: Project, how: str) -> None:
    tar = project.folder / "tars/00003.tar"
    family: list[int] = []

    def attack(client: int) -> None:
        wait_until(lambda: len(workers_of(client)) == 2 or not alive(client))
        workers = workers_of(client)
        wait_until(lambda: project.has_committed(1)() or not alive(client))
        for process in workers:  # else all may be done before the attack comes
            kill(process, signal.SIGSTOP)
        family.extend(started_by(client))
        match how:
            case "Ctrl-C":  # the terminal sends it to every process
                for process in (client, *family):
                    kill(process, signal.SIGINT)
            case "SIGTERM":
                kill(client, signal.SIGTERM)
            case "a worker is killed":
                kill(workers[0])
        for process in workers:
            kill(process, signal.SIGCONT)

    if how == "a tar is gone":
        tar.rename(tar.with_suffix(".away"))
    try:
        code, said = project.extract("--workers", "2", meanwhile=attack)
    finally:
        if how == "a tar is gone":
            tar.with_suffix(".away").rename(tar)
    codes = {"Ctrl-C": 130, "SIGTERM": -15, "a worker is killed": 0, "a tar is gone": 1}
    assert code == codes[how], said
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if not line.startswith("warning:")]) == (code in (1, 130)), said
    wait_until(lambda: not any(alive(process) for process in family), 60)
    project.check_what_counts()
    project.goes_on()
