"""Pictures, a calibration and fingerprints of the bundled pair are what they were when `recorded.json` was written."""

import json

import pytest

from tests.recorded import record


@pytest.fixture(scope="module")
def recorded():
    return json.loads(record.RECORDED.read_text(encoding="utf-8"))


def test_fingerprints(pipe, recorded):
    assert pipe.fingerprints() == recorded["fingerprints"]


@pytest.mark.slow
def test_bytes_of_pictures_and_files(recorded):
    if record.machine() != recorded["machine"]:
        pytest.skip(f"recorded on {recorded['machine']}, this is {record.machine()}: bits of float kernels may differ")
    made = record.make()
    assert made["pictures"] == recorded["pictures"]
    assert made["files"] == recorded["files"]
