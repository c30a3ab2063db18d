"""Every card that comes with the package holds offline: schema, licences, ranges, family, solver, sources, sizes."""

from importlib import resources
from pathlib import Path

import pytest
import yaml
from tiny_folders import SIZE, card, refiner
from tiny_language import SIDE, sana

from allaprima.core.errors import SettingError
from allaprima.models.cards.card import bundled_cards, is_bundled, load_card
from allaprima.models.cards.configs import bundled_config, repositories
from allaprima.models.cards.hub import HubSource
from allaprima.models.cards.licences import GATED, LICENCES
from allaprima.models.families.registry import FAMILIES
from allaprima.models.families.sdxl_refiner import RefinerModel
from allaprima.pipeline import AdaptivePipeline, card_settings

CARDS = Path(str(resources.files("allaprima"))) / "cards"
WITH_WEIGHTS = ["emoji", "scenes"]
"""Cards whose weights come with the package."""


def test_all_are_listed_under_their_own_names():
    names = bundled_cards()
    assert names[:2] == WITH_WEIGHTS
    assert {p.stem for p in CARDS.glob("*.yaml")} == set(names[2:])
    assert len(names) >= 10
    for name in names:
        card = load_card(name)
        assert card.name == name
        assert is_bundled(card)


@pytest.mark.parametrize("name", bundled_cards())
def test_a_card_holds(name):
    card = load_card(name)
    family = FAMILIES[card.family]
    known = {k.lower() for k in LICENCES}
    for part in (card.student, card.teacher, card.oracle):
        assert part.license.lower() in known, f"{part.license} is not among the licences that are known"
    assert set(card.student.share) <= set(family.shared)
    assert card.teacher.source is not None
    assert card.student.steps < card.teacher.steps
    settings = card_settings(card)
    assert settings.height == card.height
    assert settings.sigma.value == card.cascade.sigma
    assert 0 < card.cascade.sigma < 1
    for source in (card.student.source, card.student.network, card.student.lora, card.teacher.source):
        if source is not None and name not in WITH_WEIGHTS:
            hub = card.hub(source)
            assert isinstance(hub, HubSource)
            assert str(hub) == source
    assert name in WITH_WEIGHTS or "calibrate" in card.description, "it should say that no threshold comes with it"


def test_gated_licences_are_known():
    assert set(LICENCES) >= GATED
    assert not LICENCES["flux-1-dev-non-commercial-license"].commercial
    assert not LICENCES["sai-nc-community"].commercial


def test_every_bundled_config_says_where_it_was_verified():
    files = sorted((CARDS / "configs").glob("*.json"))
    import json

    used = {name for parts in repositories().values() for name in parts.values() if name is not None}
    for f in files:
        if f.stem not in ("repositories", "sizes"):
            assert json.loads(f.read_text())["verified"], f.name
            assert f.stem in used or any(f'"like": "{f.stem}"' in other.read_text() for other in files)
    for name in used:
        assert bundled_config(name)


def painted(tmp_path, name, teacher, student, size, **more):
    """What a bundled card paints with tiny models in place of its own, every draft refined."""
    raw = {
        "extends": name, "name": "tiny", "height": size, "width": size, "teacher": {"source": teacher}, **more,
        "student": {"source": student, "steps": load_card(name).student.steps},
        "oracle": {"kind": "none", "source": "none", "license": "none"},
    }  # fmt: skip
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(raw))
    pipe = AdaptivePipeline.from_card(tmp_path)
    (result,) = pipe("red fox", seed=1, mode="refine-all", batch_size=1).results
    return pipe, result


def test_turbo_and_the_refiner_go_together(tmp_path):
    """By that card's share, solvers, steps and strength; parity of each is test_published_formats' and test_refiner's."""
    card("sdxl", tmp_path)
    refiner(tmp_path / "refiner", tmp_path / "teacher")
    pipe, result = painted(tmp_path, "sdxl-turbo-refiner", "refiner", "teacher", SIZE)
    assert isinstance(pipe.teacher, RefinerModel)
    assert pipe.student.vae is pipe.teacher.vae
    assert pipe.student.text_encoder_2 is pipe.teacher.text_encoder_2
    assert result.cost.evaluations == {"student": 2, "teacher": 2 * 4}
    assert pipe.settings.strategy == "refine"
    assert bool(result.image.isfinite().all())
    with pytest.raises(SettingError, match="can't paint"):
        pipe("red fox", seed=1, mode="teacher-only")


def test_sana_and_sprint_go_together(tmp_path):
    """By that card's share, solvers, steps and scales; parity of each is test_sana's."""
    sana(tmp_path / "teacher")
    sana(tmp_path / "student", seed=1, sprint=True)
    pipe, result = painted(tmp_path, "sana-sprint", "teacher", "student", SIDE, text={"max_sequence_length": 16})
    assert pipe.student.text_encoder is pipe.teacher.text_encoder
    # Sprint reads its scale: one evaluation a step.
    assert result.cost.evaluations == {"student": 2, "teacher": 2 * 20}
    assert bool(result.image.isfinite().all())
