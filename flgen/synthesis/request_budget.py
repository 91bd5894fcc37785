"""What the requests of a run may number and cost: checked before each is sent, settled when it is answered."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flgen.errors import FlgenError, UsageError


@dataclass(frozen=True)
class Prices:
    """What an endpoint charges, all in one currency.

    Args:
        per_1k_input_tokens: For 1000 tokens of a question.
        per_1k_output_tokens: For 1000 tokens of an answer.
        per_1k_characters: For 1000 characters to be spoken.
        per_image: For one image.
    """

    per_1k_input_tokens: float = 0.0
    per_1k_output_tokens: float = 0.0
    per_1k_characters: float = 0.0
    per_image: float = 0.0

    def bound(self, path: str, body: Mapping[str, Any], option: str) -> float:
        """Return the most that a request can cost.

        Args:
            path: Below the base URL, such as `images/generations`.
            body: The request.
            option: The option that sets a limit, for messages.

        Raises:
            UsageError: If the price or the length of an answer is not known.
        """
        used = {
            "chat/completions": (self.per_1k_input_tokens, self.per_1k_output_tokens),
            "images/generations": (self.per_image,),
            "audio/speech": (self.per_1k_characters,),
        }.get(path)
        if used is None or not any(used):
            raise UsageError(f"{option} needs the price of requests to {path}: give it under prices, or no {option}")
        if path == "images/generations":
            return int(body.get("n", 1)) * self.per_image
        if path == "audio/speech":
            return len(str(body.get("input", ""))) / 1000 * self.per_1k_characters
        most = body.get("max_completion_tokens", body.get("max_tokens"))
        if most is None:
            raise UsageError(f"{option} needs a limit to the length of answers: give max_tokens a number")
        asked = len(json.dumps(body.get("messages", []), ensure_ascii=False).encode())  # a token is a byte or more
        return self._of_tokens(asked, int(body.get("n", 1)) * int(most))

    def charged(self, path: str, body: Mapping[str, Any], answer: Any) -> float | None:
        """Return what an answered request cost, None if the answer does not tell."""
        if path == "images/generations":
            return int(body.get("n", 1)) * self.per_image
        if path == "audio/speech":
            return len(str(body.get("input", ""))) / 1000 * self.per_1k_characters
        try:
            usage = answer["usage"]
            return self._of_tokens(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
        except (TypeError, KeyError, ValueError):
            return None

    def _of_tokens(self, asked: int, answered: int) -> float:
        return asked / 1000 * self.per_1k_input_tokens + answered / 1000 * self.per_1k_output_tokens


class RequestBudget:
    """Counts requests and cost from several threads, and refuses what would exceed a cap.

    Args:
        prices: What requests cost.
        max_requests: Most requests that are sent, further attempts included; None is no limit.
        max_cost: Most that they may cost; None is no limit.
        option: Where the options are given, such as `--prompts.endpoint`.
    """

    def __init__(self, prices: Prices, max_requests: int | None, max_cost: float | None, option: str) -> None:
        self.prices, self.max_requests, self.max_cost, self._option = prices, max_requests, max_cost, option
        self.requests = 0
        """Requests sent so far."""
        self.cost = 0.0
        """What they have cost."""
        self._reserved = 0.0  # the most that those under way can cost
        self._lock = threading.Lock()

    def reserve(self, path: str, body: Mapping[str, Any]) -> float:
        """Admit one request that is about to be sent, and return the most that it can cost.

        Raises:
            FlgenError: If it would exceed a cap.
            UsageError: If a cap is set on what has no price.
        """
        option = f"{self._option}.max_cost"
        bound = 0.0 if self.max_cost is None else self.prices.bound(path, body, option)
        with self._lock:
            if self.max_requests is not None and self.requests >= self.max_requests:
                raise FlgenError(
                    f"{self._option}.max_requests: all {self.max_requests} requests are used up; "
                    "raise it to go on from here, what was answered is kept"
                )
            committed = self.cost + self._reserved
            if self.max_cost is not None and committed + bound > self.max_cost * (1 + 1e-9):
                raise FlgenError(
                    f"{option}: the next request may cost {bound:.4g}, and {committed:.4g} of {self.max_cost:g} are "
                    "spent or under way; raise it to go on from here, what was answered is kept"
                )
            self.requests += 1
            self._reserved += bound
        return bound

    def settle(self, reserved: float, charged: float | None) -> None:
        """Book what a request did cost.

        Args:
            reserved: What `reserve` returned for it.
            charged: Its cost; None is unknown, which counts as the most that it can be.
        """
        with self._lock:
            self._reserved -= reserved
            self.cost += reserved if charged is None else charged
