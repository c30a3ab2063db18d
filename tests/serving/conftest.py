"""What tests of the demo page share: a browser a file, a fake server a test."""

import pytest
from chromium import browser
from fake_demo_server import FakeDemo
from ray_cluster import two_workers


@pytest.fixture(scope="module")
def chromium():
    with browser() as made:
        yield made


@pytest.fixture
def fake():
    with FakeDemo() as made:
        yield made


@pytest.fixture(scope="module")
def ray_cluster():
    with two_workers() as ray:
        yield ray
