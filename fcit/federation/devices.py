"""Virtual machines of virtual clients: how fast each is, how it is connected, when it can be reached.

A client's machine is drawn from (seed, client) alone, so that every method, optimiser and mode of a seed meets the same
ones. The profiles and their numbers are ours: their shape follows what is reported of federated learning on phones
and in hospitals (speeds and links that differ by an order of magnitude, a long tail of slow ones, nights on the
charger), their numbers were measured nowhere. Who has traces gives them as a CSV file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fcit import seeding
from fcit.config.devices import TRACES, Devices
from fcit.errors import ConfigError
from fcit.io import bounded

HOUR, DAY = 3600.0, 86400.0
#: Bytes of a table of traces: some ten rows for each of a hundred thousand clients.
MOST = 2**26
_MEGABIT = 1e6 / 8  # bytes a second
_COLUMNS = ("client", "speed", "down", "up")
_HOURS = ("begin", "end")


@dataclass(frozen=True)
class Window:
    """A part of every day, from ``begin`` seconds after midnight for ``length`` seconds, perhaps over midnight."""

    begin: float
    length: float

    def wait(self, now: float) -> float:
        """Seconds until it is open; 0 if it is."""
        since = (now - self.begin) % DAY
        return 0.0 if since < self.length else DAY - since


@dataclass(frozen=True)
class Device:
    """The machine of one client.

    Attributes:
        speed: records a second.
        down: bytes a second to it, ``up`` from it.
        windows: when it can be reached; none: always.
    """

    speed: float
    down: float
    up: float
    windows: tuple[Window, ...] = ()

    def seconds(self, down: float, records: float, up: float) -> float:
        """An order's time: ``down`` bytes to the client, records to train on, ``up`` bytes back.

        A client that has begun is not interrupted when its window closes.
        """
        return down / self.down + records / self.speed + up / self.up

    def wait(self, now: float) -> float:
        """Seconds until it can be reached; 0 if it can be now."""
        return min((window.wait(now) for window in self.windows), default=0.0)


class Fleet:
    """The machines of a run's clients; each is drawn when it is first asked for.

    Raises:
        ConfigError: the table of traces cannot be read, or lacks a client.
    """

    def __init__(self, devices: Devices, seed: int, clients: int) -> None:
        self._devices, self._seed, self._known = devices, seed, dict[int, Device]()
        #: SHA-256 of the table of traces; empty where there is none.
        self.traces = ""
        #: Whether every client can be reached at any time.
        self.always = devices.always
        if devices.profile.endswith(TRACES):
            self._known, self.traces = read_traces(Path(devices.profile), clients)
            self.always = not any(device.windows for device in self._known.values())

    def __getitem__(self, client: int) -> Device:
        if client not in self._known:
            self._known[client] = self._drawn(client)
        return self._known[client]

    def _drawn(self, client: int) -> Device:
        # Every profile draws the same numbers in the same order: a client is as quick, for its kind, in each of them.
        speed, link, begin, length = seeding.generator(self._seed, "device", client).standard_normal(4)
        spreads = {"uniform": (0.0, 0.0), "lognormal": (1.0, 1.0), "phone": (0.7, 1.0), "hospital": (0.4, 0.3)}
        of_speed, of_link = spreads[self._devices.profile]
        factor = math.exp(of_link * link)
        return Device(
            speed=self._devices.speed * math.exp(of_speed * speed),
            down=self._devices.down * _MEGABIT * factor,
            up=self._devices.up * _MEGABIT * factor,
            windows=_windows(self._devices.profile, begin, length),
        )


def _windows(profile: str, begin: float, length: float) -> tuple[Window, ...]:
    """When a client can be reached, from two standard normal numbers."""
    if profile == "phone":  # on the charger: from about ten in the evening, for some six hours
        hours = float(np.clip(6.0 * math.exp(0.4 * length), 1.0, 16.0))
        return (Window((22.0 + 2.0 * begin) * HOUR % DAY, hours * HOUR),)
    if profile == "hospital":  # when no one needs the machine: from about seven in the evening, for some twelve hours
        return (Window((19.0 + begin) * HOUR % DAY, float(np.clip(12.0 + length, 8.0, 16.0)) * HOUR),)
    return ()


def read_traces(path: Path, clients: int) -> tuple[dict[int, Device], str]:
    """The machines of a CSV file with the columns ``client,speed,down,up`` and perhaps ``begin,end``; its SHA-256.

    ``speed`` is in records a second, ``down`` and ``up`` in megabits a second, ``begin`` and ``end`` in hours of the
    day. Several rows of a client, alike but for the hours, are several windows of one day; one without hours is all of
    it. Rows of clients beyond the run's are left out.

    Raises:
        ConfigError: it cannot be read, a value makes no sense, or a client of the run has no row.
    """
    where = f"devices.profile: {path}"
    try:
        text = bounded.read_text(path, MOST)
        reader = csv.DictReader(io.StringIO(text), strict=True)
        names = tuple(reader.fieldnames or ())
        if names not in (_COLUMNS, (*_COLUMNS, *_HOURS)):
            raise ConfigError(
                f"{where}: its first line must be {','.join(_COLUMNS)} or {','.join((*_COLUMNS, *_HOURS))}, got "
                f"{bounded.shown(','.join(names))}"
            )
        devices: dict[int, Device] = {}
        for row in reader:
            client, device = _device(row, f"{where}, line {reader.line_num}")
            earlier = devices.get(client)
            if earlier is not None:
                if (earlier.speed, earlier.down, earlier.up) != (device.speed, device.down, device.up):
                    raise ConfigError(
                        f"{where}, line {reader.line_num}: client {client} has another speed or link above"
                    )
                always = not (earlier.windows and device.windows)
                device = replace(device, windows=() if always else (*earlier.windows, *device.windows))
            devices[client] = device
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{where}: cannot be read ({error})") from None
    missing = next((client for client in range(clients) if client not in devices), None)
    if missing is not None:
        raise ConfigError(f"{where}: has no row for client {missing} (federation.clients: {clients}, from 0 on)")
    return {client: devices[client] for client in range(clients)}, hashlib.sha256(text.encode()).hexdigest()


def _device(row: dict[str, str], where: str) -> tuple[int, Device]:
    """Client and machine of one row.

    Raises:
        ConfigError: a value makes no sense.
    """
    try:
        client, values = int(row["client"]), {key: float(row[key]) for key in (*_COLUMNS[1:], *_HOURS) if row.get(key)}
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: expected numbers, got {bounded.shown(list(row.values()))}") from None
    begin, end = (values.pop(key, None) for key in _HOURS)
    if client < 0 or set(values) != set(_COLUMNS[1:]) or not all(0 < v < math.inf for v in values.values()):
        raise ConfigError(
            f"{where}: needs a client from 0 on and a speed and links above 0, got {bounded.shown(list(row.values()))}"
        )
    windows: tuple[Window, ...] = ()
    if begin is not None or end is not None:
        if begin is None or end is None or not (0 <= begin <= 24 and 0 <= end <= 24):
            raise ConfigError(f"{where}: begin and end are hours of the day, 0 to 24, both or neither")
        windows = (Window(begin % 24 * HOUR, ((end - begin) % 24 or 24) * HOUR),)
    return client, Device(values["speed"], values["down"] * _MEGABIT, values["up"] * _MEGABIT, windows)
