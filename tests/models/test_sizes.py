"""Sizes that were counted beforehand are what torch's meta device counts, and reading cards needs no torch."""

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from allaprima.models.cards.card import bundled_cards, load_card
from allaprima.models.cards.components import PARTS
from allaprima.models.cards.configs import bundled_config, config_of, counts, published, repositories
from allaprima.models.cards.sizes import as_text, digest
from allaprima.models.components.meta import count
from allaprima.models.families import flux, qwen_image, sana, sd, sd3, sdxl, z_image
from allaprima.models.families.registry import FAMILIES

FILE = Path(str(resources.files("allaprima"))) / "cards" / "configs" / "sizes.json"


def known():
    """Configs that the package knows: those of the bundled files, and of the bundled weights."""
    names = {name for parts in repositories().values() for name in parts.values() if name is not None}
    found = {name: bundled_config(name) for name in sorted(names)}
    for card in map(load_card, ("emoji", "scenes")):
        for side in (card.teacher, card.student):
            for name in ("unet", "text_encoder", "vae"):
                config = config_of(card, side.source, name)
                if config:
                    found[f"{card.name}/{side.source}/{name}"] = config
    return found


def recount():
    """What `sizes.json` should hold: `python tests/models/test_sizes.py` writes it."""
    return {digest(as_text(config)): list(count(config)) for config in known().values()}


def test_the_counts_are_those_of_the_meta_device():
    assert {key: list(value) for key, value in counts().items()} == recount()


def test_every_bundled_part_was_counted_beforehand():
    from allaprima.models.cards.sizes import counted, parts_of

    counted.cache_clear()
    for name in bundled_cards():
        card = load_card(name)
        for part in parts_of(card):
            config = published(card, part.source, part.name)
            assert config is None or digest(as_text(config)) in counts()


def test_both_lists_of_families_agree():
    modules = {
        "sd": sd, "sdxl": sdxl, "sd3": sd3, "flux": flux, "sana": sana, "qwen-image": qwen_image, "z-image": z_image
    }  # fmt: skip
    assert PARTS.keys() == FAMILIES.keys() == modules.keys()
    for name, module in modules.items():
        assert PARTS[name].shared == module.SHARED


@pytest.mark.parametrize("words", [["cards"], ["card", "show", "sdxl-lcm", "--no-activations"]])
def test_a_table_of_cards_needs_no_torch(words, tmp_path):
    """In a process of its own; seconds are of this process's own work, for the machine may be busy."""
    code = (
        "import resource, sys\nfrom allaprima.cli.app import app\n"
        f"app({words!r}, standalone_mode=False)\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), 'SECONDS', used.ru_utime + used.ru_stime)"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    heavy, seconds = out.rsplit("HEAVY", 1)[1].split("SECONDS")
    assert heavy.strip() == "[]"
    assert float(seconds) < 2


if __name__ == "__main__":
    FILE.write_text(json.dumps(recount(), indent=1) + "\n", encoding="utf-8")
