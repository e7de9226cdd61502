"""What can go wrong, and the exit code that ``fcit`` answers with.

A message says what is wrong, the value, what is allowed, where (file or key) and what to do next.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1  # a run started and could not finish; a checkpoint is left to resume from
EXIT_USAGE = 2  # the configuration or the data are wrong; nothing was started
EXIT_STOPPED = 75  # asked to stop (SIGTERM, SIGUSR1): checkpoint written, `fcit resume` goes on
EXIT_INTERRUPTED = 130  # Ctrl-C: as above
EXIT_OUTPUT_CLOSED = 141  # what read the output has ended, as in `fcit list | head -1`


class FCITError(Exception):
    """An error that fcit raises itself; shown as one sentence, without a traceback."""

    exit_code = EXIT_FAILED
    #: The only part that a deployed site sends to the server; the sentence stays in the site's own log.
    code = "failed"


class ConfigError(FCITError):
    """One or more mistakes in a configuration, all reported together."""

    exit_code = EXIT_USAGE
    code = "config"

    def __init__(self, problems: list[str] | str, source: str = "") -> None:
        self.problems = [problems] if isinstance(problems, str) else problems
        head = f"{source}: " if source else ""
        if len(self.problems) == 1:
            text = head + self.problems[0]
        else:
            text = f"{head}{len(self.problems)} problems\n" + "\n".join(f"  - {p}" for p in self.problems)
        super().__init__(text)


class DataError(FCITError):
    """A data set, record or image cannot be used as it is."""

    exit_code = EXIT_USAGE
    code = "data"


class RunError(FCITError):
    """A run cannot go on (too few updates, a lost worker); its checkpoint can be resumed."""

    code = "run"


class DiskFull(RunError):
    """There is no room to write a file of the run; files written before are whole."""

    code = "disk-full"


class MemoryLost(RunError):
    """A client no longer has the version of its memory that the server expects."""

    code = "memory-lost"


class Unanswered(RunError):
    """Questions of an evaluation stay without an answer: no client can give one."""


class Refused(FCITError):
    """A site refuses an order that its SITE.yaml does not allow."""

    code = "refused"


class TooFew(FCITError):
    """A shard holds fewer records than its site allows to be described (``min_records``)."""

    code = "too-few"


class AuditError(FCITError):
    """A site's audit trail cannot be written, or is damaged; nothing leaves the site unrecorded."""

    code = "audit"


class CodecError(FCITError):
    """A message on the wire is not what its sender declared."""

    code = "message"


class StopRequested(FCITError):
    """The run was asked to stop and wrote its checkpoint."""

    exit_code = EXIT_STOPPED
