"""Before training and whenever clients connect: those that have the same libraries, backbone and layout take part."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace

from flwr.app import Message

from fcit.config import Federation
from fcit.errors import CodecError, ConfigError, RunError
from fcit.federation import codec
from fcit.federation.messages import Probe, ProbeOrder
from fcit.federation.nodes import CLIENT_CRASHED, MESSAGE_UNAVAILABLE, NODE_UNAVAILABLE
from fcit.io.files import read_json, write_json
from fcit.io.trees import Tensors
from fcit.runs.folder import RunDir
from server import standard
from server.courier import NOBODY, Courier, Node
from server.spill import digest
from server.standard import Standard
from server.validation import short

_PATIENCE = 600.0  # seconds for which clients that have answered wait for others
_LONG = 60.0  # seconds after which new clients are waited for briefly only
_BRIEF = 10.0  # seconds for which a new client is waited for that was waited for in vain before
_PIECE = 10.0  # seconds after which it is looked again whether enough have answered
#: Error codes of an answer that was lost on its way, or with the process that was to give it.
_LOST = NODE_UNAVAILABLE, CLIENT_CRASHED, MESSAGE_UNAVAILABLE
_SILENT = "no answer to the handshake so far; it takes part once it has answered"


def _explained(reason: str) -> str:
    """A client's error, with what a site means by the one word it sends of an order it could not read."""
    if reason.partition(" ")[0] != CodecError.code:
        return short(reason)
    return (
        f"{short(reason)}: it could not read the order; its fcit is another version, whose wire format is not "
        f"{codec.WIRE}. Update fcit there and pin the app that `fcit deploy update` prints"
    )


@dataclass
class _Question:
    """The probes that a node was sent and has not answered; there is a second one if the first may be lost."""

    client: int
    messages: list[Message]
    since: float
    first: float  # when it was asked first, by time.monotonic(), as ``since`` is when last


