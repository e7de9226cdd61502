"""The orders of secure aggregation at a client: keys, shares, a masked update, opened shares.

Each step of a session is done once. What could be masked twice with the same mask, or revealed in both ways, is
refused, whoever asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from clients.worker.sessions import Sessions
from clients.worker.worker import Worker
from fcit.errors import Refused
from fcit.federation.messages import (
    KeysOrder,
    MaskedUpdate,
    MaskOrder,
    OpenedShares,
    PublicKeys,
    SealedShares,
    ShareOrder,
    UnmaskOrder,
)
from fcit.privacy import clipping
from fcit.privacy.secagg.client import Participant
from fcit.privacy.secagg.keys import PUBLIC, SEED, Keys
from fcit.privacy.secagg.roster import Aborted, Member, Roster, Rules
from fcit.privacy.secagg.vector import Coding, Contribution

_SHARED, _MASKED = "shared", "masked"


def keys(worker: Worker, order: KeysOrder) -> PublicKeys:
    """Phase 1: a new secret, and the public keys that belong to it."""
    secret = _sessions(worker, order.client).begin(order.session, order.stage, order.round)
    member = Participant(Keys(secret, order.session, order.client)).member()
    tensors = {"sealing": _array(member.sealing), "masking": _array(member.masking)}
    return PublicKeys(client=order.client, session=order.session, tensors=tensors)


def share(worker: Worker, order: ShareOrder) -> SealedShares:
    """Phase 2: shares of this client's secrets for its neighbours; the roster is kept for the phases to come."""
    sessions = _sessions(worker, order.client)
    participant = _participant(sessions.secret(order.session), order)
    with _refusing():
        roster = Roster(order.session, _members(order), Rules.of(worker.config.privacy))
        shared = participant.share(roster)
    sessions.claim(
        order.session, _SHARED, {"members": [[m.client, m.sealing.hex(), m.masking.hex()] for m in roster.members]}
    )
    return SealedShares(
        client=order.client,
        session=order.session,
        receivers=list(shared.sealed),
        tensors={"sealed": _arrays(shared.sealed.values()), "commitment": _array(shared.commitment)},
    )


def train(worker: Worker, order: MaskOrder) -> MaskedUpdate:
    """Phase 3: train, clip if that is ordered, and mask what changed."""
    privacy, sessions = worker.config.privacy, _sessions(worker, order.client)
    if privacy.on != (order.clip is not None):
        raise Refused(f"clip: {order.clip} is ordered, and the run has privacy.client_dp: {privacy.client_dp}")
    participant = _participant(sessions.secret(order.session), order)
    roster = _roster(worker, sessions, order.session)
    update, old = worker.trained(order), order.trained
    tensors, weight, unclipped = update.tensors, update.examples, False
    if order.clip is not None:
        tensors, norm = clipping.clipped(tensors, old, order.clip)
        weight, unclipped = 1, norm <= order.clip
    differences = {name: np.subtract(tensor, old[name], dtype=np.float64) for name, tensor in tensors.items()}
    with _refusing():
        coding = Coding(
            bits=privacy.quantise_bits,
            range=privacy.quantise_range if order.clip is None else order.clip,
            most=order.most,
            members=order.room,
            shapes={name: tensor.shape for name, tensor in old.items()},
            inward=order.clip is not None,
        )
        vector = coding.encoded(Contribution(weight, update.loss, differences, unclipped))
        sessions.claim(order.session, _MASKED, {"members": order.members})
        masked = participant.masked(roster, order.members, vector)
    return MaskedUpdate(
        stage=order.stage,
        round=order.round,
        client=order.client,
        shard=order.shard,
        subspace=order.subspace,
        session=order.session,
        seconds=update.seconds,
        tensors={"masked": masked},
        kept=update.kept,
        how=update.how,
    )


def unmask(worker: Worker, order: UnmaskOrder) -> OpenedShares:
    """Phase 4: one share of each neighbour. The session's secret is gone afterwards."""
    sessions = _sessions(worker, order.client)
    roster = _roster(worker, sessions, order.session)
    members = sessions.claimed(order.session, _MASKED)["members"]
    sealed = dict(zip(order.senders, map(bytes, order.tensors.get("sealed", ())), strict=False))
    with _refusing():
        participant = _participant(sessions.last(order.session), order)
        revealed = participant.reveal(roster, members, order.alive, sealed)
    shares = _arrays(revealed.shares.values()) if revealed.shares else np.empty((0, SEED), np.uint8)
    return OpenedShares(
        client=order.client,
        session=order.session,
        owners=list(revealed.shares),
        unreadable=revealed.unreadable,
        tensors={"shares": shares},
    )


def _sessions(worker: Worker, client: int) -> Sessions:
    """The client's sessions.

    Raises:
        Refused: the run has no secure aggregation.
    """
    if not worker.config.privacy.secure:
        raise Refused("the order is one of secure aggregation, and the run has privacy.secure_aggregation: off")
    return Sessions(worker.memory.root / str(client))


def _participant(secret: bytes, order: ShareOrder | MaskOrder | UnmaskOrder) -> Participant:
    return Participant(Keys(secret, order.session, order.client))


def _roster(worker: Worker, sessions: Sessions, session: str) -> Roster:
    """The roster that this client has shared its secrets with."""
    members = sessions.claimed(session, _SHARED)["members"]
    keys = tuple(Member(client, bytes.fromhex(one), bytes.fromhex(other)) for client, one, other in members)
    return Roster(session, keys, Rules.of(worker.config.privacy))


def _members(order: ShareOrder) -> tuple[Member, ...]:
    one, other = (order.tensors.get(name, np.empty(0)) for name in ("sealing", "masking"))
    wanted = (len(order.members), PUBLIC)
    if one.shape != wanted or other.shape != wanted or {one.dtype, other.dtype} != {np.dtype(np.uint8)}:
        raise Aborted(f"its keys are not bytes {wanted}, two for each of its members")
    return tuple(
        Member(client, bytes(sealing), bytes(masking))
        for client, sealing, masking in zip(order.members, one, other, strict=True)
    )


@contextmanager
def _refusing() -> Iterator[None]:
    """What the protocol does not go along with is refused as an order is."""
    try:
        yield
    except (Aborted, ValueError) as error:
        raise Refused(str(error)) from None


def _array(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


def _arrays(texts: Iterable[bytes]) -> np.ndarray:
    return np.stack([_array(text) for text in texts])
