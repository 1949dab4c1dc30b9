"""What stage two needs to know. Defaults are the paper's (supplementary, appendix A) unless a line says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from devil_pipe.store.place import StoreRoot

Order = Literal["auto", "permutation", "windows"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TranslatorConfig(_Section):
    """DeViL's: the Transformer encoder between features and prefix tokens."""

    kind: Literal["devil"] = "devil"
    layers: int = Field(12, ge=1)
    width: int = Field(768, ge=1)
    heads: int = Field(12, ge=1)
    feedforward: int = Field(3072, ge=1)
    queries: int = Field(10, ge=1, description="prefix tokens")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TranslatorConfig:
        if self.width % self.heads:
            raise ValueError(f"width: expected a multiple of heads ({self.heads}), got {self.width}")
        return self


class ClipCapTransformerConfig(_Section):
    """ClipCap's Transformer mapper, as wide as the language model's embeddings; defaults are the published sizes."""

    kind: Literal["clipcap-transformer"] = "clipcap-transformer"
    layers: int = Field(8, ge=1)
    heads: int = Field(8, ge=1)
    mlp_ratio: float = Field(2.0, gt=0, description="width of the feed-forward part over that of the tokens")
    clip_length: int = Field(10, ge=1, description="tokens that the image's embedding is mapped to")
    queries: int = Field(10, ge=1, description="prefix tokens")


class ClipCapMlpConfig(_Section):
    """ClipCap's MLP mapper: one hidden layer, half as wide as all prefix tokens together."""

    kind: Literal["clipcap-mlp"] = "clipcap-mlp"
    queries: int = Field(10, ge=1, description="prefix tokens")


ClipCapConfig = ClipCapTransformerConfig | ClipCapMlpConfig
_KINDS: dict[str, type[TranslatorConfig | ClipCapConfig]] = {
    "devil": TranslatorConfig,
    "clipcap-transformer": ClipCapTransformerConfig,
    "clipcap-mlp": ClipCapMlpConfig,
}


def translator_config(values: object) -> TranslatorConfig | ClipCapConfig:
    """The section of a translator's kind; what names none is DeViL's, as before there were others.

    Raises:
        ValueError: an unknown kind, or what is no section; a ValidationError names each wrong key.
    """
    if isinstance(values, TranslatorConfig | ClipCapTransformerConfig | ClipCapMlpConfig):
        return values
    if not isinstance(values, dict):
        raise ValueError(f"expected keys and values, got {values!r:.80}")  # noqa: TRY004 - pydantic passes this on alone
    kind = values.get("kind", "devil")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"kind: expected {', '.join(_KINDS)}, got {kind!r:.80}")
    return _KINDS[kind].model_validate(values)


AnyTranslatorConfig = Annotated[TranslatorConfig | ClipCapConfig, BeforeValidator(translator_config)]
"""Which translator, told apart by `kind`; errors name the keys of that kind alone."""


class DropoutConfig(_Section):
    """Section 3.3: whole locations and whole layers are left out, never single numbers."""

    spatial: float = Field(0.5, ge=0, lt=1)
    layer: float = Field(0.5, ge=0, lt=1)
    noise: float = Field(
        0.0,
        ge=0,
        description="Gaussian noise on pooled features, in standard deviations of the channel; ours, not the paper's: "
        "against learning few pictures by heart",
    )


class PhaseConfig(_Section):
    """Optimizer and length of one phase of training."""

    steps: int = Field(ge=0)
    batch_size: int = Field(64, ge=1)
    length_window: int = Field(8, ge=1, description="batches that are sorted by caption length together")
    lr: float = Field(1e-4, gt=0)
    min_lr: float = Field(1e-6, ge=0)
    warmup_steps: int = Field(5000, ge=0)
    weight_decay: float = Field(1e-6, ge=0)
    clip_norm: float = Field(0.0, ge=0, description="0 = no clipping, as the paper")


class WarmupConfig(_Section):
    """The alignment warm-up. Ours, not the paper's; off unless a run asks for it."""

    kind: Literal["none", "alignment"] = "none"
    phase: PhaseConfig = PhaseConfig(steps=0)
    targets: Literal["position", "bag"] = Field(
        "position", description="prefix token i is the caption's i-th, or the prefix holds its tokens in any order"
    )
    scale: float = Field(20.0, gt=0, description="the cosine's factor in the softmax over the captions' tokens")
    pull: float = Field(0.0, ge=0, description="weight of 1 − cosine to the right token's embedding")
    pull_from: float = Field(0.0, ge=0, le=1, description="share of the phase after which the pull acts")
    keep: float = Field(0.0, ge=0, description="weight of the alignment loss beside the ordinary one afterwards")

    @model_validator(mode="after")
    def _steps_belong_to_a_kind(self) -> WarmupConfig:
        if (self.kind == "alignment") != (self.phase.steps > 0):
            raise ValueError(f"phase.steps: expected more than 0 with kind: alignment alone, got {self.phase.steps}")
        return self


class TrainRuntime(_Section):
    """How fast and how often, never what is learned beyond rounding; nothing here reruns a stage."""

    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the language model and of the translator's products (auto: on a GPU alone)"
    )
    processes: int = Field(1, ge=1, description="of this machine that share each batch")
    accumulate: int = Field(1, ge=1, description="pieces that a process takes its share of a batch in, to save memory")
    compile: bool = Field(False, description="torch.compile for the translator and the language model")
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    verify_store: bool = Field(True, description="read all of a local store first; train on none that is damaged")
    lost_after_seconds: float = Field(1800.0, gt=0, description="of another process's silence")
    save_every_seconds: float = Field(60.0, ge=0)
    log_every: int = Field(10, ge=1)


class TrainConfig(_Section):
    """One run of stage two."""

    run: str
    seed: int = 0
    language_model: str = "opt-125m"
    prefix_repeats: int = Field(1, ge=1, description="how often the language model reads the prefix; the paper: once")
    language_model_dropout: bool = Field(False, description="True repeats the released code, which trains with it on")
    translator: AnyTranslatorConfig = TranslatorConfig()
    dropout: DropoutConfig = DropoutConfig()
    warmup: WarmupConfig = WarmupConfig()
    phase: PhaseConfig = PhaseConfig(steps=100_000)
    order: Order = Field("auto", description="of an epoch; auto: permutation on a local store, windows on a far one")
    window_shards: int = Field(8, ge=1, description="shards of the store that are shuffled together in a window")
    validate_every: int = Field(1000, ge=1)
    take: Literal["last", "best"] = Field(
        "last", description="of the steps; best: least loss on the split val, never test"
    )
    validation_rows: int = Field(1000, ge=2)
    runtime: TrainRuntime = TrainRuntime()
    store: StoreRoot = Field(description="folder or URL of the store")
    data_dir: Path = Field(description="folder of index.parquet")
    out: Path = Field(description="runs/RUN")
