"""What sites tell at the handshake, and waiting for one of them."""

from flwr.app import Error, Message

from server.courier import NOBODY
from server.handshake import Handshake
from tests.helpers.grids import Story, answer, probe
from tests.helpers.waiting import wait

QUICK = {"timeout": 0.1}


def tells(**changes) -> Story:
    return lambda m: [answer(m, probe(**changes))]


def fails(reason: str) -> Story:
    return lambda m: [Message(Error(code=2, reason=reason), reply_to=m)]


def said(events: list[dict]) -> list[tuple[str, int]]:
    return [(event["event"], event["client"]) for event in events]


def until_seated(shake: Handshake, client: int) -> None:
    """Begin rounds until a client takes part."""

    def seated() -> bool:
        shake.update()
        return shake.courier.node(client) != NOBODY

    wait(seated)
