"""The example that serves an exported folder: what clients get, and when, and what they are refused."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from test_runtime import CHAT, DECODER, ENCODER, TEMPLATE, TEXTS, made

import transom
from transom.deploy import ArrayRuntime
from transom.errors import ExportError


class Reply:
    """Gather an application's answer to one request, part by part, as a server would send it."""

    def __init__(self, body: bytes, on_part: Callable[[Reply], None] | None = None) -> None:
        self.status, self.type, self.parts = 0, "", list[bytes]()
        self.leave = asyncio.Event()
        self._body: bytes | None = body
        self._on_part = on_part

    async def receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.type = dict(message["headers"])[b"content-type"].decode().partition(";")[0]
        elif message["body"]:
            self.parts.append(message["body"])
            if self._on_part:
                self._on_part(self)

    @property
    def json(self) -> Any:
        return json.loads(b"".join(self.parts))

    @property
    def events(self) -> list[Any]:
        """Return what the parts say, each of which is one event."""
        assert all(part.startswith(b"data: ") and part.endswith(b"\n\n") for part in self.parts)
        return [json.loads(part.removeprefix(b"data: ")) for part in self.parts]

    @property
    def streamed(self) -> str:
        """Return the text of all events."""
        return "".join(event["text"] for event in self.events)


async def asked(application: Any, path: str, said: Any, on_part: Callable[[Reply], None] | None = None) -> Reply:
    """Ask an application as a server does."""
    reply = Reply(said if isinstance(said, bytes) else json.dumps(said).encode(), on_part)
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "scheme": "http",
        "method": "GET" if said is None else "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [], "root_path": "",
    }  # fmt: skip
    await application(scope, reply.receive, reply.send)
    return reply


def ask(application: Any, path: str, said: Any = None) -> Reply:
    return asyncio.run(asked(application, path, said))


@pytest.fixture(scope="module")
def server(root: Path) -> ModuleType:
    """Return the example's module, from its file."""
    spec = importlib.util.spec_from_file_location("served", root / "examples" / "server" / "server.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writer")
    spec = DECODER + "data: {kind: text, seq_len: 48}\n"
    transom.export(made(folder / "run", spec, chat_template__jinja=TEMPLATE), folder / "out")
    return folder / "out"


