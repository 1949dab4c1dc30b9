"""Looking for damage in a store, whole or half finished: what is wrong, where, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from devil_pipe.store.check import ROW_ARRAYS, Check
from devil_pipe.store.examine import Finding, ShardFile
from devil_pipe.store.place import Root, place
from devil_pipe.store.survey import Survey, marker_name
from devil_pipe.store.writer import MANIFEST


@dataclass(frozen=True)
class Report:
    """What was looked at and what was found."""

    findings: tuple[Finding, ...]
    files: int
    """Shard files that were read."""

    committed: int
    shards: int

    @property
    def whole(self) -> bool:
        """Whether nothing but notes was found."""
        return all(finding.note for finding in self.findings)

    @property
    def shards_hurt(self) -> list[int]:
        """The shards of which something was found, in order."""
        return sorted({item.shard for item in self.findings if item.shard is not None and not item.note})


def verify(
    root: Root,
    *,
    index: str | None = None,
    keys: Sequence[str] | None = None,
    threads: int = 4,
    share: tuple[int, int] = (0, 1),
    watch: Callable[[int], Callable[[], object]] = lambda _: lambda: None,
) -> Report:
    """Read every committed shard file of a store, and all that is said about them.

    Args:
        root: folder or URL of the store; without a manifest the shards' markers are what counts.
        index: digest of the picture index that the store should be of.
        keys: the pictures' keys by row.
        threads: shard files that are held in memory at once, each by a thread of its own.
        share: (rank, processes): of several processes that verify together each reads its part of the shard files.
        watch: told how many shard files there are to read; gives what is called after each.

    Raises:
        InputError: there is no store, or its place cannot be reached.
    """
    survey = Survey(root)
    checks = [Check(survey, header, index, keys) for header in survey.current(index)]
    findings = list(_manifest(survey, checks))
    tasks = [(check, *task) for check in checks for task in check.shard_files()][share[0] :: share[1]]
    advance = watch(len(tasks))

    def look(task: tuple[Check, int, ShardFile]) -> list[Finding]:
        check, shard, expected = task
        return check.look(shard, expected)

    for check in checks:
        findings += [*check.metadata(), *check.markers()]
    with ThreadPoolExecutor(threads) as pool:
        try:
            for found in pool.map(look, tasks):
                findings += found
                advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for check in checks:
        findings += [*check.row_arrays(), *check.against_index()]
    findings += _beside(survey, checks)
    committed, shards = sum(len(check.records) for check in checks), sum(len(check.header.ranges) for check in checks)
    return Report(tuple(findings), len(tasks), committed, shards)


def discard(root: Root, report: Report) -> list[str]:
    """Take away what `report` found damaged: the manifest first, then markers, then files; their names.

    A shard without its marker does not exist, so a stop in between leaves nothing half damaged.
    """
    lies = place(root)
    wanted = {name for finding in report.findings for name in finding.remove}
    order = sorted(wanted, key=lambda name: (name != MANIFEST, "commits" not in name.split("/"), name))
    there = [name for name, size in zip(order, lies.sizes(order), strict=True) if size is not None]
    for name in there:
        lies.remove(name)
    return there


def _manifest(survey: Survey, checks: Sequence[Check]) -> Iterator[Finding]:
    """The manifest itself: missing or unreadable. One that can be read is of one piece (`schema.py`)."""
    show = survey.place.show
    again = "`devil-pipe extract` writes it again from the markers"
    for folder, trouble in survey.troubles.items():
        if survey.manifest is None:
            name = f"{folder}/zarr.json"
            what = f"without it nothing is known of what lies in {folder}: {trouble}"
            yield Finding("metadata", show(name), what, f"take it away: {again}", remove=(name,))
    if survey.trouble:
        yield Finding("manifest", show(MANIFEST), f"cannot be read: {survey.trouble}", again, remove=(MANIFEST,))
    elif survey.manifest is None:
        counts = [f"{len(check.found.records)} of {len(check.header.ranges)} shards" for check in checks]
        what = f"no such file: the store is not finished, with {' and '.join(counts) or 'nothing'} committed"
        yield Finding("unfinished", show(MANIFEST), what, "`devil-pipe extract` goes on where it stopped")


def _beside(survey: Survey, checks: Sequence[Check]) -> Iterator[Finding]:
    """Files that nobody names: no reader looks at them."""
    show = survey.place.show
    named = {MANIFEST, "seconds.json"}
    for check in checks:
        folder, uncommitted = check.header.folder, []
        named |= {f"{folder}/zarr.json"}
        named |= {f"{folder}/{name}/{part}" for name in ROW_ARRAYS for part in ("zarr.json", "c.0")}
        named |= {f"{folder}/{array}/zarr.json" for array in check.arrays}
        for shard in range(len(check.header.ranges)):
            files = {check.file(array, shard) for array in check.arrays}
            named |= files | {marker_name(check.header, shard)}
            uncommitted += sorted(files & survey.names) if shard not in check.records else []
        yield from _note("uncommitted", show, uncommitted, "of a shard that is not committed yet")
    mine = {check.header.folder for check in checks}
    others = {folder for folder in survey.folders if folder not in mine and folder in survey.headers}
    for folder in sorted(others):
        what = "the store of another identity, which the manifest does not name"
        yield Finding("beside", show(folder), what, note=True)
    stray = [name for name in sorted(survey.names - named) if others.isdisjoint(name.split("/")[:2])]
    partial = [name for name in stray if name.endswith(".partial")]
    yield from _note("partial", show, partial, "left half written by a run that was stopped; it may be removed")
    yield from _note("stray", show, [name for name in stray if name not in partial], "belongs to no store")


def _note(problem: str, show: Callable[[str], str], names: Sequence[str], what: str) -> Iterator[Finding]:
    """One note for all files of a folder."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    for files in folders.values():
        more = f" (and {len(files) - 1} more in its folder)" if len(files) > 1 else ""
        yield Finding(problem, show(files[0]), what + more, note=True)
