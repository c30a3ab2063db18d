"""Checkpoints are read without running anything in them: a malicious pickle is refused and its payload doesn't run."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from allaprima.core.errors import ModelError, UnsafeWeightsError
from allaprima.oracles.published import read_checkpoint


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def poisoned(path, victim, legacy):
    weights = {"w": torch.ones(2), "x": Payload(victim)}
    if legacy == "bare":
        path.write_bytes(pickle.dumps(weights, protocol=2))
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=legacy == "zip")


@pytest.mark.parametrize("legacy", ["zip", "old", "bare"])
def test_a_payload_is_refused_and_does_not_run(tmp_path, legacy):
    bad, victim = tmp_path / "bad.pt", tmp_path / "ran"
    poisoned(bad, victim, legacy)
    with pytest.raises(UnsafeWeightsError, match=r"holds more than tensors.*Nothing of it was run"):
        read_checkpoint(bad)
    assert not victim.exists()
    # The payload is a real one: an ordinary reader runs it.
    if legacy == "bare":
        pickle.loads(bad.read_bytes())  # noqa: S301
    else:
        torch.load(bad, weights_only=False)
    assert victim.exists()


def test_a_whole_model_is_no_checkpoint(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(UnsafeWeightsError, match="holds more than tensors"):
        read_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("nest", [None, "state_dict", "model"])
def test_weights_are_found_bare_or_nested(tmp_path, nest, new):
    weights = {"module.a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1, dtype=torch.float16)}
    raw = weights if nest is None else {"epoch": 3, nest: weights, "optimizer": {"lr": 0.1}}
    torch.save(raw, tmp_path / "w.pt", _use_new_zipfile_serialization=new)
    found = read_checkpoint(tmp_path / "w.pt")
    assert found.keys() == {"a.weight", "b"} and torch.equal(found["a.weight"], weights["module.a.weight"])
    save_file(weights, tmp_path / "w.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "w.safetensors")["b"], weights["b"])


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ModelError, match="is not a file"):
        read_checkpoint(tmp_path / "none.pt")
    torch.save({"w": torch.ones(1), "n": 3}, tmp_path / "n.pt")
    with pytest.raises(ModelError, match="'n' is none"):
        read_checkpoint(tmp_path / "n.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="no names"):
        read_checkpoint(tmp_path / "list.pt")
    whole = (tmp_path / "n.pt").read_bytes()
    for name, data in (("cut.pt", whole[: len(whole) // 2]), ("empty.pt", b""), ("cut.safetensors", b"\x08")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelError, match=name):
            read_checkpoint(tmp_path / name)
