"""Images from a server on the loopback that plays the endpoint."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import Answer, Asked, EndpointServer, images_answer
from PIL import Image
from requests_of import some_requests
from small_jobs import run_job, small_job, stored

from flgen.errors import FlgenError, UsageError
from flgen.synthesis.endpoint import EndpointOptions
from flgen.synthesis.remote_images import RemoteImages

pytest.importorskip("httpx")
pytestmark = pytest.mark.usefixtures("key")


def picture(number: int, kind: str = "PNG", size: tuple[int, int] = (6, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256 % 256, 7)).save(buffer, kind)
    return buffer.getvalue()


class Painter:
    """Answers each request with pictures that no other has."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, asked: Asked) -> Answer:
        assert asked.path == "/v1/images/generations"
        first, self.drawn = self.drawn, self.drawn + asked.body["n"]
        return images_answer(*(picture(number) for number in range(first, self.drawn)))


@pytest.fixture
def painter(server: EndpointServer) -> EndpointServer:
    server.respond = Painter()
    return server


def remote(server: EndpointServer, cache: Path, **options: Any) -> RemoteImages:
    endpoint = EndpointOptions(server.url, backoff_s=0.01, cache_dir=str(cache), **options.pop("endpoint", {}))
    return RemoteImages(endpoint, "painter-1", **options)


def test_every_sample_is_asked_for_by_itself(painter: EndpointServer, tmp_path: Path) -> None:
    samples = list(remote(painter, tmp_path).synthesize(some_requests(3, "integers")))
    assert len(painter.asked) == 6
    assert len({sample.content for sample in samples}) == 6  # one prompt, three different images
    assert painter.asked[0].body == {
        "model": "painter-1",
        "prompt": painter.asked[0].body["prompt"],
        "n": 1,
        "size": "1024x1024",
        "response_format": "b64_json",
    }
    assert Counter(asked.body["prompt"] for asked in painter.asked) == {"a photo of a cat": 3, "a photo of a dog": 3}
    record = samples[0].record()
    assert (record["seed"], record["guidance"], record["steps"]) == (None, None, None)  # they had no part in it
    assert (record["height"], record["width"], record["model"], record["provider"]) == (4, 6, "painter-1", "openai")


def test_seed_and_guidance_are_sent_where_the_body_says_so(painter: EndpointServer, tmp_path: Path) -> None:
    extra = {"seed": "{seed}", "cfg_scale": "{guidance}", "steps": 30, "style": "{vivid}"}
    generator = remote(painter, tmp_path, extra_body=extra)
    assert generator.guidance == "integers"
    requests = some_requests(2, "integers")
    samples = list(generator.synthesize(requests))
    sent = {(asked.body["seed"], asked.body["cfg_scale"], asked.body["steps"]) for asked in painter.asked}
    assert sent == {(request.seed, request.guidance, 30) for request in requests}
    assert painter.asked[0].body["style"] == "{vivid}"
    record = samples[0].record()
    assert (record["seed"], record["guidance"], record["steps"]) == (requests[0].seed, requests[0].guidance, 30)


def test_what_a_model_cannot_do_is_not_asked_of_it(painter: EndpointServer, tmp_path: Path) -> None:
    list(remote(painter, tmp_path, size=None, response_format=None).synthesize(some_requests(1)))
    assert {frozenset(asked.body) for asked in painter.asked} == {frozenset({"model", "prompt", "n"})}


def test_several_images_of_one_prompt_can_come_together(painter: EndpointServer, tmp_path: Path) -> None:
    generator = remote(painter, tmp_path, images_per_request=3, endpoint={"concurrency": 1})
    samples = list(generator.synthesize(some_requests(7)))
    assert sorted(asked.body["n"] for asked in painter.asked) == [1, 1, 3, 3, 3, 3]
    assert len({sample.content for sample in samples}) == 14


def test_busy_and_broken_answers_are_tried_again(painter: EndpointServer, tmp_path: Path) -> None:
    painter.script = [
        Answer({"error": {"message": "slow down"}}, 429, {"Retry-After": "0"}),
        Answer(b"{not json"),
        Answer({}, 503),
    ]
    samples = list(remote(painter, tmp_path).synthesize(some_requests(2)))
    assert len(samples) == 4
    assert len(painter.asked) == 4 + 3


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer({"error": {"message": "no such model"}}, 404), "no such model"),
        (Answer({"data": []}), r"0 images of 1"),
        (Answer({"data": [{"url": "http://elsewhere"}]}), r"without b64_json \(but url\)"),
        (Answer({"data": [{"b64_json": base64.b64encode(b"text").decode()}]}), "no image"),
        (Answer({"data": [{"b64_json": "###"}]}), "no image"),
    ],
)
def test_an_answer_without_the_image_is_one_line(
    answer: Answer, said: str, server: EndpointServer, tmp_path: Path
) -> None:
    server.respond = lambda asked: answer
    with pytest.raises(FlgenError, match=said) as error:
        list(remote(server, tmp_path).synthesize(some_requests(1)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "extension"), [("PNG", "png"), ("JPEG", "jpg"), ("BMP", "png")])
def test_png_and_jpeg_are_kept_as_they_come(kind: str, extension: str, server: EndpointServer, tmp_path: Path) -> None:
    server.respond = lambda asked: images_answer(picture(9, kind))
    (sample, _) = remote(server, tmp_path).synthesize(some_requests(1))
    assert sample.extension == extension
    assert (sample.content == picture(9, kind)) == (kind != "BMP")
    assert Image.open(io.BytesIO(sample.content)).format == ("JPEG" if extension == "jpg" else "PNG")


def test_a_cap_ends_the_run_and_a_higher_one_asks_nothing_twice(painter: EndpointServer, tmp_path: Path) -> None:
    prices = {"endpoint": {"concurrency": 1, "max_requests": 5}}
    job = small_job(tmp_path / "set", remote(painter, tmp_path / "cache", **prices), per_class=6)
    with pytest.raises(FlgenError, match=r"--synthesizer.endpoint.max_requests: all 5 requests are used up"):
        run_job(job)
    again = remote(painter, tmp_path / "cache")
    assert run_job(small_job(tmp_path / "set", again, per_class=6)) == (7, 12, 0)
    assert len(painter.asked) == 12
    assert len(set(stored(tmp_path / "set").values())) == 12
    assert "7 requests" in again.summary()


def test_the_key_is_written_nowhere(painter: EndpointServer, tmp_path: Path, key: str) -> None:
    run_job(small_job(tmp_path / "set", remote(painter, tmp_path / "cache"), per_class=1))
    assert painter.asked[0].headers["Authorization"] == f"Bearer {key}"
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert key.encode() not in path.read_bytes()
    assert (
        "endpoint"
        not in json.loads((tmp_path / "set" / "index.json").read_text())["identity"]["synthesizer"]["init_args"]
    )


def test_impossible_options_are_refused(server: EndpointServer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--synthesizer.response_format url: links are not followed"):
        remote(server, tmp_path, response_format="url")
    with pytest.raises(UsageError, match=r"--synthesizer.images_per_request is 2, but --synthesizer.extra_body"):
        remote(server, tmp_path, images_per_request=2, extra_body={"seed": "{seed}"})
