"""Leases and votes, on SQLite and on Postgres: nothing twice, nothing lost, nothing of others."""

import json
import sqlite3
import threading
from collections import Counter

import pytest
from PIL import Image
from sqlalchemy import text

from allaprima.core.errors import RunFolderError, SettingError
from allaprima.study.create import missing_files, open_study
from allaprima.study.design import Rules
from allaprima.study.known_pairs import Counts
from allaprima.study.store.database import engine_of
from allaprima.study.votes import StudyError

ALL_A = {"alignment": "a", "quality": "a", "aesthetics": "a", "overall": "a"}
ALL_B = dict.fromkeys(ALL_A, "b")


def vote_all(store, annotator, answers=ALL_A):
    """Vote until there is nothing left."""
    given = []
    while (handed := store.next(annotator)) is not None:
        assert store.vote(annotator, handed.slot, answers, 1.0).first
        given.append(handed)
    return given


def annotators(store, n):
    return [store.annotator(t) for t in store.invite(n)]


def test_three_annotators_give_every_pair_three_votes(opened_study):
    store = opened_study(6)
    people = annotators(store, 3)
    for one in people:
        assert len(vote_all(store, one)) == 6
        assert store.progress(one).state == "done"
    votes = store.votes()
    assert Counter(v.pair for v in votes) == dict.fromkeys({v.pair for v in votes}, 3)
    assert len({(v.pair, v.annotator) for v in votes}) == 18
    assert Counter(v.left for v in votes) == {"a": 9, "b": 9}
    # A fourth one has nothing to do.
    (late,) = annotators(store, 1)
    assert store.next(late) is None and store.progress(late).state == "done"


def test_the_same_pair_until_it_is_voted_on_and_nobody_elses(opened_study):
    store = opened_study(4, rules=Rules(votes=1))
    one, two = annotators(store, 2)
    mine = store.next(one)
    assert store.next(one) == mine
    theirs = store.next(two)
    assert theirs.slot != mine.slot
    with pytest.raises(StudyError, match=r"not(, or no longer,)? yours") as e:
        store.vote(two, mine.slot, ALL_A, 1)
    assert e.value.code == "not_yours"
    for foreign in ("", "guess", "../../etc/passwd", mine.slot + "x"):
        with pytest.raises(StudyError, match=r"not(, or no longer,)? yours"):
            store.vote(one, foreign, ALL_A, 1)
        with pytest.raises(StudyError, match=r"not(, or no longer,)? yours"):
            store.handed(one, foreign)
    assert store.votes() == []


def test_a_vote_sent_twice_is_one_vote_and_the_first_counts(opened_study):
    store = opened_study(2)
    (one,) = annotators(store, 1)
    slot = store.next(one).slot
    assert store.vote(one, slot, ALL_A, 1).first
    again = store.vote(one, slot, ALL_B, 1)
    assert not again.first and again.answers == ALL_A
    assert [v.answers for v in store.votes()] == [ALL_A]


def test_a_lease_that_ran_out_goes_to_others_but_not_before(opened_study):
    store = opened_study(1, rules=Rules(votes=1, lease_minutes=10))
    now = [1000.0]
    store._clock = lambda: now[0]
    one, two = annotators(store, 2)
    slot = store.next(one).slot
    assert store.next(two) is None and store.progress(two).state == "waiting"
    now[0] += 599
    assert store.next(two) is None
    now[0] += 2
    # Not taken by anybody yet: the first one may still vote, so it is the second's only when asked for.
    assert store.next(two).slot == slot
    with pytest.raises(StudyError, match="no longer"):
        store.vote(one, slot, ALL_A, 1)
    assert store.vote(two, slot, ALL_B, 1).first
    assert store.next(one) is None and store.progress(one).state == "done"


def test_a_lease_that_ran_out_goes_before_slots_that_nobody_had(opened_study):
    """Else the pair of somebody who left would be a gap until the end, and early stopping counts up to the first gap."""
    store = opened_study(5, rules=Rules(votes=1, lease_minutes=10))
    now = [1000.0]
    store._clock = lambda: now[0]
    gone, here = annotators(store, 2)
    left = store.next(gone).slot
    assert store.next(here).slot != left
    now[0] += 601
    store.vote(here, store.next(here).slot, ALL_A, 1)
    assert store.next(here).slot == left


