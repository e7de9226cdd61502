"""The sums of a round by secure aggregation: four exchanges with every group, of which only its sum remains.

A group are the clients of a round that train one subspace. Keys, shares, masked updates, opened shares: each exchange
is with all groups at once, and a client that does not answer in one of them has dropped out of the rest.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from fcit.errors import CodecError, RunError
from fcit.federation import codec
from fcit.federation.messages import (
    OPENED,
    ClientUpdate,
    KeysOrder,
    MaskedUpdate,
    MaskOrder,
    OpenedShares,
    PublicKeys,
    SealedShares,
    ShareOrder,
    TrainOrder,
    UnmaskOrder,
)
from fcit.methods.base import Pair, Update
from fcit.privacy.secagg.keys import PUBLIC, SEALED, SEED
from fcit.privacy.secagg.roster import Aborted, Member, Rules
from fcit.privacy.secagg.server import Group
from fcit.privacy.secagg.vector import Coding, Sum
from server.gather import Gathering
from server.participants import Slot
from server.sums import Sums
from server.validation import cost_problem

Reply = TypeVar("Reply", PublicKeys, SealedShares, MaskedUpdate, OpenedShares)


@dataclass
class _Session:
    """One attempt at the sum of one group.

    Attributes:
        orders: to train, by client.
        heads: what came with the masked vectors, by client.
    """

    subspace: str
    orders: dict[int, TrainOrder]
    coding: Coding
    group: Group
    heads: dict[int, MaskedUpdate] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.group.session


@dataclass(kw_only=True)
class SecureCollector(Gathering):
    """Collects the sums of a round; they are in ``sums`` afterwards.

    Attributes:
        clip: the clipping norm of the round at hand; None without differential privacy.
    """

    sums: Sums
    clip: Callable[[], float | None]

    asked_again = (
        "all of the round's clients, with new keys; those that have opened shares in this round refuse, and the round "
        "goes on without them"
    )
    #: Stage, round and client of those that have said that they open no further sum of a round.
    _spent: set[tuple[int, int, int]] = field(default_factory=set, init=False)

    def _exhausted(self, lacking: list[Slot], accepted: int, needed: int) -> bool:
        """Whether no group of those that are left can have a sum: then the round has what it can have.

        Raises:
            RunError: it has nothing, and could never have had anything.
        """
        at = self.progress.stage, self.progress.round
        left = [slot for slot in lacking if (*at, slot.client) not in self._spent]
        settled = [slot.pair for slot in left if self.orders.method.settled(self.state, slot.pair)]
        named = [self.state.assigned[pair] for pair in settled]
        # Those that have no subspace yet may still join any group.
        largest = max(Counter(named).values(), default=0) + len(left) - len(named)
        least = self.config.privacy.min_group
        if largest >= least:
            return False
        if not accepted and len(left) == len(lacking):
            raise RunError(
                f"stage {at[0] + 1}, round {at[1] + 1}: no group can have a sum: the largest has {largest} clients, at "
                f"least {least} are needed (privacy.min_group); begin a new run with a larger "
                "federation.clients_per_round, or a method that trains fewer subspaces"
            )
        self.journal.round_event("as-it-is", accepted=accepted, needed=needed, spent=len(lacking) - len(left))
        return True

    def _adopt(self, orders: dict[Pair, TrainOrder]) -> dict[Pair, TrainOrder]:
        return {}  # sums live as long as their process; a round that is repeated gets new keys

    def _ask(self, orders: dict[Pair, TrainOrder], attempt: int) -> dict[Pair, TrainOrder]:
        with self.journal.timed("training"):
            sessions = self._opened(orders)
            for exchange in (self._keys, self._shares, self._vectors, self._unmask):
                sessions = exchange(sessions, attempt)
        summed = [(session, client) for session in sessions for client in session.group.alive]
        asked = [session.orders[client] for session, client in summed]
        return {(order.client, order.shard): order for order in asked}

    # ------------------------------------------------------------------ groups

    def _opened(self, orders: dict[Pair, TrainOrder]) -> list[_Session]:
        """The groups of these orders that are large enough, each with a new session."""
        by_subspace: dict[str, dict[int, TrainOrder]] = {}
        for order in orders.values():
            by_subspace.setdefault(order.subspace, {})[order.client] = order
        sessions = []
        for subspace, members in sorted(by_subspace.items()):
            try:
                sessions.append(self._session(subspace, members))
            except (Aborted, ValueError) as error:
                self._left_out(subspace, list(members), str(error))
        return sessions

    def _session(self, subspace: str, orders: dict[int, TrainOrder]) -> _Session:
        """A session of a group.

        Raises:
            Aborted: the group is too small. ValueError: its sum has no room.
        """
        privacy, clip = self.config.privacy, self.clip()
        if len(orders) < privacy.min_group:
            clients = f"{len(orders)} client{'s' if len(orders) > 1 else ''}"
            raise Aborted(
                f"{clients} of the round train it, at least {privacy.min_group} are needed (privacy.min_group)"
            )
        trained = next(iter(orders.values())).trained
        coding = Coding(
            bits=privacy.quantise_bits,
            range=privacy.quantise_range if clip is None else clip,
            most=1 if clip is not None else max(map(self._declared, orders.values())),
            members=len(orders),
            shapes={name: tensor.shape for name, tensor in trained.items()},
            inward=clip is not None,
        )
        # Of secrets, not of the seed: the session of a repeated round has another name.
        name = f"{self.progress.stage}-{self.progress.round}-{secrets.token_hex(8)}"
        return _Session(subspace, orders, coding, Group(name, Rules.of(privacy), coding.kind, coding.size))

    def _left_out(self, subspace: str, clients: list[int], reason: str) -> None:
        self.journal.round_event("left-out", subspace=subspace, clients=sorted(clients), reason=reason)

    def _closed(self, sessions: list[_Session], close: Callable[[_Session], object]) -> list[_Session]:
        """The sessions that go on after an exchange."""
        going = []
        for session in sessions:
            try:
                close(session)
            except (Aborted, ValueError) as error:
                self._left_out(session.subspace, list(session.orders), str(error))
            else:
                going.append(session)
        return going

    # ------------------------------------------------------------------ the exchanges

    def _keys(self, sessions: list[_Session], attempt: int) -> list[_Session]:
        def order(session: _Session, client: int) -> KeysOrder:
            at = {"stage": self.progress.stage, "round": self.progress.round}
            return KeysOrder(config=self.orders.text, run=self.orders.run, client=client, session=session.name, **at)

        def take(session: _Session, reply: PublicKeys) -> None:
            sealing, masking = (_bytes(reply.tensors, name, (PUBLIC,)) for name in ("sealing", "masking"))
            session.group.keys(Member(reply.client, sealing.tobytes(), masking.tobytes()))

        asked = [(session, client, order(session, client)) for session in sessions for client in session.orders]
        self._exchange("query.keys", asked, PublicKeys, take, attempt)
        return self._closed(sessions, lambda session: session.group.close_keys())

    def _shares(self, sessions: list[_Session], attempt: int) -> list[_Session]:
        def orders(session: _Session) -> Iterator[tuple[_Session, int, ShareOrder]]:
            members = session.group.roster.members
            tensors = {
                "sealing": np.stack([np.frombuffer(m.sealing, np.uint8) for m in members]),
                "masking": np.stack([np.frombuffer(m.masking, np.uint8) for m in members]),
            }
            named = [member.client for member in members]
            for client in sorted(named):
                yield (
                    session,
                    client,
                    ShareOrder(
                        config=self.orders.text,
                        run=self.orders.run,
                        client=client,
                        session=session.name,
                        members=named,
                        tensors=tensors,
                    ),
                )

        def take(session: _Session, reply: SealedShares) -> None:
            sealed = _bytes(reply.tensors, "sealed", (len(reply.receivers), SEALED))
            bound = _bytes(reply.tensors, "commitment", (PUBLIC,)).tobytes()
            by_receiver = {receiver: row.tobytes() for receiver, row in zip(reply.receivers, sealed, strict=True)}
            session.group.shares(reply.client, by_receiver, bound)

        asked = [one for session in sessions for one in orders(session)]
        self._exchange("query.shares", asked, SealedShares, take, attempt)
        return self._closed(sessions, lambda session: session.group.close_shares())

    def _vectors(self, sessions: list[_Session], attempt: int) -> list[_Session]:
        def order(session: _Session, client: int) -> MaskOrder:
            plain = session.orders[client]
            return MaskOrder(
                **{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)},
                session=session.name,
                members=session.group.members,
                most=session.coding.most,
                room=session.coding.members,
                clip=self.clip(),
            )

        def take(session: _Session, reply: MaskedUpdate) -> None:
            plain = session.orders[reply.client]
            for name in ("stage", "round", "shard", "subspace"):
                if getattr(reply, name) != getattr(plain, name):
                    raise ValueError(f"answers another order: its {name} is {getattr(reply, name)!r}")
            problem = cost_problem(reply.seconds, reply.kept, reply.how)
            if problem is not None:
                raise ValueError(problem)
            if set(reply.tensors) != {"masked"}:
                raise ValueError("it does not hold a masked vector and nothing else")
            session.group.vector(reply.client, reply.tensors["masked"])
            session.heads[reply.client] = dataclasses.replace(reply, tensors={})

        asked = [(session, client, order(session, client)) for session in sessions for client in session.group.members]
        self._exchange("train.masked", asked, MaskedUpdate, take, attempt)
        return self._closed(sessions, lambda session: session.group.close_vectors())

    def _unmask(self, sessions: list[_Session], attempt: int) -> list[_Session]:
        def order(session: _Session, client: int) -> UnmaskOrder:
            sealed = session.group.sealed_for(client)
            return UnmaskOrder(
                config=self.orders.text,
                run=self.orders.run,
                client=client,
                session=session.name,
                alive=session.group.alive,
                senders=list(sealed),
                tensors={"sealed": np.stack([np.frombuffer(text, np.uint8) for text in sealed.values()])},
            )

        def take(session: _Session, reply: OpenedShares) -> None:
            shares = _bytes(reply.tensors, "shares", (len(reply.owners), SEED))
            session.group.revealed(
                reply.client, {owner: row.tobytes() for owner, row in zip(reply.owners, shares, strict=True)}
            )
            for owner in sorted(set(reply.unreadable) & session.group.sealed_for(reply.client).keys()):
                self.journal.round_event(
                    "rejected", client=owner, reason=f"client {reply.client} cannot open what it was sealed"
                )

        asked = [(session, client, order(session, client)) for session in sessions for client in session.group.alive]
        self._exchange("query.unmask", asked, OpenedShares, take, attempt)
        return self._closed(sessions, self._count)

    def _exchange(
        self,
        kind: str,
        asked: Iterable[tuple[_Session, int, Any]],
        expected: type[Reply],
        take: Callable[[_Session, Reply], None],
        attempt: int,
    ) -> None:
        """Send every client its order and take the replies; what is not taken is told."""
        asked = list(asked)
        waiting = {client: session for session, client, _ in asked}
        messages = [(self.courier.node(client), order) for _, client, order in asked]
        for reply in self.courier.send(kind, messages, f"{self.progress.stage}.{self.progress.round}.{attempt}"):
            client = self.courier.client(reply.metadata.src_node_id)
            session = waiting.pop(client, None) if client is not None else None
            if client is None or session is None:
                self._reject("was not asked for this", client)
                continue
            if reply.has_error():
                order = session.orders[client]
                if OPENED in reply.error.reason.partition("\n")[0]:
                    self._spent.add((self.progress.stage, self.progress.round, client))
                self._note_lost_memory(reply, {(order.client, order.shard): order})
                self.progress.constants.pop(str(client), None)  # perhaps it lost what it had been sent
                self._reject(f"client {client}: {reply.error.reason}", client)
                continue
            try:
                record = codec.decode(reply.content, expected, reply=True)
                if (record.client, record.session) != (client, session.name):
                    raise ValueError(f"answers for client {record.client} in session {record.session!r}")
                take(session, record)
            except (CodecError, ValueError) as error:
                self._reject(str(error), client)
        for client in waiting:
            self.journal.round_event("missing", client=client)

    # ------------------------------------------------------------------ the sum

    def _count(self, session: _Session) -> None:
        """Take the masks off a group's sum and count it.

        Raises:
            Aborted: they cannot be taken off. ValueError: it is none that its members can have made.
        """
        alive = session.group.alive
        result = session.coding.decoded(session.group.total(), len(alive))
        old = session.orders[alive[0]].trained
        tensors = {name: np.asarray(old[name] + mean) for name, mean in result.means.items()}
        heads = {(head.client, head.shard): _head(head, result, len(alive)) for head in session.heads.values()}
        update = Update(alive[0], session.subspace, result.weight, tensors)
        self.sums.add(update, heads, result.unclipped, result.cut)
        for client in alive:
            self.journal.show("client", client=client, loss=None if self.config.privacy.records else result.loss)


def _head(reply: MaskedUpdate, result: Sum, members: int) -> ClientUpdate:
    """What is known of one member of a sum: the means of its group, and what came with its vector."""
    return ClientUpdate(
        stage=reply.stage,
        round=reply.round,
        client=reply.client,
        shard=reply.shard,
        subspace=reply.subspace,
        examples=round(result.weight / members),
        steps=0,  # not known
        loss=result.loss,
        seconds=reply.seconds,
        tensors={},
        kept=reply.kept,
        how=reply.how,
    )


def _bytes(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of bytes.

    Raises:
        ValueError: it is not there, or has another form.
    """
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype != np.uint8 or tensor.shape != shape:
        raise ValueError(f"{name!r} is not bytes of shape {shape}")
    return tensor
