"""Whatever a method computes, it computes where its networks are: losses on a device without data say so without a GPU.

The meta device has shapes and no numbers, and like a GPU it refuses to mix with tensors on the CPU.
"""

import copy
import importlib

import pytest
import torch
from test_methods import CASES
from tiny import bench
from torch import nn

from allaprima.distill.devices import Devices
from allaprima.distill.methods import METHODS
from allaprima.distill.recipe import checked


class Elsewhere(Devices):
    """A process whose networks are on the meta device."""

    device = torch.device("meta")


def test_the_meta_device_refuses_to_mix():
    with pytest.raises(RuntimeError, match="same device"):
        torch.randn(3) + torch.randn(3, device="meta")


def moved(networks):
    return {name: network.to("meta") for name, network in networks.items()}


@pytest.mark.parametrize(("method", "options"), CASES)
def test_losses_are_where_the_networks_are(tmp_path, monkeypatch, method, options):
    module = importlib.import_module(METHODS[method].module)
    b = bench(tmp_path, method, options=options)
    if options.get("pairs"):
        # Painting has no place without numbers: the pairs are there already.
        module.run(b, checked(module.Options, options, method))
        (tmp_path / "checkpoint.safetensors").unlink()
    b.teacher.network.to("meta")
    b = type(b)(b.teacher, b.data, b.null, b.recipe, b.folder, devices=Elsewhere())
    values = []

    def train(model, loss, *_, **more):
        assert isinstance(more["devices"], Elsewhere)
        nets = moved({"model": model, "target": copy.deepcopy(model)})
        values.append(loss(nets["model"], {"target": nets["target"], "use": nets["model"]}, torch.Generator()))
        return {"use": model}

    def two(networks, generator_loss, critic_loss, *_, **more):
        assert isinstance(more["devices"], Elsewhere)
        nets = moved(networks)
        values.extend(f(nets, {}, torch.Generator()) for f in (generator_loss, critic_loss))
        return {"use": nets["generator"]}

    for name, stand_in in (("train", train), ("train_two_time_scale", two)):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, stand_in)
    made = module.run(b, checked(module.Options, options, method))
    assert values
    for value in values:
        assert value.device.type == "meta"
        value.backward()
    assert isinstance(made, nn.Module)
