"""The configuration by which a site does an order: the server's, within the limits of SITE.yaml.

A configuration names code, files, a device and a number format. Code runs at a site only if it was
installed with fcit; files, device and number format are the site's own, and a path in an order is never
opened. An order that does not fit is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from clients.worker.record_terms import RecordTerms
from clients.worker.terms import Terms
from fcit import config as configuration
from fcit import registry
from fcit.config import RunConfig
from fcit.config.evaluation import HeldOut
from fcit.config.kinds import Compile
from fcit.config.site import Site
from fcit.data.shipped import HELD_OUT, shipped
from fcit.data.spec import read_spec
from fcit.errors import ConfigError, Refused
from fcit.federation import ranks
from fcit.federation.messages import NAME, EvaluateOrder, TrainOrder
from fcit.io import bounded
from fcit.models.ranks import rank_of

#: Models and benchmarks that come with fcit are ordered by name; everything else is a file at the site.
SHIPPED_MODELS = ("fcit-tiny",)
_LONGEST = 100  # characters of a run's id


def terms(site: Site) -> Terms:
    """A site's own terms."""
    return Terms(site.min_records, at_site=True, rank=site.rank or 0, records=_record_terms(site))


def _record_terms(site: Site) -> RecordTerms:
    account = site.folder / "record-privacy.json"
    return RecordTerms(site.max_record_epsilon, site.min_record_noise, site.record_delta, account)


def check_order(order: Any, site: Site) -> None:
    """Refuse an order that is not for this site.

    Raises:
        Refused: another client's, a run id that cannot name a folder, an adapter of a larger rank than SITE.yaml says,
            or a question for predictions where the test records are the site's own.
    """
    if not NAME.fullmatch(order.run) or len(order.run) > _LONGEST:
        raise Refused(f"run: {bounded.shown(order.run)} cannot name a folder of the site's memory ({NAME.pattern})")
    client = getattr(order, "client", None)
    if client is not None and client != int(site.name):
        raise Refused(f"client: the order is for client {client}, this site is {site.name} (SITE.yaml name)")
    if isinstance(order, TrainOrder) and site.rank is not None and rank_of(order.trained) > site.rank:
        raise Refused(f"rank: the order has factors of rank {rank_of(order.trained)}, SITE.yaml says {site.rank}")
    if isinstance(order, EvaluateOrder) and site.stream == "site":
        raise Refused("stream: SITE.yaml says 'site', whose predictions stay here; the server may ask for scores")


def limited(ordered: str, site: Site) -> str:
    """The ordered configuration (YAML) as this site will do it.

    Raises:
        Refused: it names code that is not fcit's own, a file, or something SITE.yaml and ``sites`` exclude.
        ConfigError: it is no configuration.
    """
    try:
        raw = bounded.parse_yaml(ordered)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}", "order") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"must be a mapping of keys, got {type(raw).__name__}", "order")
    _refuse_own_parts(raw)  # before anything looks a part up: looking up imports
    config = configuration.parse(raw, "order")
    if site.secure_aggregation == "required" and not config.privacy.secure:
        raise Refused(
            "secure_aggregation: SITE.yaml says required, and the run has privacy.secure_aggregation: off, by which "
            "the server sees single updates"
        )
    if site.secure_aggregation == "required":
        _masking(config, site)
    if config.stream != site.stream:
        raise Refused(f"stream: the run has {config.stream!r}, SITE.yaml says {site.stream!r}")
    _protecting(config, site)
    _affording(config, site)
    backbone = config.backbone.model_copy(update={**_computing(config, site), **_models(config, site)})
    benchmark = _benchmark(config, site)
    limited_config = config.model_copy(
        update={
            "benchmark": benchmark,
            # Data rendered on first use go to the cache: the data root is only read.
            "data_root": None if read_spec(benchmark).source == "mini" else site.data_root,
            "evaluation": config.evaluation.model_copy(
                update={"held_out": _held_out(config, site), "compile": _compiled(config.evaluation.compile)}
            ),
            "max_bad_share": site.max_bad_share,
            "backbone": backbone,
            "training": config.training.model_copy(update=_steps(config, site)),
            "output": str(site.folder),
            "tensorboard": False,
        }
    )
    return configuration.dump(limited_config)


def _masking(config: RunConfig, site: Site) -> None:
    """Secure aggregation as a site that requires it goes along with it; ``privacy.dropout`` has a bound of its own."""
    privacy = config.privacy
    if privacy.neighbours is not None:
        raise Refused(
            f"secure_aggregation: SITE.yaml says required, and the run has privacy.neighbours: {privacy.neighbours}, "
            "with which a server that lies about who dropped out may open single updates"
        )
    if privacy.min_group < site.min_group:
        raise Refused(
            f"min_group: SITE.yaml says {site.min_group}, and the run has privacy.min_group: {privacy.min_group}"
        )


def _protecting(config: RunConfig, site: Site) -> None:
    """Differential privacy of records, where SITE.yaml demands it; how much is seen when a training is ordered."""
    if not _record_terms(site).demanded:
        return
    key = "max_record_epsilon" if site.max_record_epsilon is not None else "min_record_noise"
    if not config.privacy.records:
        raise Refused(f"privacy.record_dp: 'off' in this run, SITE.yaml has {key}: {getattr(site, key):g}")
    if config.privacy.reproducible_noise:
        raise Refused(
            f"privacy.reproducible_noise: true, with which the server knows the noise; SITE.yaml has {key}: "
            f"{getattr(site, key):g}"
        )


