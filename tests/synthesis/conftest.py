"""What the tests of synthesis share: an endpoint on the loopback, and its key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from endpoint_server import EndpointServer

KEY = "sk-not-to-be-seen-anywhere"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointServer]:
    """An endpoint whose requests the test scripts and counts."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = EndpointServer()
    yield server
    server.close()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The key that is in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a tiny pre-trained generator: stable_diffusion, audioldm, ..."""
    pytest.importorskip("diffusers")
    import tiny_pipelines

    folders: dict[str, Path] = {}

    def folder_of(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = getattr(tiny_pipelines, f"save_{kind}")(tmp_path_factory.mktemp(kind) / kind)
        return folders[kind]

    return folder_of


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks a model hub gets an error."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
