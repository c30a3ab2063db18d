"""Calls as tensors and structure, graphs kept on disk, and both backends, against the network itself."""

import json
import sys

import pytest
import torch
from tiny_compiled import Saved, TinyNet, inputs

from allaprima.core.errors import ModelError, SettingError
from allaprima.models.backends.backend import NAMES, make_backend
from allaprima.models.backends.flat import Call, flattened, rebuilt
from allaprima.models.backends.openvino import parts_of
from allaprima.models.backends.stand_in import Compiled, CompiledAutoencoder
from allaprima.models.backends.store import PLAN, GraphStore


def backend(name):
    for package in NAMES[name][2]:
        pytest.importorskip(package, reason=f"pip install 'allaprima[{name}]'")
    return make_backend(name)


def test_a_value_is_put_together_again_from_its_tensors():
    a, b = torch.zeros(1), torch.ones(2)
    value = {"x": a, "flag": True, "none": None, "several": [b, (a, 3)]}
    tensors = []
    plan = json.loads(json.dumps(flattened(value, tensors)))
    assert rebuilt(plan, tensors, dict) == {"x": a, "flag": True, "none": None, "several": [b, (a, 3)]}
    said = rebuilt(plan, tensors)
    assert said.x is a
    assert said["several"][0] is b
    # As diffusers' outputs: by place among what is there.
    assert said[2][0] is b
    with pytest.raises(AttributeError):
        _ = said.nothing
    with pytest.raises(ModelError, match="eager"):
        flattened({"f": open}, [])


def test_a_graph_is_made_once_a_shape_and_found_again(tmp_path):
    made, net = Saved(), TinyNet()
    asked = []

    def network():
        asked.append(1)
        return net

    x, t, words = inputs()
    first = Compiled("net", "print", network, GraphStore(made, tmp_path), net.config)
    for _ in range(2):
        assert torch.equal(first(x, t, words=words).sample, net(x, t, words)["sample"])
    assert (made.converted, len(asked), len(first._graphs)) == (1, 1, 1)
    first(*inputs(3)[:2], words=inputs(3)[2])
    first(x, t, words=words, scale=t)
    assert made.converted == 3
    again = Compiled("net", "print", network, GraphStore(made, tmp_path), net.config)
    made.module = TinyNet  # Not asked for: what a call gives is known from the disk.
    before = len(asked)
    again.store.graph("net", "print", Call.of((x, t), {"words": words}), lambda: pytest.fail("it is there"))
    assert (made.converted, len(asked)) == (3, before)
    Compiled("net", "another", network, GraphStore(made, tmp_path))(x, t, words=words)
    assert made.converted == 4, "other weights are another graph"


def test_a_broken_graph_and_one_that_was_never_checked_are_made_again(tmp_path):
    made, net, (x, t, words) = Saved(), TinyNet(), inputs()

    def said():
        return Compiled("net", "print", lambda: net, GraphStore(made, tmp_path), None)(x, t, words=words).sample

    said()
    (place,) = tmp_path.iterdir()
    for broken, file in enumerate(("graph", PLAN), 1):
        (place / file).write_text("half")
        assert torch.equal(said(), net(x, t, words)["sample"])
        assert made.converted == 1 + broken
    (place / PLAN).unlink()
    said()
    assert made.converted == 4


def test_a_graph_that_took_an_input_for_a_constant_is_refused(tmp_path):
    class Frozen(Saved):
        def load(self, folder):
            run = super().load(folder)
            due = run(self.given)
            return lambda given: due

        def convert(self, module, inputs, folder):
            self.given = inputs
            super().convert(module, inputs, folder)

    x, t, words = inputs()
    net = TinyNet()
    with pytest.raises(ModelError, match="says something else"):
        Compiled("net", "print", lambda: net, GraphStore(Frozen(), tmp_path), None)(x, t, words=words)
    assert not list(tmp_path.iterdir()), "it isn't found the next time"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    net, (x, t, words) = TinyNet(), inputs()
    with pytest.raises(SettingError, match="cache="):
        Compiled("net", "print", lambda: net, GraphStore(Saved(), tmp_path / "file"), None)(x, t, words=words)


def test_any_number_of_rows_is_a_few_shapes(tmp_path):
    made, net = Saved(), TinyNet()
    store = GraphStore(made, tmp_path)
    whole = Compiled("net", "print", lambda: net, store, None, whole_rows=True)
    for rows in (1, 2, 3, 4, 37, 16, 20):
        x, t, words = inputs(rows)
        said = whole(x, t, words)
        torch.testing.assert_close(said.sample, net(x, t, words)["sample"], atol=1e-6, rtol=0)
        assert said.all[1].shape == x.shape
    assert made.converted == 4, "1, 2, 4 and 16 rows"


@pytest.mark.parametrize("name", list(NAMES))
def test_a_missing_extra_is_named_with_its_remedy(monkeypatch, name):
    monkeypatch.setitem(sys.modules, NAMES[name][2][0], None)
    with pytest.raises(SettingError, match=rf"pip install 'allaprima\[{name}\]'"):
        make_backend(name)


