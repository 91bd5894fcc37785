"""What an evaluation of generated images refuses."""

from __future__ import annotations

import pytest

from flgen.callbacks import Evaluation
from flgen.data import SpokenDigits
from flgen.errors import UsageError


def test_generated_images_are_compared_with_images_only() -> None:
    with pytest.raises(UsageError, match=r"^--data SpokenDigits holds recordings, but generated images are compared"):
        Evaluation().prepare(SpokenDigits())
