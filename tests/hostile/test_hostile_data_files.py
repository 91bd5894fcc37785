"""Files of data sets, prompts, labels and graphs from somebody else."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from damage import TIMES, altered, bomb_that_works, damaged, outcome, refusal, tried
from hypothesis import given
from PIL import Image
from scipy.io import savemat, wavfile

from flgen.commands.prompts import _labels
from flgen.data import CIFAR10, CelebA, Digits
from flgen.data.esc50 import _read_table
from flgen.data.matlab_numbers import read_numbers
from flgen.data.meld import read_utterances
from flgen.data.mnist import LARGEST, read_idx
from flgen.data.waveforms import decode_waveform
from flgen.synthesis.answer_cache import AnswerCache
from flgen.synthesis.prompt_file import Prompt, read_prompt_file, write_prompt_file
from flgen.topology.peers import FixedGraph


def idx(values: np.ndarray) -> bytes:
    shape = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + shape + values.tobytes()


def wav(rate: int = 8000, samples: int = 400) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, rate, np.arange(samples, dtype=np.int16))
    return file.getvalue()


@TIMES
@pytest.mark.parametrize("compressed", [False, True])
def test_any_bytes_in_place_of_idx(compressed: bool, times: int, tmp_path: Path) -> None:
    path, intact = tmp_path / "x", idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    intact = gzip.compress(intact, mtime=0) if compressed else intact

    @tried(60 * times)
    @given(damaged(intact))
    def holds(content: bytes) -> None:
        path.write_bytes(content)
        found = outcome(lambda: read_idx(path, 3))
        assert not isinstance(found, np.ndarray) or (found.ndim, found.dtype) == (3, np.uint8)

    holds()


def test_an_idx_file_that_swells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LARGEST == 2**30
    monkeypatch.setattr("flgen.data.mnist.LARGEST", 1 << 20)
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + b"\0\1\0\0" * 3 + bytes(1 << 22)))
    assert "it has more than 1048576 bytes" in refusal(lambda: read_idx(tmp_path / "x.gz", 3))


@TIMES
def test_any_bytes_in_place_of_a_recording(times: int) -> None:
    @tried(120 * times)
    @given(damaged(wav()))
    def holds(content: bytes) -> None:
        found = outcome(lambda: decode_waveform(content, 100))
        assert not isinstance(found, np.ndarray) or found.shape == (100,)

    holds()


@pytest.mark.parametrize("rate", [0, 768_001, 2**31 - 1, 2**32 - 1])
def test_a_recording_at_a_rate_that_no_machine_has_is_one_line(rate: int) -> None:
    content = bytearray(wav())
    content[24:28] = struct.pack("<I", rate)
    for samples in (100, None):
        said = refusal(lambda samples=samples: decode_waveform(bytes(content), samples))
        assert "damaged or no WAV file" in said


def image_file(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(file, kind)
    return file.getvalue()


@TIMES
@pytest.mark.parametrize(("kind", "extension"), [("PNG", ".png"), ("JPEG", ".jpg")])
def test_any_bytes_in_place_of_an_image(kind: str, extension: str, times: int) -> None:
    data = Digits()

    @tried(60 * times)
    @given(damaged(image_file(kind)))
    def holds(content: bytes) -> None:
        outcome(lambda: data.decode_sample(content, extension))

    holds()


def test_a_pickle_in_place_of_cifar_is_not_opened(tmp_path: Path) -> None:
    """torchvision unpickles its files, but those alone whose hashes are the published ones."""
    canary, source = tmp_path / "canary", torchvision.datasets.CIFAR10
    folder = tmp_path / source.base_folder
    folder.mkdir()
    for name in [name for name, _ in [*source.train_list, *source.test_list]] + [source.meta["filename"]]:
        (folder / name).write_bytes(pickle.dumps(bomb_that_works(canary)))
    assert "is damaged" in refusal(CIFAR10(str(tmp_path)).setup)
    assert not canary.exists()


FACES = {
    "list_attr_celeba.txt": b"2\nSmiling Male\n1.jpg 1 -1\n2.jpg -1 1\n",
    "list_eval_partition.txt": b"1.jpg 0\n2.jpg 2\n",
}


@TIMES
@pytest.mark.parametrize("name", FACES)
def test_any_bytes_in_place_of_the_tables_of_celeba(name: str, times: int, tmp_path: Path) -> None:
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    for number in (1, 2):
        Image.new("RGB", (178, 218)).save(folder / "img_align_celeba" / f"{number}.jpg")
    for table, content in FACES.items():
        (folder / table).write_bytes(content)
    assert outcome(CelebA(str(tmp_path)).setup) is None

    @tried(20 * times)
    @given(damaged(FACES[name]))
    def holds(content: bytes) -> None:
        (folder / name).write_bytes(content)
        outcome(CelebA(str(tmp_path)).setup)

    holds()


@TIMES
@pytest.mark.parametrize("packed", [False, True])
def test_any_bytes_in_place_of_the_labels_of_flowers(packed: bool, times: int, tmp_path: Path) -> None:
    path = tmp_path / "imagelabels.mat"
    savemat(path, {"other": [[1.5]], "labels": np.array([[1, 2, 102]], dtype=np.uint8)}, do_compression=packed)
    assert read_numbers(path, "labels").tolist() == [1, 2, 102]

    @tried(80 * times)
    @given(damaged(path.read_bytes()))
    def holds(content: bytes) -> None:
        path.write_bytes(content)
        with contextlib.suppress(ValueError):
            found = read_numbers(path, "labels")
            assert (found.ndim, found.dtype) == (1, np.int64)

    holds()


TABLES = {
    "esc50": (_read_table, [["filename", "fold", "target", "category"], ["1-1-A-0.wav", "1", "0", "dog"]]),
    "meld": (read_utterances, [["Utterance", "Speaker", "Sentiment"], ["Hello", "Ross", "neutral"]]),
}


@TIMES
@pytest.mark.parametrize("name", TABLES)
def test_any_table_of_a_data_set(name: str, times: int, tmp_path: Path) -> None:
    read, rows = TABLES[name]
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert len(outcome(lambda: read(path))) in (1, 3)  # type: ignore[operator]

    @tried(60 * times)
    @given(damaged(path.read_bytes()))
    def holds(content: bytes) -> None:
        path.write_bytes(content)
        outcome(lambda: read(path))  # type: ignore[operator]

    holds()


@TIMES
def test_any_lines_of_prompts(times: int, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    write_prompt_file([Prompt(f"{n}-a", n, name, f"a {name}", "model", "x", None) for n, name in enumerate("ab")], path)
    entries = [json.loads(line) for line in path.read_text().splitlines()]

    def read() -> None:
        write_prompt_file(read_prompt_file(path), tmp_path / "again.jsonl")

    @tried(80 * times)
    @given(altered(entries))
    def values(changed: Any) -> None:
        lines = changed if isinstance(changed, list) else [changed]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        outcome(read)
        assert {file.name for file in tmp_path.iterdir()} <= {"prompts.jsonl", "again.jsonl"}

    @tried(40 * times)
    @given(damaged(path.read_bytes()))
    def bytes_of_it(content: bytes) -> None:
        path.write_bytes(content)
        outcome(read)

    values()
    bytes_of_it()


@pytest.mark.parametrize(
    "text", ['{"label": "a", "prompt": "\\ud800"}', "[" * 100_000, '{"class_id": ' + "9" * 5000 + "}"]
)
def test_a_prompt_made_to_exhaust_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(text)
    assert "prompts.jsonl:1: no JSON object" in refusal(lambda: read_prompt_file(tmp_path / "prompts.jsonl"))


@TIMES
def test_any_bytes_in_place_of_labels(times: int, tmp_path: Path) -> None:
    from types import SimpleNamespace

    path = tmp_path / "labels.json"
    built: Any = SimpleNamespace(label_names=None, data=None, labels=str(path))

    @tried(60 * times)
    @given(damaged(b'{"labels": ["a", "b"], "complete": true}'))
    def holds(content: bytes) -> None:
        path.write_bytes(content)
        found = outcome(lambda: _labels(built))
        assert not isinstance(found, list) or all(isinstance(label, str) for label in found)

    holds()


@TIMES
def test_a_damaged_answer_is_asked_for_again(times: int, tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    cache.write("ab" * 32, b"answer", {"model": "x"})
    (path,) = (file for file in tmp_path.rglob("*") if file.is_file())

    @tried(50 * times)
    @given(damaged(path.read_bytes()))
    def holds(content: bytes) -> None:
        path.write_bytes(content)
        assert outcome(lambda: cache.read("ab" * 32)) in (None, b"answer")

    holds()


GRAPHS = {
    "ring.txt": b"0 1\n1 2\n2 0\n",
    "ring.gml": b"graph [ node [ id 0 ] node [ id 1 ] edge [ source 0 target 1 ] ]",
    "ring.adjlist": b"0 1 2\n1 2\n2\n",
    "ring.graphml": b'<graphml><graph edgedefault="undirected"><node id="0"/><node id="1"/>'
    b'<edge source="0" target="1"/></graph></graphml>',
}


@TIMES
@pytest.mark.parametrize("name", GRAPHS)
def test_any_bytes_in_place_of_a_graph(name: str, times: int, tmp_path: Path) -> None:
    @tried(40 * times)
    @given(damaged(GRAPHS[name]))
    def holds(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        outcome(lambda: FixedGraph(str(tmp_path / name)).check(3))

    holds()


def test_entities_of_a_graph_are_bounded(tmp_path: Path) -> None:
    entities = '<!ENTITY a0 "xxxxxxxxxx">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    text = f"<!DOCTYPE g [{entities}]><graphml>&a9;</graphml>"
    (tmp_path / "x.graphml").write_text(text)
    assert "cannot be read" in refusal(lambda: FixedGraph(str(tmp_path / "x.graphml")).check(3))
