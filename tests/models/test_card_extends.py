"""`extends`: a card of one's own student says nothing twice, and finds the other card's files where they are."""

import pytest

from allaprima.core.errors import ModelError
from allaprima.models.cards.card import load_card
from allaprima.models.loading.pair import load_pair


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_students_card_takes_the_rest_from_the_teachers(tmp_path):
    card = load_card(
        write(tmp_path / "card.yaml", "extends: emoji\nname: mine\nstudent: {source: student, steps: 1, solver: ddim}\n")
    )
    emoji = load_card("emoji")
    assert (card.name, card.student.steps, card.student.solver) == ("mine", 1, "ddim")
    assert card.student.guidance_scale == emoji.student.guidance_scale
    assert card.path(card.student.source) == tmp_path / "student"
    assert card.path(card.teacher.source) == emoji.path(emoji.teacher.source)
    assert card.teacher.guidance_interval == emoji.teacher.guidance_interval
    assert card.known_concepts() == emoji.known_concepts()
    assert card.known_keywords() == emoji.known_keywords()
    assert card.calibration is None, "thresholds don't hold for another student"


def test_several_students_in_place_of_one_and_one_in_place_of_several(tmp_path):
    many = write(tmp_path / "many" / "card.yaml", "extends: emoji\nstudent: {students: [a, b], partition: p.safetensors}\n")
    card = load_card(many)
    assert (card.student.source, card.student.students) == (None, ("a", "b"))
    further = load_card(write(tmp_path / "further" / "card.yaml", "extends: ../many\nname: further\n"))
    assert further.student.students == (
        str(tmp_path / "further" / ".." / "many" / "a"),
        str(tmp_path / "further" / ".." / "many" / "b"),
    )
    one = load_card(write(tmp_path / "one" / "card.yaml", "extends: ../many/card.yaml\nstudent: {source: s}\n"))
    assert (one.student.source, one.student.students, one.student.partition) == ("s", (), None)


def test_a_lora_sits_on_the_teacher_or_on_a_source_of_its_own(tmp_path):
    card = load_card(write(tmp_path / "a" / "card.yaml", "extends: emoji\nstudent: {lora: l.safetensors, steps: 4}\n"))
    assert (card.student.source, card.student.lora) == (None, "l.safetensors")
    further = load_card(write(tmp_path / "b" / "card.yaml", "extends: ../a\nname: further\n"))
    assert further.path(further.student.lora) == tmp_path / "b" / ".." / "a" / "l.safetensors"
    own = load_card(write(tmp_path / "c" / "card.yaml", "extends: ../a\nstudent: {source: s, lora: m.safetensors}\n"))
    assert (own.student.source, own.student.lora) == ("s", "m.safetensors")
    without = load_card(write(tmp_path / "d" / "card.yaml", "extends: ../a\nstudent: {source: s}\n"))
    assert (without.student.source, without.student.lora) == ("s", None)
    with pytest.raises(ModelError, match="either source, one folder, or students"):
        load_card(write(tmp_path / "e" / "card.yaml", "extends: emoji\nstudent: {students: [a], partition: p, lora: l}\n"))
    wrong = load_card(write(tmp_path / "f" / "card.yaml", "extends: emoji\nteacher: {lora: l.safetensors}\n"))
    with pytest.raises(ModelError, match="gives its teacher students or a lora"):
        load_pair(wrong)


def test_an_oracles_settings_belong_to_its_kind(tmp_path):
    write(tmp_path / "base" / "card.yaml", "extends: emoji\noracle: {kind: clip, source: c, settings: {batch_size: 3}}\n")
    same = load_card(write(tmp_path / "same.yaml", "extends: base\noracle: {source: d}\n"))
    other = load_card(write(tmp_path / "other.yaml", "extends: base\noracle: {kind: pickscore, source: p}\n"))
    assert dict(same.oracle.settings) == {"batch_size": 3}
    assert not other.oracle.settings


def test_refused(tmp_path):
    with pytest.raises(ModelError, match="extends itself"):
        load_card(write(tmp_path / "card.yaml", "extends: card.yaml\n"))
    with pytest.raises(ModelError, match=r"no card 'emojy'.*Did you mean 'emoji'"):
        load_card(write(tmp_path / "other.yaml", "extends: emojy\n"))
