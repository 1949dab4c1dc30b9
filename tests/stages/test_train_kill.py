"""`devil-pipe train`, killed at random points ten times and started again, ends with the weights of a calm run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from .. import tiny
from ..forked import Commands

KILLS = 10
STEPS = 100


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of its own with one configuration under two names."""
    made = tiny.project(tmp_path_factory.mktemp("killed"))
    for name in ("calm", "killed"):
        (made / "configs" / "runs" / f"{name}.yaml").write_text(yaml.safe_dump(tiny.run_values(made)))
    return made


def steps_done(log: Path) -> int:
    """Steps in the log of a run that may be writing it."""
    if not log.exists():
        return 0
    return sum('"lr"' in line for line in log.read_text().splitlines())


@pytest.mark.slow
def test_ten_kills_change_no_byte(root: Path) -> None:
    chance = random.Random(20231123)
    goals = sorted(chance.sample(range(STEPS - 2), KILLS))
    log = root / "runs" / "killed" / "train" / "log.jsonl"
    imports = ("devil_pipe.pipeline.config", "devil_pipe.stages.train.run", "pandas")
    imports += ("pyarrow.dataset", "transformers.convert_slow_tokenizer", "transformers.models.llama.modeling_llama")
    with Commands(imports) as commands:
        assert commands.run(root, "train", "calm")[0] == 0
        codes = [
            commands.run(
                root,
                "train",
                "killed",
                kill_after=chance.uniform(0, 0.02),
                counted_from=lambda goal=goal: steps_done(log) > goal,  # type: ignore[misc]
            )[0]
            for goal in goals
        ]
        assert codes.count(-9) >= KILLS - 2, "too few kills came before the end"
        assert not (root / "runs" / "killed" / "checkpoint" / "config.yaml").exists() or codes[-1] == 0
        code, said = commands.run(root, "train", "killed")
    assert code == 0, said
    calm, killed = (root / "runs" / name for name in ("calm", "killed"))
    weights = Path("checkpoint") / "translator.safetensors"
    assert (killed / weights).read_bytes() == (calm / weights).read_bytes()
    assert tiny.losses(killed / "train" / "log.jsonl") == tiny.losses(calm / "train" / "log.jsonl")
    assert steps_done(log) == STEPS
