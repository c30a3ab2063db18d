"""The cache gives what is computed, knows what it holds, and trusts no file."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_fakes import Pixels
from safetensors.torch import load_file, save_file

from allaprima.core.errors import RunFolderError, SettingError
from allaprima.evaluation.cache import FeatureCache, content_hash
from allaprima.evaluation.frechet import moments_of

BYTES = torch.randint(256, (10, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def batches(size=4, data=BYTES):
    return lambda: data.split(size)


def same(a, b):
    return a.count == b.count and torch.equal(a.mean, b.mean) and torch.equal(a.factor, b.factor)


def test_cached_equals_computed_and_the_network_is_asked_once(tmp_path):
    net, cache = Pixels(), FeatureCache(tmp_path / "new")
    made = cache.moments(batches(), net)
    asked = net.calls
    again = cache.moments(batches(3), net)
    assert net.calls == asked and same(made, again)
    assert torch.allclose(made.covariance, moments_of(net.features(BYTES.float() / 255)).covariance, atol=1e-12)
    features = cache.features(batches(), net)
    assert torch.equal(features, cache.features(batches(7), net))
    assert torch.equal(features, net.features(BYTES.float() / 255).double())
    assert len(list((tmp_path / "new").iterdir())) == 2


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 10))
def test_the_key_is_of_the_pictures_not_of_the_batches(size):
    assert content_hash(batches(size), Pixels(), {}) == content_hash(batches(10), Pixels(), {})


def test_the_key_knows_pixels_order_shape_network_and_protocol():
    changed = BYTES.clone()
    changed[9, 2, 3, 3] ^= 1
    resized = Pixels()
    resized.preprocessing = {"resize": "to 8x8 px"}
    keys = {
        content_hash(batches(), Pixels(), {}),
        content_hash(batches(data=changed), Pixels(), {}),
        content_hash(batches(data=BYTES.flip(0)), Pixels(), {}),
        content_hash(batches(data=BYTES.view(10, 3, 2, 8)), Pixels(), {}),
        content_hash(batches(data=BYTES[:9]), Pixels(), {}),
        content_hash(batches(), Pixels(fingerprint="p2"), {}),
        content_hash(batches(), resized, {}),
        content_hash(batches(), Pixels(), {"version": 2}),
    }
    assert len(keys) == 8


def spoil_bytes(path):
    path.write_bytes(path.read_bytes()[:-20])


def spoil_one_number(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def spoil_with_anothers(path):
    save_file({k: v + 1 for k, v in load_file(path).items()}, path, {"key": "another", "tensors": "x"})


def spoil_without_metadata(path):
    save_file(load_file(path), path)


@pytest.mark.parametrize("spoil", [spoil_bytes, spoil_one_number, spoil_with_anothers, spoil_without_metadata])
def test_a_corrupt_or_foreign_file_is_made_again(tmp_path, spoil, caplog):
    net, cache = Pixels(), FeatureCache(tmp_path)
    made = cache.moments(batches(), net)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    spoil(path)
    assert path.read_bytes() != whole
    assert same(made, cache.moments(batches(), net))
    assert "made again" in caplog.text
    assert list(tmp_path.iterdir()) == [path]
    caplog.clear()
    assert same(made, cache.moments(batches(), net)) and not caplog.text


def test_a_whole_file_under_anothers_name_is_made_again(tmp_path):
    cache = FeatureCache(tmp_path)
    made = cache.features(batches(), Pixels())
    (path,) = tmp_path.iterdir()
    cache.features(batches(), Pixels(dim=5))
    (other,) = set(tmp_path.iterdir()) - {path}
    other.replace(path)
    assert torch.equal(cache.features(batches(), Pixels()), made)


def test_bad_input_is_named(tmp_path):
    cache = FeatureCache(tmp_path)
    with pytest.raises(SettingError, match=r"torch.float32.*uint8 \(B, 3, H, W\)"):
        cache.moments(lambda: [BYTES.float()], Pixels())
    with pytest.raises(SettingError, match="at least 2"):
        cache.moments(batches(data=BYTES[:1]), Pixels())
    with pytest.raises(SettingError, match="at least 1"):
        cache.features(lambda: [], Pixels())
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be made"):
        FeatureCache(tmp_path / "file").features(batches(), Pixels())
