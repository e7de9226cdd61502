"""The schema of a configuration: one class per section, each key with its default and description."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fcit.config.devices import Asynchronous, Devices
from fcit.config.effects import BITS, RECORD, SCOPE, WORK
from fcit.config.evaluation import Evaluation
from fcit.config.kinds import WORDS, Checkpointing, Compile, Epochs, MicroBatch, Ranks, Way
from fcit.config.privacy import Privacy
from fcit.config.section import Section


class Federation(Section):
    """Participants, rounds and the exchange with them."""

    clients: int = Field(50, ge=1, description="data owners in the pool")
    clients_per_round: int = Field(5, ge=1, description="participants of a round")
    rounds: int = Field(10, ge=1, description="rounds per stage")
    mode: Literal["sync", "async"] = Field(
        "sync",
        description="sync: a round waits for its clients; async: the server goes on with whatever has come (section "
        "asynchronous), and a round is one server update: on the clock of devices.profile in simulations, in real time "
        "in deployments",
    )
    over_select: float = Field(
        1.0,
        ge=1,
        le=10,
        description="of sync: so many times clients_per_round are asked, and the first clients_per_round on the "
        "simulated clock count (section devices)",
    )
    sampling: Literal["seeded", "official"] = Field(
        "seeded", description="official: the published table (50 clients, 5 per round)"
    )
    beta: float = Field(1.0, gt=0, description="Dirichlet concentration of client sizes")
    engine: Annotated[str, WORK] = Field("inline", description="where client work runs; see `fcit list engine`")
    min_updates: int = Field(1, ge=1, description="accepted updates a round needs, sites a deployment needs to begin")
    retries: Annotated[int, WORK] = Field(1, ge=0, description="how often a round with too few updates is repeated")
    on_too_few: Literal["retry", "wait", "stop"] = Field(
        "retry",
        description="after too few updates: repeat `retries` times, repeat until there are enough, or stop; also if "
        "too few sites can begin a deployment's run or none can answer its questions",
    )
    pause: Annotated[float, WORK] = Field(
        60.0, ge=0, description="seconds before a round is repeated with on_too_few: wait"
    )
    stages: int = Field(1, ge=1, description="stages of a run with stream: site; a benchmark brings its own")
    max_openings: int = Field(16, ge=1, description="subspaces one client's statistics may open; more are refused")
    max_subspaces: int = Field(256, ge=1, description="subspaces the server keeps; clients that need more are left out")
    max_records: int = Field(
        1_000_000, ge=1, description="records a shard may claim where the server cannot know; more are not believed"
    )
    wire: Literal["float32", "bfloat16", "int8"] = Field(
        "float32",
        description="number format on the wire: of updates as differences, with error feedback at the client; int8: of "
        "what is trained, in orders and updates, the rest as bfloat16",
    )
    top_k: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of an update's numbers that are sent, the largest of what changed and was not sent before",
    )
    timeout: Annotated[float, WORK] = Field(
        3600.0,
        gt=0,
        description="seconds a round may take; a reply counts if it is whole by then; of mode: async in a deployment: "
        "seconds an order may take, and a server update after the last reply that was accepted",
    )

    def again(self, attempt: int) -> bool:
        """Whether to try again after the ``attempt``-th time, from 0 on, that there were too few clients."""
        return {"wait": True, "stop": False, "retry": attempt < self.retries}[self.on_too_few]


class Fork(Section):
    """Workers of ``federation.engine: fork``, each of one thread."""

    workers: int | None = Field(
        None, ge=1, description="worker processes; default: as torch would have threads, at most clients_per_round"
    )
    attempts: int = Field(3, ge=1, description="workers an order may lose before the run stops")


class Ray(Section):
    """Workers of ``federation.engine: ray``; only the thread count can change results.

    A private cluster listens on loopback, on ports that are free. For fixed ports or several machines
    start a cluster (``ray start --head --port ... --min-worker-port ...``) and give its ``address``.
    """

    workers: int = Field(2, ge=1, description="long-lived worker processes, each with the model loaded once")
    num_cpus: int = Field(1, ge=1, description="cores, and threads unless backbone.threads is set, per worker")
    num_gpus: float = Field(0.0, ge=0, description="GPUs per worker; 0.5 puts two workers on one")
    address: str | None = Field(
        None,
        description="an existing cluster: host:port, or auto for the one that RAY_ADDRESS names at each start; "
        "default: a private one, here",
    )
    temp_dir: str | None = Field(
        None, description="Ray's own files; default: a fresh private folder, removed at the end"
    )
    object_store_mb: int = Field(200, ge=80, description="shared memory for tensors on their way")
    start_timeout: float = Field(300.0, gt=0, description="seconds until all workers must have started")
    attempts: int = Field(3, ge=1, description="workers an order may lose before the run stops")


class Sites(Section):
    """Choices that deployed sites may make in their SITE.yaml; recorded with every update."""

    dtypes: list[Literal["float32", "bfloat16", "float16"]] = Field(
        ["float32"], description="number formats of the frozen backbone"
    )
    micro_batch: bool = Field(True, description="gradients accumulated over parts of a batch")
    checkpointing: bool = Field(True, description="activations computed again to save memory")
    trainer: bool = Field(False, description="a Trainer of the site's own in place of the run's loop")
    min_rank: int | None = Field(
        None, ge=1, description="smallest adapter rank that a site may choose for itself; default: it may choose none"
    )


class Adapter(Section):
    """The LoRA adapter of every subspace."""

    rank: int = Field(8, ge=1, description="columns of the factor B, rows of A, as the server keeps them")
    ranks: Ranks = Field(
        None,
        description="ranks that clients train at, none above `rank`: one for all, a share for each ({4: 0.5, 8: 0.3, "
        "16: 0.2}; each client's is drawn from seed and client), or a list with one for each client; default: `rank`",
    )
    min_rank: int | None = Field(
        None, ge=1, description="with factors: hetlora, where a client's pruning ends; default: the smallest of `ranks`"
    )
    alpha: float = Field(16.0, gt=0, description="scale is alpha / rank, also of clients that train at another rank")
    dropout: float = Field(
        0.05, ge=0, lt=1, description="before A; 0.05: as published; 0 in the mini configurations, where it costs time"
    )
    targets: str = Field(
        r".*language_model.*\.(gate_proj|up_proj|down_proj)",
        description="regular expression over module names (FCIT: feed-forward layers only)",
    )
    projector: Literal["shared", "frozen", "per_subspace"] = Field(
        "shared",
        description="shared: the vision-language projector is trained and averaged over all; "
        "per_subspace: each subspace has its own, mixed like the subspaces",
    )

    @field_validator("targets")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"must be a regular expression ({error})") from None
        return value


class Training(Section):
    """The local loop of a client."""

    lr: float = Field(3e-3, gt=0, description="highest learning rate of the clients' AdamW")
    batch_size: int = Field(16, ge=1, description="records of an optimiser step")
    epochs: Epochs = Field(
        1, description="local epochs per round; a list has one number for each task of the benchmark, e.g. [1, 3, 1]"
    )
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="share of a local epoch's steps in which the rate rises")
    schedule: Literal["cosine", "constant", "trainer"] = Field(
        "cosine",
        description="rates within a local epoch; trainer: the published ones, whose first step has rate 0 (an epoch of "
        "one step learns nothing); cosine and constant (ours) move from the first step on",
    )
    weight_decay: float = Field(0.0, ge=0, description="of the clients' AdamW")
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="gradients, taken together, are no longer than this; null: not clipped, as published"
    )
    micro_batch: Annotated[MicroBatch, BITS] = Field(
        None,
        description="records passed through the model at a time; auto: on a GPU as many as fit by the estimate of "
        "`fcit doctor`, else the whole batch, and halved when memory runs out",
    )
    checkpointing: Annotated[Checkpointing, BITS] = Field(
        False,
        description="compute activations a second time instead of keeping them; auto: only where a GPU has no room for "
        "enough records without, by the estimate of `fcit doctor`; never on a CPU",
    )
    adapter_products: Annotated[Literal["backbone", "float32"], BITS] = Field(
        "backbone",
        description="number format in which adapters and projector are multiplied: that of backbone.dtype, or float32; "
        "what is trained is float32 in either case",
    )
    trainer: str | None = Field(
        None,
        description="a Hugging Face Trainer in place of fcit's own loop: hf, or ./mine.py:make of one's own; for "
        "methods and optimisers without hooks of their own within the steps",
    )
    compile: Annotated[Compile, BITS] = Field(
        "auto",
        description="decoder layers through torch.compile, once for the first length of rows and once for all others; "
        "auto: on one CUDA GPU, without quantization",
    )

    def moves(self, steps: int) -> bool:
        """Whether a local epoch of this many steps changes anything: the trainer's first rate is 0."""
        return self.schedule != "trainer" or steps > 1 or not self.warmup_ratio


