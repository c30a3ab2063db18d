"""What tests of the demo page share: a browser a file, a fake server a test."""

import pytest
from chromium import browser
from fake_demo_server import FakeDemo


@pytest.fixture(scope="module")
def chromium():
    with browser() as made:
        yield made


@pytest.fixture
def fake():
    with FakeDemo() as made:
        yield made