def _affording(config: RunConfig, site: Site) -> None:
    """The rank of adapters, where this site affords less than the run would give it."""
    given, least = ranks.assigned(config, int(site.name)), config.sites.min_rank
    if site.rank is None or site.rank >= given or (least is not None and site.rank >= least):
        return
    bound = "and sites.min_rank: null, with which a site chooses none" if least is None else f"sites.min_rank: {least}"
    raise Refused(f"rank: SITE.yaml says {site.rank}, the run has {given} for this client {bound}")


def _refuse_own_parts(raw: dict[str, Any]) -> None:
    """Every place of a configuration that may name code: registered names only."""
    named: list[tuple[str, Any]] = []
    for kind in ("method", "fedopt"):
        part = raw.get(kind)
        named.append((kind, part.get("name") if isinstance(part, dict) else part))
    named.append(("benchmark", raw.get("benchmark")))
    trackers = raw.get("trackers")
    named += [("trackers", tracker) for tracker in (trackers if isinstance(trackers, list) else [trackers])]
    training = raw.get("training")
    named.append(("training.trainer", training.get("trainer") if isinstance(training, dict) else None))
    backbone = raw.get("backbone")
    named.append(("backbone.family", backbone.get("family") if isinstance(backbone, dict) else None))
    fixed = {"benchmark": shipped(), "backbone.family": ["auto", "generic"]}
    for key, name in named:
        if isinstance(name, str) and registry.is_own(name):
            kind = key.rpartition(".")[2].removesuffix("s")
            allowed = fixed[key] if key in fixed else sorted(registry.KINDS[kind])
            raise Refused(f"{key}: {bounded.shown(name)} names code; a site runs only fcit's own: {', '.join(allowed)}")


def _held_out(config: RunConfig, site: Site) -> list[HeldOut]:
    """Shipped ones only, with the files of the site's own data root."""
    entries = []
    for entry in config.evaluation.held_out:
        known = [*shipped(), *shipped(HELD_OUT)]
        if entry.benchmark not in known:
            raise Refused(
                f"evaluation.held_out: {bounded.shown(entry.benchmark)} is not shipped ({', '.join(known)}); a site "
                "opens no file that an order names"
            )
        root = None if read_spec(entry.benchmark).source == "mini" else site.data_root
        entries.append(entry.model_copy(update={"data_root": root}))
    return entries


def _benchmark(config: RunConfig, site: Site) -> str:
    """A shipped benchmark by its name; for everything else the site's own file."""
    if config.benchmark in shipped():
        return config.benchmark
    if site.benchmark is None:
        raise Refused(
            f"benchmark: {bounded.shown(config.benchmark)} is not shipped ({', '.join(shipped())}) and SITE.yaml "
            "benchmark names no file of the site's own"
        )
    return site.benchmark


def _models(config: RunConfig, site: Site) -> dict[str, Any]:
    """Backbone and identity encoder: shipped, or folders at the site; never the hub, never an ordered path."""
    ordered = config.backbone
    if site.model is None and ordered.model not in SHIPPED_MODELS:
        raise Refused(
            f"backbone.model: {bounded.shown(ordered.model)} is not shipped ({', '.join(SHIPPED_MODELS)}) and "
            "SITE.yaml model names no folder"
        )
    if site.identity is None and (ordered.identity is not None or site.model is not None):
        raise Refused(
            f"backbone.identity: {bounded.shown(ordered.identity)} is ordered, SITE.yaml identity names no folder "
            f"(model: {site.model or ordered.model})"
        )
    for key, folder in (("model", site.model), ("identity", site.identity)):
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError(f"{key}: no such folder {folder}", "SITE.yaml")
    return {"model": site.model or ordered.model, "identity": site.identity}


def _computing(config: RunConfig, site: Site) -> dict[str, Any]:
    """Device, threads and number format."""
    ordered, allowed = config.backbone, config.sites
    if site.dtype is not None and site.dtype != ordered.dtype and site.dtype not in allowed.dtypes:
        raise Refused(
            f"dtype: SITE.yaml says {site.dtype}, the run is {ordered.dtype} and allows {', '.join(allowed.dtypes)} "
            "(sites.dtypes)"
        )
    return {
        "device": site.device or ordered.device,
        "dtype": site.dtype or ordered.dtype,
        "threads": ordered.threads if site.threads is None else site.threads,
        "loader_threads": None,  # as many as the site's own device suggests
    }


def _steps(config: RunConfig, site: Site) -> dict[str, Any]:
    """Micro-batches and checkpointing: as ordered where SITE.yaml says nothing."""
    ordered, allowed = config.training, config.sites
    changes: dict[str, Any] = {}
    if site.micro_batch not in (None, ordered.micro_batch):
        if not allowed.micro_batch:
            raise Refused(
                f"micro_batch: SITE.yaml says {site.micro_batch}, the run {ordered.micro_batch} and "
                "sites.micro_batch: false"
            )
        changes["micro_batch"] = site.micro_batch
    if site.checkpointing not in (None, ordered.checkpointing):
        if not allowed.checkpointing:
            switch = str(site.checkpointing).lower()
            raise Refused(f"checkpointing: SITE.yaml says {switch}, the run has sites.checkpointing: false")
        changes["checkpointing"] = site.checkpointing
    if site.trainer not in (None, ordered.trainer):
        if not allowed.trainer:
            raise Refused(f"trainer: SITE.yaml says {site.trainer}, the run has sites.trainer: false")
        changes["trainer"] = site.trainer
    changes["compile"] = _compiled(ordered.compile)
    return changes


def _compiled(ordered: Compile) -> Compile:
    """A compiler is started where the site's GPU gains by it, not because it is ordered."""
    return "auto" if ordered == "on" else ordered
