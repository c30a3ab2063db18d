"""The judge: a dual encoder that says how well a picture fits a caption. It evaluates and never decides.

The bundled oracle is a dual encoder too, but another one: narrower, with its own initialisation and its own order of the
training pictures. What the oracle has learnt by chance the judge has not, so that a cascade steered by one and measured by
the other can't flatter itself with it. What both have learnt alike, from the same real pictures, it can: that is why the
Frechet distance, on features of another network again, is always reported beside the judge.
"""

from __future__ import annotations

from allaprima.oracles.dual_encoder import DualEncoder


class RewardJudge(DualEncoder):
    """A dual encoder by its office; bundled by `allaprima.bundled.emoji.judge`."""