def test_an_unknown_backend_is_refused():
    with pytest.raises(SettingError, match="tensorflow"):
        make_backend("tensorflow")


@pytest.mark.parametrize("name", list(NAMES))
def test_a_backend_says_what_the_network_says(tmp_path, name):
    made, net = backend(name), TinyNet()
    x, t, words = inputs(4)
    once = Compiled("net", "print", lambda: net, GraphStore(made, tmp_path), None)
    with torch.inference_mode():
        said = once(x.to(memory_format=torch.channels_last), t, words=words, more=[x, 2 * x])
    due = net(x, t, words, more=[x, 2 * x])
    torch.testing.assert_close(said.sample, due["sample"], atol=1e-5, rtol=0)
    torch.testing.assert_close(said.all[1], x)
    assert said.other is None
    found = Compiled("net", "print", lambda: pytest.fail("read from the disk"), GraphStore(made, tmp_path), None)
    assert torch.equal(found(x, t, words=words, more=[x, 2 * x]).sample, said.sample), "the same graph, the same bits"
    # Outputs are memory of their own: the next call leaves them as they are.
    kept = said.sample.clone()
    once(-x, t, words=words, more=[x, x])
    assert torch.equal(said.sample, kept)
    # A row doesn't depend on its mates.
    mixed = torch.cat([x[:1], x[1:].flip(0)])
    order = [0, 3, 2, 1]
    assert torch.equal(once(mixed, t[order], words=words[order], more=[mixed, 2 * mixed]).sample[0], said.sample[0])
    assert made.signature.startswith(f"{name}-")


def test_parts_are_equal_rows_of_one_batch():
    x = torch.zeros(24, 3)
    assert [parts_of([x, x[:, 0]], threads) for threads in (1, 2, 3, 4, 6, 64)] == [1, 2, 3, 2, 3, 2]
    assert parts_of([x[:15]], 2) == 1, "not two equal parts"
    assert parts_of([x[:14]], 2) == 1, "fewer rows than are worth a part"
    assert parts_of([x, x[:3]], 2) == 1, "a table beside rows"
    assert parts_of([x, torch.tensor(1.0)], 2) == 1, "one number beside rows"


@pytest.mark.parametrize("rows", [15, 32])
def test_openvino_runs_parts_of_a_batch_side_by_side(tmp_path, monkeypatch, rows):
    made, net, (x, t, words) = backend("openvino"), TinyNet(), inputs(rows)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    once = Compiled("net", "print", lambda: net, GraphStore(made, tmp_path), None)
    torch.testing.assert_close(once(x, t, words=words).sample, net(x, t, words)["sample"], atol=1e-5, rtol=0)
    assert [p.read_text() for p in tmp_path.glob("*/parts.txt")] == ["2" if rows == 32 else "1"]


def test_what_is_not_said_of_rows_is_not_split(tmp_path, monkeypatch):
    class Mean(torch.nn.Module):
        def forward(self, x):
            return {"mean": x.mean(0, keepdim=True)}

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    made, x = backend("openvino"), torch.rand(32, 4)
    once = Compiled("mean", "print", Mean, GraphStore(made, tmp_path), None)
    torch.testing.assert_close(once(x).mean, x.mean(0, keepdim=True))


def test_bfloat16_is_near_and_is_another_graph(tmp_path):
    whole = backend("openvino")
    try:
        half = make_backend("openvino", "bfloat16")
    except SettingError as e:
        pytest.skip(str(e))
    net, (x, t, words) = TinyNet(), inputs(4)
    said = [
        Compiled("net", "print", lambda: net, GraphStore(b, tmp_path), None)(x, t, words=words).sample for b in (whole, half)
    ]
    difference = float((said[0] - said[1]).abs().max() / said[0].abs().max())
    assert 0 < difference < half.tolerance
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cpu_without_bfloat16_is_refused(monkeypatch):
    openvino = pytest.importorskip("openvino", reason="pip install 'allaprima[openvino]'")
    monkeypatch.setattr(openvino.Core, "get_property", lambda *a: ["FP32"])
    with pytest.raises(SettingError, match=r"dtype='bfloat16'.*Leave dtype out"):
        make_backend("openvino", "bfloat16")


def test_a_dtype_that_a_backend_has_not_is_refused():
    backend("onnxruntime")
    with pytest.raises(SettingError, match=r"dtype='bfloat16'.*computes in float32"):
        make_backend("onnxruntime", "bfloat16")


@pytest.mark.parametrize("name", list(NAMES))
def test_a_decoder_is_compiled(tmp_path, name):
    from allaprima.models.autoencoder import PixelShuffleAutoencoder
    from allaprima.models.components.latents import decoded, encoded

    torch.manual_seed(0)
    vae = PixelShuffleAutoencoder(4, 2, 8, 1, 8, 1).eval().requires_grad_(False)
    fast = CompiledAutoencoder(vae, "vae", "print", GraphStore(backend(name), tmp_path))
    z = torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(decoded(fast, z), decoded(vae, z), atol=1e-5, rtol=0)
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(encoded(fast, images), encoded(vae, images))
