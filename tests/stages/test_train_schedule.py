"""The learning rate in closed form, and the log that is cut back where a run goes on."""

import json
from pathlib import Path

import pytest

from devil_pipe.stages.train.config import PhaseConfig
from devil_pipe.stages.train.journal import Journal
from devil_pipe.stages.train.loop import derangement, learning_rate


def test_the_learning_rate_rises_and_falls_in_straight_lines() -> None:
    phase = PhaseConfig(steps=110, warmup_steps=10, lr=2.0, min_lr=0.5)
    rates = [learning_rate(phase, step) for step in range(110)]
    assert rates[:10] == pytest.approx([0.2 * count for count in range(1, 11)])
    assert rates[10:85] == pytest.approx([2.0 - 0.02 * count for count in range(75)])
    assert rates[85:] == [0.5] * 25
    assert max(rates) == 2.0


def test_the_papers_schedule() -> None:
    """5,000 steps up to 1e-4, then down to 1e-6 (supplementary, appendix A)."""
    phase = PhaseConfig(steps=100_000)
    assert learning_rate(phase, 0) == pytest.approx(1e-4 / 5000)
    assert learning_rate(phase, 4999) == learning_rate(phase, 5000) == pytest.approx(1e-4)
    assert learning_rate(phase, 52_500) == pytest.approx(0.5e-4)
    assert learning_rate(phase, 99_999) == 1e-6


def test_a_phase_shorter_than_its_warm_up_only_rises() -> None:
    phase = PhaseConfig(steps=3, warmup_steps=5, lr=1.0)
    assert [learning_rate(phase, step) for step in range(3)] == pytest.approx([0.2, 0.4, 0.6])


def test_without_warm_up_it_begins_at_the_top() -> None:
    assert learning_rate(PhaseConfig(steps=4, warmup_steps=0, lr=1.0), 0) == 1.0


@pytest.mark.parametrize("count", [2, 3, 4, 5, 17, 100])
def test_a_derangement_leaves_none_in_place(count: int) -> None:
    orders = [derangement(count, seed).tolist() for seed in range(20)]
    for order in orders:
        assert sorted(order) == list(range(count))
        assert all(place != moved for place, moved in enumerate(order))
    assert orders[3] == derangement(count, 3).tolist()
    assert count < 5 or len(set(map(tuple, orders))) > 10


def write(path: Path) -> Journal:
    made = Journal(path)
    for phase in ("alignment", "language"):
        for step in range(1, 6):
            made.add(phase=phase, step=step, loss=step / 10)
            if step == 3:
                made.add(phase=phase, step=step, val_loss=0.5)
    return made


def places(path: Path) -> list[tuple[str, int]]:
    return [(line["phase"], line["step"]) for line in Journal.entries(path)]


WHOLE = [(phase, step) for phase in ("alignment", "language") for step in (1, 2, 3, 3, 4, 5)]


@pytest.mark.parametrize(
    ("phase", "step", "kept"), [("alignment", 0, 0), ("alignment", 3, 4), ("language", 0, 6), ("language", 3, 10)]
)
def test_going_on_cuts_the_log_behind_the_saved_step(tmp_path: Path, phase: str, step: int, kept: int) -> None:
    path = tmp_path / "new" / "log.jsonl"
    write(path)
    assert places(path) == WHOLE
    again = Journal(path, phase, step)
    assert places(path) == WHOLE[:kept]
    again.add(phase=phase, step=step + 1, loss=0.25)
    assert places(path) == [*WHOLE[:kept], (phase, step + 1)]


def test_a_new_run_begins_an_empty_log(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl")
    Journal(tmp_path / "log.jsonl")
    assert places(tmp_path / "log.jsonl") == []


def test_a_line_that_a_kill_cut_short_is_left_out_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path)
    with path.open("a") as file:
        file.write('{"phase": "language", "st')
    assert places(path) == WHOLE
    Journal(path, "language", 5).add(phase="language", step=6, loss=1.0)
    assert places(path) == [*WHOLE, ("language", 6)]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_entries_of_no_log_are_none(tmp_path: Path) -> None:
    assert Journal.entries(tmp_path / "log.jsonl") == []


def test_a_full_disk_while_the_log_is_cut_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of hours must survive a stop at the moment in which it is rewritten."""
    path = tmp_path / "log.jsonl"
    write(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            Journal(path, "language", 5)
    assert places(path) == WHOLE
