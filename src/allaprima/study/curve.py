"""Scores against votes, as a picture: the fitted logistic, and the rising curve that needs no form."""

from __future__ import annotations

import io

import numpy as np
from scipy.special import expit

from allaprima.study.win_probability import Calibrated


def draw(c: Calibrated) -> bytes:
    """Probability that people prefer the first picture, over the difference of scores. PNG.

    Where the two curves part, the logistic's form is wrong there; both are symmetric, since either picture may be the first.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4))
    reach = max(map(abs, c.gaps)) or 1.0
    x = np.linspace(-reach, reach, 201)
    axis.step(c.gaps, c.fitted, where="mid", color="#2a6fb0", label="votes, rising fit (isotonic)")
    axis.plot(x, expit(c.slope * x), color="#d04a2a", label=f"logistic, slope {c.slope:.3g}")
    axis.axhline(0.5, color="grey", ls="--", lw=1)
    axis.set(xlabel="E(first) - E(second)", ylabel="P(first preferred)", ylim=(-0.02, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()
