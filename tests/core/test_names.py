"""The package's names, over its syntax trees: one name one meaning, and none of the words that the glossary replaced."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import allaprima

ROOT = Path(allaprima.__file__).parent
CLASSES = {
    "Painter", "WholePainter", "StepPainter", "DiffusersPainter", "RemotePainter", "Machine", "ImageMachine", "Hand",
    "Words", "Wording", "Looks", "Looked", "Ask", "Order", "OrderBook", "Slot", "Place", "Ticket", "Seen", "Watch", "Bench",
    "Crew", "WaitingRoom", "Placer", "Placement", "Waiting", "Experts", "Listening",
}  # fmt: skip
MODULES = {
    "painter", "whole", "remote", "machine", "words", "given", "tasks", "look", "looks", "place", "placed", "guess",
    "draft_vae", "twins", "taps", "slices", "known", "bank", "asks", "crew", "ticket", "slot", "own", "exchange",
}  # fmt: skip
CONSTANTS = {"OWN", "SELDOM", "BESIDE", "MORE", "LOOK", "EDITS", "TOLD"}
NAMES = {
    "": {"painter", "worded", "wording", "spaced", "look", "looks", "guess", "rough_drafts", "crew", "bench", "hand", "asks",
         "given", "placement", "a_t", "s_t", "a_s", "s_s", "machine", "slot", "ticket", "words", "kept", "position", "bank",
         "begun", "experts", "replay", "watch", "place"},
    "diffusion": {"rollback", "grid", "plan"},
    "cascade": {"plan", "grid"},
    "conditioning": {"plan"},
    "models": {"plan", "grid"},
    "serving": {"order", "plan"},
}  # fmt: skip
"""Functions, parameters and fields, by room, with an underscore before them or without; the empty room is all of them."""
KEPT = {
    ("models", "draft_vae"): "a card's key: cards that exist stay readable",
    ("fleet", "machine"): "fleets are made of machines",
    ("study", "slot"): "a study's design has slots, which its database and its addresses name",
    ("bundled", "words"): "the words of a grammar, one by one",
    ("distill", "place"): "networks are placed on devices",
    **{
        (room, word): "verbs of the command line that move between these rooms; to be renamed there"
        for room in ("cli", "experiments")
        for word in ("kept", "given", "watch")
    },
}
"""What a replaced word still names, by room, and why."""


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trees():
    return list(modules())


def test_no_public_class_name_stands_twice(trees):
    places = defaultdict(list)
    for path, tree in trees:
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_class_module_or_constant_bears_a_replaced_name(trees):
    found = [str(path) for path, _ in trees if {path.stem, *path.parent.parts} & MODULES]
    for path, tree in trees:
        classes = [n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
        found += [f"{path}: {name}" for name in classes if name.lstrip("_") in CLASSES]
        for node in tree.body:
            targets = (
                node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            )
            found += [f"{path}: {t.id}" for t in targets if isinstance(t, ast.Name) and t.id in CONSTANTS]
    assert found == []


def test_no_function_parameter_or_field_bears_a_replaced_name(trees):
    found = []
    for path, tree in trees:
        replaced = NAMES[""] | NAMES.get(path.parts[0], set())
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [node.name, *(a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg))]
            elif isinstance(node, ast.ClassDef):
                names = [f.target.id for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
            stripped = ((n, n.lstrip("_")) for n in names)
            found += [f"{path}: {n}" for n, word in stripped if word in replaced and (path.parts[0], word) not in KEPT]
    assert found == []


def test_every_exception_is_needed(trees):
    used = set()
    for _, tree in trees:
        for node in ast.walk(tree):
            names = [getattr(node, "name", None), getattr(node, "arg", None)]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.append(node.target.id)
            used |= {n.lstrip("_") for n in names if isinstance(n, str)}
    assert {word for _, word in KEPT} - used == set()
