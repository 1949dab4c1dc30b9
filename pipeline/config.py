"""Typed configuration from YAML: configs/data, configs/stores, configs/runs, and the list of what `dvc repro` runs.

Each loader returns the configuration of one stage with its paths filled in. Every mistake is named by file and key.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from devil_pipe.pipeline.report.config import ReportConfig
from devil_pipe.stages.common.files import write_text_atomic
from devil_pipe.stages.common.progress import log
from devil_pipe.stages.evaluate.config import EvaluateConfig, EvaluateRuntime
from devil_pipe.stages.extract.config import ExtractConfig
from devil_pipe.stages.prepare.config import PrepareConfig
from devil_pipe.stages.saliency.config import SaliencyConfig, SaliencyRuntime
from devil_pipe.stages.train.config import TrainConfig, TrainRuntime
from devil_pipe.store.errors import InputError, UsageError
from devil_pipe.store.place import plain_file

CONFIGS, DATA, STORES, RUNS = Path("configs"), Path("data"), Path("stores"), Path("runs")
Config = TypeVar("Config", bound=BaseModel)
_MOST_VALUES = 100_000  # of a file; the longest shipped one has some hundred
LARGEST = 1_000_000
"""Bytes of a configuration; YAML is read at half a megabyte a second, so another file would be read for minutes."""

_SHORT = reprlib.Repr()  # a few lines of aliases can stand for more values than a machine can write down
_SHORT.maxstring = _SHORT.maxother = 150
PATHS = {"name", "run", "out", "data_dir"}  # filled in from the file's name, never from its text


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunRuntime(_Section):
    """Speed and devices of a run's stages; no result depends on it beyond rounding, and nothing reruns."""

    train: TrainRuntime = TrainRuntime()
    evaluate: EvaluateRuntime = EvaluateRuntime()
    saliency: SaliencyRuntime = SaliencyRuntime()


class RunFile(_Section):
    """One file of configs/runs/: a store, a seed, and what each stage does with them."""

    store: str
    seed: int = Field(0, ge=0, lt=2**32)
    train: dict[str, Any] = {}
    evaluate: dict[str, Any] = {}
    saliency: dict[str, Any] = {}
    runtime: RunRuntime = RunRuntime()


class _DataOf(_Section):
    data: str


class _StoreOf(_Section):
    store: str


