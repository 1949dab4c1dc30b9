"""One tiny project, trained once, for the tests of training, evaluation and saliency."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from devil_pipe.pipeline.config import Run
from devil_pipe.stages.evaluate import run as evaluate_run
from devil_pipe.stages.saliency import run as saliency_run
from devil_pipe.stages.train import run as train_run
from devil_pipe.stages.train.language_model import LanguageModel

from .. import tiny


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors are slower on two threads than on one, and on busy cores by a factor of fifty."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project with a store, ready to be trained."""
    return tiny.project(tmp_path_factory.mktemp("project"))


def open_project(root: Path, name: str = tiny.NAME) -> Run:
    """A run's configuration with absolute paths, so that tests need not stand in its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        opened = Run(name)
    places = {"store": str(root / opened.store.out), "data_dir": root / "data" / tiny.NAME, "out": root / "runs" / name}
    opened.train = opened.train.model_copy(update=places)
    opened.evaluate = opened.evaluate.model_copy(update=places)
    opened.saliency = opened.saliency.model_copy(update=places)
    return opened


@pytest.fixture(scope="session")
def run(project: Path) -> Run:
    """The tiny run's configuration."""
    return open_project(project)


@pytest.fixture(scope="session")
def untouched(project: Path, run: Run) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Train the tiny run; the language model's tensors before and after."""
    kept: list[tuple[LanguageModel, dict[str, torch.Tensor]]] = []

    def loading(*args: object, **options: object) -> LanguageModel:
        loaded = LanguageModel(*args, **options)  # type: ignore[arg-type]
        kept.append((loaded, {name: value.clone() for name, value in loaded.model.state_dict().items()}))
        return loaded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_run, "LanguageModel", loading)
        train_run.run(run.train)
    ((loaded, before),) = kept
    after = loaded.model.state_dict()
    return {name: (before[name], after[name]) for name in after}


@pytest.fixture(scope="session")
def trained(run: Run, untouched: object) -> Path:
    """The folder of the finished tiny run."""
    return run.train.out


@pytest.fixture(scope="session")
def evaluated(run: Run, trained: Path) -> Path:
    """The same folder, evaluated."""
    evaluate_run.run(run.evaluate)
    return trained


@pytest.fixture(scope="session")
def mapped(run: Run, trained: Path) -> Path:
    """The same folder, with saliency maps and gallery."""
    saliency_run.run(run.saliency)
    return trained
