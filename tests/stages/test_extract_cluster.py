"""Stage one on Dask workers: the bytes of one process, each picture counted once, errors that say what is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

from devil_pipe.stages.common.progress import Mode, speak
from devil_pipe.stages.extract import cluster, task
from devil_pipe.stages.extract.config import ExtractConfig, Runtime
from devil_pipe.stages.extract.run import run
from devil_pipe.stages.extract.worker import Worker
from devil_pipe.stages.prepare.index import read_index, write_index
from devil_pipe.store.errors import InputError
from devil_pipe.store.reader import FeatureStore
from devil_pipe.store.schema import Identity

from ..dask_processes import DaskProcesses, kill, wait_until
from .test_extract_run import config, spoil

Data = Callable[..., Path]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    with DaskProcesses(tmp_path_factory.mktemp("dask")) as running:
        yield running


@pytest.fixture
def dask(processes: DaskProcesses) -> DaskProcesses:
    """A scheduler with two workers."""
    return processes.start(workers=2)


def on(dask: DaskProcesses, data: Path, out: str = "store", **changes: Any) -> ExtractConfig:
    """Shards of two pictures, made by the scheduler's workers."""
    runtime = Runtime(batch_size=2, decoders=1, device="cpu", scheduler=dask.address)
    return config(data, out, **{"shard_rows": 2, "runtime": runtime, **changes})


def alone(data: Path, out: str, **changes: Any) -> ExtractConfig:
    """The same in one process."""
    return config(data, out, **{"shard_rows": 2, "runtime": Runtime(batch_size=2, decoders=1, device="cpu"), **changes})


def manifest(of: ExtractConfig) -> bytes:
    """It holds every shard's digest."""
    return (of.out / "manifest.json").read_bytes()


@pytest.mark.parametrize("encoding", ["float16", "uint8", "partition:4+zstd"])
def test_the_workers_of_a_scheduler_make_the_bytes_of_one_process(
    tiny_data: Data, dask: DaskProcesses, encoding: str
) -> None:
    data = tiny_data(count=23, spoil=spoil)
    one, many = alone(data, "one", encoding=encoding), on(dask, data, "many", encoding=encoding)
    run(one)
    run(many)
    assert manifest(many) == manifest(one)
    assert len(FeatureStore(many.out).manifest.shards) == 12


@pytest.mark.slow
def test_two_processes_here_make_the_bytes_of_one(tiny_data: Data, capfd: pytest.CaptureFixture[str]) -> None:
    data = tiny_data(count=23, spoil=spoil)
    one = alone(data, "one")
    two = alone(data, "two", runtime=Runtime(batch_size=2, decoders=1, device="cpu", workers=2))
    run(one)
    before = dict(os.environ)
    capfd.readouterr()
    run(two)
    said = capfd.readouterr().err.splitlines()
    assert manifest(two) == manifest(one)
    assert dict(os.environ) == before
    starts = ("self-test skipped", "warning: effnet_lite0 has random", "2 workers of", "extract", "where", "store")
    assert all(line.startswith((*starts, "warning: the backbone waited")) for line in said), "Dask keeps quiet"


def test_each_picture_is_counted_once(tiny_data: Data, dask: DaskProcesses) -> None:
    worker = Worker(on(dask, tiny_data(count=23)))
    counted: list[int] = []
    times = cluster.make(worker, worker.writer.missing_shards(), counted.append)
    assert sum(counted) == 23
    assert min(counted) > 0
    assert worker.writer.missing_shards() == []
    assert 0 < times.forward < times.total
    assert times.start + times.wait + times.forward + times.encode + times.hold <= times.total


