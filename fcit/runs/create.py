"""Making a run folder: data are prepared and checked first, so that nothing is found only after a stage."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fcit import config as configuration
from fcit.config import RunConfig
from fcit.data.stream import Stream, open_stream
from fcit.models.judging import judge_of
from fcit.privacy import accountant
from fcit.runs.environment import describe
from fcit.runs.folder import RunDir
from fcit.runs.trackers import check


def create(config: RunConfig, stream: Stream | None = None) -> RunDir:
    """Make the run folder of a configuration; data that are rendered on first use are made now.

    Args:
        stream: that of the configuration, where it has been opened.

    Raises:
        ConfigError: unknown benchmark, unwritable output, a tracker that cannot be used, no package for privacy.
        DataError: the data are not usable.
    """
    check(config)
    if config.privacy.on:
        accountant.require()
    if config.privacy.records:
        accountant.require("privacy.record_dp: 'on'")
    if config.privacy.tokens:
        accountant.require("privacy.token_epsilon")
    stream = stream or open_stream(config)
    stream.judged_by(partial(judge_of, config.backbone))
    stream.prepare()
    stream.divide()
    return RunDir.create(Path(config.output), config.name, configuration.dump(config), describe())
