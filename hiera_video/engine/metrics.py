"""Scores of a whole data set from one row of scores per video. Pure functions, percentages out.

Ties never help a model: among equal scores the class with the lower index is ranked first, so a
model that answers the same for everything gets what it deserves, the same on every machine.
"""

from __future__ import annotations

import torch
from torch import Tensor


def true_class_rank(scores: Tensor, labels: Tensor) -> Tensor:
    """Rank of the true class in every row, 0 = first.

    scores: float [N, C]; labels: int64 [N]. Returns int64 [N].
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
    """Percentage of rows whose true class is among the `k` best; nan for no rows."""
    if len(labels) == 0:
        return float("nan")
    return 100.0 * (true_class_rank(scores, labels) < k).double().mean().item()


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts int64 [C, C]: rows are the true class, columns the predicted one."""
    flat = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def per_class_accuracy(confusion: Tensor) -> Tensor:
    """Recall of every class in percent, float64 [C]; nan for a class without a video."""
    return 100.0 * confusion.diagonal().double() / confusion.sum(dim=1).double()


def mean_class_accuracy(confusion: Tensor) -> float:
    """Mean recall over the classes that occur, percent: every class weighs the same."""
    return per_class_accuracy(confusion).nanmean().item()


def average_precision(scores: Tensor, positives: Tensor) -> float:
    """Area under the precision-recall steps of one class, in [0, 1]; nan without positives.

    scores: float [N]; positives: bool [N]. Equal scores form one threshold, so their order in
    the list does not matter (the definition scikit-learn uses).
    """
    total = int(positives.sum())
    if total == 0:
        return float("nan")
    order = torch.argsort(scores, descending=True, stable=True)
    scores, hits = scores[order].double(), positives[order].double()
    last_of_ties = torch.ones(len(scores), dtype=torch.bool)
    last_of_ties[:-1] = scores[1:] != scores[:-1]
    found = hits.cumsum(0)[last_of_ties]
    seen = torch.arange(1, len(scores) + 1, dtype=torch.float64)[last_of_ties]
    recall = torch.cat([torch.zeros(1, dtype=torch.float64), found / total])
    return float(((recall[1:] - recall[:-1]) * (found / seen)).sum())


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """Mean of `average_precision` over the classes with a positive, percent.

    scores: float [N, C]; targets: [N, C], above 0.5 where the class applies.
    """
    if not torch.isfinite(scores).all():
        raise ValueError("scores hold a value that is not finite")
    scores, positives = scores.cpu(), targets.cpu() > 0.5
    values = [average_precision(scores[:, c], positives[:, c]) for c in range(scores.shape[1])]
    return 100.0 * torch.tensor(values, dtype=torch.float64).nanmean().item()


def topk_correct(logits: Tensor, targets: Tensor, k: int) -> Tensor:
    """How many rows are right among the `k` best while training; a 0-d tensor, no host sync.

    targets: int64 [N], or float [N, C] after mixup. Mixed rows count as right when either of
    their two largest classes is found (SlowFast's reading of accuracy under mixup).
    """
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices  # [N, k]
    if targets.ndim == 1:
        return (best == targets[:, None]).any(dim=1).sum()
    value, wanted = targets.topk(min(2, targets.shape[1]), dim=1)
    # label smoothing gives every class a share: a second class only counts where it was mixed in
    floor = targets.amin(dim=1, keepdim=True)
    wanted = torch.where(value > floor, wanted, wanted[:, :1])
    return (best[:, :, None] == wanted[:, None, :]).any(dim=2).any(dim=1).sum()