def test_only_what_is_missing_or_damaged_is_made(tiny_data: Data, dask: DaskProcesses) -> None:
    settings = on(dask, tiny_data(count=23))
    run(settings)
    whole = manifest(settings)
    writer = Worker(settings).writer
    writer.place.remove(writer.marker(3))
    (settings.out / writer.file("s8", 7)).unlink()
    cut = settings.out / writer.file("s32", 11)
    cut.write_bytes(cut.read_bytes()[:-1])
    before = {path: path.stat().st_mtime_ns for path in settings.out.rglob("s*/c.*")}
    run(settings)
    assert manifest(settings) == whole
    changed = {path.name for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed == {"c.3.0.0", "c.7.0.0", "c.11.0.0"}


def test_a_shard_that_another_writer_committed_is_not_made_again(tiny_data: Data, dask: DaskProcesses) -> None:
    """Its pictures are gone, so that computing it would fail."""
    data = tiny_data(count=8)
    settings = on(dask, data)
    worker = Worker(settings)
    worker.make([1])
    for row in worker.writer.ranges[1]:
        (data.parents[1] / f"pictures/{row:03d}.png").unlink()
    counted: list[int] = []
    cluster.make(worker, [0, 1, 2, 3], counted.append)
    assert sum(counted) == 8
    assert worker.writer.missing_shards() == []


def test_progress_never_goes_back_when_a_task_is_begun_again() -> None:
    counted: list[int] = []
    progress = cluster._Progress([8, 4], counted.append)
    for number, done in ((0, 2), (0, 6), (1, 2), (0, 1), (0, 4), (0, 8), (1, 4), (1, 4)):
        progress.heard((0.0, [number, done]))
    assert counted == [2, 4, 2, 2, 2]


@pytest.mark.parametrize(("shards", "workers"), [(1, 1), (1, 8), (7, 2), (11_719, 2), (11_719, 1000), (40, 3)])
def test_tasks_are_whole_shards_each_in_one_task(shards: int, workers: int) -> None:
    tasks = cluster.split(range(shards), workers)
    assert [shard for task in tasks for shard in task] == list(range(shards))
    assert all(1 <= len(task) <= 4 for task in tasks)
    assert len(tasks) >= min(shards, 2 * workers), "every worker has something to do, and a slow one does less"


def test_a_task_needs_a_gpu_where_workers_offer_one(tiny_data: Data, dask: DaskProcesses) -> None:
    settings = on(dask, tiny_data(count=16))
    dask.add("--resources", "GPU=1", "--name", "with a GPU")

    def has_loaded(mine: str = str(settings.data_dir)) -> bool:
        task = sys.modules["devil_pipe.stages.extract.task"]
        return any(mine in settings for settings in task._loaded)

    with Client(dask.address, set_as_default=False) as client:
        wait_until(lambda: len(client.nthreads()) == 3)
        run(settings)
        workers = client.scheduler_info(n_workers=-1)["workers"]
        names = {address: worker["name"] for address, worker in workers.items()}
        loaded = {names[address] for address, yes in client.run(has_loaded).items() if yes}
    kill(dask.workers.pop())
    assert loaded == {"with a GPU"}


def test_processes_share_out_the_gpus(tiny_data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed to see which device a worker would take."""
    settings = alone(tiny_data(count=4), "store")
    identity = Worker(settings).identity
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    devices = {"auto": 2, "cuda": 2, "cuda:1": 1, "cpu": 0}
    counted = {}
    taken = {}
    for device in devices:
        wanted = settings.model_copy(update={"runtime": Runtime(device=device, workers=4)})
        counted[device] = cluster._gpus(wanted)
        job = task.Job("name", wanted.model_dump_json(), identity.model_dump_json(), threads=1, spread=True)
        for name in range(2):
            with pytest.MonkeyPatch.context() as patch:
                made: list[ExtractConfig] = []

                def fake(of: ExtractConfig, made: list[ExtractConfig] = made) -> FakeWorker:
                    made.append(of)
                    return FakeWorker(identity)

                patch.setattr("devil_pipe.stages.extract.worker.Worker", fake)
                task._worker(job, FakeDaskWorker(name))
                speak(Mode.HUMAN)
                task._loaded.clear()
            taken[device, name] = made[0].runtime.device
    assert counted == devices
    assert taken == {
        **{("auto", name): f"cuda:{name}" for name in range(2)},
        **{("cuda", name): f"cuda:{name}" for name in range(2)},
        **{(device, name): device for device in ("cuda:1", "cpu") for name in range(2)},
    }


@dataclass
class FakeWorker:
    identity: Identity


@dataclass
class FakeDaskWorker:
    name: int
    address: str = "here"


def test_a_worker_of_several_threads_makes_one_task_at_a_time(tiny_data: Data, processes: DaskProcesses) -> None:
    """Several would read each other's feature maps out of one backbone. Four threads round otherwise than one."""
    data = tiny_data(count=24)
    processes.stop()
    processes.start(workers=0).add("--nthreads", "4")
    one, many = alone(data, "one"), on(processes, data, "many")
    run(one)
    run(many)
    processes.stop()
    for layer in ("s8", "s32"):
        expected, found = (FeatureStore(of.out)[layer][:].astype(np.float32) for of in (one, many))
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3)


def test_an_error_stops_the_tasks_of_the_others(tiny_data: Data, dask: DaskProcesses) -> None:
    data = tiny_data(count=80)
    (data.parents[1] / "pictures/000.png").unlink()
    settings = on(dask, data, shard_rows=40, image_size=224)
    with pytest.raises(InputError, match=r"^key '000'"):
        run(settings)
    with Client(dask.address, set_as_default=False) as client:
        wait_until(lambda: not any(client.run(lambda dask_worker: len(dask_worker.state.executing)).values()))
    assert Worker(settings).writer.missing_shards() == [0, 1], "the other shard was given up half computed"


def test_what_a_worker_finds_wrong_is_said_as_in_one_process(tiny_data: Data, dask: DaskProcesses) -> None:
    data = tiny_data(count=12)
    (data.parents[1] / "pictures/007.png").unlink()
    with pytest.raises(InputError, match=r"^key '007': expected its picture in .*007\.png.*devil-pipe prepare"):
        run(on(dask, data))
    with pytest.raises(InputError, match="expected a finished store"):
        FeatureStore(data.parents[1] / "store")


def test_a_write_that_fails_is_the_same_oserror(tiny_data: Data, dask: DaskProcesses) -> None:
    settings = on(dask, tiny_data(count=4))
    worker = Worker(settings)
    (settings.out / worker.writer.file("s8", 1)).mkdir(parents=True)
    with pytest.raises(IsADirectoryError) as caught:
        cluster.make(worker, [0, 1])
    assert caught.value.filename == str(settings.out / worker.writer.file("s8", 1))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "no-such-host.invalid:8786", "127.0.0.1"])
