"""What a picture carries: our chunk (complete enough to paint it again) and A1111's `parameters`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from allaprima._version import __version__
from allaprima.cascade.policy import AlwaysPolicy, Policy, ThresholdPolicy, policy_to_dict
from allaprima.cascade.result import Result
from allaprima.data.images import a1111_parameters, png_bytes, to_pil

CHUNK = "allaprima"
"""Name of our text chunk in a PNG: JSON."""
RECORD_EXTRAS = ("nets", "condition", "placement")
"""ControlNets as they were named; the oracle's maps and their weight; how networks ran, where it wasn't as usual."""


def record(
    result: Result, card: str, mode: str, asked: str, fingerprints: Mapping[str, str], policy: Policy | None,
    extras: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything that made a picture; no times of day and no seconds, so equal runs give equal bytes.

    `policy`: None where mode and the picture's own threshold tell it, as a steered one's do. `extras`: what was put on the
    card's models, of `RECORD_EXTRAS`.
    """
    row = result.row()
    extra: dict[str, Any] = {} if asked == result.request.prompt else {"asked": asked}
    if policy is not None and not isinstance(policy, ThresholdPolicy | AlwaysPolicy):
        # Mode and this picture's own threshold tell those; any other must come along, or it can't be painted again.
        extra["policy"] = policy_to_dict(policy)
    return {
        **row,
        **extra,
        **(extras or {}),
        "card": card,
        "mode": mode,
        "settings": result.settings.to_dict(),
        "fingerprints": dict(fingerprints),
        "version": __version__,
    }


def chunks(account: dict[str, Any]) -> dict[str, str]:
    """Text chunks of a PNG."""
    s = account["settings"]
    fields: dict[str, str | int | float] = {
        "Steps": s["teacher_steps"] if account["decision"] != "accept" else s["student_steps"],
        "Sampler": s["teacher_solver"] if account["decision"] != "accept" else s["student_solver"],
        "CFG scale": s["teacher_guidance"],
        "Seed": account["seed"],
        "Size": f"{s['width']}x{s['height']}",
        "Model": f"allaprima/{account['card']}",
    }
    if account["score"] is not None:
        fields |= {"Score": round(account["score"], 4), "Decision": account["decision"]}
    text = a1111_parameters(account["prompt"], account["negative_prompt"], fields)
    return {"parameters": text, CHUNK: json.dumps(account, sort_keys=True)}


@dataclass(frozen=True)
class ImageRecord:
    """A result as the folder keeps it."""

    account: dict[str, Any]
    image: bytes | None
    """PNG with everything in it; None where there is no picture."""
    draft: bytes | None
    seconds: float
    """Of all networks."""


@dataclass(frozen=True)
class RecordWriter:
    """Makes a result ready for its folder; plain data, so that it can travel to where pictures are painted."""

    card: str
    mode: str
    fingerprints: dict[str, str]
    policy: Policy | None
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, result: Result, asked: str) -> ImageRecord:
        """`asked`: the prompt as it was given."""
        account = record(result, self.card, self.mode, asked, self.fingerprints, self.policy, self.extras)
        draft = None if result.draft is None or result.image is None else png_bytes(to_pil(result.draft), {})
        image = None if result.image is None else png_bytes(to_pil(result.image), chunks(account))
        return ImageRecord(account, image, draft, sum(result.cost.seconds.values()))
