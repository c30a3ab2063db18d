"""Oracles by card: settings by kind, ensembles with members, and the bundled oracle as it was."""

import pytest
import torch
import yaml
from tiny_published import TINY_CLIP, clip_shapes, clip_tokenizer, random_weights

from allaprima.core.errors import ModelError, SettingError
from allaprima.models.cards.card import load_card
from allaprima.oracles.convert import convert_open_clip
from allaprima.oracles.ensemble import EnsembleOracle, Member, Rank, Standard
from allaprima.oracles.load import ORACLES, load_oracle

SIDE = {"source": "none", "license": "Apache-2.0", "guidance_scale": 3.0}
CARD = {
    "name": "tiny", "family": "sd", "description": "none", "height": 16, "width": 16,
    "student": {**SIDE, "steps": 2, "solver": "consistency"}, "teacher": {**SIDE, "steps": 3, "solver": "ddim"},
}  # fmt: skip


def written(folder, name="card.yaml", **changes):
    (folder / name).write_text(yaml.safe_dump({**CARD, **changes}))
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cards")
    clip_tokenizer(path / "words")
    for i, name in enumerate(("first", "second")):
        torch.save(random_weights(clip_shapes(TINY_CLIP), seed=i), path / f"{name}.pt")
        convert_open_clip(path / f"{name}.pt", path / "words", path / "oracles" / name)
    return path


def from_card(card):
    said = card.oracle
    return load_oracle(said.kind, card.path(said.source), settings=said.settings)


def test_an_ensemble_of_a_card_is_the_weighted_mean_of_its_members(folder):
    members = [
        {"kind": "clip", "source": "first", "weight": 3, "scale": {"mean": 1.5, "deviation": 4.0}},
        {"kind": "hpsv2", "source": "second", "settings": {"batch_size": 2}, "scale": {"references": [-0.5, 0.0, 0.5]}},
        {"kind": "pickscore", "source": "second"},
    ]
    settings = {"members": members, "name": "three"}
    card = load_card(written(folder, oracle={"kind": "ensemble", "source": "oracles", "license": "x", "settings": settings}))
    made = from_card(card)
    a, b, c = (load_oracle(m["kind"], folder / "oracles" / m["source"]) for m in members)
    by_hand = EnsembleOracle(
        [Member(a, 3.0, Standard(1.5, 4.0)), Member(b, 1.0, Rank((-0.5, 0.0, 0.5))), Member(c)], "three"
    )
    images, prompts = torch.rand(3, 3, 32, 40, generator=torch.Generator().manual_seed(0)), ["owl", "red", "cat"]
    assert torch.allclose(made.score(images, prompts), by_hand.score(images, prompts), atol=1e-5)
    assert (made.name, made.fingerprint) == ("three", by_hand.fingerprint)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, r"members is missing"),
        ({"members": []}, r"members = \(?\[?.*at least 1"),
        ({"members": [{"kind": "clip", "source": "first", "wieght": 2}]}, r"members.0.wieght = 2"),
        ({"members": [{"kind": "clip", "source": "first", "weight": 0}]}, r"members.0.weight = 0"),
        (
            {"members": [{"kind": "clip", "source": "first", "settings": {"beam": 2}}]},
            "beam means nothing to the kind 'clip'",
        ),
        ({"members": [{"kind": "clip", "source": "first", "scale": {"mean": 0, "deviation": 0}}]}, r"members.0.scale"),
    ],
)
def test_settings_that_break_a_rule_are_named(folder, settings, said):
    with pytest.raises(SettingError, match=said):
        load_oracle("ensemble", folder / "oracles", settings=settings)


def test_settings_of_each_kind_are_its_own(folder):
    first = folder / "oracles" / "first"
    with pytest.raises(
        SettingError, match=r"oracle.settings.max_tokens means nothing to the kind 'clip': batch_size, device"
    ):
        load_oracle("clip", first, settings={"max_tokens": 35})
    with pytest.raises(SettingError, match=r"oracle.settings.batch_size = 0 of the kind 'clip': .*greater"):
        load_oracle("clip", first, settings={"batch_size": 0})
    with pytest.raises(SettingError, match=r"oracle.settings.dtype = 'int8'"):
        load_oracle("clip", first, settings={"dtype": "int8"})
    for kind in ("dual_encoder", "image_text"):
        with pytest.raises(SettingError, match=f"batch_size means nothing to the kind '{kind}'"):
            load_oracle(kind, first, settings={"batch_size": 2})
    with pytest.raises(ModelError, match="kind 'mps' is not known: image_text, dual_encoder, clip"):
        load_oracle("mps", first)


def test_a_card_that_extends_takes_settings_of_the_same_kind_only(folder):
    base = {"kind": "clip", "source": "oracles/first", "license": "MIT", "settings": {"batch_size": 4, "dtype": "bfloat16"}}
    written(folder, "base.yaml", oracle=base)

    def extended(oracle):
        (folder / "over.yaml").write_text(yaml.safe_dump({"extends": "base.yaml", "oracle": oracle}))
        return load_card(folder / "over.yaml").oracle

    assert extended({"settings": {"batch_size": 8}}).settings == {"batch_size": 8, "dtype": "bfloat16"}
    other = extended({"kind": "vqa", "settings": {"url": "http://127.0.0.1:1/v1", "model": "m"}})
    assert other.settings == {"url": "http://127.0.0.1:1/v1", "model": "m"}
    assert load_card(folder / "base.yaml").oracle.settings == base["settings"]
    assert load_card("emoji").oracle.settings == {}


def test_a_card_of_an_endpoint_needs_no_source(folder):
    settings = {"url": "http://127.0.0.1:1/v1", "model": "m"}
    card = load_card(written(folder, oracle={"kind": "vqa", "license": "the endpoint's", "settings": settings}))
    assert from_card(card).name == "vqa"


def test_the_bundled_oracle_is_the_one_its_calibration_was_made_with(pipe):
    assert pipe.oracle.fingerprint == pipe.calibration.fingerprints["oracle"]
    assert set(ORACLES) == {
        "image_text", "dual_encoder", "clip", "pickscore", "hpsv2", "imagereward", "aesthetic", "vqa", "ensemble",
        "latent_reward", "composition",
    }  # fmt: skip