def test_a_late_vote_counts_while_nobody_took_the_pair(opened_study):
    store = opened_study(1, rules=Rules(votes=1, lease_minutes=10))
    now = [1000.0]
    store._clock = lambda: now[0]
    (one,) = annotators(store, 1)
    slot = store.next(one).slot
    now[0] += 5000
    assert store.vote(one, slot, ALL_A, 4900.0).first
    assert store.votes()[0].seconds == 4900


def test_seconds_are_believed_within_what_the_server_saw(opened_study):
    store = opened_study(3)
    now = [1000.0]
    store._clock = lambda: now[0]
    (one,) = annotators(store, 1)
    for said in (7.5, 1e9, float("nan")):
        slot = store.next(one).slot
        now[0] += 10
        store.vote(one, slot, ALL_A, said)
    assert [v.seconds for v in store.votes()] == [7.5, 10, 10]


def test_threads_get_no_slot_and_give_no_vote_twice(opened_study):
    store = opened_study(10)
    people = annotators(store, 6)
    given, faults = [], []

    def work(one):
        try:
            while (handed := store.next(one)) is not None:
                store.vote(one, handed.slot, ALL_A, 1)
                given.append((one, handed.slot))
        except Exception as e:
            faults.append(e)

    # Two tabs for each.
    threads = [threading.Thread(target=work, args=(one,)) for one in people for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not faults
    votes = store.votes()
    assert len(votes) == 30 and len({(v.pair, v.annotator) for v in votes}) == 30
    assert set(Counter(v.pair for v in votes).values()) == {3}
    assert len({*given}) == 30


def test_training_qualification_and_attention_checks(opened_study):
    store = opened_study(25, counts=Counts(2, 2, 3), rules=Rules(votes=1, gold_every=10))
    careful, careless = annotators(store, 2)

    def expected(one, handed):
        with store.database.reading() as s:
            from allaprima.study.store.tables import PairRow, SlotRow

            slot = s.query(SlotRow).filter_by(public=handed.slot).one()
            return s.get(PairRow, slot.pair_id).expected

    assert store.progress(careful).state == "training"
    for kind in ["training"] * 2 + ["qualification"] * 2:
        handed = store.next(careful)
        assert handed.kind == kind
        right = expected(careful, handed)
        kept = store.vote(careful, handed.slot, {**ALL_A, **right}, 1)
        # Training says what was right; a test does not.
        assert (kept.expected == right and kept.why) if kind == "training" else (kept.expected == {} and not kept.why)
    kinds = [h.kind for h in vote_all(store, careful)]
    assert kinds == ["study"] * 10 + ["gold"] + ["study"] * 10 + ["gold"] + ["study"] * 5
    assert len(store.votes(("gold",))) == 2
    done = store.progress(careful)
    assert (done.state, done.votes, done.of) == ("done", 27, 27)
    while (handed := store.next(careless)) is not None:
        wrong = {"a": "tie", "b": "tie", "tie": "a"}
        bad = {q: wrong[v] for q, v in expected(careless, handed).items()}
        store.vote(careless, handed.slot, {**ALL_A, **bad}, 1)
    assert store.progress(careless).state == "failed"
    assert not [v for v in store.votes() if v.annotator == careless]


def test_tokens_are_kept_as_hashes_and_forged_ones_refused(opened_study):
    store = opened_study(2)
    (token,) = store.invite(1)
    one = store.annotator(token)
    assert store.annotator(token) == one
    for forged in ("", "x" * 24, token[:-1], token + "=", token.lower()):
        with pytest.raises(StudyError) as e:
            store.annotator(forged)
        assert e.value.code == "unknown_token"
    store.revoke(one)
    with pytest.raises(StudyError, match="taken back"):
        store.annotator(token)
    with pytest.raises(StudyError, match="never invited"):
        store.revoke(99)
    if not store.database.locks_rows:
        assert token.encode() not in b"".join(f.read_bytes() for f in store.folder.glob("study.db*"))


def test_missing_pictures_pairs_are_left_out_and_a_pair_can_be_given_back(opened_study):
    store = opened_study(3, rules=Rules(votes=1))
    (one,) = annotators(store, 1)
    first = store.next(one)
    store.give_back(one, first.slot)
    (store.folder / "pictures" / first.files[0]).unlink()
    gone = missing_files(store.folder, store.files())
    assert gone == [first.files[0]]
    seen = []
    while (handed := store.next(one, missing=frozenset(gone))) is not None:
        seen.append(handed.slot)
        store.vote(one, handed.slot, ALL_A, 1)
    assert len(seen) == 2 and first.slot not in seen


def test_a_stopped_study_hands_out_nothing(opened_study):
    store = opened_study(2)
    (one,) = annotators(store, 1)
    assert store.next(one, stopped=True) is None and store.progress(one, stopped=True).state == "stopped"


def test_a_restarted_postgres_is_named_once_and_the_same_vote_then_kept(opened_study, database):
    if database is None:
        pytest.skip("SQLite has no server to restart")
    store = opened_study(2)
    one = store.annotator(store.invite(1)[0])
    handed = store.next(one)
    gone = engine_of(database)
    with gone.begin() as c:  # as a restart does to every connection
        c.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'study'"
            )
        )
    gone.dispose()
    refusals = []
    for _ in range(10):
        try:
            store.vote(one, handed.slot, ALL_A, 1.0)
            break
        except StudyError as e:
            refusals.append(e.code)
    assert refusals == ["database_away"]
    assert len(store.votes()) == 1


