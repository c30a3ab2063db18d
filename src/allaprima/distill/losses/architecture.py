"""Architecture-based students (arXiv 2305.15798, equation 5; arXiv 2312.10835, appendix B.2): a smaller network, same task.

`L = L_task + lambda_out || eps_S - eps_T ||^2 + lambda_feat sum_l || h_S^l - h_T^l ||^2`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.core.types import Samples


@dataclass(frozen=True)
class ArchitectureLoss:
    """The loss and its three terms, before their weights; all scalars."""

    total: Tensor
    task: Tensor
    output: Tensor
    features: Tensor


def architecture_loss(
    student: Samples,
    teacher: Samples,
    target: Samples,
    student_features: Mapping[str, Float[Tensor, " b *_"]],
    teacher_features: Mapping[str, Float[Tensor, " b *_"]],
    lambda_out: float = 1.0,
    lambda_feat: float = 1.0,
) -> ArchitectureLoss:
    """Each norm is a mean over elements and batch, as in the paper's training; no gradient reaches the teacher.

    Args:
        student: what the student predicts, `(B, ...)`.
        teacher: what the teacher predicts at the same `x_t`, t and condition, `(B, ...)`.
        target: what they were asked for (eps, or v), `(B, ...)`.
        student_features: the outputs of each remaining stage by name.
        teacher_features: the teacher's. Names and shapes must agree, which they do when blocks are removed and widths are
            kept.
        lambda_out: weight of the distance of predictions.
        lambda_feat: weight of the distance of features.

    Raises `SettingError` for features that don't pair up.
    """
    if student_features.keys() != teacher_features.keys():
        raise SettingError(
            f"student features {sorted(student_features)} and teacher features {sorted(teacher_features)}: name the same"
            " stages, those that are left in the student."
        )
    for name, h in student_features.items():
        if h.shape != teacher_features[name].shape:
            raise SettingError(
                f"stage {name!r} gives {tuple(h.shape)} in the student and {tuple(teacher_features[name].shape)} in the"
                " teacher: compare stages of the same shape."
            )
    task = F.mse_loss(student, target)
    output = F.mse_loss(student, teacher.detach())
    features = torch.zeros_like(task)
    for name, h in student_features.items():
        features = features + F.mse_loss(h, teacher_features[name].detach())
    return ArchitectureLoss(task + lambda_out * output + lambda_feat * features, task, output, features)
