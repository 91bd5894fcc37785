from __future__ import annotations

import pytest
from hypothesis import settings
from small_data import RandomImages

# A busy machine must not fail a property, nor one run find what the next does not.
settings.register_profile("data", deadline=None, derandomize=True)
settings.load_profile("data")


@pytest.fixture
def random_data() -> RandomImages:
    """90 random training images of three classes, 12 test images."""
    data = RandomImages()
    data.setup()
    return data