class PipelineFile(_Section):
    """configs/pipeline.yaml: which data, stores and runs `dvc repro` makes, and what each is made from."""

    data: list[str]
    stores: dict[str, _DataOf]
    runs: dict[str, _StoreOf]


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is a mistake, not a silent last word."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, list | dict | set):
            raise yaml.constructor.ConstructorError(None, None, "expected a plain key", key_node.start_mark)
        if key in found:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _check_expanded(value: Any) -> None:
    """Refuse aliases of aliases that would fill memory once they are written out, as in an error. Raises ValueError."""
    left, waiting = _MOST_VALUES, [value]
    while waiting:
        found = waiting.pop()
        inside = list(found.values()) if isinstance(found, dict) else found
        if isinstance(inside, list | tuple | set):
            left -= len(inside)  # before they are taken in: a long list may hold itself as often as it is long
            if left < 0:
                raise ValueError(f"expected at most {_MOST_VALUES} values, aliases written out")
            waiting.extend(inside)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping. Raises UsageError naming file and line."""
    try:
        if (size := plain_file(path).stat().st_size) > LARGEST:
            raise UsageError(f"{path}: expected a configuration of {LARGEST:,} bytes at most, got {size:,}")
        # A SafeLoader: it builds plain values alone.
        value = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
        _check_expanded(value)
    except FileNotFoundError:
        names = sorted(item.stem for item in path.parent.glob("*.yaml"))
        near = "".join(f"did you mean {name}? " for name in get_close_matches(path.stem, names, 1))
        where = "" if CONFIGS.is_dir() else "; this folder is no project: `devil-pipe new FOLDER` makes one"
        listed = f"{path.parent}/ has: {', '.join(names) or 'none'}{where}"
        raise UsageError(f"{path}: no such file; {near}{listed}") from None
    except InputError as error:
        raise UsageError(str(error)) from None
    except MemoryError:
        raise
    except Exception as error:  # bytes that are no UTF-8; tags, dates and numbers on which PyYAML may raise anything
        said = " ".join(str(error).split()) or type(error).__name__
        what = "" if isinstance(error, yaml.YAMLError | ValueError | OSError) else f"{type(error).__name__}: "
        raise UsageError(f"{path}: expected YAML: {what}{said:.500}") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        found = "nothing" if value is None else "a list" if isinstance(value, list) else _SHORT.repr(value)
        raise UsageError(f"{path}: expected keys and values, got {found}")
    return value


def validate(kind: type[Config], values: dict[str, Any], source: Path, inside: str = "") -> Config:
    """Check values against a configuration; UsageError lists every wrong key with what was expected and found."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            key = ".".join(str(part) for part in ((inside,) if inside else ()) + item["loc"]) or inside or "the file"
            if item["type"] == "extra_forbidden":
                lines.append(f"{key}: unknown key; known here: {', '.join(_known(kind, item['loc'], values))}")
            elif item["type"] == "missing":
                lines.append(f"{key}: missing")
            elif item["type"] == "value_error":  # our own sentence, which says what it got
                lines.append(f"{key}: {item['msg'].removeprefix('Value error, ')}")
            else:
                lines.append(f"{key}: {item['msg']}, got {_SHORT.repr(item['input'])}")
        raise UsageError(f"{source}: " + "; ".join(lines)) from None


def _known(kind: type[BaseModel], location: tuple[int | str, ...], values: Any) -> list[str]:
    """The keys that a file with these values may have where `location` stands."""
    found: type[BaseModel] | None = kind
    for part in location[:-1]:
        field = found.model_fields.get(str(part)) if found else None
        values = values.get(part) if isinstance(values, dict) else None
        found = _model(field.annotation, values) if field else None
    if found is None:
        return []
    ours = set() if len(location) > 1 or kind in (RunFile, PipelineFile) else PATHS
    if kind in (TrainConfig, EvaluateConfig, SaliencyConfig):
        ours = ours and ours | {"seed", "store", "runtime"}
    return [name for name in found.model_fields if name not in ours]


def _model(annotation: Any, values: Any) -> type[BaseModel] | None:
    """The section that an annotation names, also where it may be left out; of several that of the values' `kind`."""
    named = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    models = [kind for kind in named if issubclass(kind, BaseModel)]
    said = values.get("kind") if isinstance(values, dict) else None
    for model in models:
        if "kind" in model.model_fields and model.model_fields["kind"].default == said:
            return model
    return models[0] if models else None


def _file(kind: str, name: str, named_in: str = "") -> Path:
    if Path(name).name != name or not name or name.startswith("."):
        raise UsageError(f"{named_in}expected the name of a file in {CONFIGS / kind}/ without its ending, got {name!r}")
    return CONFIGS / kind / f"{name}.yaml"


