"""What evaluation needs to know."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from devil_pipe.store.place import StoreRoot


class EvaluateRuntime(BaseModel):
    """How fast, never what; nothing here reruns a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(50, ge=1)
    device: str = "auto"
    precision: str = Field("auto", pattern="^(auto|float32|bfloat16)$")


class BertScoreConfig(BaseModel):
    """BERTScore's model; figures of different models are not comparable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("roberta-large", description="a name on the hub, a folder, or the asset minilm-l6")
    num_layers: int = Field(17, ge=1)
    idf: bool = False
    rescale_with_baseline: bool = False
    lower_case: bool = Field(False, description="of both sides; MILANNOTATIONS' figures are so")


class EvaluateConfig(BaseModel):
    """Descriptions of every row of the test splits, their scores and controls."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    seed: int = 0
    split: str = "test"
    novel_split: str = Field("test_novel", description="rows whose objects training never saw; scored apart")
    max_new_tokens: int = Field(50, ge=1, description="the paper: 50, and 20 for MILANNOTATIONS")
    resamples: int = Field(1000, ge=10)
    bertscore: BertScoreConfig = BertScoreConfig()
    runtime: EvaluateRuntime = EvaluateRuntime()
    store: StoreRoot = Field(description="folder or URL of the store")
    data_dir: Path
    out: Path = Field(description="runs/RUN")
