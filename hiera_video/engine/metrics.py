"""Metrics of a data set from one row of class scores per video: pure functions, in percent.

Ties never help a model: among equal scores the class with the lower index is ranked first. A model
that gives every class the same score gets the accuracy of class 0, the same on every machine.
"""

from __future__ import annotations

import torch
from torch import Tensor


def true_class_rank(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the rank of the true class in every row, int64 [N]; 0 is the highest score.

    scores: float [N, C]; labels: int64 [N].
    ValueError where a score is not finite: NaN compares as "not greater" and would count as right.
    """
    if not torch.isfinite(scores).all():
        bad = int((~torch.isfinite(scores)).any(dim=1).sum())
        raise ValueError(f"{bad} of {len(scores)} rows of scores hold a value that is not finite")
    true = scores.gather(1, labels[:, None])  # [N, 1]
    index = torch.arange(scores.shape[1], device=scores.device)
    ahead = (scores > true) | ((scores == true) & (index < labels[:, None]))
    return ahead.sum(dim=1)


def topk_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Return the percentage of rows whose true class is among the `k` best; nan for no rows.

    scores: float [N, C]; labels: int64 [N].
    """
    if len(labels) == 0:
        return float("nan")
    return 100.0 * (true_class_rank(scores, labels) < k).double().mean().item()


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count int64 [C, C] videos: rows are the true class, columns the predicted one.

    predicted, labels: int64 [N].
    """
    flat = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def per_class_accuracy(confusion: Tensor) -> Tensor:
    """Return the recall of every class in percent, float64 [C]; nan for a class without a video."""
    return 100.0 * confusion.diagonal().double() / confusion.sum(dim=1).double()


def mean_class_accuracy(confusion: Tensor) -> float:
    """Return the mean recall, in percent, over the classes that have videos: all weigh the same."""
    return per_class_accuracy(confusion).nanmean().item()


def average_precision(scores: Tensor, positives: Tensor) -> float:
    """Return the average precision of one class, in [0, 1]; nan without positives.

    scores: float [N]; positives: bool [N]. The area under the steps of the precision-recall curve,
    as scikit-learn defines it: equal scores form one threshold, so their order does not matter.
    """
    total = int(positives.sum())
    if total == 0:
        return float("nan")
    order = torch.argsort(scores, descending=True, stable=True)
    scores, hits = scores[order].double(), positives[order].double()
    last_of_ties = torch.ones(len(scores), dtype=torch.bool)
    last_of_ties[:-1] = scores[1:] != scores[:-1]
    true_positives = hits.cumsum(0)[last_of_ties]
    predicted = torch.arange(1, len(scores) + 1, dtype=torch.float64)[last_of_ties]
    recall = torch.cat([torch.zeros(1, dtype=torch.float64), true_positives / total])
    return float(((recall[1:] - recall[:-1]) * (true_positives / predicted)).sum())


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """Return the mean of `average_precision`, in percent, over the classes with a positive.

    scores: float [N, C]; targets: [N, C], above 0.5 where the class applies.
    """
    if not torch.isfinite(scores).all():
        raise ValueError("scores hold a value that is not finite")
    scores, positives = scores.cpu(), targets.cpu() > 0.5
    values = [average_precision(scores[:, c], positives[:, c]) for c in range(scores.shape[1])]
    return 100.0 * torch.tensor(values, dtype=torch.float64).nanmean().item()


def topk_correct(logits: Tensor, targets: Tensor, k: int) -> Tensor:
    """Count the rows whose target is among the `k` best; a 0-d tensor, without a host sync.

    logits: float [N, C]; targets: int64 [N], or float [N, C] after mixup. As in SlowFast, a mixed
    row counts as right when either of its two largest classes is among the `k` best.
    """
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices  # [N, k]
    if targets.ndim == 1:
        return (best == targets[:, None]).any(dim=1).sum()
    share, mixed = targets.topk(min(2, targets.shape[1]), dim=1)
    # Label smoothing gives every class a share: the second class counts only if it was mixed in.
    floor = targets.amin(dim=1, keepdim=True)
    mixed = torch.where(share > floor, mixed, mixed[:, :1])
    return (best[:, :, None] == mixed[:, None, :]).any(dim=2).any(dim=1).sum()
