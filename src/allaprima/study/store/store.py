"""A study's pairs, invitations, leases and votes.

A slot of the study is handed to one annotator at a time, for a lease; a lease that ran out is handed on only when somebody
else asks. A vote on a slot is written once: sent again (a double click, a second tab, a lost answer) it is answered with the
vote that is there. Nobody is asked twice about a pair.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import and_, exists, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from allaprima.core.errors import SettingError
from allaprima.study.design import KNOWN, ImagePair, Kind, Rules, Side, VoteSlot
from allaprima.study.questions import QuestionSet, question_set
from allaprima.study.store.database import Database
from allaprima.study.store.tables import AnnotatorRow, PairRow, SlotRow, StudyRow, VoteRow
from allaprima.study.votes import AnnotatorProgress, AssignedPair, StoredVote, StudyError, Vote

TOKEN_BYTES = 18
"""144 bits: nobody guesses one."""
LONGEST = 24 * 3600.0
"""Seconds of a vote that are believed."""
WAITING = "waiting"
STATES = {"training": "training", "qualification": "qualification"}
"""An annotator's state while a pair of this kind is asked; of all others, `voting`."""


Ballot = Mapping[str, Any] | Callable[[AssignedPair], Mapping[str, Any]]


def hash_of(token: str) -> str:
    """Return what is kept of a token. Tokens are random and long, so no slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


class StudyStore:
    """Of one study in one database. Every method is one transaction; threads may share it."""

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        """Brings the tables up to date. Raises `SettingError` or `StudyError`."""
        self.database, self._clock = Database(url), clock
        self.database.migrate()
        self._about: dict[str, Any] | None = None
        self._of_study: int | None = None

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    # What the study is.

    def fill(
        self, about: Mapping[str, Any], pairs: Sequence[tuple[ImagePair, tuple[str, str]]], slots: Sequence[VoteSlot]
    ) -> None:
        """Make it the store of a study: pairs with their files' names. Raises `StudyError` if one is there already."""
        with self.database.writing() as s:
            if s.get(StudyRow, 1) is not None:
                raise StudyError("exists", "this database holds a study already: choose another --out or --database.")
            s.add(StudyRow(id=1, about=dict(about)))
            for number, (p, files) in enumerate(pairs, 1):
                s.add(_pair_row(number, p, files))
            s.flush()
            for slot in slots:
                s.add(SlotRow(public=_public(), pair_id=slot.pair + 1, left=slot.left, done=0))

    @property
    def about(self) -> dict[str, Any]:
        """What `fill` was told. Raises `StudyError` where there is no study."""
        if self._about is None:
            with self.database.reading() as s:
                row = s.get(StudyRow, 1)
            if row is None:
                raise StudyError("no_study", "this database holds no study: allaprima study create makes one.")
            self._about = row.about
        return self._about

    @property
    def questions(self) -> QuestionSet:
        """What is asked."""
        return question_set(str(self.about["questions"]))

    @property
    def rules(self) -> Rules:
        """How it runs."""
        return Rules(**self.about["rules"])

    def files(self) -> list[str]:
        """Every picture that may be shown."""
        with self.database.reading() as s:
            rows = s.execute(select(PairRow.file_a, PairRow.file_b)).all()
        return sorted({str(name) for row in rows for name in row})

    # Who may vote.

    def invite(self, count: int) -> list[str]:
        """Return new tokens; only their hashes are kept, so this is the one time that they can be read."""
        if not 1 <= count <= 10_000:
            raise SettingError(f"annotators={count}: 1 to 10000 at a time.")
        tokens = [secrets.token_urlsafe(TOKEN_BYTES) for _ in range(count)]
        with self.database.writing() as s:
            s.add_all(AnnotatorRow(token_hash=hash_of(t), revoked=0) for t in tokens)
        return tokens

    def revoke(self, number: int) -> None:
        """Let an annotator vote no more; what they voted stays. Raises `StudyError` for a number that isn't there."""
        with self.database.writing() as s:
            row = s.get(AnnotatorRow, number)
            if row is None:
                raise StudyError("unknown_annotator", f"annotator {number} was never invited here.")
            row.revoked = 1

    def annotator(self, token: str) -> int:
        """Whose token it is; at the first time they get their own slots of known pairs. Raises `StudyError`."""
        wanted = select(AnnotatorRow.id, AnnotatorRow.revoked, AnnotatorRow.joined_at)
        with self.database.reading() as s:
            row = s.execute(wanted.where(AnnotatorRow.token_hash == hash_of(token))).first()
        if row is None:
            raise StudyError("unknown_token", "this invitation is not known here: open the link you were given.")
        number, revoked, joined = row
        if revoked:
            raise StudyError("revoked", "this invitation was taken back: ask whoever sent it.")
        if joined is None:
            self._join(number)
        return number

    def _join(self, number: int) -> None:
        with self.database.writing() as s:
            self._turn(s, number)
            row = s.get(AnnotatorRow, number)
            if row is None or row.joined_at is not None:  # another tab was first
                return
            row.joined_at = self._clock()
            known = s.execute(select(PairRow.id, PairRow.kind).where(PairRow.kind != "study").order_by(PairRow.id)).all()
            draw = random.Random(f"{self.about['seed']}:{number}")
            for kind in KNOWN:
                mine = [int(i) for i, k in known if k == kind]
                draw.shuffle(mine)
                for i in mine:
                    left = draw.choice("ab")
                    s.add(SlotRow(public=_public(), pair_id=i, left=left, annotator_id=number, done=0))
                s.flush()

    def _turn(self, s: Session, annotator: int) -> None:
        """Tabs of one annotator take turns. Writers lock an annotator first, then a slot: none wait in a circle."""
        if self.database.locks_rows:  # Not `FOR UPDATE`: a vote's foreign key would wait for that.
            row = select(AnnotatorRow.id).where(AnnotatorRow.id == annotator)
            s.execute(row.with_for_update(key_share=True))

    # What is asked next.

    def next(self, annotator: int, stopped: bool = False, missing: frozenset[str] = frozenset()) -> AssignedPair | None:
        """Return the pair to ask about, the same one until it is voted on; None if there is none now (`progress` says why).

        `stopped`: hand out none of the study's. `missing`: files that aren't there; pairs with one of them are left out.
        """
        return self.ask(annotator, stopped, missing)[0]

    def ask(
        self, annotator: int, stopped: bool = False, missing: frozenset[str] = frozenset()
    ) -> tuple[AssignedPair | None, AnnotatorProgress]:
        """`next`, and `progress` as it is then, in one transaction."""
        with self.database.writing() as s:
            self._turn(s, annotator)
            tally = _tally(s, annotator)
            handed = self._choose(s, annotator, tally, stopped, missing)
            state = STATES.get(handed.kind, "voting") if handed else self._state(s, annotator, tally, stopped)
            return handed, self._progress(s, tally, state)

    def _choose(
        self, s: Session, annotator: int, tally: _Tally, stopped: bool, missing: frozenset[str]
    ) -> AssignedPair | None:
        for kind in ("training", "qualification"):
            if tally.open(kind):
                found = self._own(s, annotator, kind, missing)
                if found is not None:
                    return found
        if self._failed(s, annotator, tally) or stopped:
            return None
        every = self.rules.gold_every
        if every and tally.done.get("study", 0) >= every * (tally.done.get("gold", 0) + 1):
            found = self._own(s, annotator, "gold", missing)
            if found is not None:
                return found
        return self._lease(s, annotator, missing)

    def _own(self, s: Session, annotator: int, kind: Kind, missing: frozenset[str]) -> AssignedPair | None:
        mine = and_(SlotRow.annotator_id == annotator, SlotRow.done == 0, PairRow.kind == kind)
        query = select(SlotRow, PairRow).join(PairRow, SlotRow.pair_id == PairRow.id).where(mine, *_shown(missing))
        row = s.execute(query.order_by(SlotRow.id).limit(1)).first()
        return None if row is None else self._assign(row[0], row[1], annotator)

    def _lease(self, s: Session, annotator: int, missing: frozenset[str]) -> AssignedPair | None:
        """Return the annotator's own lease, else one that ran out (early stopping counts pairs up to a gap), else a new
        one."""
        other = aliased(SlotRow)
        seen = select(other.pair_id).where(other.annotator_id == annotator)
        of_study = exists().where(PairRow.id == SlotRow.pair_id, PairRow.kind == "study", *_shown(missing))
        # Three small questions: as one, joined with the pairs, this was the slowest of all that a vote takes on Postgres.
        never = and_(SlotRow.annotator_id.is_(None), SlotRow.pair_id.not_in(seen), *([of_study] if missing else []))
        late = and_(SlotRow.leased_until < self._clock(), SlotRow.pair_id.not_in(seen), of_study)
        for which, waits in ((and_(SlotRow.annotator_id == annotator, of_study), True), (late, False), (never, False)):
            query = select(SlotRow).where(SlotRow.done == 0, which).order_by(SlotRow.id).limit(1)
            if self.database.locks_rows:
                query = query.with_for_update(of=SlotRow, key_share=True, skip_locked=not waits)
            slot = s.scalars(query).first()
            if slot is not None:
                return self._assign(slot, s.get_one(PairRow, slot.pair_id), annotator)
        return None

    def _assign(self, slot: SlotRow, pair: PairRow, annotator: int) -> AssignedPair:
        now = self._clock()
        if slot.annotator_id != annotator or slot.handed_at is None:
            slot.handed_at = now
        slot.annotator_id, slot.leased_until = annotator, now + 60 * self.rules.lease_minutes
        return _handed(slot, pair)

    def give_back(self, annotator: int, public: str) -> None:
        """Release a pair that can't be judged (a picture is gone) is free for others; a vote or a known pair stays as it
        is."""
        with self.database.writing() as s:
            self._turn(s, annotator)
            slot, pair = self._slot(s, annotator, public, lock=True)
            if not slot.done and pair.kind == "study":
                slot.annotator_id = slot.leased_until = slot.handed_at = None

    def handed(self, annotator: int, public: str) -> AssignedPair:
        """Return a slot that was handed to this annotator, for its pictures. Raises `StudyError` for others'."""
        with self.database.reading() as s:
            return _handed(*self._slot(s, annotator, public))

    def _slot(self, s: Session, annotator: int, public: str, lock: bool = False) -> tuple[SlotRow, PairRow]:
        query = select(SlotRow, PairRow).join(PairRow, SlotRow.pair_id == PairRow.id).where(SlotRow.public == public)
        locked = lock and self.database.locks_rows
        row = s.execute(query.with_for_update(of=SlotRow, key_share=True) if locked else query).first()
        if row is None or row[0].annotator_id is None or row[0].handed_at is None:
            raise StudyError("not_yours", "this pair is not yours to judge: reload the page for the one that is.")
        slot, pair = row
        if slot.annotator_id != annotator:
            raise StudyError("not_yours", "this pair is not, or no longer, yours: reload the page for the one that is.")
        return slot, pair

    # Votes.

    def vote(self, annotator: int, public: str, answers: Ballot, seconds: float) -> StoredVote:
        """Keep a vote; when this returns it is on the disk. The first vote on a slot counts, later ones change nothing.

        `answers` are by method, `a` and `b`, or a function that makes them so of the pair as it was handed. Raises
        `StudyError` (`not_yours`) for a slot that others have, `SettingError` for answers that aren't possible.
        """
        try:
            return self._vote(annotator, public, answers, seconds)
        except IntegrityError:  # Only where rows can't be locked: the other one was first, so now it is found.
            return self._vote(annotator, public, answers, seconds)

    def _vote(self, annotator: int, public: str, answers: Ballot, seconds: float) -> StoredVote:
        with self.database.writing() as s:
            # The slot is locked, not the annotator: its vote is the one thing that two tabs could write twice.
            slot, pair = self._slot(s, annotator, public, lock=True)
            kind = cast(Kind, pair.kind)
            checked = self.questions.check(answers(_handed(slot, pair)) if callable(answers) else answers)
            if slot.done:
                there = s.scalars(select(VoteRow).where(VoteRow.slot_id == slot.id)).one()
                return _stored_vote(False, there.answers, kind, pair)
            now = self._clock()
            most = min(LONGEST, max(0.0, now - (slot.handed_at or now)))
            took = min(max(0.0, seconds), most) if seconds == seconds else most
            s.add(VoteRow(slot_id=slot.id, annotator_id=annotator, answers=checked, seconds=took, at=now))
            slot.done, slot.leased_until = 1, None
        return _stored_vote(True, checked, kind, pair)

    def progress(self, annotator: int, stopped: bool = False) -> AnnotatorProgress:
        """Where this annotator is."""
        with self.database.reading() as s:
            tally = _tally(s, annotator)
            return self._progress(s, tally, self._state(s, annotator, tally, stopped))

    def _progress(self, s: Session, tally: _Tally, state: str) -> AnnotatorProgress:
        if self._of_study is None:  # a study's pairs stay as they were made
            self._of_study = s.scalar(select(func.count()).select_from(PairRow).where(PairRow.kind == "study")) or 0
        every, of_study = self.rules.gold_every, self._of_study
        votes = tally.done.get("study", 0) + tally.done.get("gold", 0)
        checks = min(sum(tally.all.get("gold", [0])), of_study // every if every else 0)
        return AnnotatorProgress(state, votes, of_study + checks, tally.open("training"), tally.open("qualification"))

    def _state(self, s: Session, annotator: int, tally: _Tally, stopped: bool) -> str:
        """No more is asked of the database than it takes."""
        if tally.open("training"):
            return "training"
        if tally.open("qualification"):
            return "qualification"
        if self._failed(s, annotator, tally):
            return "failed"
        if stopped:
            return "stopped"
        other = aliased(SlotRow)
        mine = exists().where(other.pair_id == SlotRow.pair_id, other.annotator_id == annotator)
        study = select(SlotRow.id).join(PairRow, SlotRow.pair_id == PairRow.id).where(PairRow.kind == "study")
        unfinished = study.where(SlotRow.done == 0)
        free = or_(SlotRow.annotator_id.is_(None), SlotRow.leased_until < self._clock())
        for some in (SlotRow.annotator_id == annotator, and_(~mine, free)):
            if s.execute(unfinished.where(some).limit(1)).first() is not None:
                return "voting"
        return "done" if s.execute(unfinished.where(~mine).limit(1)).first() is None else WAITING

    def _failed(self, s: Session, annotator: int, tally: _Tally) -> bool:
        """Whether too few of the qualification's answers were right; asked when all of them were given."""
        if not tally.done.get("qualification"):
            return False
        query = select(VoteRow.answers, PairRow.expected).join(SlotRow, VoteRow.slot_id == SlotRow.id)
        query = query.join(PairRow, SlotRow.pair_id == PairRow.id)
        rows = s.execute(query.where(PairRow.kind == "qualification", VoteRow.annotator_id == annotator)).all()
        right = [answers.get(q) == e for answers, expected in rows for q, e in expected.items()]
        return bool(right) and sum(right) < self.rules.pass_share * len(right)

    def votes(self, kinds: Sequence[Kind] = ("study",)) -> list[Vote]:
        """All votes on pairs of these kinds, in the order of pairs, then of slots."""
        query = select(VoteRow, SlotRow, PairRow).join(SlotRow, VoteRow.slot_id == SlotRow.id)
        query = query.join(PairRow, SlotRow.pair_id == PairRow.id).where(PairRow.kind.in_(list(kinds)))
        with self.database.reading() as s:
            return [_vote_of(v, slot, pair) for v, slot, pair in s.execute(query.order_by(PairRow.id, SlotRow.id)).all()]

    def counts(self) -> dict[str, int]:
        """`pairs`, `slots`, `votes` of the study itself; `annotators` who joined, `invited`."""
        with self.database.reading() as s:

            def count(query: Any) -> int:
                return int(s.scalar(query) or 0)

            slots = select(func.count()).select_from(SlotRow).join(PairRow, SlotRow.pair_id == PairRow.id)
            slots = slots.where(PairRow.kind == "study")
            return {
                "pairs": count(select(func.count()).select_from(PairRow).where(PairRow.kind == "study")),
                "slots": count(slots),
                "votes": count(slots.where(SlotRow.done == 1)),
                "annotators": count(
                    select(func.count()).select_from(AnnotatorRow).where(AnnotatorRow.joined_at.is_not(None))
                ),
                "invited": count(select(func.count()).select_from(AnnotatorRow)),
            }


class _Tally:
    """One annotator's slots by kind."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.all: dict[str, list[int]] = {}
        self.done: dict[str, int] = {}
        for kind, done, count in rows:
            self.all.setdefault(str(kind), []).append(int(count))
            if done:
                self.done[str(kind)] = int(count)

    def open(self, kind: str) -> int:
        return sum(self.all.get(kind, [])) - self.done.get(kind, 0)


def _tally(s: Session, annotator: int) -> _Tally:
    query = select(PairRow.kind, SlotRow.done, func.count()).join(PairRow, SlotRow.pair_id == PairRow.id)
    return _Tally(s.execute(query.where(SlotRow.annotator_id == annotator).group_by(PairRow.kind, SlotRow.done)).all())


def _public() -> str:
    return secrets.token_urlsafe(12)


def _shown(missing: frozenset[str]) -> list[Any]:
    if not missing:
        return []
    return [PairRow.file_a.not_in(list(missing)), PairRow.file_b.not_in(list(missing))]


def _handed(slot: SlotRow, pair: PairRow) -> AssignedPair:
    files = (pair.file_a, pair.file_b) if slot.left == "a" else (pair.file_b, pair.file_a)
    return AssignedPair(slot.public, cast(Kind, pair.kind), pair.prompt, cast(Side, slot.left), files)


def _stored_vote(first: bool, answers: Mapping[str, str], kind: Kind, pair: PairRow) -> StoredVote:
    teaches = kind == "training"
    return StoredVote(first, answers, kind, pair.expected if teaches else {}, pair.why if teaches else "")


def _pair_row(number: int, p: ImagePair, files: tuple[str, str]) -> PairRow:
    return PairRow(
        id=number, kind=p.kind, prompt=p.prompt, seed=p.seed, method_a=p.methods[0], method_b=p.methods[1],
        file_a=files[0], file_b=files[1], expected=dict(p.expected), why=p.why, distance=p.distance, band=p.band,
    )  # fmt: skip


def _vote_of(v: VoteRow, slot: SlotRow, pair: PairRow) -> Vote:
    return Vote(
        v.annotator_id, pair.id, cast(Kind, pair.kind), pair.prompt, pair.seed, (pair.method_a, pair.method_b),
        (pair.file_a, pair.file_b), pair.band, pair.distance, cast(Side, slot.left), v.answers, pair.expected, v.seconds,
        datetime.fromtimestamp(v.at, UTC).isoformat(timespec="milliseconds"),
    )  # fmt: skip
