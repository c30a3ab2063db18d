"""Any oracle (ImageReward, the bundled one, ...) as a metric: what it thinks of each picture for its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from allaprima.oracles.oracle import Oracle


class OracleScore:
    """Scorer. An oracle that steered the cascade flatters it: judge by another network than decided."""

    higher_is_better = True
    needs_prompts = True
    needs_references = False

    def __init__(self, oracle: Oracle) -> None:
        self.oracle, self.name = oracle, f"oracle ({oracle.name})"

    def protocol(self) -> dict[str, Any]:
        """Return the oracle's name and fingerprint."""
        return {
            "formula": "the oracle's score",
            "oracle": {"name": self.oracle.name, "fingerprint": self.oracle.fingerprint},
        }

    def score(self, images: Tensor, prompts: Sequence[str], references: Tensor | None = None) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] with prompts -> `(B,)`."""
        return self.oracle.score(images, prompts)
