"""What the clients of a run must have alike, and which values of it count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fcit.errors import RunError
from fcit.federation.messages import Probe
from fcit.io.files import read_json, read_tensors, write_json, write_tensors
from fcit.io.printable import printable
from fcit.io.trees import Tensors
from fcit.runs.folder import RunDir

#: Facts about a machine that do not change results: they may differ between sites and are recorded only.
_MACHINE = {"versions.gpu", "versions.machine", "versions.threads"}
_TORCH = "versions.torch"  # 2.13.0+cpu, 2.13.0+cu130
_SHOWN = 8  # differences listed per client
#: How far one number in two formats differs: rounded to bfloat16 on both ways, or to float16's smallest numbers.
_RELATIVE, _ABSOLUTE = 2.0**-8, 2.0**-24


def _compared(values: Mapping[str, str]) -> dict[str, str]:
    """Those that are no machine's; of torch its version, not the label of its build, as a GPU's machine has another."""
    return {
        key: value.partition("+")[0] if key == _TORCH else value for key, value in values.items() if key not in _MACHINE
    }


def facts(probe: Probe) -> dict[str, str]:
    """The values that must be the same at every client, as short texts; those of the tensors are :func:`alike`."""
    values = {f"versions.{k}": v for k, v in probe.versions.items()}
    values |= {f"hashes.{k}": v for k, v in probe.hashes.items()}
    values |= {f"shapes.{k}": str(tuple(shape)) for k, shape in probe.shapes.items()}
    values["identity_width"] = str(probe.identity_width)
    return _compared(values)


def recorded(run: RunDir) -> dict[str, str]:
    """Those of the facts that ``environment.json`` has since the run began; empty before."""
    known = read_json(run.environment)
    values = {f"versions.{k}": v for k, v in known.get("backend", {}).items()}
    return _compared(values | {f"hashes.{k}": v for k, v in known.get("hashes", {}).items()})


def differences(ours: dict[str, str], where: str, theirs: dict[str, str]) -> list[str]:
    """One phrase per key in which a client is not as it should be, with both values.

    Args:
        where: where our values are from, e.g. "at client 0".
    """
    keys = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    sentences = [
        f"{printable(key[:80])} is {theirs.get(key, 'not there')[:80]!r}, {ours.get(key, 'not there')[:80]!r} {where}"
        for key in keys[:_SHOWN]
    ]
    return sentences + ([f"{len(keys) - _SHOWN} more differences"] if len(keys) > _SHOWN else [])


def reject_reason(probe: Probe) -> str | None:
    """Why a probe is rejected by itself, without a look at the others, or None."""
    odd = [n for n, t in probe.tensors.items() if t.dtype != np.float32 or not np.isfinite(t).all()]
    return f"its {odd[0][:80]!r} is not made of finite float32 numbers" if odd else None


def alike(ours: Tensors, theirs: Tensors) -> bool:
    """Whether finite tensors are the same but for the rounding of another number format."""
    if ours is theirs:
        return True
    return ours.keys() == theirs.keys() and all(
        ours[name].shape == theirs[name].shape and np.allclose(ours[name], theirs[name], rtol=_RELATIVE, atol=_ABSOLUTE)
        for name in ours
    )


@dataclass(frozen=True)
class Standard:
    """The probe that all clients that take part must equal, and where it is from, e.g. "at client 0"."""

    probe: Probe
    where: str

    def problems(self, probe: Probe) -> list[str]:
        """Why the client of a probe does not take part; empty if it does."""
        found = differences(facts(self.probe), self.where, facts(probe))
        if not found and not alike(self.probe.tensors, probe.tensors):
            found = [f"the tensors that training starts from are not those {self.where}"]
        return found

    @classmethod
    def most(cls, probes: Mapping[int, Probe]) -> tuple[Standard, int]:
        """What the most clients have alike, and how many; of equally many the first ones.

        Of tensors that differ in rounding only, those that most clients have bit for bit are taken.

        Args:
            probes: by client, at least one. Those whose tensors are equal bit for bit hold the same dictionary.
        """
        copies = Counter(id(probe.tensors) for probe in probes.values())
        best = 0
        for client in sorted(probes, key=lambda client: (-copies[id(probes[client].tensors)], client)):
            standard = cls(probes[client], f"at client {client}")
            equal = sum(not standard.problems(probe) for probe in probes.values())
            if equal > best:
                found, best = standard, equal
            if 2 * best > len(probes):
                break
        return found, best

    # ------------------------------------------------------------------ in the run folder

    def write(self, run: RunDir) -> None:
        """Keep it, for the run to go on with.

        Raises:
            DiskFull: no room.
        """
        write_tensors(run.start / "probe.safetensors", self.probe.tensors)
        # The JSON goes last and names the file complete.
        write_json(run.start / "probe.json", vars(self.probe) | {"tensors": {}})

    @classmethod
    def read(cls, run: RunDir) -> Standard | None:
        """The one that the run began with; None if it has not begun, or began with an older version of fcit.

        Raises:
            RunError: the file is damaged.
        """
        file = run.start / "probe.json"
        if not file.is_file():
            return None
        try:
            probe = Probe(**read_json(file) | {"tensors": read_tensors(run.start / "probe.safetensors")})
        except TypeError as error:
            raise RunError(f"{file}: damaged ({error}); remove the folder to have the clients asked again") from None
        return cls(probe, "when this run began")
