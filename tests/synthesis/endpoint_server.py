"""An HTTP server on the loopback that plays an OpenAI-compatible endpoint: right answers, errors, slow ones."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Answer:
    """One answer: `content` (JSON unless it is bytes), after `delay_s`, in pieces `pause_s` apart if that is not 0."""

    content: Any = field(default_factory=dict)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    pause_s: float = 0.0


class EndpointServer:
    """Answers with what the script says next; when it is at its end, with what `respond` returns.

    `asked` are the requests so far; `most_at_once` is how many were under way together at most.
    """

    def __init__(self, respond: Callable[[Asked], Answer] | None = None) -> None:
        self.respond = respond or (lambda asked: Answer({"path": asked.path, "echo": asked.body}))
        self.script: list[Answer] = []
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(timeout=10)

    def receive(self, asked: Asked) -> Answer:
        with self._lock:
            self.asked.append(asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            answer = self.script.pop(0) if self.script else None
        answer = answer or self.respond(asked)
        self._closing.wait(answer.delay_s)
        return answer

    def finish(self) -> None:
        with self._lock:
            self._at_once -= 1


def chat_answer(*contents: str, tokens: tuple[int, int] = (10, 20)) -> Answer:
    """Return a chat completion: one choice for each content, and its usage (prompt, completion)."""
    choices = [
        {"index": number, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        for number, content in enumerate(contents)
    ]
    return Answer({"choices": choices, "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}})


def images_answer(*images: bytes) -> Answer:
    """Return an answer of the images endpoint: each file in base64."""
    return Answer({"created": 0, "data": [{"b64_json": base64.b64encode(image).decode()} for image in images]})


def _handler_of(server: EndpointServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                answer = server.receive(Asked(self.path, dict(self.headers), json.loads(content)))
            finally:
                server.finish()
            self._send(answer)

        def _send(self, answer: Answer) -> None:
            is_bytes = isinstance(answer.content, bytes)
            content = answer.content if is_bytes else json.dumps(answer.content).encode()
            try:
                self.send_response(answer.status)
                self.send_header("Content-Type", "application/octet-stream" if is_bytes else "application/json")
                self.send_header("Content-Length", str(len(content)))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if not answer.pause_s:
                    self.wfile.write(content)
                for at in range(len(content) if answer.pause_s else 0):
                    self.wfile.write(content[at : at + 1])
                    self.wfile.flush()
                    time.sleep(answer.pause_s)
            except OSError:  # the client has given up
                self.close_connection = True

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler
