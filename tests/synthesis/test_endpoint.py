"""The client of OpenAI-compatible endpoints, against a server that fails in every way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import Answer, EndpointServer, chat_answer

import flgen.synthesis.extra
from flgen.errors import FlgenError, UsageError
from flgen.synthesis.endpoint import Endpoint, EndpointOptions, _retry_after_s
from flgen.synthesis.request_budget import Prices

BODY = {"model": "m", "messages": [{"role": "user", "content": "a cat"}], "max_tokens": 100}
CHAT = "chat/completions"

Connect = Callable[..., Endpoint]


@pytest.fixture
def connect(server: EndpointServer, key: str, tmp_path: Path) -> Connect:
    """Return a function that makes a client of the server, quick to try again."""

    def connect(**options: Any) -> Endpoint:
        options = {"base_url": server.url, "backoff_s": 0.01, "cache_dir": str(tmp_path / "answers"), **options}
        return Endpoint(EndpointOptions(**options), "--prompts.endpoint")

    return connect


def test_a_request_carries_body_and_key(connect: Connect, server: EndpointServer, key: str) -> None:
    assert connect().post_json(CHAT, BODY) == {"path": "/v1/chat/completions", "echo": BODY}
    assert server.asked[0].headers["Authorization"] == f"Bearer {key}"


def test_an_endpoint_without_key_gets_none(connect: Connect, server: EndpointServer) -> None:
    connect(key_variable=None).post_json(CHAT, BODY)
    assert "Authorization" not in server.asked[0].headers


def test_a_rerun_asks_nothing_twice(connect: Connect, server: EndpointServer) -> None:
    first = [connect().post_json(CHAT, BODY), connect().post_json(CHAT, {**BODY, "temperature": 0.5})]
    assert len(server.asked) == 2
    again = connect()
    bodies = [dict(reversed(BODY.items())), {**BODY, "temperature": 0.5}]
    assert [again.post_json(CHAT, body) for body in bodies] == first
    assert len(server.asked) == 2
    assert (again.budget.requests, again.from_cache) == (0, 2)


def test_a_rerun_from_the_cache_needs_no_key(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = connect().post_json(CHAT, BODY)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert connect().post_json(CHAT, BODY) == answer


def test_the_same_question_on_purpose_has_another_answer(connect: Connect, server: EndpointServer) -> None:
    server.script = [Answer({"n": 1}), Answer({"n": 2})]
    endpoint = connect()
    assert [endpoint.post_json(CHAT, BODY, repeat=repeat)["n"] for repeat in (0, 1, 0, 1)] == [1, 2, 1, 2]


def test_bytes_are_kept_as_they_are(connect: Connect, server: EndpointServer) -> None:
    wav = bytes(range(256)) + b"\n{}\n"
    server.script = [Answer(wav)]
    assert [connect().post_bytes("audio/speech", {"input": "yes"}) for _ in range(2)] == [wav, wav]
    assert len(server.asked) == 1


@pytest.mark.parametrize("left", [b"", b'{"sha2', b'{"sha256": "0"}\n{"n": 0}', b"[]\n{}", b"\xff\n"])
def test_a_damaged_answer_is_as_good_as_none(
    connect: Connect, server: EndpointServer, tmp_path: Path, left: bytes
) -> None:
    server.script = [Answer({"n": 1}), Answer({"n": 2})]
    connect().post_json(CHAT, BODY)
    (file,) = [path for path in (tmp_path / "answers").rglob("*") if path.is_file()]
    file.write_bytes(left)
    assert [connect().post_json(CHAT, BODY) for _ in range(2)] == [{"n": 2}, {"n": 2}]
    assert len(server.asked) == 2


@pytest.mark.parametrize("failure", [Answer(status=429), Answer(status=500), Answer(status=503), Answer(b'{"a": ')])
def test_what_passes_is_tried_again(connect: Connect, server: EndpointServer, failure: Answer) -> None:
    server.script = [failure, failure, Answer({"n": 1})]
    assert connect().post_json(CHAT, BODY) == {"n": 1}
    assert len(server.asked) == 3


def test_a_broken_connection_is_tried_again(connect: Connect, server: EndpointServer) -> None:
    server.script = [Answer({"n": 0}, headers={"Content-Length": "1000"}), Answer({"n": 1})]
    assert connect(timeout_s=0.5).post_json(CHAT, BODY) == {"n": 1}


@pytest.mark.parametrize("slow", [Answer({"n": 0}, delay_s=10), Answer({"text": "x" * 200}, pause_s=0.05)])
def test_a_slow_answer_is_given_up_in_time(connect: Connect, server: EndpointServer, slow: Answer) -> None:
    server.script = [slow, Answer({"n": 1})]
    started = time.monotonic()
    assert connect(timeout_s=0.2).post_json(CHAT, BODY) == {"n": 1}
    assert time.monotonic() - started < 5


def test_there_is_an_end_to_trying_again(connect: Connect, server: EndpointServer) -> None:
    server.respond = lambda asked: Answer({"error": {"message": "over\nloaded."}}, status=500)
    with pytest.raises(FlgenError, match=r"^http://\S+/chat/completions answered 500 \(over loaded\), 3 times: "):
        connect(retries=2).post_json(CHAT, BODY)
    assert len(server.asked) == 3


def test_retry_after_is_obeyed_by_all_requests(connect: Connect, server: EndpointServer) -> None:
    server.script = [Answer(status=429, headers={"Retry-After": "0.4"})]
    endpoint = connect()
    started = time.monotonic()
    first = threading.Thread(target=endpoint.post_json, args=(CHAT, BODY))
    first.start()
    while not server.asked:
        time.sleep(0.005)
    time.sleep(0.1)
    endpoint.post_json(CHAT, {**BODY, "n": 2})
    assert time.monotonic() - started >= 0.4
    first.join()
    assert len(server.asked) == 3


def test_retry_after_may_be_a_date() -> None:
    later = datetime.now(UTC) + timedelta(seconds=30)
    assert 28 < _retry_after_s(format_datetime(later, usegmt=True)) <= 30
    assert [_retry_after_s(header) for header in (None, "soon", "-3", "1.5", "Wed, 21 Oct 2015 07:28:00 GMT")] == [
        *(0.0, 0.0, 0.0),
        *(1.5, 0.0),
    ]


def test_who_asks_for_a_long_pause_ends_the_run(connect: Connect, server: EndpointServer) -> None:
    server.script = [Answer(status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(FlgenError, match=r"asks to wait 3600 s: .*--prompts\.endpoint\.longest_pause_s above 120"):
        connect().post_json(CHAT, BODY)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            Answer({"error": {"message": "bad key"}}, 401),
            r"answered 401 \(bad key\): .*--prompts.endpoint.key_variable",
        ),
        (Answer(b"no such model", 404), r"answered 404 \(no such model\): check --prompts.endpoint.base_url"),
        (Answer({"error": "size"}, 400), r"answered 400 \(size\): "),
        (Answer(b"", 307, {"Location": "http://127.0.0.1:9/elsewhere"}), r"answered 307: check --prompts.*base_url"),
    ],
)
def test_what_does_not_pass_is_not_tried_again(
    connect: Connect, server: EndpointServer, answer: Answer, message: str
) -> None:
    server.script = [answer]
    with pytest.raises(FlgenError, match=message):
        connect().post_json(CHAT, BODY)
    assert len(server.asked) == 1


def test_the_key_is_in_no_message_and_in_no_file(
    connect: Connect, server: EndpointServer, key: str, tmp_path: Path
) -> None:
    endpoint = connect(retries=0)
    endpoint.post_json(CHAT, BODY)
    for status in (401, 500):
        server.script = [Answer({"error": {"message": f"wrong key {key}!"}}, status)]
        with pytest.raises(FlgenError, match=r"wrong key \*\*\*!") as caught:
            endpoint.post_json(CHAT, {"status": status})
        assert key not in str(caught.value)
    assert key not in repr(vars(endpoint))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 1
    assert key.encode() not in files[0].read_bytes()


@pytest.mark.parametrize(("value", "message"), [("", "is not set"), ("clé", "is no key"), ("a\nb", "is no key")])
def test_a_key_that_is_none_is_told_before_anything_is_sent(
    connect: Connect, server: EndpointServer, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv("OTHER_KEY", value)
    with pytest.raises(UsageError, match=f"OTHER_KEY.*{message}" if value == "" else f"OTHER_KEY holds {message}"):
        connect(key_variable="OTHER_KEY").post_json(CHAT, BODY)
    assert server.asked == []


def test_requests_under_way_are_bounded_and_answers_in_order(connect: Connect, server: EndpointServer) -> None:
    server.respond = lambda asked: Answer(asked.body, delay_s=0.1 * (3 - asked.body["n"] % 3))
    endpoint = connect(concurrency=3)
    answers = endpoint.in_order(lambda n: endpoint.post_json(CHAT, {"n": n})["n"], range(9))
    assert list(answers) == list(range(9))
    assert server.most_at_once == 3


def test_requests_are_as_far_apart_as_the_rate_says(connect: Connect) -> None:
    endpoint = connect(requests_per_minute=600)
    started = time.monotonic()
    list(endpoint.in_order(lambda n: endpoint.post_json(CHAT, {"n": n}), range(4)))
    assert time.monotonic() - started >= 0.3


def test_the_same_question_at_the_same_time_is_asked_once(connect: Connect, server: EndpointServer) -> None:
    server.respond = lambda asked: Answer({"n": 1}, delay_s=0.05)
    endpoint = connect()
    assert list(endpoint.in_order(lambda n: endpoint.post_json(CHAT, BODY), range(4))) == [{"n": 1}] * 4
    assert len(server.asked) == 1


def test_nothing_is_sent_after_a_failure(connect: Connect, server: EndpointServer) -> None:
    server.respond = lambda asked: Answer(status=400 if asked.body["n"] == 2 else 200)
    endpoint = connect(concurrency=2)
    with pytest.raises(FlgenError, match="answered 400"):
        list(endpoint.in_order(lambda n: endpoint.post_json(CHAT, {"n": n}), range(100)))
    assert 3 <= len(server.asked) <= 5


def test_a_failure_ends_the_pauses_of_others(connect: Connect, server: EndpointServer) -> None:
    server.respond = lambda asked: Answer(status=500) if asked.body["n"] else Answer(status=400, delay_s=0.1)
    endpoint = connect(concurrency=2, backoff_s=60)
    started = time.monotonic()
    with pytest.raises(FlgenError, match="answered 400"):
        list(endpoint.in_order(lambda n: endpoint.post_json(CHAT, {"n": n}), range(2)))
    assert time.monotonic() - started < 5


def test_the_cap_on_requests_counts_every_attempt(connect: Connect, server: EndpointServer) -> None:
    server.script = [Answer(status=500)]
    endpoint = connect(max_requests=3)
    for n in range(2):
        endpoint.post_json(CHAT, {"n": n})
    with pytest.raises(FlgenError, match=r"--prompts\.endpoint\.max_requests: all 3 requests are used up"):
        endpoint.post_json(CHAT, {"n": 2})
    assert endpoint.post_json(CHAT, {"n": 0})["echo"] == {"n": 0}
    assert len(server.asked) == 3


def test_no_request_is_sent_that_could_exceed_the_cost(connect: Connect, server: EndpointServer) -> None:
    endpoint = connect(max_cost=0.3, prices=Prices(per_image=0.1))
    endpoint.post_json("images/generations", {"prompt": "a cat", "n": 2})
    with pytest.raises(FlgenError, match=r"max_cost: the next request may cost 0.2, and 0.2 of 0.3 are spent"):
        endpoint.post_json("images/generations", {"prompt": "a dog", "n": 2})
    endpoint.post_json("images/generations", {"prompt": "a dog"})
    assert len(server.asked) == 2
    assert endpoint.budget.cost == pytest.approx(0.3)


def test_a_chat_costs_what_its_answer_says(connect: Connect, server: EndpointServer) -> None:
    prices = Prices(per_1k_input_tokens=1, per_1k_output_tokens=10)
    server.respond = lambda asked: chat_answer("[]", tokens=(50, 20))
    endpoint = connect(max_cost=1.5, prices=prices)
    endpoint.post_json(CHAT, BODY)  # at most 100 tokens of answer (1.0) and 38 bytes of question (0.038)
    assert endpoint.budget.cost == pytest.approx(0.05 + 0.2)
    endpoint.post_json(CHAT, {**BODY, "n": 1})
    with pytest.raises(FlgenError, match=r"may cost 1.038, and 0.5 of 1.5 are spent"):
        endpoint.post_json(CHAT, {**BODY, "seed": 1})
    assert "2 requests, 0 answers from the cache, cost 0.5" in endpoint.summary()


def test_what_timed_out_counts_as_charged(connect: Connect, server: EndpointServer) -> None:
    server.script = [Answer({}, delay_s=0.5)]
    endpoint = connect(max_cost=1, prices=Prices(per_1k_characters=100), timeout_s=0.1)
    endpoint.post_bytes("audio/speech", {"input": "four"})
    assert endpoint.budget.cost == pytest.approx(0.8)


def test_requests_at_once_do_not_exceed_the_cost_together(connect: Connect, server: EndpointServer) -> None:
    server.respond = lambda asked: Answer({}, delay_s=0.05)
    endpoint = connect(max_cost=0.5, prices=Prices(per_image=0.1), concurrency=8)
    with pytest.raises(FlgenError, match="max_cost"):
        list(endpoint.in_order(lambda n: endpoint.post_json("images/generations", {"seed": n}), range(20)))
    assert len(server.asked) == 5


@pytest.mark.parametrize(
    ("path", "body", "prices", "message"),
    [
        (CHAT, BODY, Prices(per_image=1), "needs the price of requests to chat/completions"),
        ("embeddings", {}, Prices(per_image=1), "needs the price of requests to embeddings"),
        (CHAT, {"messages": []}, Prices(per_1k_output_tokens=1), "give max_tokens a number"),
    ],
)
def test_a_cap_on_cost_needs_prices(
    connect: Connect, server: EndpointServer, path: str, body: dict[str, Any], prices: Prices, message: str
) -> None:
    with pytest.raises(UsageError, match=rf"--prompts\.endpoint\.max_cost {message}|{message}"):
        connect(max_cost=1, prices=prices).post_json(path, body)
    assert server.asked == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, r"base_url is 'localhost:8000': give an address"),
        ({"base_url": "http://me:secret@host/v1"}, r"base_url holds a password"),
        ({"timeout_s": 0}, r"timeout_s is 0: give a number above 0"),
        ({"requests_per_minute": -1}, r"requests_per_minute is -1: give a number above 0"),
        ({"longest_pause_s": float("nan")}, r"longest_pause_s is nan: give a number above 0"),
        ({"retries": -1}, r"retries is -1: give 0 or more"),
        ({"concurrency": 0}, r"concurrency is 0: give 1 or more"),
        ({"prices": Prices(per_image=-1)}, r"prices.per_image is -1: give 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(connect: Connect, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"^--prompts\.endpoint\.{message}") as caught:
        connect(**options)
    assert "secret" not in str(caught.value)


def test_missing_packages_are_one_line(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flgen.synthesis.extra.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FlgenError, match=r'^httpx and tenacity not installed: pip install "flgen\[synthesis\]"$'):
        connect().post_json(CHAT, BODY)
