"""Types and shapes checked in tests, free in production; a fixed number of threads, so that bits don't depend on load."""

import os
import sys

import torch
from jaxtyping import install_import_hook

# Before any of these is imported: each function is wrapped as its module is loaded. An int is welcome where a float is due.
# Not calibration.sequential: a search looks thousands of policies up, and each checked call costs 40 times the call.
CHECKED = (
    "artifact",
    "budget",
    "drift",
    "outcome_table",
    "policies",
    "risk",
    "search",
    "steering",
    "threshold",
    "uncertainty",
)
install_import_hook(
    [
        "allaprima.core",
        "allaprima.diffusion",
        "allaprima.distill.losses",
        *(f"allaprima.calibration.{m}" for m in CHECKED),
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)
# On a machine with other work, ALLAPRIMA_TEST_THREADS=1: threads that wait for each other wait longest.
torch.set_num_threads(int(os.environ.get("ALLAPRIMA_TEST_THREADS", "2")))

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from allaprima.diffusion.schedules import DiscreteVP  # noqa: E402 (after the hook, so that it is checked)
from tests import slow  # noqa: E402

# A slow example on a busy machine is no bug; what must be fast is measured by benchmarks.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}


def pytest_configure(config):
    config.pluginmanager.register(slow)


def pytest_runtest_teardown():
    """Close figures that a test has left open: at the 21st of a process pyplot warns, in whichever test that happens."""
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def sd() -> DiscreteVP:
    """Stable Diffusion's schedule."""
    return DiscreteVP.from_config(SD)


@pytest.fixture(scope="session")
def pipe():
    """The bundled pair, loaded once."""
    from allaprima.pipeline import AdaptivePipeline

    return AdaptivePipeline.from_card("emoji")