def _read(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    for key in values.keys() & PATHS:
        raise UsageError(f"{path}: {key}: unknown key; it follows from the file's name")
    return values


def read_pipeline() -> PipelineFile:
    """configs/pipeline.yaml."""
    path = CONFIGS / "pipeline.yaml"
    return validate(PipelineFile, read_yaml(path), path)


def first(kind: Literal["data", "stores", "runs"]) -> str:
    """The name that a command takes when it is given none. Raises UsageError where the pipeline lists none."""
    names = list(getattr(read_pipeline(), kind))
    if not names:
        raise UsageError(f"{CONFIGS / 'pipeline.yaml'}: {kind}: lists none, so the command needs a name")
    return str(names[0])


def load_data(name: str) -> PrepareConfig:
    """The prepare stage of configs/data/NAME.yaml."""
    path = _file("data", name)
    return validate(PrepareConfig, {**_read(path), "name": name, "out": DATA / name}, path)


def load_store(name: str, values: dict[str, Any] | None = None) -> ExtractConfig:
    """The extract stage of configs/stores/NAME.yaml; `values` stand for a file that is not written (a dry run's)."""
    path = _file("stores", name)
    values = _read(path) if values is None else values
    paths = {"name": name, "data_dir": DATA / str(values.get("data")), "out": STORES / name}
    config = validate(ExtractConfig, {**values, **paths}, path)
    _file("data", config.data, f"{path}: data: ")
    _agrees("stores", name, "data", config.data, path)
    return config


class Run:
    """configs/runs/NAME.yaml, opened: the configuration of each of its stages."""

    def __init__(self, name: str, values: dict[str, Any] | None = None, store: dict[str, Any] | None = None) -> None:
        """Read and check the file; `values` and `store` stand for files that are not written. Raises UsageError."""
        self.name, self.path = name, _file("runs", name)
        self.file = validate(RunFile, read_yaml(self.path) if values is None else values, self.path)
        _file("stores", self.file.store, f"{self.path}: store: ")
        _agrees("runs", name, "store", self.file.store, self.path)
        self.store = load_store(self.file.store, store)
        common = {"run": name, "seed": self.file.seed, "out": RUNS / name}
        common |= {"store": self.store.location, "data_dir": self.store.data_dir}
        self.train = self._stage(TrainConfig, "train", common, self.file.runtime.train)
        self.evaluate = self._stage(EvaluateConfig, "evaluate", common, self.file.runtime.evaluate)
        self.saliency = self._stage(SaliencyConfig, "saliency", common, self.file.runtime.saliency)
        self.report = ReportConfig(run=name, run_dir=RUNS / name)

    def _stage(self, kind: type[Config], section: str, common: dict[str, Any], runtime: BaseModel) -> Config:
        values: dict[str, Any] = getattr(self.file, section)
        for key in (*common, "runtime"):
            if key in values:
                raise UsageError(f"{self.path}: {section}.{key}: unknown key; it stands at the top of the file")
        return validate(kind, {**values, **common, "runtime": runtime}, self.path, section)


def _agrees(kind: str, name: str, key: str, value: str, path: Path) -> None:
    """The pipeline's list repeats what each store and run is made from (DVC needs it there); both must say the same."""
    listing = CONFIGS / "pipeline.yaml"
    if not listing.exists():
        return
    listed = getattr(read_pipeline(), kind).get(name)
    if listed is not None and getattr(listed, key) != value:
        raise UsageError(f"{path}: {key}: {value!r}, but {listing} says {kind}.{name}.{key}: {getattr(listed, key)!r}")


def store_values(**given: Any) -> dict[str, Any]:
    """What a file of configs/stores/ says: `given`, and the default of every other key, for DVC tracks each by name."""
    fields = {name: field for name, field in ExtractConfig.model_fields.items() if name not in PATHS | {"runtime"}}
    return {name: given.get(name, field.default) for name, field in fields.items()}


def write_config(kind: str, name: str, values: dict[str, Any]) -> Path | None:
    """Keep a configuration that was given on the command line, so that it can be named and repeated.

    Returns the new file, or None where the same one lies there. Raises UsageError if another one does.
    """
    path = _file(kind, name)
    if path.exists():
        if read_yaml(path) != values:
            raise UsageError(f"{path}: lies there with other values; choose another name, or edit the file")
        return None
    write_text_atomic(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return path


@contextmanager
def kept(kind: str, name: str, values: dict[str, Any]) -> Iterator[None]:
    """Keep a configuration of the command line, so that its name repeats it; an error of input or disk undoes that."""
    path = write_config(kind, name, values) if values else None
    try:
        yield
    except (InputError, OSError):  # the command that was mended gives it again
        if path:
            path.unlink()
        raise
    if path:
        log(f"wrote {path}")
