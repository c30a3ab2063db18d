"""Studies to vote in, on SQLite and on Postgres."""

import pytest
from postgres_server import postgres
from study_pictures import run_folder

from allaprima.data.pictures import open_pictures
from allaprima.study.create import StudyPlan, create, open_study
from allaprima.study.design import Rules
from allaprima.study.known_pairs import Counts


@pytest.fixture(scope="session")
def postgres_url():
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database(request):
    """None (SQLite in the study's folder), or the URL of an empty database."""
    if request.param == "sqlite":
        return None
    url = request.getfixturevalue("postgres_url")
    empty(url)
    return url


def empty(url):
    from sqlalchemy import text

    from allaprima.study.store.database import engine_of

    engine = engine_of(url)
    with engine.begin() as c:
        c.execute(text("DROP SCHEMA public CASCADE"))
        c.execute(text("CREATE SCHEMA public"))
    engine.dispose()


@pytest.fixture
def make_study(tmp_path):
    """`make(prompts, url=None, counts=..., rules=..., questions=...)` -> the study's folder."""
    made = []

    def make(prompts=8, url=None, counts=None, rules=None, questions="preference", methods=("student", "teacher"), **plan):
        root = tmp_path / f"study{len(made)}"
        made.append(root)
        seeds = 2 if questions == "diversity" else 1
        sets = {m: open_pictures(run_folder(root / m, m, prompts, seeds)) for m in methods}
        wanted = StudyPlan(questions=questions, rules=rules or Rules(), counts=counts or Counts(0, 0, 0), **plan)
        create(root / "study", sets, wanted, url)
        return root / "study"

    return make


@pytest.fixture
def opened_study(make_study, database):
    """`open(...)` as `make_study`, opened; closed in the end."""
    stores = []

    def opened(*args, **kwargs):
        folder = make_study(*args, url=database, **kwargs)
        stores.append(open_study(folder))
        stores[-1].folder = folder
        return stores[-1]

    yield opened
    for s in stores:
        s.close()
