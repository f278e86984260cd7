"""Serve an exported folder over HTTP: `python server.py DIR`, or any ASGI server on what `application(DIR)` returns."""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import anyio
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from transom import Runtime
from transom.errors import InputError, TransomError
from transom.generation import Piece, Sampling

LARGEST = 1 << 20  # bytes of a request
Made = TypeVar("Made")


class Server:
    """Answer requests with one exported model, one after the other: a runtime runs one thing at a time."""

    def __init__(self, folder: str | Path) -> None:
        self.runtime = Runtime(folder)
        self._turn = anyio.Lock()

    async def about(self, request: Request) -> Response:
        """Say what is served."""
        arrays = self.runtime.arrays
        facts = {"provider": arrays.provider, "precision": arrays.manifest.precision, "max_seq_len": arrays.max_seq_len}
        return JSONResponse({"model": arrays.folder.name, **facts})

    async def generate(self, request: Request) -> Response:
        """Continue a text or a chat: all at once, or with `stream` piece by piece, as server-sent events."""
        asked = await _asked(request)
        streamed, prompt = asked.pop("stream", False), asked.pop("prompt", None)
        chat = isinstance(prompt, list) and bool(prompt) and all(isinstance(message, dict) for message in prompt)
        if not (isinstance(prompt, str) or chat) or not isinstance(streamed, bool):
            raise HTTPException(400, "prompt must be a text, or a list of messages; stream true or false")
        sampling = Sampling.of(**asked)
        pieces = await self._in_turn(lambda: self.runtime.stream(prompt, sampling))  # refuses here what it won't write
        if streamed:
            return StreamingResponse(self._events(pieces), media_type="text/event-stream")
        written = await self._in_turn(lambda: list(pieces))
        return JSONResponse({**_said(written[-1]), "text": "".join(piece.text for piece in written)})

    async def classify(self, request: Request) -> Response:
        """Return the classes of each text, the likeliest first."""
        texts, options = _texts(await _asked(request), {"output": str, "truncate": bool})
        found = await self._in_turn(lambda: self.runtime.classify(texts, **options))
        return JSONResponse({"labels": [[asdict(label) for label in labels] for labels in found]})

    async def encode(self, request: Request) -> Response:
        """Return a vector for each text."""
        texts, options = _texts(await _asked(request), {"pool": str, "truncate": bool})
        found = await self._in_turn(lambda: self.runtime.encode(texts, **options))
        return JSONResponse({"vectors": found.tolist()})

    async def _in_turn(self, work: Callable[[], Made]) -> Made:
        """Do something in a thread, so that others may ask meanwhile, when all who came before are done."""
        async with self._turn:
            return await run_in_threadpool(work)

    async def _events(self, pieces: Iterator[Piece]) -> AsyncIterator[str]:
        """Give each piece as an event. Who goes away ends the writing, and lets the next one in."""
        async with self._turn:
            async for piece in iterate_in_threadpool(pieces):
                if piece.text or piece.result:
                    yield f"data: {json.dumps(_said(piece), ensure_ascii=False)}\n\n"


def _said(piece: Piece) -> dict[str, Any]:
    """Return a piece's text, and of the last one why it is the last, and how many tokens there were."""
    end = {"ended": piece.result.ended, "tokens": len(piece.result.ids)} if piece.result else {}
    return {"text": piece.text, **end}


async def _asked(request: Request) -> dict[str, Any]:
    """Return what a request asks for: a map in JSON."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST:
            raise HTTPException(413, f"a request takes at most {LARGEST} bytes")
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise HTTPException(400, 'the body must be a map in JSON, as in {"prompt": "def read("}')
    return asked


def _texts(asked: dict[str, Any], options: dict[str, type]) -> tuple[list[str], dict[str, Any]]:
    """Return the texts that are asked about, and the options."""
    texts = asked.pop("texts", None)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise HTTPException(400, "texts must be a list of texts")
    for name, value in asked.items():
        if name not in options or not isinstance(value, options[name]):
            known = ", ".join(f"{name} ({kind.__name__})" for name, kind in options.items())
            raise HTTPException(400, f"{name}: no such option, or not of its type; there are {known}")
    return texts, asked


async def _refused(request: Request, error: Exception) -> Response:
    """Turn an error into a status and one message."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    return JSONResponse({"error": str(error)}, 400 if isinstance(error, InputError) else 500)


def application(folder: str | Path) -> Starlette:
    """Return an ASGI application that serves a folder; raise ExportError where it is not whole."""
    server = Server(folder)
    answers = {"/generate": server.generate, "/classify": server.classify, "/encode": server.encode}
    return Starlette(
        routes=[Route("/", server.about), *(Route(path, answer, methods=["POST"]) for path, answer in answers.items())],
        exception_handlers={HTTPException: _refused, TransomError: _refused},
    )


def main() -> None:
    """Serve the folder that the command line names."""
    import uvicorn

    parser = argparse.ArgumentParser(description="Serve an exported folder over HTTP.")
    parser.add_argument("folder")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    asked = parser.parse_args()
    uvicorn.run(application(asked.folder), host=asked.host, port=asked.port)


if __name__ == "__main__":
    main()
