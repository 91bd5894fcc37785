"""`flgen export`, and `flgen sample --ticket`."""

from __future__ import annotations

import hashlib
import math
import struct
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import onnx
import pytest
import small_prism
import torch

from flgen.masks.ticket import read_ticket, write_ticket

Flgen = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a small run."""
    folder = tmp_path_factory.mktemp("runs") / "prism"
    small_prism.prism_run(folder)
    return str(folder / "checkpoints" / "last")


@pytest.mark.parametrize("masks", ["sampled_once", "threshold"])
def test_a_ticket_draws_the_picture_that_its_checkpoint_draws(
    last: str, masks: str, flgen: Flgen, tmp_path: Path
) -> None:
    made = flgen("export", "--ckpt_path", last, "--format", "ticket", "--masks", masks, "--output", "out/x.flgen")
    assert made.returncode == 0, made.stderr
    file = tmp_path / "out" / "x.flgen"
    ticket, size = read_ticket(file), file.stat().st_size
    kept, weights = ticket.surviving, len(ticket.mask)
    (mask_bytes,) = struct.unpack_from("<Q", file.read_bytes(), 40)
    coding = "packed" if mask_bytes == math.ceil(weights / 8) else "entropy"
    assert made.stdout.splitlines() == [
        f"surviving weights: {kept:,} of {weights:,} ({kept / weights:.1%})",
        f"dense equivalent: {4 * weights:,} bytes, {4 * weights / size:.1f} times the ticket",
        f"mask: {coding}, {8 * mask_bytes / weights:.3f} bits per weight",
        f"ticket: out/x.flgen, {size:,} bytes, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}",
    ]

    for source in (("--ckpt_path", last), ("--ticket", "out/x.flgen")):
        drawn = flgen("sample", *source, "--num", "130", "--kind", masks, "--output", f"{source[0][2:]}.png")
        assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "ticket.png").read_bytes() == (tmp_path / "ckpt_path.png").read_bytes()

    other = flgen("sample", "--ticket=out/x.flgen", "--num=130", "--seed_everything=8", "--output=other.png")
    assert other.stdout == f"130 images ({masks}): other.png\n"
    assert (tmp_path / "other.png").read_bytes() != (tmp_path / "ticket.png").read_bytes()


def test_a_mask_is_coded_or_packed_and_the_same(last: str, flgen: Flgen, tmp_path: Path) -> None:
    made = flgen("export", "--ckpt_path", last, "--output", "x.flgen")
    assert made.returncode == 0, made.stderr
    ticket = read_ticket(tmp_path / "x.flgen")
    rare = torch.rand(len(ticket.mask), generator=torch.Generator().manual_seed(0)) < 0.1
    write_ticket(tmp_path / "rare.flgen", replace(ticket, mask=rare))

    lines = []
    for options in ((), ("--coding", "packed")):
        output = f"again{len(options)}.flgen"
        made = flgen("export", "--ticket", "rare.flgen", "--output", output, *options)
        assert made.returncode == 0, made.stderr
        assert torch.equal(read_ticket(tmp_path / output).mask, rare)
        lines.append(made.stdout.splitlines()[2])
    assert (tmp_path / "again0.flgen").read_bytes() == (tmp_path / "rare.flgen").read_bytes()
    assert 0.3 < float(lines[0].removeprefix("mask: entropy, ").removesuffix(" bits per weight")) < 0.6
    assert lines[1] == "mask: packed, 1.000 bits per weight"


def test_a_checkpoint_and_its_ticket_become_the_same_network(last: str, flgen: Flgen, tmp_path: Path) -> None:
    made = flgen("export", "--ckpt_path", last, "--masks", "threshold", "--output", "x.flgen")
    assert made.returncode == 0, made.stderr
    ticket = read_ticket(tmp_path / "x.flgen")
    kept, weights = ticket.surviving, len(ticket.mask)

    written = []
    for source in (
        ("--ckpt_path", last, "--masks", "threshold", "--output", "out/of_run.onnx"),
        ("--ticket", "x.flgen"),
    ):
        made = flgen("export", *source, "--format", "onnx")
        assert made.returncode == 0, made.stderr
        name = source[-1] if "--output" in source else "generator.onnx"
        written.append(content := (tmp_path / name).read_bytes())
        assert made.stdout.splitlines() == [
            f"surviving weights: {kept:,} of {weights:,} ({kept / weights:.1%})",
            f"dense equivalent: {4 * weights:,} bytes, {4 * weights / len(content):.1f} times the ONNX file",
            f"ONNX file: {name}, {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}",
        ]
        assert made.stderr == ""
    assert written[0] == written[1]
    facts = {entry.key: entry.value for entry in onnx.load_from_string(written[0]).metadata_props}
    assert facts == {name: str(value) for name, value in asdict(ticket.provenance).items()}


def test_mistakes_are_one_line(last: str, flgen: Flgen, tmp_path: Path) -> None:
    (tmp_path / "torn.flgen").write_bytes(b"FLTICKET" + bytes(64))
    made = flgen("export", "--ckpt_path", last, "--output", "x.flgen")
    assert made.returncode == 0, made.stderr
    for arguments, status, message in (
        (["export"], 2, "--ckpt_path is missing: name a checkpoint, such as runs/x/checkpoints/last"),
        (
            ["export", f"--ckpt_path={last}", "--output=x.flgen"],
            2,
            "--output x.flgen exists already: give another name, or remove it",
        ),
        (
            ["export", "--ckpt_path=none/checkpoints/last"],
            1,
            "--ckpt_path none/checkpoints/last: there is none; give one like runs/x/checkpoints/last",
        ),
        (
            ["export", f"--ckpt_path={last}", "--ticket=x.flgen"],
            2,
            "--ckpt_path and --ticket are both given: export one of them",
        ),
        (
            ["export", "--ticket=x.flgen", "--masks=threshold"],
            2,
            "--masks threshold: the mask of this ticket is sampled_once, leave the option out",
        ),
        (
            ["sample", f"--ckpt_path={last}", "--ticket", "x.flgen"],
            2,
            "--ckpt_path and --ticket are both given: draw from one of them",
        ),
        (["sample", "--ticket=none.flgen"], 1, "--ticket none.flgen: there is no such file; `flgen export` writes one"),
        (
            ["sample", "--ticket=torn.flgen"],
            1,
            "--ticket: ticket torn.flgen cannot be used: it has version 0, this flgen reads versions 1 and 2: "
            "export it again",
        ),
        (["sample", "--ticket=x.flgen", "--num=0"], 2, "--num is 0: give 1 or more"),
        (["sample", "--ticket=x.flgen", "--kind=threshold"], 2, "--kind threshold: this ticket draws sampled_once"),
    ):
        done = flgen(*arguments)
        assert (done.returncode, done.stderr) == (status, f"flgen: error: {message}\n"), arguments


def test_a_run_whose_private_noise_its_seed_names_warns_before_the_file_is_given_away(
    flgen: Flgen, tmp_path: Path
) -> None:
    from flgen import ThetaGaussian

    key = tmp_path / "key"
    key.write_bytes(bytes(16))
    for name, secret in (("open", None), ("kept", str(key))):
        privacy = ThetaGaussian(epsilon=None, noise_multiplier=1.0, noise_key=secret)
        small_prism.prism_run(tmp_path / name, privacy=privacy)
        made = flgen("export", "--ckpt_path", f"{name}/checkpoints/last", "--output", f"{name}.flgen")
        assert made.returncode == 0, made.stderr
        assert ("noise is that of its seed" in made.stderr) == (name == "open")


def test_coding_belongs_to_a_ticket(last: str, flgen: Flgen) -> None:
    made = flgen("export", "--ckpt_path", last, "--format", "onnx", "--coding", "packed")
    assert (made.returncode, made.stderr.count("\n")) == (2, 1)
    assert "--coding is how a ticket codes its mask" in made.stderr
