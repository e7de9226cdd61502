"""What the server answers is what `fcit chat` answers, by OpenAI's own client."""

import asyncio
import base64
from pathlib import Path

import openai
import pytest

from fcit.data.records import OpenConversation, Turn
from tests.helpers.made import QUESTION

OTHER = "How many cubes are there?\nAnswer the question using a single word or phrase."


@pytest.fixture(scope="module")
def client(url) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0)


def user(text: str, *images: str) -> dict:
    parts = [{"type": "image_url", "image_url": {"url": image}} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}] if images else text}


def data_url(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def test_models_are_the_run_and_its_subspaces(client):
    assert [model.id for model in client.models.list()] == ["run", "run/0", "run/1", "run/2"]
    assert client.models.retrieve("run/1").fcit["subspace"] == "1"
    with pytest.raises(openai.NotFoundError, match="no model 'run/7'"):
        client.models.retrieve("run/7")


@pytest.mark.parametrize("subspace", [None, "0", "2"])
def test_texts_and_mixes_are_those_of_chat(client, assistant, pictures, subspace):
    model = "run" if subspace is None else f"run/{subspace}"
    file = pictures / "a.png"
    for images, urls in (
        ([file], ["a.png"]),
        ([file], [data_url(file)]),
        ([], []),
        ([file, pictures / "b.png"], [file.as_uri(), "b.png"]),
    ):
        [wanted] = assistant.answer([images], [QUESTION], 6, subspace)
        got = client.chat.completions.create(model=model, messages=[user(QUESTION, *urls)], max_tokens=6)
        assert got.choices[0].message.content == wanted.text
        assert got.fcit["mix"] == wanted.mix
        assert got.usage.prompt_tokens == wanted.prompt_tokens
        assert got.usage.completion_tokens == wanted.new_tokens <= 6
        assert got.choices[0].finish_reason == ("stop" if wanted.ended else "length")


def test_a_limit_cuts_and_the_runs_is_the_default(client, assistant):
    [long], [short] = assistant.answer([None], [QUESTION]), assistant.answer([None], [QUESTION], 1)
    create = client.chat.completions.create
    got = create(model="run", messages=[user(QUESTION)])
    assert (got.choices[0].message.content, got.usage.completion_tokens) == (long.text, long.new_tokens)
    got = create(model="run", messages=[user(QUESTION)], max_completion_tokens=1)
    assert (got.choices[0].message.content, got.usage.completion_tokens) == (short.text, 1)


def test_a_stream_holds_the_same_text_the_mix_and_the_usage(client, assistant):
    [wanted] = assistant.answer([None], [QUESTION], 6)
    stream = client.chat.completions.create(
        model="run",
        messages=[user(QUESTION)],
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
        temperature=0.0,
        seed=3,
    )
    parts = list(stream)
    assert "".join(part.choices[0].delta.content or "" for part in parts[:-1]) == wanted.text
    assert parts[-2].fcit["mix"] == wanted.mix
    assert parts[-2].choices[0].finish_reason == ("stop" if wanted.ended else "length")
    assert parts[-1].usage.completion_tokens == wanted.new_tokens


def test_questions_at_the_same_time_get_the_answers_they_get_alone(url, client, assistant, pictures):
    cases = [
        (text, image, sub) for text in (QUESTION, OTHER) for image in (None, "a.png", "b.png") for sub in (None, "1")
    ]
    wanted = [assistant.answer([pictures / image if image else None], [text], 6, sub)[0] for text, image, sub in cases]

    async def together() -> list:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as many:
            asked = [
                many.chat.completions.create(
                    model=f"run/{sub}" if sub else "run", messages=[user(text, *filter(None, [image]))], max_tokens=6
                )
                for text, image, sub in cases
            ]
            return await asyncio.gather(*asked)

    got = asyncio.run(together())
    assert [one.choices[0].message.content for one in got] == [one.text for one in wanted]
    for one, answer in zip(got, wanted, strict=True):
        assert one.fcit["mix"] == pytest.approx(answer.mix, abs=1e-5)


def test_turns_and_a_system_message_are_read_as_in_training(client, assistant, pictures):
    record = OpenConversation(
        "", ("a.png",), "And how many?", "", history=(Turn(QUESTION, "red", 1),), system="Be brief."
    )
    [wanted] = assistant.respond(pictures, [assistant.question(record, 6)])
    talk = [
        {"role": "system", "content": "Be brief."},
        user(QUESTION, "a.png"),
        {"role": "assistant", "content": "red"},
        user("And how many?"),
    ]
    got = client.chat.completions.create(model="run", messages=talk, max_tokens=6)
    assert got.choices[0].message.content == wanted.text
    assert got.usage.prompt_tokens == wanted.prompt_tokens
    [alone] = assistant.answer([None], ["And how many?"])
    assert wanted.prompt_tokens > alone.prompt_tokens
    assert wanted.mix != alone.mix
