"""The solver and the oracle of CONTRIBUTING.md are built from the page's text, registered as it says, and pass its tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import allaprima

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(allaprima.__file__).parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(r'^```(python|diff) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
RECIPES = {"solver": "## Add a solver", "oracle": "## Add an oracle"}


def blocks(recipe):
    """The named code blocks of a recipe, as (language, file, text)."""
    section = PAGE.split(RECIPES[recipe] + "\n")[1].split("\n## ")[0]
    return BLOCK.findall(section)


def files_of_tests(recipe):
    return [file for _, file, _ in blocks(recipe) if file.startswith("tests/")]


def registered(text, diff):
    """`text` with the added lines of a diff after its context, which must stand in it exactly once."""
    lines = diff.splitlines()
    context = "\n".join(line[1:] for line in lines if line.startswith(" "))
    added = "\n".join(line[1:] for line in lines if line.startswith("+"))
    assert text.count(context + "\n") == 1, f"not there, or not unique: {context}"
    return text.replace(context + "\n", f"{context}\n{added}\n")


@pytest.fixture
def overlay(tmp_path):
    """A copy of the package and the tests, all files linked, where new files can be written."""
    shutil.copytree(PACKAGE, tmp_path / "src" / "allaprima", copy_function=os.symlink)
    shutil.copytree(ROOT / "tests", tmp_path / "tests", copy_function=os.symlink)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def write(recipe, registers=True):
        for language, file, text in blocks(recipe):
            path = tmp_path / file
            if language == "diff":
                changed = registered(path.read_text(encoding="utf-8"), text)
                if not registers:
                    continue
                path.unlink()  # Not through the link.
                path.write_text(changed, encoding="utf-8")
            else:
                assert not path.exists(), f"{file} exists: the page's example needs another name"
                path.write_text(text, encoding="utf-8")

    return write


def run(folder, *command):
    env = {**os.environ, "PYTEST_ADDOPTS": "", "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def pytest_in(folder, *files):
    return run(folder, "pytest", "-p", "no:cacheprovider", *files)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_one_file_one_line_of_registration_and_one_test(recipe):
    (source, registry, test) = blocks(recipe)
    assert source[0] == test[0] == "python" and source[1].startswith("src/") and test[1].startswith("tests/")
    lines = registry[2].splitlines()
    assert registry[0] == "diff" and sum(line.startswith("+") for line in lines) == 1
    assert not any(line.startswith("-") for line in lines)


def test_both_recipes_work_as_written(overlay, tmp_path):
    for recipe in RECIPES:
        overlay(recipe)
    code, output = pytest_in(tmp_path, *(file for recipe in RECIPES for file in files_of_tests(recipe)))
    assert code == 0, output
    assert int(re.search(r"(\d+) passed", output)[1]) >= 10, output
    # Tests of all registered solvers take the new one in.
    code, output = pytest_in(
        tmp_path, "tests/diffusion/test_properties.py", "tests/diffusion/test_shapes.py", "-k", "ddim_eta"
    )
    assert code == 0, output
    assert "passed" in output


def test_without_their_lines_of_registration_all_tests_of_the_recipes_fail(overlay, tmp_path):
    for recipe in RECIPES:
        overlay(recipe, registers=False)
    code, output = pytest_in(tmp_path, "--tb=line", *(file for recipe in RECIPES for file in files_of_tests(recipe)))
    assert code == 1, output
    assert "passed" not in output, output
    assert "solver='ddim_eta' is not known" in output and "oracle kind 'contrast' is not known" in output, output


def test_the_examples_pass_the_projects_own_checks(overlay, tmp_path):
    for recipe in RECIPES:
        overlay(recipe)
    files = [file for recipe in RECIPES for _, file, _ in blocks(recipe)]
    assert run(tmp_path, "ruff", "check", "--no-cache", *files) == (0, "All checks passed!\n")
    code, output = run(tmp_path, "ruff", "format", "--no-cache", "--check", *files)
    assert code == 0, output


def test_every_file_and_folder_the_page_names_exists():
    """In tables and prose, code in backticks that looks like a path; capitals stand for a name of one's own."""
    made = {file for recipe in RECIPES for _, file, _ in blocks(recipe)}
    prose = re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    paths = {p for p in re.findall(r"`((?:src|tests|docs)/[\w./-]+)`", prose) if not re.search(r"NAME", p)}
    assert len(paths) > 15
    missing = sorted(p for p in paths - made if not (ROOT / p).exists())
    assert not missing
