"""The tables, as the newest migration leaves them (`migrations/versions`)."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Of all tables."""


class StudyRow(Base):
    """One row: what the study is."""

    __tablename__ = "study"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    about: Mapped[dict[str, Any]] = mapped_column(JSON)


class PairRow(Base):
    """Two pictures."""

    __tablename__ = "pair"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), index=True)
    prompt: Mapped[str] = mapped_column(Text)
    seed: Mapped[int | None] = mapped_column(BigInteger)
    method_a: Mapped[str] = mapped_column(String(200))
    method_b: Mapped[str] = mapped_column(String(200))
    file_a: Mapped[str] = mapped_column(String(200))
    file_b: Mapped[str] = mapped_column(String(200))
    expected: Mapped[dict[str, str]] = mapped_column(JSON)
    why: Mapped[str] = mapped_column(Text)
    distance: Mapped[float | None] = mapped_column(Float)
    band: Mapped[int | None] = mapped_column(Integer)


class AnnotatorRow(Base):
    """Somebody who was invited: a number and the hash of a token, nothing of the person."""

    __tablename__ = "annotator"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    revoked: Mapped[int] = mapped_column(Integer, default=0)
    joined_at: Mapped[float | None] = mapped_column(Float)


class SlotRow(Base):
    """A vote that is wanted. Of known pairs each annotator has slots of their own; the study's are handed out by lease."""

    __tablename__ = "slot"
    __table_args__ = (UniqueConstraint("pair_id", "annotator_id", name="one_slot_a_pair_and_annotator"),)
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    public: Mapped[str] = mapped_column(String(32), unique=True)
    pair_id: Mapped[int] = mapped_column(ForeignKey("pair.id"), index=True)
    left: Mapped[str] = mapped_column(String(1))
    annotator_id: Mapped[int | None] = mapped_column(ForeignKey("annotator.id"), index=True)
    handed_at: Mapped[float | None] = mapped_column(Float)
    leased_until: Mapped[float | None] = mapped_column(Float)
    done: Mapped[int] = mapped_column(Integer, default=0, index=True)


class VoteRow(Base):
    """One a slot, for good."""

    __tablename__ = "vote"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    slot_id: Mapped[int] = mapped_column(ForeignKey("slot.id"), unique=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotator.id"), index=True)
    answers: Mapped[dict[str, str]] = mapped_column(JSON)
    seconds: Mapped[float] = mapped_column(Float)
    at: Mapped[float] = mapped_column(Float)