def test_nothing_in_the_pictures_names_a_method(make_study):
    folder = make_study(4, counts=Counts(3, 3, 3))
    for path in (folder / "pictures").iterdir():
        with Image.open(path) as image:
            assert not image.info and not getattr(image, "text", None), image.info
        assert not any(w in path.name for w in ("student", "teacher"))
        assert b"student" not in path.read_bytes() and b"teacher" not in path.read_bytes()


def test_a_folder_is_never_overwritten(make_study, tmp_path):
    folder = make_study(2)
    from allaprima.data.pictures import open_pictures
    from allaprima.study.create import StudyPlan, create

    sets = {m: open_pictures(folder.parent / m) for m in ("student", "teacher")}
    with pytest.raises(RunFolderError, match="already holds a study"):
        create(folder, sets, StudyPlan())
    with pytest.raises(RunFolderError, match="not empty"):
        create(folder.parent, sets, StudyPlan())
    with pytest.raises(SettingError, match="holds no study"):
        open_study(tmp_path / "nowhere")
    (folder / "study.db").rename(folder / "elsewhere.db")
    with pytest.raises(SettingError, match=r"study.db is gone"):
        open_study(folder)


def test_a_full_disk_is_named_and_nothing_is_lost(make_study):
    from sqlalchemy import event

    folder = make_study(6)
    store = open_study(folder)
    (one,) = annotators(store, 1)
    kept = store.next(one)
    store.vote(one, kept.slot, ALL_A, 1)
    slot = store.next(one).slot
    with sqlite3.connect(folder / "study.db") as c:
        pages = c.execute("PRAGMA page_count").fetchone()[0]
    store.database.close()

    def no_room(connection, _):
        connection.execute(f"PRAGMA max_page_count={pages}").close()

    event.listen(store.database.engine, "connect", no_room)
    long = {"overall": "a"}
    # SQLite itself says that it is full, as it does when the disk is: a row larger than what is left of its pages.
    with pytest.raises(StudyError) as e, store.database.writing() as s:
        from allaprima.study.store.tables import StudyRow

        s.get(StudyRow, 1).about = {"filler": "x" * 100_000, **long}
    assert e.value.code == "disk_full" and "make room" in str(e.value)
    event.remove(store.database.engine, "connect", no_room)
    store.database.close()
    assert store.vote(one, slot, ALL_B, 1).first
    assert [v.answers for v in store.votes()] == [ALL_A, ALL_B]
    store.close()


def test_sqlite_is_set_to_keep_what_it_acknowledged(make_study):
    store = open_study(make_study(2))
    with store.database.engine.connect() as c:
        assert c.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert c.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    store.close()


def test_the_tables_are_what_the_migrations_make(opened_study):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from allaprima.study.store.tables import Base

    store = opened_study(2)
    with store.database.engine.connect() as c:
        assert compare_metadata(MigrationContext.configure(c), Base.metadata) == []


def test_a_newer_database_is_refused_and_a_password_is_not_kept(make_study):
    from allaprima.study.create import _without_password

    folder = make_study(2)
    with sqlite3.connect(folder / "study.db") as c:
        c.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StudyError, match="newer"):
        open_study(folder)
    assert _without_password("postgresql://me:secret@host:5/x") == "postgresql://me@host:5/x"
    assert json.loads((folder / "study.json").read_text()) == {"database": None}


@pytest.mark.parametrize("url", ["nonsense", "mysql://x/y", "postgresql+nothing://x/y"])
def test_urls_that_are_none_are_refused(url):
    from allaprima.study.store.database import engine_of

    with pytest.raises(SettingError, match="database"):
        engine_of(url)
