"""What a configuration holds: one class per section, each key with its default and meaning."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from fcit import strict


class Section(BaseModel):
    """A part of the configuration; unknown keys are mistakes, true is not a number, and text is whole."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _sound(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError("must be a number")
        if isinstance(value, str) and ("\0" in value or not strict.is_text(value)):
            raise ValueError("must be text without null characters and halves of surrogate pairs")
        return value


class Federation(Section):
    """Who takes part, and how often."""

    clients: int = Field(50, ge=1, description="data owners in the pool")
    clients_per_round: int = Field(5, ge=1, description="clients asked in each round")
    rounds: int = Field(10, ge=1, description="rounds per stage")
    sampling: Literal["seeded", "official"] = Field(
        "seeded", description="official: the published table (50 clients, 5 per round)"
    )
    beta: float = Field(1.0, gt=0, description="Dirichlet concentration of client sizes")
    engine: str = Field("inline", description="where client work runs; see `fcit list`")
    min_updates: int = Field(1, ge=1, description="accepted updates a round needs")
    retries: int = Field(1, ge=0, description="how often a round with too few updates is repeated")
    on_too_few: Literal["retry", "wait", "stop"] = Field(
        "retry", description="after too few updates: repeat `retries` times, repeat until there are enough, or stop"
    )
    pause: float = Field(60.0, ge=0, description="seconds before a round is repeated with on_too_few: wait")
    stages: int = Field(1, ge=1, description="stages of a run with stream: site; a benchmark brings its own")
    max_openings: int = Field(16, ge=1, description="subspaces one client's statistics may open; more are refused")
    max_subspaces: int = Field(256, ge=1, description="subspaces the server keeps; clients that need more are left out")
    max_records: int = Field(
        1_000_000, ge=1, description="records a shard may claim where the server cannot know; more are not believed"
    )
    wire: Literal["float32", "bfloat16"] = Field("float32", description="number format on the wire")
    timeout: float = Field(3600.0, gt=0, description="seconds a round may take")


class Ray(Section):
    """Workers of ``federation.engine: ray``; nothing here changes a result but the thread count.

    A private cluster listens on loopback, on ports that are free. For fixed ports or several machines
    start a cluster (``ray start --head --port ... --min-worker-port ...``) and give its ``address``.
    """

    workers: int = Field(2, ge=1, description="long-lived worker processes, each with the model loaded once")
    num_cpus: int = Field(1, ge=1, description="cores, and threads unless backbone.threads is set, per worker")
    num_gpus: float = Field(0.0, ge=0, description="GPUs per worker; 0.5 puts two workers on one")
    address: str | None = Field(None, description="an existing cluster (host:port); default: a private one, here")
    temp_dir: str | None = Field(
        None, description="Ray's own files; default: a fresh private folder, removed at the end"
    )
    object_store_mb: int = Field(200, ge=80, description="shared memory for tensors on their way")
    start_timeout: float = Field(300.0, gt=0, description="seconds until all workers must have started")
    attempts: int = Field(3, ge=1, description="workers an order may lose before the run stops")


class Sites(Section):
    """What deployed sites may choose for themselves in their SITE.yaml; recorded with every update."""

    dtypes: list[Literal["float32", "bfloat16", "float16"]] = Field(
        ["float32"], description="number formats of the frozen backbone"
    )
    micro_batch: bool = Field(True, description="gradients accumulated over parts of a batch")
    checkpointing: bool = Field(True, description="activations computed again to save memory")


class Adapter(Section):
    """The LoRA adapter every subspace is made of."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0, description="scale is alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: str = Field(
        r".*language_model.*\.(gate_proj|up_proj|down_proj)",
        description="regular expression over module names (FCIT: feed-forward layers only)",
    )
    projector: Literal["shared", "frozen", "per_subspace"] = Field(
        "shared",
        description="shared: the vision-language projector is trained and averaged over all; "
        "per_subspace: each subspace has its own, mixed like the subspaces",
    )


class Training(Section):
    """The local loop of a client."""

    lr: float = Field(3e-3, gt=0)
    batch_size: int = Field(16, ge=1)
    epochs: int = Field(1, ge=1, description="local epochs per round")
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)


class Evaluation(Section):
    """How the model is asked after a stage."""

    batch_size: int = Field(64, ge=1)
    max_new_tokens: int = Field(24, ge=1)
    limit: int | None = Field(None, ge=1, description="first records of each test set only")
    batches_per_order: int = Field(4, ge=1, description="batches answered before the next order; workers share orders")
    split: Literal["test", "val"] = "test"


class Backbone(Section):
    """The frozen multimodal model."""

    model: str = Field("fcit-tiny", description="fcit-tiny, a folder or a hub name")
    identity: str | None = Field(None, description="CLIP for identity tokens; default: the model's own")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    conversation: Literal["template", "vicuna_v1"] = Field(
        "template", description="template: the processor's chat template"
    )
    feature_cache: Literal["disk", "off"] = Field("disk", description="keep frozen vision features")
    threads: int = Field(0, ge=0, description="torch threads; 0: as torch chooses")

    @field_validator("feature_cache", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        """YAML reads a bare ``off`` as false."""
        return "off" if value is False else value


class RunConfig(Section):
    """Everything a run depends on."""

    name: str = Field("run", pattern=r"^[\w.-]+$", description="names the run folder")
    benchmark: str = Field("fcit-mini-task", description="a shipped benchmark or a YAML file")
    setting: Literal["homogeneous", "heterogeneous"] = "homogeneous"
    seed: int = Field(0, ge=0)
    method: dict[str, Any] = Field(default_factory=lambda: {"name": "disco"})
    fedopt: dict[str, Any] = Field(default_factory=lambda: {"name": "fedavg"})
    factors: Literal["separate", "svd", "alternate", "frozen_a"] = Field(
        "separate", description="how LoRA factors are averaged; see `fcit list factors`"
    )
    federation: Federation = Field(default_factory=lambda: Federation.model_validate({}))
    ray: Ray = Field(default_factory=lambda: Ray.model_validate({}))
    stream: Literal["benchmark", "site"] = Field(
        "benchmark", description="site: every deployed site brings its own tasks, the server knows stage and round only"
    )
    robust: Literal["none", "median", "trimmed_mean", "norm_clip"] = Field(
        "none", description="what stands between the clients' updates and their mean; see `fcit list robust`"
    )
    sites: Sites = Field(default_factory=lambda: Sites.model_validate({}))
    max_bad_share: float = Field(
        0.0, ge=0, lt=1, description="share of a data set's training records that may be unusable and is passed over"
    )
    adapter: Adapter = Field(default_factory=lambda: Adapter.model_validate({}))
    training: Training = Field(default_factory=lambda: Training.model_validate({}))
    evaluation: Evaluation = Field(default_factory=lambda: Evaluation.model_validate({}))
    backbone: Backbone = Field(default_factory=lambda: Backbone.model_validate({}))
    data_root: str | None = Field(None, description="folder with instructions/ and datasets/, relative to this file")
    output: str = Field("runs", description="folder that run folders are made in")
    tensorboard: bool = Field(False, description="write TensorBoard event files into the run folder")
    trackers: list[str] = Field(default_factory=list, description="who else is told every event, ./mine.py:MyTracker")

    @model_validator(mode="before")
    @classmethod
    def _short_names(cls, raw: Any) -> Any:
        """``method: disco`` means ``method: {name: disco}``."""
        if isinstance(raw, dict):
            raw = dict(raw)
            for key in ("method", "fedopt"):
                if isinstance(raw.get(key), str):
                    raw[key] = {"name": raw[key]}
        return raw
