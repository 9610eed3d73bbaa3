"""Scores of a data set, against numbers worked out by hand and a direct definition."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hiera_video.engine import metrics


def test_ranks_and_top_k():
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    labels = torch.tensor([1, 1, 0])
    assert metrics.true_class_rank(scores, labels).tolist() == [0, 1, 2]
    assert metrics.topk_accuracy(scores, labels, 1) == pytest.approx(100 / 3)
    assert metrics.topk_accuracy(scores, labels, 2) == pytest.approx(200 / 3)
    assert metrics.topk_accuracy(scores, labels, 5) == 100


def test_a_constant_model_gains_nothing_from_ties():
    scores = torch.full((4, 4), 0.25)
    assert metrics.topk_accuracy(scores, torch.arange(4), 1) == 25


def test_scores_that_are_not_finite_are_an_error_and_not_a_hit():
    scores = torch.tensor([[float("nan")] * 3])
    with pytest.raises(ValueError, match="1 of 1 rows"):
        metrics.topk_accuracy(scores, torch.tensor([0]), 1)


def test_no_rows_give_nan():
    assert math.isnan(metrics.topk_accuracy(torch.zeros(0, 3), torch.zeros(0).long(), 1))


def test_confusion_and_class_means():
    labels = torch.tensor([0, 0, 0, 1, 3])
    predicted = torch.tensor([0, 0, 1, 1, 0])
    confusion = metrics.confusion_matrix(predicted, labels, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    recall = metrics.per_class_accuracy(confusion)
    assert recall[0].item() == pytest.approx(200 / 3)
    assert torch.isnan(recall[2])  # a class without a video has no accuracy
    assert metrics.mean_class_accuracy(confusion) == pytest.approx((200 / 3 + 100 + 0) / 3)


def test_average_precision_by_hand():
    # ranked: hit, miss, hit -> (1/1 + 2/3) / 2
    ap = metrics.average_precision(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True]))
    assert ap == pytest.approx((1 + 2 / 3) / 2)
    # all equal: one threshold, precision is the base rate, wherever the positive stands
    for place in range(4):
        positives = torch.arange(4) == place
        assert metrics.average_precision(torch.zeros(4), positives) == pytest.approx(0.25)
    assert math.isnan(metrics.average_precision(torch.zeros(2), torch.zeros(2).bool()))


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12).filter(
        lambda rows: any(hit for _, hit in rows)
    )
)
def test_average_precision_is_the_sum_over_thresholds(rows):
    scores = torch.tensor([float(s) for s, _ in rows])
    hits = torch.tensor([h for _, h in rows])
    expected, recall = 0.0, 0.0
    for threshold in sorted({s for s, _ in rows}, reverse=True):
        chosen = scores >= threshold
        precision = (hits & chosen).sum().item() / chosen.sum().item()
        reached = (hits & chosen).sum().item() / hits.sum().item()
        expected += (reached - recall) * precision
        recall = reached
    assert metrics.average_precision(scores, hits) == pytest.approx(expected)


def test_mean_average_precision_skips_classes_without_positives():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.1, 0.9, 0.5]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert metrics.mean_average_precision(scores, targets) == 100


def test_training_accuracy_under_mixup_accepts_either_class_but_no_other():
    logits = torch.tensor([[0.0, 9.0, 0.0], [0.0, 9.0, 0.0], [9.0, 0.0, 0.0]])
    mixed = torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.0, 0.4], [0.0, 0.6, 0.4]])
    assert metrics.topk_correct(logits, mixed, 1).item() == 1
    assert metrics.topk_correct(logits, torch.tensor([1, 1, 1]), 1).item() == 2
    # label smoothing alone must not turn a second class into a right answer
    smooth = torch.tensor([[0.9, 0.05, 0.05]])
    assert metrics.topk_correct(logits[:1], smooth, 1).item() == 0
