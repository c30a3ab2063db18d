"""Voters with a known preference."""

import numpy as np

from allaprima.study.votes import Vote

QUESTIONS = ("alignment", "quality", "aesthetics", "overall")


def vote(pair, annotator, answer, left="a", prompt=None, seconds=8.0, kind="study", expected=None, band=None,
         methods=("student", "teacher")):  # fmt: skip
    answers = dict.fromkeys(QUESTIONS, answer)
    name = prompt or f"prompt {pair}"
    return Vote(annotator, pair, kind, name, 0, methods, (f"{pair}a.png", f"{pair}b.png"), band, None, left, answers,
                expected or {}, seconds, "2026-01-01T00:00:00+00:00")  # fmt: skip


def study_votes(rng, p=0.6, pairs=60, voters=3, ties=0.1, noise=0.2, careless=()):
    """Each pair has a true better side (a with probability p); voters see it with probability 1 - noise, or tie.

    `careless`: numbers of voters who answer by a coin.
    """
    truth = np.where(rng.random(pairs) < p, "a", "b")
    made = []
    for i in range(pairs):
        for n in range(1, voters + 1):
            left = "ab"[(i + n) % 2]
            if n in careless:
                answer = "ab"[rng.integers(2)]
            elif rng.random() < ties:
                answer = "tie"
            else:
                right = rng.random() >= noise
                answer = truth[i] if right else ("b" if truth[i] == "a" else "a")
            made.append(vote(i + 1, n, str(answer), left))
    return made