def test_an_address_where_no_scheduler_listens(
    tiny_data: Data, monkeypatch: pytest.MonkeyPatch, address: str, dask: DaskProcesses
) -> None:
    monkeypatch.setattr(cluster, "CONNECT", 0.5)
    settings = on(dask, tiny_data(count=4))
    settings = settings.model_copy(update={"runtime": Runtime(device="cpu", scheduler=address)})
    with pytest.raises(InputError, match=f"^scheduler {address}: expected a Dask scheduler there, none answers"):
        run(settings)


def test_a_scheduler_without_workers(
    tiny_data: Data, monkeypatch: pytest.MonkeyPatch, processes: DaskProcesses
) -> None:
    processes.stop()
    processes.start(workers=0)
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    with pytest.raises(InputError, match=r"expected a worker, found none in .* s; `dask worker ADDRESS` starts one"):
        run(on(processes, tiny_data(count=4)))


@pytest.mark.parametrize("who", ["scheduler", "worker"])
def test_an_environment_without_devil_pipe(tiny_data: Data, processes: DaskProcesses, who: str) -> None:
    processes.stop()
    processes.start(workers=0, hidden="devil_pipe" if who == "scheduler" else "")
    processes.add(hidden="devil_pipe" if who == "worker" else "")
    try:
        with pytest.raises(
            InputError, match=f"{who}.* cannot import .*devil_pipe.*: expected the same devil-pipe in the"
        ):
            run(on(processes, tiny_data(count=4)))
    finally:
        processes.stop()


def test_a_worker_with_another_index_names_both(tiny_data: Data, dask: DaskProcesses) -> None:
    data = tiny_data(count=4)
    settings = on(dask, data)
    worker = Worker(settings)
    path = data / "index.parquet"
    ours = worker.identity.index
    write_index(read_index(path).slice(0, 3), path)
    theirs = Worker(settings).identity.index
    with pytest.raises(
        InputError, match=rf"would make other features than the command .*index: '{ours}' against '{theirs}'"
    ):
        cluster.make(worker, [0, 1])


def test_data_that_a_worker_does_not_see(tiny_data: Data, dask: DaskProcesses) -> None:
    data = tiny_data(count=4)
    worker = Worker(on(dask, data))
    (data / "index.parquet").rename(data / "elsewhere.parquet")
    with pytest.raises(InputError, match=r"^worker tcp://.* on .*: expected an index of pictures at .*found no file"):
        cluster.make(worker, [0, 1])


def test_a_store_that_a_worker_does_not_see(tiny_data: Data, dask: DaskProcesses) -> None:
    """fsspec's memory:// is a place of its own in every process."""
    settings = on(dask, tiny_data(count=4), place="memory://stores")
    with pytest.raises(
        InputError, match=r"expected the store that the command made in memory://stores/store/.*found none"
    ):
        run(settings)


def test_committed_shards_that_do_not_come_into_sight(
    tiny_data: Data, dask: DaskProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(on(dask, tiny_data(count=4)))
    monkeypatch.setattr(cluster, "PATIENCE", 5.0)
    monkeypatch.setattr(cluster, "POLL", 0.1)
    done = 0

    def take_away(count: int) -> None:
        nonlocal done
        done += count
        if done == 4:
            worker.writer.place.remove(worker.writer.marker(1))

    with pytest.raises(InputError, match="1 of 2 shards that workers committed cannot be seen from here, such as 1"):
        cluster.make(worker, [0, 1], take_away)


def test_nothing_missing_needs_no_cluster(tiny_data: Data) -> None:
    settings = alone(tiny_data(count=4), "store")
    run(settings)
    before = manifest(settings)
    run(settings.model_copy(update={"runtime": Runtime(device="cpu", scheduler="tcp://127.0.0.1:9")}))
    assert manifest(settings) == before
