"""`devil-pipe prepare`: pictures and captions of every source that a person may have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from devil_pipe.pipeline.plainly import plainly

if TYPE_CHECKING:
    from devil_pipe.stages.prepare.config import PrepareConfig

_BELONGS = {"captions": "folder", "tsv_val": "tsv"}
_BELONGS |= dict.fromkeys(("karpathy", "coco_annotations", "coco_instances"), "coco_images")


def prepare(
    name: Annotated[str | None, typer.Argument(help="Name of a file in configs/data/, or a new one.")] = None,
    folder: Annotated[Path | None, typer.Option(help="A folder of pictures, instead of a configuration.")] = None,
    captions: Annotated[Path | None, typer.Option(help="Captions, CSV or JSONL; else NAME.txt beside each.")] = None,
    shards: Annotated[Path | None, typer.Option(help="A folder that img2dataset wrote, in any layout.")] = None,
    tsv: Annotated[
        Path | None, typer.Option(help="CC3M's training links, fetched with img2dataset; again: what is missing.")
    ] = None,
    tsv_val: Annotated[Path | None, typer.Option(help="CC3M's validation links, the split `val`.")] = None,
    coco_images: Annotated[Path | None, typer.Option(help="COCO's pictures: the folder with train2014/ …")] = None,
    coco_annotations: Annotated[
        list[Path] | None, typer.Option(help="captions_train2014.json; the option may be given several times.")
    ] = None,
    coco_instances: Annotated[
        list[Path] | None, typer.Option(help="instances_train2014.json: objects and masks; several times.")
    ] = None,
    karpathy: Annotated[Path | None, typer.Option(help="dataset_coco.json, Karpathy's split.")] = None,
) -> None:
    """Index pictures and captions: one row a picture, also for broken ones, with the reason."""
    with plainly():
        from devil_pipe.pipeline import config
        from devil_pipe.stages.prepare.run import run

        given: dict[str, Any] = {
            "folder": folder,
            "captions": captions,
            "shards": shards,
            "tsv": tsv,
            "tsv_val": tsv_val,
            "coco_images": coco_images,
            "coco_annotations": coco_annotations or None,
            "coco_instances": coco_instances or None,
            "karpathy": karpathy,
        }
        values = _values(name, {key: value for key, value in given.items() if value is not None})
        chosen = config.first("data") if name is None else name
        if tsv is not None and (config.CONFIGS / "data" / f"{chosen}.yaml").exists():
            run(_with_links(chosen, tsv, tsv_val, shards))
            return
        with config.kept("data", chosen, values):
            run(config.load_data(chosen))


def _values(name: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """What the configuration of the options says; nothing where there are none."""
    from devil_pipe.store.errors import UsageError

    for option, other in _BELONGS.items():
        if option in given and other not in given:
            raise UsageError(f"{_option(option)} belongs to {_option(other)}")
    sources = [key for key in ("folder", "shards", "tsv", "coco_images") if key in given]
    if len(sources) > 1 and sources != ["shards", "tsv"]:
        raise UsageError(f"expected {_option(sources[0])} or {_option(sources[1])}, got both")
    if sources and name is None:
        kind = "FILE" if sources[0] == "tsv" else "DIR"
        raise UsageError(f"expected a name for the new data set: devil-pipe prepare NAME {_option(sources[0])} {kind}")
    texts = {
        key: [str(item) for item in value] if isinstance(value, list) else str(value) for key, value in given.items()
    }
    if "folder" in given:
        section = {"pictures": texts["folder"]} | _some(texts, "captions")
        return {"source": "folder", "folder": section}
    if "coco_images" in given:
        if "coco_annotations" not in given and "karpathy" not in given:
            raise UsageError("expected --coco-annotations, --karpathy or both with --coco-images, got neither")
        section = {"pictures": texts["coco_images"]} | _some(texts, "karpathy")
        lists = {"annotations": "coco_annotations", "instances": "coco_instances"}
        section |= {key: texts[option] for key, option in lists.items() if option in given}
        return {"source": "coco", "coco": section}
    if sources:
        section = {"shards": texts.get("shards", f"data/{name}/shards")} | _some(texts, "tsv", "tsv_val")
        return {"source": "img2dataset", "img2dataset": section}
    return {}


def _some(texts: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: texts[key] for key in keys if key in texts}


def _option(key: str) -> str:
    return "--" + key.replace("_", "-")


def _with_links(name: str, tsv: Path, tsv_val: Path | None, shards: Path | None) -> PrepareConfig:
    """A data set that has a configuration already, with links to be fetched into its shards.

    The file stays as it is: once the shards lie there, it gives the same index without the links.
    """
    from devil_pipe.pipeline import config
    from devil_pipe.stages.prepare.config import Img2datasetConfig
    from devil_pipe.store.errors import UsageError

    loaded, path = config.load_data(name), config.CONFIGS / "data" / f"{name}.yaml"
    if loaded.img2dataset is None or loaded.source != "img2dataset":
        raise UsageError(f"{path}: --tsv needs source: img2dataset, got {loaded.source}; choose another name")
    values = loaded.img2dataset.model_dump() | {"tsv": tsv, "tsv_val": tsv_val}
    if shards is not None and shards != loaded.img2dataset.shards:
        raise UsageError(f"{path}: shards: {loaded.img2dataset.shards}, but --shards is {shards}: leave it out")
    section = config.validate(Img2datasetConfig, values, path, "img2dataset")
    return loaded.model_copy(update={"img2dataset": section})