class Handshake:
    """Probes clients and admits those that have what most of them have.

    What a site can afford (:attr:`Probe.rank`) need not be alike; it is noted in ``afforded``, by client.

    A simulation's clients share one installation: one of them is probed. In deployment each is, once it is
    connected, after a restart, and each round while it does not take part. Its answer counts whenever it comes.
    """

    def __init__(
        self,
        courier: Courier,
        order: ProbeOrder,
        run: RunDir,
        federation: Federation,
        afforded: dict[int, int] | None = None,
    ) -> None:
        self.courier, self.order, self.run, self.federation = courier, order, run, federation
        self.afforded = {} if afforded is None else afforded
        self._standard: Standard | None = None
        self._probes: dict[Node, tuple[int, Probe]] = {}  # with their clients, until there is a standard
        self._tensors: dict[str, Tensors] = {}  # those of the probes, by their hash
        self._connected: dict[int, Node] = {}
        self._admitted: set[Node] = set()
        self._questions: dict[Node, _Question] = {}
        self._reasons: dict[Node, str] = {}  # why a node that has answered does not take part
        self._told: dict[int, str] = {}  # the reason told last, by client
        self._lost: set[Node] = set()  # nodes whose answer was lost
        self._unpunctual: set[int] = set()  # clients that were waited for in vain: afterwards briefly only
        self._begun = False

    def start(self) -> Probe:
        """Wait for the clients and probe them; returns the probe that those which take part equal.

        Raises:
            ConfigError: too few clients answer and are alike, or a simulation is not as it was when this run began.
            RunError: too few clients are connected.
            StopRequested: asked to stop.
        """
        attempt = 0
        while True:
            self.courier.connect()
            if not self.courier.deployed:
                probe: Probe = self.courier.ask("query.probe", self.courier.nodes[0], self.order, Probe)
                self._compare_with_before(probe)
                return probe
            problem = self._begin()
            if problem is None and self._standard is not None:
                self._begun = True
                self._seat()
                return self._standard.probe
            if problem is not None and not self.federation.again(attempt):
                raise problem
            attempt += 1
            self.courier.say("too-few", able=len(self._admitted), needed=self._needed)
            if self.federation.on_too_few == "wait":
                self.courier.stop.pause(self.federation.pause)

    def update(self) -> None:
        """Deployment: look up the connected clients, take late answers, probe those that do not take part.

        Only clients that have just connected, or whose answer was lost, are waited for, once in a round; also those
        that connect meanwhile. Each is probed once in a round, and again if it is restarted meanwhile.
        """
        if not self.courier.deployed:
            return
        waited, asked = set[int](), set[Node]()
        while new := {client: node for client, node in self._news(asked).items() if client not in waited}:
            waited |= new.keys()
            self._wait_for(new)
        self._tell()
        self._seat()

    def glance(self, asked: set[Node], busy: Collection[int]) -> None:
        """:meth:`update` for a run that goes on meanwhile: no one is waited for.

        Args:
            asked: nodes that are not probed now; those that are probed are added.
            busy: clients with an order, which keep their node until it is answered.
        """
        staying = {client: node for client in busy if (node := self.courier.node(client)) != NOBODY}
        self._news(asked)
        # Nobody has waited for those that were asked just now, and their silence is no fault yet.
        self._tell(min(self.federation.timeout, _LONG))
        self._seat(staying)

    def _news(self, asked: set[Node]) -> dict[int, Node]:
        """Ask who is connected and does not take part; returns those that are waited for."""
        self._look_up()
        self._listen(self._questions, 0.0)
        return self._ask(asked)

    def _wait_for(self, new: dict[int, Node]) -> None:
        """Take the answers of clients that were just asked; one that restarts in every round must not hold it up."""
        longest = min(self.federation.timeout, _PATIENCE)
        punctual = new.keys() - self._unpunctual
        began = time.monotonic()
        self._listen([new[client] for client in punctual], longest)
        if time.monotonic() - began > _LONG:
            self._unpunctual |= punctual
        self._listen([new[client] for client in new.keys() - punctual], min(longest, _BRIEF))

    # ------------------------------------------------------------------ the first clients

    @property
    def _needed(self) -> int:
        return min(self.federation.min_updates, self.courier.clients)

    def _begin(self) -> ConfigError | RunError | None:
        """Ask the connected clients until enough of them have answered and are alike; the error if they are too few.

        All are waited for at first, then no more than are needed.
        """
        self._look_up()
        if len(self._connected) < self._needed:
            return RunError(
                f"{len(self._connected)} of {self.courier.clients} clients are connected after "
                f"{self.federation.timeout:.0f} s (federation.timeout), {self._needed} are needed "
                "(federation.min_updates); client k is the node that `flwr supernode register ... --name k` named; "
                "start the sites and resume the run"
            )
        deadline = time.monotonic() + self.federation.timeout
        self._standard = self._standard or Standard.read(self.run)
        self._ask(set())
        self._listen(self._questions, min(self.federation.timeout, _PATIENCE))
        self._choose()
        while self._questions and len(self._admitted) < self._needed and (left := deadline - time.monotonic()) > 0:
            self._listen(self._questions, min(left, _PIECE))
            self._choose()
        self._tell()
        if len(self._admitted) >= self._needed:
            return None
        silent = f"no answer within {self.federation.timeout:.0f} s"
        there = sorted(self._connected.items())
        out = {c: self._reasons.get(n, silent) for c, n in there if n in self._reasons or n in self._questions}
        return ConfigError(
            [f"client {client}: {reason}" for client, reason in out.items()],
            f"{len(there) - len(out)} of {len(there)} connected clients are alike and have answered, {self._needed} "
            "are needed (federation.min_updates) and more than half; make them equal and start again, or leave one out "
            "(stop its node)",
        )

    def _choose(self) -> None:
        """Let what most clients have be the standard, if they are enough."""
        if self._standard is not None or not self._probes:
            return
        probes = dict(self._probes.values())
        candidate, equal = Standard.most(probes)
        if 2 * equal > len(probes) and equal >= self._needed:
            self._standard = candidate
            self._record(candidate)
        for node, (client, probe) in list(self._probes.items()):
            self._judge(client, node, probe, candidate)
        if self._standard is not None:
            self._probes.clear()
            self._tensors.clear()

    def _record(self, chosen: Standard) -> None:
        chosen.write(self.run)
        known = read_json(self.run.environment)
        now = {"backend": chosen.probe.versions, "hashes": chosen.probe.hashes}
        write_json(self.run.environment, known | {key: known.get(key, value) for key, value in now.items()})

    # ------------------------------------------------------------------ questions and answers

    def _look_up(self) -> None:
        """Who is connected now; what is known of others is forgotten."""
        self._connected = self.courier.connected()
        there = set(self._connected.values())
        for node in self._questions.keys() - there:
            self.courier.forget(self._questions.pop(node).messages)
        self._admitted &= there
        self._lost &= there
        self._reasons = {node: reason for node, reason in self._reasons.items() if node in there}
        self._probes = {node: answer for node, answer in self._probes.items() if node in there}

    def _ask(self, asked: set[Node]) -> dict[int, Node]:
        """Probe clients that do not take part and were not asked just now; returns those that are waited for.

        Args:
            asked: nodes that are left out; those that are probed are added.
        """
        now = time.monotonic()
        due, new = dict[int, Node](), dict[int, Node]()
        for client, node in self._connected.items():
            question = self._questions.get(node)
            if node in self._admitted | asked or (question and now - question.since < self.federation.timeout):
                continue
            due[client] = node
            if question is None and (node in self._lost or node not in self._reasons):
                new[client] = node
        asked |= set(due.values())
        messages = self.courier.post("query.probe", [(node.id, self.order) for node in due.values()], "probe")
        for (client, node), message in zip(due.items(), messages, strict=True):
            question = self._questions.setdefault(node, _Question(client, [], now, now))
            self.courier.forget(question.messages[:-1])  # an answer to one of two is enough, however long it takes
            question.messages = [*question.messages[-1:], message]
            question.since = now
        return new

    def _listen(self, nodes: Collection[Node], seconds: float) -> None:
        """Take the answers of nodes that were asked, waiting for them."""
        by_id = {node.id: node for node in nodes}
        messages = [message for node in nodes for message in self._questions[node].messages]
        for reply in self.courier.replies(messages, seconds):
            node = by_id[reply.metadata.src_node_id]
            question = self._questions.pop(node, None)
            if question is not None:  # else it has answered both of two
                self.courier.forget(question.messages)
                self._read(question.client, node, reply)
        if seconds:
            self._unpunctual |= {self._questions[node].client for node in by_id.values() if node in self._questions}

    def _read(self, client: int, node: Node, reply: Message) -> None:
        """Judge an answer, or keep it until there is a standard."""
        self._probes.pop(node, None)
        self._lost.discard(node)
        if reply.has_error():
            if reply.error.code in _LOST:
                self._lost.add(node)
                self._unpunctual.add(client)
            self._reasons[node] = _explained(reply.error.reason)
            return
        try:
            probe = codec.decode(reply.content, Probe, reply=True)
        except CodecError as error:
            self._reasons[node] = str(error)
            return
        self.afforded |= {client: probe.rank} if probe.rank > 0 else {}
        reason = standard.reject_reason(probe)
        if reason is not None:
            self._reasons[node] = reason
        elif self._standard is not None:
            self._judge(client, node, probe, self._standard)
        elif wrong := self._other_than_before(probe):
            self._reasons[node] = wrong
        else:
            tensors = self._tensors.setdefault(digest(probe.tensors), probe.tensors)
            self._probes[node] = client, replace(probe, tensors=tensors)

    def _other_than_before(self, probe: Probe) -> str:
        """How a probe differs from what the run folder of an older version of fcit says; empty if it does not."""
        known = standard.recorded(self.run)
        now = {key: value for key, value in standard.facts(probe).items() if key in known}
        return "; ".join(standard.differences(known, "when this run began", now))

    def _judge(self, client: int, node: Node, probe: Probe, like: Standard) -> None:
        """Admit a client or note why not; nobody is admitted before there is a standard."""
        problems = like.problems(probe)
        if problems:
            self._reasons[node] = "; ".join(problems)
            return
        self._reasons.pop(node, None)
        if self._standard is not None:
            self._admitted.add(node)
            if self._begun or client in self._told:
                self._told.pop(client, None)
                self.courier.say("joined", client=client)

    def _tell(self, silent: float = 0.0) -> None:
        """Say of every connected client that does not take part why, once.

        Args:
            silent: seconds without an answer after which that is a reason.
        """
        now = time.monotonic()
        for client, node in sorted(self._connected.items()):
            question = self._questions.get(node)
            reason = self._reasons.get(node, _SILENT if question and now - question.first >= silent else "")
            if reason and self._told.get(client) != reason:
                self._told[client] = reason
                self.courier.say("refused", client=client, reason=reason)

    def _seat(self, staying: dict[int, int] | None = None) -> None:
        admitted = {client: node.id for client, node in self._connected.items() if node in self._admitted}
        self.courier.seat({**(staying or {}), **admitted})

    # ------------------------------------------------------------------ a simulation

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