class Steps:
    """Count the steps of all runtimes, and refuse two at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, busy, step = 0, threading.Lock(), ArrayRuntime.step

        def counted(runtime: ArrayRuntime, *args: Any) -> Any:
            assert busy.acquire(blocking=False), "two requests are worked on at once"
            try:
                self.count += 1
                time.sleep(0.002)  # another one would come now
                return step(runtime, *args)
            finally:
                busy.release()

        monkeypatch.setattr(ArrayRuntime, "step", counted)


def test_text_is_what_the_runtime_writes(server: ModuleType, writer: Path) -> None:
    application, runtime = server.application(writer), transom.Runtime(writer)
    options: dict[str, Any] = {"max_new_tokens": 9, "temperature": 2.0, "seed": 4}
    for prompt in (*TEXTS, CHAT):
        wanted = runtime.generate(prompt, **options)  # type: ignore[arg-type]
        reply = ask(application, "/generate", {"prompt": prompt, **options})
        assert (reply.status, reply.type) == (200, "application/json")
        assert reply.json == {"text": wanted.text, "ended": wanted.ended, "tokens": len(wanted.ids)}
    about = {"model": "out", "provider": "CPUExecutionProvider", "precision": "fp32", "max_seq_len": 48}
    assert ask(application, "/").json == about


def test_pieces_come_while_the_rest_is_still_to_be_written(
    server: ModuleType, writer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = transom.Runtime(writer).generate("der", max_new_tokens=20)
    steps, counts = Steps(monkeypatch), list[int]()
    said = {"prompt": "der", "max_new_tokens": 20, "stream": True}
    reply = asyncio.run(asked(server.application(writer), "/generate", said, lambda _: counts.append(steps.count)))
    assert (reply.status, reply.type) == (200, "text/event-stream")
    assert reply.streamed == wanted.text
    *before, last = reply.events
    assert (last["ended"], last["tokens"]) == (wanted.ended, len(wanted.ids))
    assert len(before) > 3
    assert all(event.keys() == {"text"} and event["text"] for event in before)
    assert counts == sorted(counts)
    assert counts[0] < 5 < 15 < counts[-1]


def test_requests_wait_for_each_other(server: ModuleType, writer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, application = transom.Runtime(writer), server.application(writer)
    wanted = [runtime.generate(text, max_new_tokens=12).text for text in TEXTS]
    Steps(monkeypatch)

    async def all_at_once() -> list[Reply]:
        said = [{"prompt": text, "max_new_tokens": 12, "stream": text != "der die das"} for text in TEXTS]
        return await asyncio.gather(*(asked(application, "/generate", each) for each in said))

    replies = asyncio.run(all_at_once())
    found = [reply.json["text"] if reply.type == "application/json" else reply.streamed for reply in replies]
    assert len({reply.type for reply in replies}) == 2
    assert found == wanted


def test_who_leaves_ends_the_writing(server: ModuleType, writer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    application, steps = server.application(writer), Steps(monkeypatch)
    said = {"prompt": "der", "max_new_tokens": 40, "stream": True}

    async def leave_and_come_again() -> tuple[int, Reply]:
        await asked(application, "/generate", said, lambda reply: reply.leave.set())
        left_at = steps.count
        return left_at, await asked(application, "/generate", {"prompt": "die", "max_new_tokens": 3})

    left_at, reply = asyncio.run(leave_and_come_again())
    assert left_at < 20
    assert (reply.status, reply.json["tokens"]) == (200, 3)
    assert steps.count <= left_at + 4


@pytest.mark.parametrize(
    ("path", "said", "status", "message"),
    [
        ("/generate", b"{", 400, 'the body must be a map in JSON, as in {"prompt": "def read("}'),
        ("/generate", b"[" * 9999, 400, "the body must be a map in JSON"),
        ("/generate", ["der"], 400, "the body must be a map in JSON"),
        ("/generate", {}, 400, "prompt must be a text, or a list of messages; stream true or false"),
        ("/generate", {"prompt": ["der"]}, 400, "prompt must be a text"),
        ("/generate", {"prompt": "der", "stream": 1}, 400, "stream true or false"),
        ("/generate", {"prompt": "der", "max_tokens": 3}, 400, "sampling.max_tokens: there is no such option"),
        ("/generate", {"prompt": "der", "top_p": 7, "stream": True}, 400, "sampling.top_p: 7 is not a number above 0"),
        ("/generate", {"prompt": "漢字 🙂" * 40, "stream": True}, 400, "but the model holds 48"),
        ("/generate", {"prompt": [{"role": "system", "content": ""}]}, 400, "no role system"),
        ("/generate", {"prompt": "d" * (1 << 20)}, 413, "a request takes at most 1048576 bytes"),
        ("/classify", {"texts": ["der"]}, 400, "no head of this model scores classes"),
        ("/classify", {"texts": "der"}, 400, "texts must be a list of texts"),
        ("/encode", {"texts": [], "pol": "mean"}, 400, "pol: no such option, or not of its type; there are pool"),
        ("/encode", {"texts": [], "truncate": "no"}, 400, "truncate: no such option, or not of its type"),
        ("/generate", None, 405, "Method Not Allowed"),
        ("/other", {}, 404, "Not Found"),
    ],
)
def test_what_is_wrong_is_said(
    server: ModuleType, writer: Path, path: str, said: Any, status: int, message: str
) -> None:
    reply = ask(server.application(writer), path, said)
    assert reply.status == status
    assert reply.json.keys() == {"error"}
    assert message in reply.json["error"]


def test_texts_are_classified_and_embedded(server: ModuleType, tmp_path: Path) -> None:
    run = made(tmp_path / "run", ENCODER, data__json=json.dumps({"classes": ["bad", "fair", "good", "a", "b"]}))
    transom.export(run, tmp_path / "out")
    application, runtime = server.application(tmp_path / "out"), transom.Runtime(tmp_path / "out")
    labels = ask(application, "/classify", {"texts": TEXTS}).json["labels"]
    assert labels == [[vars(label) for label in row] for row in runtime.classify(TEXTS)]
    vectors = ask(application, "/encode", {"texts": TEXTS, "pool": "mean", "truncate": True}).json["vectors"]
    assert vectors == runtime.encode(TEXTS, pool="mean").tolist()


def test_the_command_serves_a_whole_folder(
    server: ModuleType, writer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: dict[str, Any] = {}
    run = SimpleNamespace(run=lambda application, **where: served.update(where, application=application))
    monkeypatch.setitem(sys.modules, "uvicorn", run)
    monkeypatch.setattr(sys, "argv", ["server.py", str(writer), "--port", "8123"])
    server.main()
    assert (served["host"], served["port"]) == ("127.0.0.1", 8123)
    assert ask(served["application"], "/").status == 200
    with pytest.raises(ExportError, match="no exported model"):
        server.application(tmp_path)
