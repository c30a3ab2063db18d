"""A Ray cluster for the tests of a file."""

import pytest
from ray_cluster import two_workers


@pytest.fixture(scope="module")
def cluster():
    with two_workers() as ray:
        yield ray
