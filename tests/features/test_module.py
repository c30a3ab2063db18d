"""Feature networks behind one protocol: any module, transformers folders, preprocessing, Inception's shape."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from allaprima.core.errors import ModelError, SettingError, UnsafeWeightsError
from allaprima.features.inception import Inception, InceptionFeatures
from allaprima.features.load import load_features
from allaprima.features.module import LayeredFeatures, ModuleFeatures, weights_hash
from allaprima.features.preprocess import Preprocess
from allaprima.features.vision import VisionFeatures


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2))


def images(n=2, side=12):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(3))


def test_any_module_with_named_layers():
    net = ModuleFeatures("small", small(), 5, Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3), ("2", "0"))
    assert isinstance(net, LayeredFeatures)
    x = images() * 2 - 1
    last, first = net.layers(images())
    with torch.no_grad():
        assert torch.allclose(first, net.module[0](x), atol=1e-6)
        assert torch.allclose(last, net.module(x), atol=1e-6)
        assert torch.allclose(net.features(images()), net.module(x).mean((2, 3)), atol=1e-6)
    assert not net.module[0]._forward_hooks
    with pytest.raises(SettingError, match="'9' is no submodule of small: 0, 1, 2 are"):
        ModuleFeatures("small", small(), 5, layer_names=("9",))


def test_the_fingerprint_is_of_the_weights():
    assert weights_hash(small()) == weights_hash(small())
    assert weights_hash(small()) != weights_hash(small(1))
    changed = small()
    with torch.no_grad():
        changed[2].bias[4] += 1e-6
    assert weights_hash(changed) != weights_hash(small())


def test_resizing_crops_the_middle_and_stays_inside():
    x = torch.zeros(1, 3, 8, 16)
    x[..., 4:12] = 1
    out = Preprocess(shortest_edge=8, crop=(8, 8))(x)
    assert torch.equal(out, torch.ones(1, 3, 8, 8))
    sharp = Preprocess(size=(23, 23))(torch.rand(1, 3, 9, 9).round())
    assert float(sharp.min()) == 0 and float(sharp.max()) == 1


def test_preprocessor_settings_that_are_not_known_are_named():
    with pytest.raises(ModelError, match="resample=0"):
        Preprocess.from_config({"resample": 0})
    with pytest.raises(ModelError, match="longest_edge"):
        Preprocess.from_config({"size": {"longest_edge": 9}})
    with pytest.raises(ModelError, match=r"crop_size=\(9, 9\) is larger"):
        Preprocess.from_config({"size": {"shortest_edge": 8}, "do_center_crop": True, "crop_size": 9})
    assert Preprocess.from_config({"do_resize": False, "do_normalize": False, "size": 5}) == Preprocess()


SETTINGS = {"size": {"height": 28, "width": 28}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}


def dinov2(path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7, mlp_ratio=2
    )
    return config, Dinov2Model(config)


def resnet(path):
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    return config, ResNetModel(config)


@pytest.mark.parametrize(("make", "dim", "shapes"), [(dinov2, 8, [(2, 8, 4, 4)] * 2), (resnet, 8, None)])
def test_a_transformers_vision_folder(tmp_path, make, dim, shapes):
    _, model = make(tmp_path)
    model.eval().save_pretrained(tmp_path, safe_serialization=True)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    net = load_features(tmp_path)
    assert isinstance(net, VisionFeatures) and net.dim == dim
    x = images(side=28)
    with torch.no_grad():
        out = model((x - 0.5) / 0.25, output_hidden_states=True)
    assert torch.allclose(net.features(x), out.pooler_output.flatten(1), atol=1e-5)
    maps = net.layers(x)
    assert len(maps) == len(net.layer_names) == 2
    if shapes:
        assert [tuple(m.shape) for m in maps] == shapes
        # The third row's second patch is token 9 after the class token.
        assert torch.allclose(maps[0][:, :, 2, 1], out.hidden_states[1][:, 1 + 9], atol=1e-5)
    else:
        assert torch.allclose(maps[1], out.hidden_states[2], atol=1e-5)
    assert "28x28" in json.dumps(net.preprocessing)
    assert net.features(images(side=40)).shape == (2, dim)


def test_folders_and_names_that_are_none_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"config.json is missing"):
        load_features(tmp_path)
    with pytest.raises(ModelError, match="features='inceptoin' is not known"):
        load_features("inceptoin")
    with pytest.raises(UnsafeWeightsError, match=r"no .safetensors"):
        InceptionFeatures.from_file(tmp_path / "weights.pth")


def test_inception_has_the_published_shape_and_reads_weights_with_their_head(tmp_path):
    torch.manual_seed(0)
    net = Inception()
    # 23,834,568 parameters as published, less the 1000-class head.
    assert sum(p.numel() for p in net.parameters()) == 23_834_568 - 2_049_000
    weights = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "inception.safetensors"
    save_file({**weights, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    read = load_features(path)
    assert read.name == "inception-fid" and weights_hash(read.net) == weights_hash(net)
    sizes = []
    read.net.Mixed_5d.register_forward_hook(lambda m, i, o: sizes.append(tuple(o.shape)))
    read.net.Mixed_6e.register_forward_hook(lambda m, i, o: sizes.append(tuple(o.shape)))
    read.net.Mixed_7c.register_forward_hook(lambda m, i, o: sizes.append(tuple(o.shape)))
    assert read.features(images(1)).shape == (1, 2048)
    assert sizes == [(1, 288, 35, 35), (1, 768, 17, 17), (1, 2048, 8, 8)]
    save_file({**weights, "fc.weight": torch.zeros(1000, 2048)}, path)
    with pytest.raises(ModelError, match="has 1000 classes"):
        InceptionFeatures.from_file(path)
    weights.pop("Mixed_7c.branch3x3_2b.conv.weight")
    save_file(weights, path)
    with pytest.raises(ModelError, match=r"Mixed_7c.branch3x3_2b.conv.weight"):
        InceptionFeatures.from_file(path)
