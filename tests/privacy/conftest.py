"""Secrets that are the same in every run, so that a test of noise always sees the same noise."""

from __future__ import annotations

import random
import secrets

import pytest
from ranks import on_ranks

__all__ = ["on_ranks"]


@pytest.fixture(autouse=True)
def _repeatable_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = random.Random(20170831)
    monkeypatch.setattr(secrets, "token_bytes", draws.randbytes)
    monkeypatch.setattr(secrets, "randbelow", draws.randrange)
