"""Classifiers of texts: what padding does, what a frozen encoder is, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_texts import Reviews, write_bert
from torch import Tensor, nn

from flgen.errors import FlgenError, UsageError
from flgen.models import EmbeddingBagClassifier, TransformerClassifier


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    write_bert(folder)
    return str(folder)


@pytest.fixture
def reviews(encoder: str) -> Reviews:
    data = Reviews(length=8, tokenizer=encoder)
    data.setup()
    return data


def test_a_text_is_the_mean_of_its_words():
    model = EmbeddingBagClassifier(50, classes=2, width=6)
    z = model.features(torch.tensor([[7, 9, 9, 0, 0]]))
    torch.testing.assert_close(z[0], (model.embedding.weight[7] + 2 * model.embedding.weight[9]) / 3)


def test_padding_changes_nothing_and_nothing_but_padding_is_zero():
    model = EmbeddingBagClassifier(50, width=6, padding=3)
    torch.testing.assert_close(
        model.features(torch.tensor([[7, 9, 3, 3]])), model.features(torch.tensor([[7, 9]])), rtol=0, atol=1e-7
    )
    assert not model.features(torch.tensor([[3, 3, 3]])).any()


def test_the_size_of_the_bag():
    model = EmbeddingBagClassifier(95_811)  # the vocabulary of the ConvNet's source
    assert sum(parameter.numel() for parameter in model.parameters()) == 95_811 * 64 + 64 * 3 + 3
    assert model(torch.ones(4, 7, dtype=torch.int64)).shape == (4, 3)


def learns(model: Any, data: Reviews, steps: int) -> bool:
    model.log = lambda *_, **__: None
    optimizer = model.configure_optimizers()
    batch = data.standardize(data.train.inputs), data.train.labels
    for _ in range(steps):
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()
    answers = model.eval().test_step(batch, 0)
    return bool((answers["predictions"] == answers["labels"]).all())


def test_the_bag_learns(reviews: Reviews):
    torch.manual_seed(0)
    model = EmbeddingBagClassifier(reviews.vocabulary, reviews.padding, 2, learning_rate=0.5)
    assert learns(model, reviews, 60)


@pytest.mark.parametrize(("frozen", "learning_rate"), [(True, 0.3), (False, 0.03)])
def test_the_encoder_learns_or_its_last_layer_alone(
    encoder: str, reviews: Reviews, frozen: bool, learning_rate: float, capfd: pytest.CaptureFixture[str]
):
    torch.manual_seed(0)
    model = TransformerClassifier(encoder, frozen=frozen, classes=2, learning_rate=learning_rate, momentum=0.9)
    assert "Loading" not in capfd.readouterr().err
    assert learns(model, reviews, 60)


def hidden_states(encoder: str, tokens: Tensor) -> Tensor:
    from transformers import BertModel

    network = BertModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        return network(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state


def test_features_are_the_mean_of_the_encoders_states_without_padding(encoder: str):
    tokens = torch.tensor([[2, 5, 7, 3]])
    padded = torch.tensor([[2, 5, 7, 3, 0, 0, 0]])
    model = TransformerClassifier(encoder).eval()
    expected = hidden_states(encoder, tokens).mean(dim=1)
    torch.testing.assert_close(model.features(tokens), expected)
    torch.testing.assert_close(model.features(padded), expected)


def test_a_frozen_encoder_is_no_part_of_what_is_sent_and_kept(encoder: str):
    frozen, trained = TransformerClassifier(encoder, classes=2), TransformerClassifier(encoder, frozen=False, classes=2)
    assert set(frozen.state_dict()) == {"linear.weight", "linear.bias"}
    assert any(name.startswith("encoder.") for name in trained.state_dict())
    tokens = torch.tensor([[2, 5, 7, 3]])
    frozen.train()
    assert torch.equal(frozen.features(tokens), frozen.features(tokens))  # its dropout is off
    assert not frozen.features(tokens).requires_grad
    nn.functional.cross_entropy(trained(tokens), torch.tensor([1])).backward()
    assert trained.encoder.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    assert frozen.init == trained.init == encoder


def test_other_tokens_than_the_encoders_are_refused(encoder: str):
    for options in ({"vocabulary": 32_768}, {"padding": 1}):
        with pytest.raises(UsageError, match=r"knows 14 tokens with 0 as padding.*--data.tokenizer"):
            TransformerClassifier(encoder, **options)


def test_an_encoder_that_cannot_be_read_is_one_clear_line(tmp_path: Path):
    with pytest.raises(FlgenError) as caught:
        TransformerClassifier(str(tmp_path / "none"))
    assert str(caught.value).startswith(f"--model.checkpoint {tmp_path / 'none'}: there is no such folder")
    (tmp_path / "config.json").write_text('{"model_type": "bert"')
    with pytest.raises(FlgenError) as caught:
        TransformerClassifier(str(tmp_path))
    assert str(caught.value).startswith(f"--model.checkpoint {tmp_path} cannot be read")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 0}, "--model.vocabulary 0: it must be at least 1"),
        ({"width": 0}, "--model.width 0: it must be at least 1"),
        ({"vocabulary": 5, "padding": 5}, "--model.padding 5: it must be one of the 5 tokens, from 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], message: str):
    with pytest.raises(UsageError) as refusal:
        EmbeddingBagClassifier(**options)
    assert str(refusal.value) == message
