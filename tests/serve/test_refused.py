"""What is refused, in OpenAI's format of errors; and that the next question is answered."""

import json
import os

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcit.cli import serve as cli
from fcit.errors import ConfigError
from fcit.serve import messages, server
from fcit.serve.conversation import conversation
from fcit.serve.limits import Limits
from fcit.serve.problems import Problem
from fcit.serve.server import key_of, listening
from tests.helpers.cases import check_each
from tests.helpers.serving import health, post, served
from tests.serve.fakes import Fake

JSON = {"Content-Type": "application/json"}
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def body(text="What?", image: str | None = None, **more) -> dict:
    parts = [{"type": "text", "text": text}]
    if image is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": image}})
    return {"model": "run", "messages": [{"role": "user", "content": parts}], "max_tokens": 2, **more}


def turns(*roles: str) -> dict:
    return {"model": "run", "messages": [{"role": role, "content": "words"} for role in roles]}


#: Body, status, and a part of the message.
REFUSED = {
    "no such model": (body(model="gpt"), 404, "there are: run, run/0"),
    "not greedy": (body(temperature=0.7), 400, "temperature: only 0 can be served, because answers are greedy"),
    "several": (body(n=2), 400, "n: only 1"),
    "tools": (body(tools=[{"type": "function"}]), 400, "tools: only []"),
    "an unknown field": (body(beams=4), 400, "beams"),
    "too long an answer": (body(max_tokens=65), 400, "more than 64 (--max-tokens)"),
    "no token": (body(max_tokens=0), 400, "max_tokens"),
    "too many stops": (body(stop=list("abcde")), 400, "stop"),
    "no messages": (body(messages=[]), 400, "messages"),
    "a part that is none": (body(messages=[{"role": "user", "content": [{"type": "audio"}]}]), 400, "messages.0"),
    "the answer last": (turns("user", "assistant"), 400, "must be a question"),
    "two questions": (turns("user", "user"), 400, "messages.1: is by 'user', where 'assistant'"),
    "a late system message": (turns("user", "assistant", "system"), 400, "messages.2"),
    "too many turns": (turns(*["user", "assistant"] * 16, "user"), 400, "more than 32 (--max-turns)"),
    "no text": (body(" "), 400, "holds no text"),
    "half a character": (body("\ud800"), 400, "surrogate"),
    "a question that does not fit": (body("word " * 3000), 400, "max_length"),
    "a tag without an image": (body("<image>\nWhat?"), 400, "image tags"),
    "a damaged image": (body(image=PIXEL), 400, "image 0: not a readable image"),
    "no base64": (body(image="data:image/png;base64,???"), 400, "is not base64"),
    "a data URL of text": (body(image="data:text/plain,abc"), 400, "base64,..."),
    "a page": (body(image="http://127.0.0.1/cat.png"), 400, "fetches nothing"),
    "no image": (body(image="text.png"), 400, "image 0: not a readable image"),
    "a file outside": (body(image="../outside0/secret.png"), 400, "no image of that name"),
    "a link that leads out": (body(image="link.png"), 400, "no image of that name"),
    "a path from the top": (body(image="file:///etc/hostname"), 400, "no image of that name"),
    "no file": (body(image="none.png"), 400, "no image of that name"),
    "a name with a zero": (body(image="a\0.png"), 400, "no image of that name"),
    "a device": (body(image="/dev/zero"), 400, "no image of that name"),
    "no object": ([], 400, "JSON object"),
    "too deep": (json.loads("[" * 100 + "]" * 100), 400, "levels deep"),
}


def test_each_mistake_is_an_error_of_its_own_request(url, pictures):
    with httpx.Client(base_url=url, timeout=60, verify=False) as client:

        def check(case) -> None:
            sent, status, text = case
            reply = client.post("/v1/chat/completions", content=json.dumps(sent), headers=JSON)  # ASCII
            assert reply.status_code == status, reply.text
            error = reply.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["type"] == "invalid_request_error"
            assert text in error["message"]
            assert str(pictures) not in error["message"]

        check_each(REFUSED, check)
        assert client.post("/v1/chat/completions", json=body(image="a.png")).status_code == 200


