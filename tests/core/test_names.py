"""The package's names, over its syntax trees: one name one meaning, and none of the words that the glossary replaced."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import allaprima

ROOT = Path(allaprima.__file__).parent
CLASSES = {
    "Painter", "WholePainter", "StepPainter", "DiffusersPainter", "RemotePainter", "Machine", "ImageMachine", "_Hand",
    "Words", "Wording", "Looks", "Looked", "Ask", "Order", "OrderBook", "Slot", "Place", "Ticket", "Seen", "Watch", "Bench",
    "Crew", "WaitingRoom", "Placer", "Placement", "Waiting", "Experts", "Listening",
}  # fmt: skip
MODULES = {
    "painter", "whole", "remote", "machine", "words", "given", "tasks", "look", "looks", "place", "placed", "guess",
    "draft_vae", "twins", "taps", "slices", "known", "bank", "asks", "crew", "ticket", "slot", "own", "exchange",
}  # fmt: skip
CONSTANTS = {"OWN", "SELDOM", "BESIDE", "MORE", "LOOK", "EDITS", "TOLD"}
NAMES = {
    "": {"painter", "worded", "spaced", "look", "looks", "guess", "rough_drafts", "crew", "bench", "hand", "asks", "given",
         "placement", "a_t", "s_t", "a_s", "s_s"},
    "diffusion": {"rollback", "begun", "grid", "plan"},
    "cascade": {"machine", "position", "kept", "begun", "plan", "words"},
    "calibration": {"bank", "replay", "look"},
    "conditioning": {"words", "plan"},
    "models": {"words", "experts", "plan"},
    "serving": {"machine", "slot", "ticket", "place", "order", "watch", "words"},
}  # fmt: skip
"""Functions, parameters and fields, by room; the empty room is all of them."""
KEPT = {("models", "draft_vae")}
"""A card's key: cards that exist stay readable."""


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
        found += [f"{path}: {n.name}" for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name in CLASSES]
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
            found += [f"{path}: {n}" for n in names if n in replaced and (path.parts[0], n) not in KEPT]
    assert found == []
