"""The server's paths, and a request's way through it: guard, body, images, queue, answer."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import shutil
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from fcit.errors import FCITError
from fcit.export.assistant import Answer, Assistant
from fcit.export.questions import Question
from fcit.serve import conversation, messages, pictures, replies
from fcit.serve.engine import Engine, Job
from fcit.serve.limits import DECODING, READING, Limits
from fcit.serve.problems import Problem, broken, busy, late

#: Names of this machine by which a browser's page of another site cannot reach it.
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Service:
    """What the paths share.

    Args:
        assistant: answers.
        name: of the model that routes; its subspaces are ``name/subspace``.
        scratch: folder for images of requests.
        images: folder that requests may name files of; None: none.
        key: that requests have to name; empty: none.
    """

    def __init__(
        self, assistant: Assistant, name: str, scratch: Path, images: Path | None, limits: Limits, key: str
    ) -> None:
        self.assistant, self.scratch, self.images, self.limits, self.key = assistant, scratch, images, limits, key
        self.engine = Engine(assistant, scratch, limits.waiting)
        self.entering = 0
        self.reading = asyncio.Semaphore(READING)
        self.pool = ThreadPoolExecutor(DECODING, "fcit-images")
        self.created = int(time.time())
        self.models = _models(assistant, name)

    # ------------------------------------------------------------------ who may ask

    async def guard(self, request: Request) -> None:
        """Let through requests that name the key or, where there is none, this machine.

        Without a key a page of any site could have the browser of somebody at this machine ask: its name could lead
        here (DNS rebinding), so the name in the request must be one of this machine's.

        Raises:
            Problem: 401 or 403.
        """
        if not self.key:
            host = request.headers.get("host", "")
            if (host if host.endswith("]") else host.rpartition(":")[0] or host) not in LOOPBACK:
                raise Problem(403, "without a key only requests to localhost are answered (fcit serve --api-key)")
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        digests = (hashlib.sha256(text.encode()).digest() for text in (given.strip(), self.key))
        if not hmac.compare_digest(*digests) or scheme.lower() != "bearer":
            raise Problem(401, "the key is missing or wrong (Authorization: Bearer KEY)", code="invalid_api_key")

    # ------------------------------------------------------------------ in

    async def received(self, request: Request) -> messages.Request:
        """The body of a request.

        Raises:
            Problem: it is too large, not JSON, or not what can be served.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # what a web page can send elsewhere without being allowed to is never that
            raise Problem(415, f"the body must be application/json, got {kind[:80] or 'nothing'!r}")
        most = self.limits.body
        announced = request.headers.get("content-length", "0")
        body = bytearray()
        if not (announced.isdecimal() and int(announced) > most):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    break
            else:
                return messages.parsed(bytes(body))
        raise Problem(413, f"a body of more than {most:,} bytes (--max-body)", code="request_too_large")

    def prepared(self, asked: messages.Request, folder: Path) -> Question:
        """The question of a request, its images decoded into ``folder``; takes a while.

        Raises:
            Problem: no such model, a conversation that cannot be asked, or an image that cannot be used.
        """
        if asked.model not in self.models:
            known = ", ".join(self.models)
            raise Problem(
                404, f"model: no {asked.model[:80]!r} (there are: {known})", param="model", code="model_not_found"
            )
        limits = self.limits
        if asked.limit is not None and asked.limit > limits.tokens:
            text = f"max_tokens: {asked.limit:,}, more than {limits.tokens:,} (--max-tokens)"
            raise Problem(400, text, param="max_tokens")
        talk = conversation.conversation(asked.messages, limits.turns, limits.images)
        names = [f"{folder.name}/{number}.ppm" for number in range(len(talk.urls))]
        for number, (url, name) in enumerate(zip(talk.urls, names, strict=True)):
            way = self.assistant.routing.pictures
            pictures.write(url, number, self.images, self.scratch / name, way, limits.pixels)
        try:
            return self.assistant.question(talk.record(names), asked.limit, self.models[asked.model], self.scratch)
        except FCITError as error:
            raise Problem(400, str(error), param="messages") from None

    async def answered(self, request: Request) -> Any:
        """The reply to a request for an answer.

        Raises:
            Problem: it is not answered.
        """
        loop, limits = asyncio.get_running_loop(), self.limits
        until = loop.time() + limits.seconds
        waiting = self.engine.waiting + self.entering
        if waiting >= limits.waiting:
            raise busy(waiting)
        events: asyncio.Queue[str | Answer | Problem] = asyncio.Queue()

        def tell(event: str | Answer | Problem) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        self.entering += 1
        try:
            async with asyncio.timeout_at(until), self.reading:
                asked = await self.received(request)
                folder = Path(mkdtemp(dir=self.scratch))
                question = await self._question(asked, folder)
        except TimeoutError:
            raise late(limits.seconds) from None
        finally:
            self.entering -= 1
        model, streams, counts, stops = asked.model, bool(asked.stream), asked.counts, asked.stops
        del asked  # and with it the images as texts, which would stay while the question waits
        job = Job(question, folder, tell, tell if streams else None, stops)
        try:
            self.engine.submit(job)
        except Problem:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        if streams:
            parts = self._parts(head, job, events, until, counts)
            return StreamingResponse(parts, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        return JSONResponse(replies.completion(head, await self._whole(request, job, events, until)))

    async def _question(self, asked: messages.Request, folder: Path) -> Question:
        """As :meth:`prepared`, in a thread; where there is no question, the folder goes when the thread is done."""
        work = asyncio.get_running_loop().run_in_executor(self.pool, self.prepared, asked, folder)

        def dropped(work: asyncio.Future[Question]) -> None:
            if not work.cancelled():
                work.exception()  # told already, or of no interest to a client that has gone
            shutil.rmtree(folder, ignore_errors=True)

        try:
            return await asyncio.shield(work)
        except BaseException:
            work.add_done_callback(dropped)
            raise

    # ------------------------------------------------------------------ out

    async def _whole(self, request: Request, job: Job, events: asyncio.Queue[Any], until: float) -> Answer:
        """The answer; the job is cancelled when time is over or the client has gone.

        Raises:
            Problem: there is none.
        """
        answer, gone = asyncio.ensure_future(events.get()), asyncio.ensure_future(_gone(request))
        left = until - asyncio.get_running_loop().time()
        try:
            await asyncio.wait({answer, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            job.cancelled = not answer.done()
            gone.cancel()
        if not answer.done():
            answer.cancel()
            raise late(self.limits.seconds)
        event = answer.result()
        if isinstance(event, Problem):
            raise event
        return event

    async def _parts(
        self, head: dict[str, Any], job: Job, events: asyncio.Queue[Any], until: float, counts: bool
    ) -> AsyncIterator[str]:
        """Server-sent events; what goes wrong after the first is an event, too."""
        sent = 0
        try:
            yield replies.event(replies.part(head, role="assistant", content=""))
            async with asyncio.timeout_at(until):
                while isinstance(event := await events.get(), str):
                    sent += len(event)
                    yield replies.event(replies.part(head, content=event))
        except TimeoutError:
            event = late(self.limits.seconds)
        finally:
            job.cancelled = True  # of no effect on one that is over
        if isinstance(event, Problem):
            yield replies.event(event.body)
            return
        if rest := event.text[sent:]:
            yield replies.event(replies.part(head, content=rest))
        yield replies.event(replies.last(head, event))
        if counts:
            yield replies.event(replies.counted(head, event))
        yield replies.DONE

    def listed(self) -> list[dict[str, Any]]:
        """The models, as the list shows them."""
        trained, method = self.assistant.trained_on, self.assistant.method.name
        return [
            replies.model(name, self.created, subspace=subspace, trained_on=trained.get(subspace, {}))
            if subspace is not None
            else replies.model(name, self.created, method=method, subspaces=self.assistant.subspaces)
            for name, subspace in self.models.items()
        ]


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _models(assistant: Assistant, name: str) -> dict[str, str | None]:
    """The models by name: all subspaces mixed as the run did (None), and each alone, as far as the method can."""
    method = assistant.method
    models: dict[str, str | None] = {} if method.needs_task_at_inference else {name: None}
    if method.layout.routed != "last":
        models |= {f"{name}/{subspace}": subspace for subspace in assistant.subspaces}
    return models


def application(service: Service) -> FastAPI:
    """The ASGI application."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.engine.close)
            service.pool.shutdown()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    guarded = [Depends(service.guard)]

    @app.get("/health")
    async def health() -> JSONResponse:
        engine = service.engine
        state = {"status": "ok" if engine.alive else "failed", "waiting": engine.waiting, "running": engine.running}
        return JSONResponse(state, 200 if engine.alive else 503)

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": service.listed()}

    @app.get("/v1/models/{name:path}", dependencies=guarded)
    async def model(name: str) -> dict[str, Any]:
        for listed in service.listed():
            if listed["id"] == name:
                return listed
        raise Problem(404, f"no model {name[:80]!r}", param="model", code="model_not_found")

    @app.post("/v1/chat/completions", dependencies=guarded)
    async def completions(request: Request) -> Any:
        return await service.answered(request)

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> JSONResponse:
        return JSONResponse(error.body, error.status, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        there = ", ".join(sorted(getattr(route, "path", "") for route in app.routes))
        text = f"{request.method} {request.url.path[:80]}: {error.detail} (there are: {there})"
        return JSONResponse(Problem(error.status_code, text).body, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        logging.getLogger(__name__).error("a request could not be answered", exc_info=error)
        return JSONResponse(broken(error).body, 500)

    return app
