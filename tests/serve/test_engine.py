"""The queue, its batches, streams, deadlines and the end, with an assistant that answers when it is let."""

import asyncio
import json
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp

import httpx
import pytest

from fcit.data.records import TestRecord
from fcit.serve.engine import Engine, Job
from fcit.serve.growing import Growing
from fcit.serve.problems import Problem
from tests.helpers.serving import health, post, served
from tests.helpers.waiting import LONG, wait
from tests.serve.fakes import Fake
from tests.serve.test_refused import body


class Running:
    """An engine whose jobs' ends are put into a queue."""

    def __init__(self, tmp_path, most: int = 8) -> None:
        self.fake, self.ends, self.root = Fake(), queue.Queue(), tmp_path
        self.engine = Engine(self.fake, tmp_path, most)
        self.engine.start()

    def ask(self, text: str = "What?", **more) -> Job:
        folder = Path(mkdtemp(dir=self.root))
        question = self.fake.question(TestRecord("", (), text, ""), None, None)
        job = Job(question, folder, lambda end: self.ends.put((job, end)), **more)
        self.engine.submit(job)
        return job

    def block(self) -> Job:
        """A job whose batch has begun; what is asked now waits."""
        job = self.ask()
        assert self.fake.began.wait(LONG)
        return job


@pytest.fixture
def running(tmp_path):
    running = Running(tmp_path)
    yield running
    running.fake.go.set()
    running.engine.close()
    assert not running.engine.alive


def test_what_waits_is_the_next_batch_and_folders_go(running):
    running.block()
    jobs = [running.ask() for _ in range(6)]
    assert running.engine.waiting == 6
    running.fake.go.set()
    ends = [running.ends.get() for _ in range(7)]
    assert [end.text for _, end in ends] == ["one two three four"] * 7
    running.engine.close()
    assert running.fake.batches == [1, 4, 2]
    assert not any(job.folder.exists() for job in jobs)


def test_a_full_queue_and_a_closed_one_refuse(tmp_path):
    running = Running(tmp_path, most=2)
    running.block()
    running.ask(), running.ask()
    with pytest.raises(Problem, match="2 requests wait already") as refused:
        running.ask()
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "1"})
    closing = threading.Thread(target=running.engine.close)
    running.fake.go.set()
    closing.start()
    closing.join()
    assert running.ends.qsize() == 3  # what was taken in is answered
    with pytest.raises(Problem, match="shutting down"):
        running.ask()


def test_one_question_that_fails_spoils_no_other(running):
    running.block()
    bad = running.ask("bad")
    good = [running.ask(), running.ask()]
    running.fake.go.set()
    ends = dict(running.ends.get() for _ in range(4))
    assert ends[bad].status == 500
    assert "made to fail" not in str(ends[bad])
    assert [ends[job].text for job in good] == ["one two three four"] * 2


def test_cancelled_ones_are_left_out_or_cut(running):
    first = running.block()
    first.cancelled = True
    waiting = running.ask()
    waiting.cancelled = True
    last = running.ask()
    running.fake.go.set()
    assert running.ends.get()[1].text == "one"
    assert running.ends.get()[0] is last


def test_stops_end_the_answer_and_are_left_out(running):
    job = running.ask(stops=("three", "two t"))
    running.fake.go.set()
    done, answer = running.ends.get()
    assert done is job
    assert (answer.text, answer.new_tokens, answer.ended) == ("one", 3, True)


@pytest.mark.parametrize(
    ("stops", "texts", "parts"),
    [
        ((), ["a", "a b", "a b\ufffd", "a bé"], ["a", " b", "é"]),
        (("stop",), ["a", "a s", "a st", "a star"], ["a", " star"]),
        (("##",), ["a", "a #", "a # b"], ["a", " # b"]),
    ],
)
def test_only_what_is_certain_is_sent(stops, texts, parts):
    sent: list[str] = []
    growing = Growing(lambda tokens: texts[len(tokens) - 1], stops, sent.append)
    for count in range(1, len(texts) + 1):
        assert not growing.add([0] * count)
    assert sent == parts
    assert growing.whole(texts[-1]) == (texts[-1], False)


def test_a_text_that_changes_its_beginning_is_an_error():
    growing = Growing(lambda tokens: "do n", (), lambda part: None)
    growing.add([0])
    with pytest.raises(ValueError, match="does not begin"):
        growing.whole("don't")


# ---------------------------------------------------------------------- over HTTP


def test_sigterm_waits_for_what_runs_and_waits():
    fake = Fake()
    with served(fake) as (url, process), ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(post, url, body(stream=stream)) for stream in (False, True)]
        assert fake.began.wait(LONG)
        wait(lambda: sum(health(url)[kind] for kind in ("waiting", "running")) == 2)
        process.terminate()
        fake.go.set()
        whole, stream = (one.result() for one in asked)
        assert whole.json()["choices"][0]["message"]["content"] == "one two"
        *events, end = [line.removeprefix("data: ") for line in stream.text.split("\n\n") if line]
        assert end == "[DONE]"
        deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
        assert deltas == [{"role": "assistant", "content": ""}, {"content": "one"}, {"content": " two"}, {}]
        process.join()
        assert process.exitcode == 0


def test_a_deadline_is_kept_by_answers_and_streams():
    fake = Fake()
    with served(fake, seconds=0.2) as (url, _):
        late = post(url, body())
        assert (late.status_code, late.json()["error"]["type"]) == (504, "server_error")
        stream = post(url, body(stream=True))
        assert '"code": "deadline"' in stream.text.splitlines()[-2]
        fake.go.set()


def test_a_client_that_goes_cancels_its_question():
    fake = Fake()

    async def go_away(url: str) -> None:
        async with httpx.AsyncClient(timeout=60, verify=False) as client:
            asked = asyncio.ensure_future(client.post(f"{url}/v1/chat/completions", json=body()))
            assert await asyncio.to_thread(fake.began.wait, LONG)
            waits = asyncio.ensure_future(client.post(f"{url}/v1/chat/completions", json=body()))
            while (await client.get(f"{url}/health")).json()["waiting"] < 1:
                await asyncio.sleep(0.05)
            waits.cancel()
            fake.go.set()
            assert (await asked).status_code == 200

    with served(fake) as (url, _):
        asyncio.run(go_away(url))
        assert health(url)["status"] == "ok"
