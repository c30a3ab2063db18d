"""Stand-ins for complexity on pictures whose answer is known, and a network of the user's."""

import pytest
import torch

from allaprima.analysis.complexity import ICNET_SIDE, compressed_bits, edge_density, from_onnx
from allaprima.core.errors import ModelError, SettingError


def noise(side=64):
    return torch.randint(0, 256, (1, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_noise_cannot_be_compressed_and_a_flat_picture_can():
    flat = torch.full((1, 3, 64, 64), 77, dtype=torch.uint8)
    bits = compressed_bits(torch.cat([flat, noise()]))
    assert bits[0] < 0.5
    assert 24 <= bits[1] < 25.5


def test_an_edge_is_two_columns_wide_and_only_if_it_is_strong():
    half = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    half[..., 4:] = 255
    faint = half // 255 * 20  # 20 / 255 over two pixels: .04 a pixel.
    assert edge_density(torch.cat([half, faint])).tolist() == [2 / 8, 0]
    with pytest.raises(SettingError, match="uint8"):
        edge_density(half.float())


def onnx_file(path, axes):
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    shape = [1, 3, ICNET_SIDE, ICNET_SIDE]
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=axes, keepdims=0)
    graph = helper.make_graph(
        [node], "tiny", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


def test_a_network_in_onnx_is_told_normalised_pictures(tmp_path):
    measure = from_onnx(onnx_file(tmp_path / "mean.onnx", [0, 1, 2, 3]))
    white = torch.full((2, 3, 16, 16), 255, dtype=torch.uint8)
    mean, std = (torch.tensor(v) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert measure(white).tolist() == pytest.approx([float(((1 - mean) / std).mean())] * 2, abs=1e-4)


def test_a_network_that_says_no_single_number_is_refused(tmp_path):
    with pytest.raises(ModelError, match="single number"):
        from_onnx(onnx_file(tmp_path / "map.onnx", [1]))(noise(16))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no")
    with pytest.raises(ModelError, match="can't be run as ONNX"):
        from_onnx(broken)
