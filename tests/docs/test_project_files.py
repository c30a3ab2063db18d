"""Pages and files of the project that have a form: decisions, changelog, hooks, templates, and the Makefile's targets."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from tests import slow

ROOT = Path(__file__).resolve().parents[2]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


def test_decisions_are_numbered_without_gaps_and_listed():
    assert [page.name[:4] for page in DECISIONS] == [f"{n:04d}" for n in range(1, len(DECISIONS) + 1)]
    rows = re.findall(
        r"^\| \[(\d{4})\]\(([\w-]+\.md)\) \| (.+) \| (\d{4}-\d\d-\d\d) \|$", read("docs/decisions/README.md"), re.M
    )
    titles = []
    for page in DECISIONS:
        number, title, date = re.match(
            r"# (\d{4})\. (.+)\n\nDate: (\d{4}-\d\d-\d\d)\n", page.read_text(encoding="utf-8")
        ).groups()
        titles.append((number, page.name, title, date))
    assert rows == titles, "docs/decisions/README.md lists every decision with its title and date"


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.name[:4])
def test_a_decision_has_context_decision_and_consequences(page):
    headings = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.M)
    assert headings[:3] == ["Context", "Decision", "Consequences"]
    assert headings[3:] in ([], ["Measured"])


def test_the_changelog_keeps_the_form_of_keep_a_changelog():
    text = read("CHANGELOG.md")
    versions = re.findall(r"^## (.+)$", text, re.M)
    assert versions[0] == "[Unreleased]"
    for version in versions[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version), version
    for part in re.split(r"^## .+$", text, flags=re.M)[1:]:
        kinds = re.findall(r"^### (.+)$", part, re.M)
        assert len(kinds) == len(set(kinds)), f"one list a kind: {kinds}"
        assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_hooks_are_programs_of_the_projects_own_environment():
    text = read(".pre-commit-config.yaml")
    assert "://" not in text, "hooks are downloaded from nowhere"
    for repo in yaml.safe_load(text)["repos"]:
        assert repo["repo"] == "local"
        for hook in repo["hooks"]:
            assert hook["language"] == "system" and hook["entry"].startswith(".venv/bin/"), hook["id"]


@pytest.mark.parametrize("form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*_re*.yml")), ids=lambda form: form.name)
def test_an_issue_form_is_one(form):
    raw = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(raw)
    inputs = [part for part in raw["body"] if part["type"] != "markdown"]
    assert inputs and all(part["attributes"]["label"] for part in inputs)
    names = [part["id"] for part in inputs]
    assert len(names) == len(set(names))
    assert any(part.get("validations", {}).get("required") for part in inputs)


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", "README.md", ".github/PULL_REQUEST_TEMPLATE.md", "docs/decisions/README.md"]
)
def test_targets_of_make_that_a_page_names_exist(page):
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.M))
    named = set(re.findall(r"(?:^|`)make ((?:[\w-]+ ?)+)", read(page), re.M))
    assert {target for words in named for target in words.split()} <= targets


def test_the_list_of_slow_tests_names_tests_that_exist():
    functions = {
        f"{file.name}::{node.name}"
        for file in (ROOT / "tests").glob("**/test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert not slow.read().keys() - functions, "renamed or removed: change the entry, or run `make slow-tests TESTS=FILE`"