class Backbone(Section):
    """The frozen multimodal model."""

    model: str = Field("fcit-tiny", description="fcit-tiny, a folder (relative to this file) or a hub name")
    family: str = Field(
        "auto",
        description="auto: by the model_type in the model's config.json; generic: images become tokens as the model's "
        "own processor and get_image_features have it, with adapter.projector: frozen; ./mine.py:MyFamily: your own",
    )
    identity: str | None = Field(None, description="CLIP for identity tokens; default: the model's own")
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], BITS] = Field(
        "float32", description="number format of the frozen weights"
    )
    device: Annotated[str, BITS] = Field(
        "cpu", description="cpu, cuda, cuda:N or auto: over as many GPUs of a worker as the weights need"
    )
    conversation: Literal["template", "vicuna_v1"] = Field(
        "template", description="template: the processor's chat template"
    )
    feature_cache: Annotated[Literal["disk", "off"], WORDS, WORK] = Field(
        "disk", description="keep frozen vision features"
    )
    feature_cache_gb: Annotated[float, WORK] = Field(
        50.0, gt=0, description="disk the kept features may take in all; features beyond that are computed each time"
    )
    loader_threads: Annotated[int | None, WORK] = Field(
        None,
        ge=0,
        le=64,
        description="threads that open and scale images ahead of the vision tower, each with one image in memory; 0: "
        "one after the other, and nothing is read ahead; default: 4 with a GPU, 0 on a CPU",
    )
    pad_to_square: bool = Field(
        False, description="pad images to squares with the processor's mean colour before anything else (LLaVA-1.5)"
    )
    image_size: Annotated[int, Field(ge=28)] | Literal["native"] = Field(
        "native",
        description="of models that take images of any size: native, or the side in pixels of a square that every "
        "image is scaled to, as in runs before there was native (448)",
    )
    min_pixels: int | None = Field(
        None, ge=1, description="smaller images are enlarged to so many pixels (native); default: the processor's"
    )
    max_pixels: int | None = Field(
        None, ge=1, description="larger images are reduced to so many pixels (native); default: the processor's"
    )
    max_length: int = Field(
        2048,
        ge=16,
        description="tokens of an example, image included; turns of a conversation beyond it are left out whole, and a "
        "question or a first turn that does not fit makes its record unusable",
    )
    quantization: Literal["none", "4bit"] = Field(
        "none", description="4bit: the language model in NF4 (needs a CUDA GPU and `pip install 'fcit[gpu]'`)"
    )
    attention: Annotated[Literal["auto", "eager", "sdpa", "flash_attention_2"], BITS] = Field(
        "auto", description="how attention is computed; auto: as transformers chooses"
    )
    threads: Annotated[int, BITS] = Field(0, ge=0, description="torch threads; 0: as torch chooses")


