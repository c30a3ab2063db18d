"""The command from end to end: folders, a study, votes, report, export, and an oracle that learns from it."""

import csv
import re

import pyarrow.parquet as pq
import pytest
from command_line import allaprima
from study_pictures import run_folder

from allaprima.experiments.finetune_oracle import read_pairs
from allaprima.study.create import open_study
from allaprima.study.known_pairs import Counts
from allaprima.study.report import write_report

ALL = ("alignment", "quality", "aesthetics", "overall")


def voted(folder, people=3):
    """Everybody prefers the student, but for every fourth pair."""
    store = open_study(folder)
    for token in store.invite(people):
        one = store.annotator(token)
        while (handed := store.next(one)) is not None:
            store.vote(one, handed.slot, dict.fromkeys(ALL, "b" if "thing 3" in handed.prompt else "a"), 6.0)
    return store


def rows(path):
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_create_vote_report_export(tmp_path, capsys):
    student, teacher = (run_folder(tmp_path / m, m) for m in ("student", "teacher"))
    out = tmp_path / "study"
    allaprima("study", "create", f"student={student}", teacher, "--out", out, "--training", 0, "--qualification", 0,
              "--gold", 0, "--annotators", 2)  # fmt: skip
    tokens = re.findall(r"^/#token=(\S+)$", capsys.readouterr().out, re.M)
    assert len({*tokens}) == 2
    voted(out).close()
    allaprima("study", "report", out, "--out", tmp_path / "report")
    assert capsys.readouterr().out.strip() == str(tmp_path / "report/report.html")
    found = {r["question"]: r for r in rows(tmp_path / "report/results.csv") if r["band"] == "all"}
    assert [*found] == [*ALL]
    assert (found["overall"]["wins"], found["overall"]["losses"], found["overall"]["pairs"]) == ("7", "1", "8")
    assert float(found["overall"]["win_rate"]) == pytest.approx(7 / 8)
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("data:image/png;base64,") >= 8 and "http" not in page
    assert "0.875" in page
    table = pq.read_table(tmp_path / "report/results.parquet").to_pylist()
    assert len(table) == len(rows(tmp_path / "report/results.csv"))
    allaprima("study", "export", out, "--out", tmp_path / "votes")
    assert len(rows(tmp_path / "votes/votes.csv")) == 24 == len(pq.read_table(tmp_path / "votes/votes.parquet"))
    # Fine-tuning reads it as it is: the pictures are where it says, and sides are methods.
    prompts, a, _, preference = read_pairs(tmp_path / "votes/pairs.csv", 64, 64)
    assert len(prompts) == 8 and a.shape == (8, 3, 64, 64)
    assert dict(zip(prompts, preference.tolist(), strict=True)) == {
        f"thing {i}, noto": float(i != 3) for i in range(8)
    }  # fmt: skip
    # The first method is the student's red.
    assert (a[:, 0, 60, 60] == 200 + 7 * preference.new_tensor([int(p.split()[1].strip(",")) for p in prompts])).all()


def test_errors_are_named_and_end_with_2(tmp_path, capsys):
    student = run_folder(tmp_path / "student", "student")
    for args, said in (
        (("create", student, "--out", tmp_path / "s"), "two or more"),
        (("create", student, student, "--out", tmp_path / "s"), "named twice"),
        (("report", tmp_path / "none"), "holds no study"),
        (("serve", tmp_path / "none"), "holds no study"),
        (("create", student, tmp_path / "student/images", "--which", "x", "--out", tmp_path / "s"), "which='x'"),
    ):
        allaprima("study", *args, expect=2)
        assert said in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "s").exists()


def test_markup_in_prompts_and_missing_pictures_in_a_report(make_study, tmp_path):
    import sqlite3

    folder = make_study(4)
    store = voted(folder)
    with sqlite3.connect(folder / "study.db") as c:
        c.execute("UPDATE pair SET prompt = '<script>alert(1)</script>', method_a = '<b>x'")
    gone = store.votes()[0].files[0]
    (folder / "pictures" / gone).unlink()
    write_report(store, folder, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "<b>x" not in page and "&lt;script&gt;" in page
    assert "picture gone" in page
    store.close()


def test_flagged_votes_can_be_left_out_and_scores_are_held_against_votes(make_study, tmp_path):
    folder = make_study(8, counts=Counts(0, 0, 0))
    store = voted(folder)
    votes = store.votes()
    # A fourth person's quick votes never come in: all slots are taken. So make the first one quick.
    import sqlite3

    with sqlite3.connect(folder / "study.db") as c:
        c.execute("UPDATE vote SET seconds = CASE annotator_id WHEN 1 THEN 0.2 ELSE 6 END")
    scores = {(n, v.prompt): float(("thing 3" in v.prompt) == bool(i)) for v in votes for i, n in enumerate(v.files)}
    said = write_report(store, folder, tmp_path, drop_flagged=True, scores=scores)
    assert "1 of 3 annotators flagged" in said[-2] and "1.000" in said[-1]
    page = (tmp_path / "report.html").read_text()
    assert "16 votes of 2 people" in page and "left out" in page
    assert page.count("class=curve") == 1
    store.close()


def test_a_diversity_study_is_reported(make_study, tmp_path):
    folder = make_study(4, questions="diversity")
    store = open_study(folder)
    (token,) = store.invite(1)
    one = store.annotator(token)
    while (handed := store.next(one)) is not None:
        store.vote(one, handed.slot, dict.fromkeys(("angle", "background", "object", "style"), "different"), 5)
    write_report(store, folder, tmp_path)
    assert {(r["method"], r["different"]) for r in rows(tmp_path / "results.csv")} == {
        ("student", "1.0"),
        ("teacher", "1.0"),
    }
    store.close()
