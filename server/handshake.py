"""Before training: check that every client has the same libraries, backbone and adapter layout."""

from __future__ import annotations

from fcit.config import Federation
from fcit.errors import CodecError, ConfigError
from fcit.federation import codec
from fcit.federation.messages import Probe, ProbeOrder
from fcit.io.console import printable
from fcit.io.files import read_json, write_json
from fcit.runs.folder import RunDir
from server.courier import Courier, Node
from server.validation import short

#: Facts about a machine that do not change results: they may differ between sites and are recorded only.
_MACHINE = {"versions.gpu", "versions.machine", "versions.threads"}
_PATIENCE = 600.0  # seconds in which a client that connects later must reply: the others wait for it
_SHOWN = 8  # differences listed per client
_SILENT = "no answer to the handshake; it takes part when it has been restarted"


def facts(probe: Probe) -> dict[str, str]:
    """The values that must be the same at every client, as short texts.

    The tensors of a probe are left out: they are part of the backbone, whose hash is compared, and a site that
    computes in bfloat16 has them rounded.
    """
    values = {f"versions.{k}": v for k, v in probe.versions.items()}
    values |= {f"hashes.{k}": v for k, v in probe.hashes.items()}
    values |= {f"shapes.{k}": str(tuple(shape)) for k, shape in probe.shapes.items()}
    values["identity_width"] = str(probe.identity_width)
    return {key: value for key, value in values.items() if key not in _MACHINE}


def differences(first: int, ours: dict[str, str], client: int, theirs: dict[str, str]) -> list[str]:
    """One sentence per key in which a client is not like the first one, with both values."""
    keys = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    sentences = [
        f"client {client}: {printable(key[:80])} is {theirs.get(key, 'not there')[:80]!r}, "
        f"{ours.get(key, 'not there')[:80]!r} at client {first}"
        for key in keys[:_SHOWN]
    ]
    return sentences + ([f"client {client}: {len(keys) - _SHOWN} more differences"] if len(keys) > _SHOWN else [])


def _explained(reason: str) -> str:
    """A client's error, with what a site means by the one word it sends of an order it could not read."""
    if reason.partition(" ")[0] != CodecError.code:
        return short(reason)
    return (
        f"{short(reason)}: it could not read the order; its fcit is another version, whose wire format is not "
        f"{codec.WIRE}. Update fcit there and pin the app that `fcit deploy update` prints"
    )


class Handshake:
    """Probes clients and admits those that equal the first.

    A simulation's clients share one installation: one of them is probed. In deployment each is, once it is
    connected and again after a restart.
    """

    def __init__(self, courier: Courier, order: ProbeOrder, run: RunDir, federation: Federation) -> None:
        self.courier, self.order, self.run, self.federation = courier, order, run, federation
        self._first, self._facts = 0, dict[str, str]()
        self._admitted: dict[Node, bool] = {}  # of those connected that have been probed

    def start(self) -> Probe:
        """Wait for the clients and probe them; returns the probe of the first one (by number).

        Raises:
            ConfigError: clients differ, or the first one is not as it was when this run began.
            RunError: too few clients are connected or answer.
        """
        self.courier.connect()
        if not self.courier.deployed:
            probe = self.courier.ask("query.probe", self.courier.nodes[0], self.order, Probe)
        else:
            probe = self._probe_all()
        self._compare_with_before(probe)
        return probe

    def _probe_all(self) -> Probe:
        connected = self.courier.connected()
        probes, problems = self._probe(connected)
        if probes:
            self._first = min(probes)
            self._facts = facts(probes[self._first])
        for client, probe in sorted(probes.items()):
            problems += differences(self._first, self._facts, client, facts(probe))
        if problems or not probes:
            silent = [
                f"client {c}: no answer within {self.federation.timeout:.0f} s" for c in connected if c not in probes
            ]
            raise ConfigError(
                problems or silent,
                "the clients do not fit together; make them equal and start again, or leave one out (stop its node)",
            )
        # A client without a reply is asked again when it has been restarted.
        self._admitted = {node: client in probes for client, node in connected.items()}
        for client in sorted(connected.keys() - probes.keys()):
            self.courier.say("refused", client=client, reason=_SILENT)
        self._seat(connected)
        return probes[self._first]

    def _probe(self, connected: dict[int, Node], timeout: float | None = None) -> tuple[dict[int, Probe], list[str]]:
        """Probes by client, and a sentence for each client that sent none."""
        clients = {node.id: client for client, node in connected.items()}
        orders = [(node.id, self.order) for node in connected.values()]
        probes, problems = {}, []
        for reply in self.courier.send("query.probe", orders, "probe", timeout):
            client = clients[reply.metadata.src_node_id]
            if reply.has_error():
                problems.append(f"client {client}: {_explained(reply.error.reason)}")
                continue
            try:
                probes[client] = codec.decode(reply.content, Probe)
            except CodecError as error:
                problems.append(f"client {client}: {error}")
        return probes, problems

    def update(self) -> None:
        """Deployment: look up the connected clients, probe the new ones and admit those that equal the first."""
        if not self.courier.deployed:
            return
        connected = self.courier.connected()
        new = {client: node for client, node in connected.items() if node not in self._admitted}
        if new:
            probes, problems = self._probe(new, min(self.federation.timeout, _PATIENCE))
            for client, node in new.items():
                wrong = [text for text in problems if text.startswith(f"client {client}:")]
                if client in probes:
                    wrong += differences(self._first, self._facts, client, facts(probes[client]))
                elif not wrong:
                    wrong = [_SILENT]
                self._admitted[node] = not wrong
                if wrong:
                    self.courier.say("refused", client=client, reason="; ".join(wrong))
                else:
                    self.courier.say("joined", client=client)
        self._admitted = {node: fine for node, fine in self._admitted.items() if node in connected.values()}
        self._seat(connected)

    def _seat(self, connected: dict[int, Node]) -> None:
        self.courier.seat({client: node.id for client, node in connected.items() if self._admitted[node]})

    def _compare_with_before(self, probe: Probe) -> None:
        known = read_json(self.run.environment)
        changed = []
        for key, now in (("backend", probe.versions), ("hashes", probe.hashes)):
            before = known.get(key)
            if before is not None and before != now:
                names = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
                changed += [f"{k}: {before.get(k)} then, {now.get(k)} now" for k in names]
        if changed:
            raise ConfigError(f"{self.run.path}: cannot resume to the same bits, other versions ({'; '.join(changed)})")
        if "backend" not in known or "hashes" not in known:
            write_json(self.run.environment, {**known, "backend": probe.versions, "hashes": probe.hashes})