def test_what_is_no_json_request(url):
    post = "/v1/chat/completions"
    with httpx.Client(base_url=url, timeout=60, verify=False) as client:
        large = client.post(post, json=body("x" * 200_000))
        assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
        pieces = client.post(post, content=iter([b" " * 150_000] * 2), headers=JSON)
        assert pieces.status_code == 413
        assert client.post(post, content=json.dumps(body()), headers={"Content-Type": "text/plain"}).status_code == 415
        assert "JSON" in client.post(post, content=b"{", headers=JSON).text
        twice = b'{"model": "run", "model": "run/0"}'
        assert "twice" in client.post(post, content=twice, headers=JSON).text
        lost = client.get("/v1/nothing")
        assert (lost.status_code, lost.json()["error"]["type"]) == (404, "invalid_request_error")
        assert client.get(post).status_code == 405
        assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
        assert client.get("/v1/models", headers={"Host": "localhost:1"}).status_code == 200


def test_pixels_are_counted_before_anything_is_decoded(url, pictures):
    Image.new("RGB", (200, 100)).save(pictures / "large.png")
    reply = post(url, body(image="large.png"))
    assert "image 0: 200 x 100 pixels, more than 10,000" in reply.json()["error"]["message"]


def test_a_key_and_files_without_a_folder():
    fake = Fake()
    fake.go.set()
    with served(fake, key="secret") as (url, _):

        def ask(key: str, **more) -> httpx.Response:
            return post(url, body(**more), Authorization=key)

        for key in ("", "Bearer wrong", "Bearer", "Basic secret", "Bearer secret2"):
            refused = ask(key)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key"), key
        assert ask("Bearer secret").json()["choices"][0]["message"]["content"] == "one two"
        assert "files are not served" in ask("Bearer secret", image="/etc/hostname").text
        assert health(url) == {"status": "ok", "waiting": 0, "running": 0}


def test_other_machines_need_a_key(monkeypatch, capsys):
    with pytest.raises(ConfigError, match="which needs a key; set FCIT_API_KEY"):
        listening("0.0.0.0", 0, "")
    listening("0.0.0.0", 0, "key").close()
    with listening("127.0.0.1", 0, "") as taken, pytest.raises(ConfigError, match="choose another port"):
        listening("127.0.0.1", taken.getsockname()[1], "")
    monkeypatch.setitem(os.environ, "FCIT_API_KEY", "from-outside")
    assert key_of(None) == "from-outside"
    assert key_of("option") == "option"
    assert "ps" in capsys.readouterr().err
    for wrong in ("", "two words"):
        with pytest.raises(ConfigError, match="--api-key"):
            key_of(wrong)


def test_bounds_that_make_no_sense():
    with pytest.raises(ConfigError, match="--max-waiting: must be above 0, got 0"):
        Limits(waiting=0)
    with pytest.raises(ConfigError, match="--max-images: at most 64, got 65"):
        Limits(images=65)
    with pytest.raises(ConfigError, match="--max-seconds"):
        Limits(seconds=float("nan"))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["user", "system", "text", "image_url"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "image_url", "url"]), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = st.sampled_from([*messages.Request.model_fields, *messages.ONLY, "seed"])


@given(st.dictionaries(FIELDS, VALUES, max_size=4), VALUES)
@settings(max_examples=150, deadline=None)
def test_whatever_is_sent_is_a_conversation_or_a_problem(fields, talk):
    try:
        asked = messages.parsed(json.dumps({"model": "run", "messages": talk, **fields}).encode())
        conversation(asked.messages, 8, 8)
    except Problem as problem:
        assert 400 <= problem.status < 500


def test_the_command(assistant, tmp_path, monkeypatch, fcit):
    served = []
    monkeypatch.setattr(server, "serve", lambda *given: served.append(given))
    monkeypatch.setattr(cli, "loaded", lambda args: assistant)
    code, _, err = fcit("serve", tmp_path / "my-run", "--port", "0", "--images", tmp_path, "--max-waiting", "5")
    assert code == 0, err
    [(_, name, place, images, limits, key)] = served
    assert (name, images, limits, key) == ("my-run", tmp_path, Limits(waiting=5), "")
    assert place.fileno() == -1  # closed
    for wrong, words in ((["--images", "/nowhere"], "--images"), (["--host", "0.0.0.0"], "FCIT_API_KEY")):
        code, _, err = fcit("serve", tmp_path, "--port", "0", *wrong)
        assert code == 2
        assert words in err
