"""Images by an endpoint that speaks OpenAI's interface."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError
from flgen.experiment import option_ranges
from flgen.synthesis.endpoint import EndpointOptions
from flgen.synthesis.samples import Guidance, SampleRequest
from flgen.synthesis.synthesizer import Sample, Synthesizer

if TYPE_CHECKING:
    from flgen.synthesis.endpoint import Endpoint

PATH = "images/generations"
PLACEHOLDERS = ("seed", "guidance")


class RemoteImages(Synthesizer):
    """Images by `POST {base_url}/images/generations` (specification 3.6).

    Seed and guidance are no part of the common interface. They are sent only where `extra_body` says so, by a value
    `"{seed}"` or `"{guidance}"`, such as `{"seed": "{seed}", "cfg_scale": "{guidance}", "steps": 30}`; what is not sent
    is recorded as null.

    Args:
        endpoint: Where it is, and how much may be asked of it.
        model: Name of the model there.
        size: Size of the images as the endpoint spells it; null does not send one, for models that have only one.
        images_per_request: Images of one prompt asked for at once (`n`); some models can only do 1.
        response_format: What is sent under this name; null does not send it, for models that refuse it and always
            answer in base64.
        extra_body: Further keys of every request.
        guidance: How `"{guidance}"` is drawn: "integers" from {1, ..., 5}, "continuous" from U[1, 5).

    Raises:
        UsageError: An option is out of its range.
    """

    modality = "image"
    remote = True
    incidental: ClassVar[frozenset[str]] = Synthesizer.incidental | {"endpoint"}

    def __init__(
        self,
        endpoint: EndpointOptions,
        model: str,
        size: str | None = "1024x1024",
        images_per_request: int = 1,
        response_format: str | None = "b64_json",
        extra_body: dict[str, Any] | None = None,
        guidance: Guidance = "integers",
    ) -> None:
        option_ranges.at_least("synthesizer", 1, images_per_request=images_per_request)
        if response_format == "url":
            raise UsageError("--synthesizer.response_format url: links are not followed; give b64_json, or null")
        self.endpoint = endpoint
        self.model = model
        self.size = size
        self.images_per_request = images_per_request
        self.response_format = response_format
        self.extra_body = extra_body
        sent = {value for value in (extra_body or {}).values() if isinstance(value, str)}
        self._sends = {name for name in PLACEHOLDERS if f"{{{name}}}" in sent}
        self.guidance = guidance if "guidance" in self._sends else "pipeline"
        if self._sends and images_per_request > 1:
            raise UsageError(
                f"--synthesizer.images_per_request is {images_per_request}, but --synthesizer.extra_body gives every "
                "image its own seed or guidance; give 1"
            )
        # Several requests are under way at once, and what a batch has brought is kept before the next one begins.
        self.batch_size = images_per_request * endpoint.concurrency

    @cached_property
    def _endpoint(self) -> Endpoint:
        from flgen.synthesis.endpoint import Endpoint

        return Endpoint(self.endpoint, "--synthesizer.endpoint")

    def check(self, requests: Sequence[SampleRequest]) -> None:
        """Make sure that the options of the endpoint are right."""
        _ = self._endpoint

    def batch_key(self, request: SampleRequest) -> Hashable:
        """Return the prompt, if a request brings several images of it."""
        return (request.class_id, request.prompt) if self.images_per_request > 1 else None

    def make_batch(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        """Return one image for each request.

        Raises:
            FlgenError: If the endpoint fails, or answers without the images.
        """
        n = self.images_per_request
        groups = [requests[start : start + n] for start in range(0, len(requests), n)]
        return [sample for samples in self._endpoint.in_order(self._ask, groups) for sample in samples]

    def summary(self) -> str:
        """Return what was asked and what it cost."""
        return self._endpoint.summary()

    def _ask(self, group: Sequence[SampleRequest]) -> list[Sample]:
        first = group[0]
        drawn = {"seed": first.seed, "guidance": first.guidance}
        body: dict[str, Any] = {"model": self.model, "prompt": first.prompt, "n": len(group)}
        if self.size is not None:
            body["size"] = self.size
        if self.response_format is not None:
            body["response_format"] = self.response_format
        for name, value in (self.extra_body or {}).items():
            placeholder = value[1:-1] if isinstance(value, str) and value[:1] + value[-1:] == "{}" else ""
            body[name] = drawn.get(placeholder, value)
        # The same prompt asked for another sample is another question, to the endpoint's cache too.
        images = _images(self._endpoint.post_json(PATH, body, repeat=first.seed), len(group))
        facts = {
            "seed": first.seed if "seed" in self._sends else None,
            "guidance": first.guidance if "guidance" in self._sends else None,
            "steps": (self.extra_body or {}).get("steps"),
            "scheduler": None,
            "provider": "openai",
            "model": self.model,
            "revision": None,
        }
        return [
            Sample(request, content, extension, {**facts, "height": height, "width": width})
            for request, (content, extension, height, width) in zip(group, images, strict=True)
        ]


def _images(answer: Mapping[str, Any], count: int) -> list[tuple[bytes, str, int, int]]:
    """Return content, extension, height and width of the images in an answer; what is no PNG or JPEG becomes PNG."""
    from PIL import Image

    from flgen.data.pixels import FORMATS

    entries = answer.get("data")
    if not isinstance(entries, list) or len(entries) != count:
        raise FlgenError(
            f"{PATH} answered with {len(entries) if isinstance(entries, list) else 'no'} images of {count}: set "
            "--synthesizer.images_per_request to what the model can do"
        )
    images = []
    for entry in entries:
        encoded = entry.get("b64_json") if isinstance(entry, dict) else None
        if not isinstance(encoded, str):
            keys = ", ".join(map(str, entry)) if isinstance(entry, dict) else json.dumps(entry)[:80]
            raise FlgenError(f"{PATH} answered without b64_json (but {keys}): check --synthesizer.response_format")
        try:
            content = base64.b64decode(encoded, validate=True)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                image.load()
                height, width, kind = image.height, image.width, image.format
                if kind not in ("PNG", "JPEG"):
                    buffer = io.BytesIO()
                    image.convert("RGB").save(buffer, "PNG")
                    content, kind = buffer.getvalue(), "PNG"
        except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise FlgenError(f"{PATH} answered with something that is no image ({error})") from error
        images.append((content, "png" if kind == "PNG" else "jpg", height, width))
    return images
