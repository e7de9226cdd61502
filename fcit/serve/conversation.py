"""From the messages of a request to a question with its earlier turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fcit.data.formats.conversation import checked_text, images_per_turn, without_tags
from fcit.data.records import OpenConversation, Turn
from fcit.serve.messages import ImagePart, Message
from fcit.serve.problems import Problem


@dataclass(frozen=True)
class Conversation:
    """A conversation whose images are still where the request says.

    Attributes:
        urls: of its images, in the order of its turns.
        turns: question, answer (empty: to be given) and number of images of each.
    """

    urls: tuple[str, ...]
    turns: tuple[Turn, ...]
    system: str

    def record(self, names: Sequence[str]) -> OpenConversation:
        """It as a record, with its images under these names."""
        *history, last = self.turns
        return OpenConversation("", tuple(names), last.question, "", history=tuple(history), system=self.system)


def conversation(messages: Sequence[Message], turns: int, images: int) -> Conversation:
    """The conversation of a request; its images stand in front of the turn that they are part of.

    It may begin with a system message; then questions and answers alternate, and the last message is a question.

    Args:
        turns: most messages.
        images: most images.

    Raises:
        Problem: it is not such a conversation, or a text cannot be used.
    """
    if len(messages) > turns:
        raise Problem(400, f"messages: {len(messages)}, more than {turns} (--max-turns)", param="messages")
    system = ""
    if messages[0].role in ("system", "developer"):
        system, urls = _content(messages[0], 0)
        if urls:
            raise Problem(400, "messages.0: an image belongs into a question", param="messages.0")
    rest = list(enumerate(messages))[bool(system) :]
    for place, (number, message) in enumerate(rest):
        wanted = ("user", "assistant")[place % 2]
        if message.role != wanted:
            text = f"messages.{number}: is by {message.role!r}, where {wanted!r} is to speak"
            raise Problem(400, f"{text}; a system message comes first, then user and assistant alternate")
    if len(rest) % 2 == 0:
        raise Problem(400, "messages: the last one must be a question (role 'user')", param="messages")
    whole: list[Turn] = []
    urls = []
    for number, message in rest[::2]:
        text, of_turn = _content(message, number)
        answer = _content(messages[number + 1], number + 1)[0] if number + 1 < len(messages) else ""
        try:
            question, tags = without_tags(text)
            images_per_turn([tags], len(of_turn))
        except ValueError as error:
            raise Problem(400, f"messages.{number}: {error}", param=f"messages.{number}") from None
        whole.append(Turn(question, answer, len(of_turn)))
        urls += of_turn
    if len(urls) > images:
        raise Problem(400, f"messages: {len(urls)} images, more than {images} (--max-images)", param="messages")
    return Conversation(tuple(urls), tuple(whole), system)


def _content(message: Message, number: int) -> tuple[str, list[str]]:
    """Text and image URLs of a message; several texts are put on lines of their own.

    Raises:
        Problem: there is no text, too long a one, or an image in an answer.
    """
    place = f"messages.{number}"
    parts = [] if isinstance(message.content, str) else message.content
    urls = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    texts = [part.text for part in parts if not isinstance(part, ImagePart)]
    text = message.content if isinstance(message.content, str) else "\n".join(texts)
    if urls and message.role == "assistant":
        raise Problem(400, f"{place}: an image belongs into a question", param=place)
    try:
        if not checked_text(text, place).strip():
            raise ValueError(f"{place}: holds no text")
    except ValueError as error:
        raise Problem(400, str(error), param=place) from None
    return text, urls
