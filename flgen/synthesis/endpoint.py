"""Client of OpenAI-compatible endpoints: retries, rate limit, caps on requests and cost, answers kept on disk.

Specification of GPT-FL, section 3.6. The key is read from the environment whenever a request is sent, and is stored
nowhere: not in this object, not in a file, not in a message.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError
from flgen.experiment.plain_values import json_value
from flgen.synthesis.answer_cache import AnswerCache, request_key
from flgen.synthesis.extra import require_extra
from flgen.synthesis.request_budget import Prices, RequestBudget

if TYPE_CHECKING:
    import httpx
    import tenacity
else:
    httpx = deferred_module("httpx")
    tenacity = deferred_module("tenacity")

Item = TypeVar("Item")
Result = TypeVar("Result")

LARGEST_ANSWER_BYTES = 256 * 2**20
PASSING_STATUSES = (408, 409, 425, 429)  # and all from 500 on: the same request may succeed later


@dataclass(frozen=True)
class EndpointOptions:
    """Where an OpenAI-compatible endpoint is, and how much may be asked of it.

    Args:
        base_url: What comes before `chat/completions`, `images/generations` or `audio/speech`, such as
            `http://localhost:8000/v1`.
        key_variable: Environment variable that holds the key; null for an endpoint that wants none.
        timeout_s: Limit of one attempt, seconds.
        retries: Further attempts after a passing failure: 429, 5xx, a timeout, a broken connection or answer.
        backoff_s: Pause before the first further attempt, seconds; it doubles each time. The server's Retry-After
            comes first.
        longest_pause_s: Longest of these pauses, seconds; a server that asks for a longer one ends the run.
        concurrency: Requests under way at once.
        requests_per_minute: Rate at which requests are sent, 1/min; null is no limit.
        max_requests: Most requests of a run, further attempts included; null is no limit.
        max_cost: Most that a run may cost, in the currency of `prices`; null is no limit. A request that could exceed
            it is not sent.
        prices: What requests cost.
        cache_dir: Folder of the answers, from which a re-run takes them; null is `$FLGEN_CACHE/answers`, else
            `~/.cache/flgen/answers`.
    """

    base_url: str
    key_variable: str | None = "OPENAI_API_KEY"
    timeout_s: float = 120
    retries: int = 5
    backoff_s: float = 1
    longest_pause_s: float = 120
    concurrency: int = 4
    requests_per_minute: float | None = None
    max_requests: int | None = None
    max_cost: float | None = None
    prices: Prices = field(default_factory=Prices)
    cache_dir: str | None = None


class _PassingFailure(Exception):
    """The same request may succeed later; `pause_s` is how long the server asks to wait, if it does."""

    def __init__(self, reason: str, pause_s: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class Endpoint:
    """Sends requests to an OpenAI-compatible endpoint; several threads may share one.

    Args:
        options: Where it is, and how much may be asked of it.
        option: Where the options are given, for messages, such as `--prompts.endpoint`.

    Raises:
        UsageError: An option is out of its range.
    """

    def __init__(self, options: EndpointOptions, option: str) -> None:
        _check(options, option)
        self.options = options
        self.budget = RequestBudget(options.prices, options.max_requests, options.max_cost, option)
        """Requests sent by this object, and their cost."""
        self.from_cache = 0
        """Answers that were at hand already."""
        self._option = option
        self._cache = AnswerCache(options.cache_dir)
        self._slots = threading.BoundedSemaphore(options.concurrency)
        self._lock = threading.Lock()
        self._next_turn = 0.0  # on the monotonic clock, seconds
        self._stopped = threading.Event()
        self._opened: httpx.Client | None = None

    def post_json(self, path: str, body: Mapping[str, Any], *, repeat: int = 0) -> dict[str, Any]:
        """Return the JSON object with which the endpoint answers.

        Args:
            path: Below the base URL, such as `chat/completions`.
            body: The request, as JSON.
            repeat: The number of the same question asked again on purpose; its answer is not that of the others.

        Raises:
            FlgenError: It answers with an error or not at all, or a cap is reached.
        """
        answer: dict[str, Any] = json.loads(self._answer(path, body, repeat, _json_object))
        return answer

    def post_bytes(self, path: str, body: Mapping[str, Any], *, repeat: int = 0) -> bytes:
        """Return the bytes, such as a WAV file, with which the endpoint answers; otherwise as `post_json`."""
        return self._answer(path, body, repeat, _something)

    def in_order(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `function(item)` for each item in order; `concurrency` of them run at once, each in a thread.

        If one raises, or the caller stops early, nothing further is sent: this object is then stopped.
        """
        running: deque[Future[Result]] = deque()
        with ThreadPoolExecutor(self.options.concurrency) as pool:
            try:
                for item in items:
                    running.append(pool.submit(function, item))
                    if len(running) >= self.options.concurrency:
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
            except BaseException:
                self.stop()
                for future in running:
                    future.cancel()
                raise

    def stop(self) -> None:
        """Send nothing any more, and end the pauses of requests that wait."""
        self._stopped.set()

    def summary(self) -> str:
        """Return what was asked and what it cost, for the last line of a command."""
        priced = self.options.prices != Prices()
        cost = f"cost {self.budget.cost:.4g}" if priced else "cost unknown (no prices given)"
        return f"{self.budget.requests} requests, {self.from_cache} answers from the cache, {cost}"

    def _answer(self, path: str, body: Mapping[str, Any], repeat: int, parse: Callable[[bytes], Any]) -> bytes:
        url = f"{self.options.base_url.rstrip('/')}/{path}"
        key = request_key(url, body, repeat)
        with self._cache.only_one(key):
            kept = self._cache.read(key)
            if kept is not None:
                with self._lock:
                    self.from_cache += 1
                return kept
            content = self._ask(url, path, body, parse)
            self._cache.write(key, content, {"url": url, "body": body, "repeat": repeat})
        return content

    def _ask(self, url: str, path: str, body: Mapping[str, Any], parse: Callable[[bytes], Any]) -> bytes:
        """Send a request until it is answered, or has failed too often."""
        require_extra("httpx", "tenacity")
        attempts = 1 + self.options.retries
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(attempts) | tenacity.stop_when_event_set(self._stopped),
            wait=self._pause_s,
            sleep=tenacity.sleep_using_event(self._stopped),
            retry=tenacity.retry_if_exception_type(_PassingFailure),
            reraise=True,
        )
        try:
            content: bytes = retrying(self._attempt, url, path, body, parse)
        except _PassingFailure as failure:
            again = "" if attempts == 1 else f", {attempts} times"
            raise FlgenError(
                f"{url} {failure}{again}: run the command again later, what was answered so far is kept"
            ) from None
        return content

    def _attempt(self, url: str, path: str, body: Mapping[str, Any], parse: Callable[[bytes], Any]) -> bytes:
        headers = self._headers()
        with self._slots:
            self._await_turn()
            reserved = self.budget.reserve(path, body)
            charged: float | None = 0.0
            try:
                content = self._exchange(url, body, headers)
                charged = None  # from here on the server has done its work, of whatever use the answer is
                charged = self.options.prices.charged(path, body, parse(content))
            except httpx.TimeoutException:
                charged = None
                raise _PassingFailure(f"did not answer within {self.options.timeout_s:g} s") from None
            except httpx.RequestError as error:
                reason = self._clean(str(error) or type(error).__name__)
                raise _PassingFailure(f"cannot be reached ({reason})") from None
            except ValueError as error:
                raise _PassingFailure(f"gave a broken answer ({self._clean(str(error))})") from None
            finally:
                self.budget.settle(reserved, charged)
        return content

    def _exchange(self, url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> bytes:
        """Send one request and read its answer, all within `timeout_s`."""
        deadline = time.monotonic() + self.options.timeout_s
        content = bytearray()
        with self._client().stream("POST", url, json=dict(body), headers=dict(headers)) as response:
            for chunk in response.iter_bytes():
                content += chunk
                if time.monotonic() > deadline:  # httpx's own limit is one of silence
                    raise httpx.ReadTimeout("slow answer")
                if len(content) > LARGEST_ANSWER_BYTES:
                    raise FlgenError(f"{url} answered with more than {LARGEST_ANSWER_BYTES >> 20} MiB: ask for less")
        if response.is_success:
            return bytes(content)
        said = self._clean(_server_message(bytes(content)))
        reason = f"answered {response.status_code}" + (f" ({said})" if said else "")
        if response.status_code in PASSING_STATUSES or response.status_code >= 500:
            pause_s = _retry_after_s(response.headers.get("Retry-After"))
            if pause_s > self.options.longest_pause_s:
                raise FlgenError(
                    f"{url} {reason} and asks to wait {pause_s:.0f} s: run the command again then, or raise "
                    f"{self._option}.longest_pause_s above {self.options.longest_pause_s:g}"
                )
            with self._lock:  # what one request is told holds for all
                self._next_turn = max(self._next_turn, time.monotonic() + pause_s)
            raise _PassingFailure(reason, pause_s)
        if response.status_code in (401, 403):
            remedy = f"check the key in {self.options.key_variable}, the variable of {self._option}.key_variable"
        elif response.status_code == 404 or response.is_redirect:
            remedy = f"check {self._option}.base_url and the model's name"
        else:
            remedy = "the endpoint does not take this request as it is; change the options"
        raise FlgenError(f"{url} {reason}: {remedy}")

    def _headers(self) -> dict[str, str]:
        variable = self.options.key_variable
        if variable is None:
            return {}
        key = os.environ.get(variable, "").strip()
        option = f"{self._option}.key_variable"
        if not key:
            raise UsageError(
                f"{option}: the environment variable {variable} is not set; export the key in it, "
                "or give null if the endpoint wants none"
            )
        if not (key.isascii() and key.isprintable()):
            raise UsageError(f"{option}: what {variable} holds is no key: it has characters that no key has")
        return {"Authorization": f"Bearer {key}"}

    def _clean(self, text: str) -> str:
        """Return a text of the server's on one line, short, and without the key."""
        key = os.environ.get(self.options.key_variable or "", "").strip()
        return " ".join((text.replace(key, "***") if key else text).split())[:300].rstrip(".")

    def _await_turn(self) -> None:
        """Wait until the next request may be sent: the rate limit, and what the server asked for."""
        rate = self.options.requests_per_minute
        with self._lock:
            turn = max(time.monotonic(), self._next_turn)
            self._next_turn = turn if rate is None else turn + 60 / rate
        self._stopped.wait(max(0.0, turn - time.monotonic()))
        if self._stopped.is_set():
            raise FlgenError("stopped before the request was sent")

    def _pause_s(self, state: tenacity.RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        doubled = self.options.backoff_s * 2.0 ** min(state.attempt_number - 1, 60)
        # Jitter decides when something is sent, never what: it needs no stream of the run's.
        jittered = min(doubled, self.options.longest_pause_s) * secrets.SystemRandom().uniform(0.5, 1)
        return max(jittered, failure.pause_s if isinstance(failure, _PassingFailure) else 0.0)

    def _client(self) -> httpx.Client:
        with self._lock:
            if self._opened is None:
                self._opened = httpx.Client(timeout=self.options.timeout_s)
            return self._opened


def _check(options: EndpointOptions, option: str) -> None:
    address = urlsplit(options.base_url)
    if address.scheme not in ("http", "https") or not address.hostname or address.query:
        raise UsageError(f"{option}.base_url is {options.base_url!r}: give an address such as http://localhost:8000/v1")
    if address.username or address.password:
        raise UsageError(f"{option}.base_url holds a password: put it into the environment, see {option}.key_variable")
    for name in ("timeout_s", "backoff_s", "longest_pause_s", "requests_per_minute"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{option}.{name} is {value}: give a number above 0")
    for name, least in (("retries", 0), ("concurrency", 1), ("max_requests", 0), ("max_cost", 0)):
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise UsageError(f"{option}.{name} is {value}: give {least} or more")
    for name, price in vars(options.prices).items():
        if not 0 <= price < float("inf"):
            raise UsageError(f"{option}.prices.{name} is {price}: give 0 or more")


def _json_object(content: bytes) -> dict[str, Any]:
    answer = json_value(content)
    if not isinstance(answer, dict):
        raise ValueError("JSON, but no object")
    return answer


def _something(content: bytes) -> bytes:
    if not content:
        raise ValueError("it is empty")
    return content


def _server_message(content: bytes) -> str:
    """Return what an error answer says, in its usual form or as plain text."""
    text = content[:4000].decode(errors="replace")
    try:
        answer = json_value(text)
        error = answer.get("error", answer)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        return text


def _retry_after_s(header: str | None) -> float:
    """Return the seconds that a Retry-After header asks for, as a number or as a date; 0 without one."""
    if not header:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            until = parsedate_to_datetime(header)
        except ValueError:
            return 0.0
        seconds = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return seconds if seconds > 0 else 0.0
