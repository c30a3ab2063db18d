"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "study", sa.Column("id", sa.Integer, primary_key=True), sa.Column("about", sa.JSON, nullable=False)
    )  # fmt: skip
    op.create_table(
        "pair",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False, index=True),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger),
        *(sa.Column(name, sa.String(200), nullable=False) for name in ("method_a", "method_b", "file_a", "file_b")),
        sa.Column("expected", sa.JSON, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("distance", sa.Float),
        sa.Column("band", sa.Integer),
    )
    op.create_table(
        "annotator",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("token_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("revoked", sa.Integer, nullable=False),
        sa.Column("joined_at", sa.Float),
    )
    op.create_table(
        "slot",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("public", sa.String(32), nullable=False, unique=True),
        sa.Column("pair_id", sa.Integer, sa.ForeignKey("pair.id"), nullable=False, index=True),
        sa.Column("left", sa.String(1), nullable=False),
        sa.Column("annotator_id", sa.Integer, sa.ForeignKey("annotator.id"), index=True),
        sa.Column("handed_at", sa.Float),
        sa.Column("leased_until", sa.Float),
        sa.Column("done", sa.Integer, nullable=False, index=True),
        sa.UniqueConstraint("pair_id", "annotator_id", name="one_slot_a_pair_and_annotator"),
    )
    op.create_table(
        "vote",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("slot_id", sa.Integer, sa.ForeignKey("slot.id"), nullable=False, unique=True),
        sa.Column("annotator_id", sa.Integer, sa.ForeignKey("annotator.id"), nullable=False, index=True),
        sa.Column("answers", sa.JSON, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )


def downgrade() -> None:
    """Drop them: all votes are gone."""
    for name in ("vote", "slot", "annotator", "pair", "study"):
        op.drop_table(name)