class Data(Section):
    """The part of a benchmark's records that is used."""

    max_records: Annotated[int | None, SCOPE] = Field(
        None, ge=1, description="training records of each data set, the same for every method: reduced numbers"
    )
    turns: Annotated[Literal["all", "first"], SCOPE] = Field(
        "all", description="answers of a conversation that are learnt; first: its first question and answer alone"
    )
    styles: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of a shard's records whose question and answer are rewritten in another answer style (after "
        "SEFE's ASD, 0.2 there; templates of ours)",
    )
    pictures: Way = Field(
        "official",
        description="official: as the published trainer reads them; upright: turned by EXIF, transparency on white",
    )


#: The federation of ``setting: centralised``: one client, whose only round in a stage has all epochs.
CENTRALISED = {"clients": 1, "clients_per_round": 1, "rounds": 1}


class RunConfig(Section):
    """Everything a run depends on."""

    name: Annotated[str, RECORD] = Field("run", pattern=r"^[\w.-]+$", description="names the run folder")
    benchmark: Annotated[str, SCOPE] = Field("fcit-mini-task", description="a shipped benchmark or a YAML file")
    setting: Annotated[Literal["homogeneous", "heterogeneous", "centralised"], SCOPE] = Field(
        "homogeneous",
        description="the clients of a round train all the same task, or different ones; centralised: no federation, "
        "one participant trains each task on all of its records, for training.epochs epochs",
    )
    seed: int = Field(0, ge=0, description="of everything random: partition, sampling, first tensors, batches")
    method: dict[str, Any] = Field(
        default_factory=lambda: {"name": "disco"}, description="what is learnt and kept; see `fcit list method`"
    )
    fedopt: dict[str, Any] = Field(
        default_factory=lambda: {"name": "fedavg"},
        description="how the server steps towards the clients' mean; see `fcit list fedopt`",
    )
    factors: Literal["separate", "svd", "hlora", "hetlora", "flora", "fedex", "fedsa", "alternate", "frozen_a"] = Field(
        "separate", description="how LoRA factors are averaged; see `fcit list factors`"
    )
    federation: Federation = Field(default_factory=lambda: Federation.model_validate({}))
    devices: Devices = Field(default_factory=lambda: Devices.model_validate({}))
    asynchronous: Asynchronous = Field(default_factory=lambda: Asynchronous.model_validate({}))
    fork: Annotated[Fork, WORK] = Field(default_factory=lambda: Fork.model_validate({}))
    ray: Annotated[Ray, WORK] = Field(default_factory=lambda: Ray.model_validate({}))
    stream: Literal["benchmark", "site"] = Field(
        "benchmark", description="site: every deployed site brings its own tasks, the server knows stage and round only"
    )
    robust: Literal["none", "median", "trimmed_mean", "norm_clip"] = Field(
        "none", description="what stands between the clients' updates and their mean; see `fcit list robust`"
    )
    privacy: Privacy = Field(default_factory=lambda: Privacy.model_validate({}))
    sites: Annotated[Sites, BITS] = Field(default_factory=lambda: Sites.model_validate({}))
    max_bad_share: float = Field(
        0.0, ge=0, lt=1, description="share of a data set's training records that may be unusable and is passed over"
    )
    data: Data = Field(default_factory=lambda: Data.model_validate({}))
    adapter: Adapter = Field(default_factory=lambda: Adapter.model_validate({}))
    training: Training = Field(default_factory=lambda: Training.model_validate({}))
    evaluation: Evaluation = Field(default_factory=lambda: Evaluation.model_validate({}))
    backbone: Backbone = Field(default_factory=lambda: Backbone.model_validate({}))
    data_root: str | None = Field(None, description="folder with instructions/ and datasets/, relative to this file")
    output: Annotated[str, RECORD] = Field(
        "runs", description="folder that run folders are made in, relative to the current folder (not to this file)"
    )
    tensorboard: Annotated[bool, RECORD] = Field(False, description="write TensorBoard event files into the run folder")
    trackers: Annotated[list[str], RECORD] = Field(
        default_factory=list,
        description="receivers of every event, e.g. [mlflow] (see `fcit list tracker`) or ./mine.py:MyTracker",
    )

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

    @model_validator(mode="before")
    @classmethod
    def _one_participant(cls, raw: Any) -> Any:
        """``setting: centralised`` is one client and one round, unless the configuration says otherwise."""
        if isinstance(raw, dict) and raw.get("setting") == "centralised":
            federation = raw.get("federation", {})
            if isinstance(federation, dict):
                raw = {**raw, "federation": CENTRALISED | federation}
        return raw

    @property
    def centralised(self) -> bool:
        """Whether one participant holds all data."""
        return self.setting == "centralised"
