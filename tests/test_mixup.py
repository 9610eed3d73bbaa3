"""MixUp and CutMix: targets say what the pixels hold, and nobody is mixed with himself."""

import pytest
import torch

from hiera_video.data.batch import Batch
from hiera_video.data.transforms.mixup import MixUpCutMix, pair_across_videos, smooth_labels
from hiera_video.errors import UserError

pytestmark = pytest.mark.numbers


def batch_of(video_ids, num_classes=10, labels=None):
    """Clips whose every pixel is the video's number, labelled with it."""
    ids = torch.tensor(video_ids)
    clips = ids.float().view(-1, 1, 1, 1, 1).expand(-1, 3, 2, 16, 16).clone()
    labels = ids % num_classes if labels is None else labels
    return Batch(clips, labels, ids, torch.arange(len(ids)))


def test_targets_are_the_shares_of_the_pixels():
    mixing = MixUpCutMix(num_classes=10, label_smoothing=0.0)
    kinds = set()
    for step in range(60):
        mixed = mixing(batch_of([1, 3, 5, 7]), seed=0, step=step)
        assert mixed.labels.dtype == torch.float32
        for clip, target, own in zip(mixed.clips, mixed.labels, mixed.video_ids, strict=True):
            # The mean pixel is the mean label: of MixUp's blend and of CutMix's areas alike.
            numbers = torch.arange(10.0)
            assert clip.mean() == pytest.approx((target * numbers).sum().item(), abs=1e-3)
            assert target.sum() == pytest.approx(1, abs=1e-5)
            assert (clip == clip[:1, :1]).all()  # the same box in every frame
            if own in (clip := clip[0, 0]).unique():
                kinds.add("cutmix" if len(clip.unique()) == 2 else "whole")
            elif len(clip.unique()) == 1:
                kinds.add("mixup")
    assert {"mixup", "cutmix"} <= kinds


def test_partners_are_other_videos_even_under_repeated_sampling():
    mixing = MixUpCutMix(num_classes=10, label_smoothing=0.0, cutmix_alpha=0.0)
    for ids in ([4, 4, 2, 2, 9, 9], [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], [5, 1, 5, 1], [3, 8]):
        mixed = mixing(batch_of(ids), seed=1, step=1)
        assert sorted(mixed.video_ids.tolist()) == sorted(ids)
        assert ((mixed.labels > 0).sum(1) == 2).all()


@pytest.mark.parametrize(
    ("ids", "own"),
    [([1, 1, 2, 2], 0), ([1, 1, 2, 2, 3, 3], 0), ([1, 2, 3], 1), ([1, 1, 1, 2], 2), ([7, 7], 2)],
)
def test_pairing(ids, own):
    order = pair_across_videos(torch.tensor(ids))
    assert sorted(order.tolist()) == list(range(len(ids)))
    paired = torch.tensor(ids)[order]
    assert (paired == paired.flip(0)).sum() == own


def test_it_is_a_function_of_seed_step_and_part_and_leaves_the_world_alone():
    mixing = MixUpCutMix(num_classes=10)
    batch = batch_of([1, 3, 5, 7])
    before = batch.clips.clone()
    state = torch.get_rng_state()
    first = mixing(batch, seed=3, step=5, part=1)
    torch.rand(3)
    again = mixing(batch, seed=3, step=5, part=1)
    assert torch.equal(first.clips, again.clips)
    assert torch.equal(first.labels, again.labels)
    assert torch.equal(batch.clips, before)
    others = [(4, 5, 1), (3, 6, 1), (3, 5, 0)]
    for seed, step, part in others:
        other = mixing(batch, seed=seed, step=step, part=part)
        assert not torch.equal(first.labels, other.labels)
    torch.set_rng_state(state)
    mixing(batch, seed=3, step=5)
    assert torch.equal(torch.get_rng_state(), state)


def test_views_and_ids_move_with_their_clips():
    mixed = MixUpCutMix(num_classes=10, prob=1.0)(batch_of([2, 2, 6, 6, 8, 8]), seed=0, step=0)
    original = batch_of([2, 2, 6, 6, 8, 8])
    for video, view in zip(mixed.video_ids.tolist(), mixed.views.tolist(), strict=True):
        assert original.video_ids[view] == video
    assert sorted(mixed.views.tolist()) == list(range(6))


def test_smoothing():
    expected = torch.tensor([[0.025, 0.025, 0.925, 0.025]])
    torch.testing.assert_close(smooth_labels(torch.tensor([2]), 4, 0.1), expected)
    assert torch.equal(
        smooth_labels(torch.tensor([[0.0, 1.0]]), 2, 0.0), torch.tensor([[0.0, 1.0]])
    )
    torch.testing.assert_close(
        smooth_labels(torch.tensor([[0.0, 1.0]]), 2, 0.1), torch.tensor([[0.05, 0.95]])
    )


def test_unmixed_batches_still_get_smoothed_targets():
    expected = smooth_labels(torch.tensor([1, 3, 5, 7]), 10, 0.1)
    for settings in ({"prob": 0.0}, {"mixup_alpha": 0.0, "cutmix_alpha": 0.0}):
        mixed = MixUpCutMix(num_classes=10, **settings)(batch_of([1, 3, 5, 7]), seed=0, step=0)
        assert torch.equal(mixed.labels, expected)
        assert torch.equal(mixed.clips, batch_of([1, 3, 5, 7]).clips)
    alone = MixUpCutMix(num_classes=10)(batch_of([4]), seed=0, step=0)
    assert torch.equal(alone.labels, smooth_labels(torch.tensor([4]), 10, 0.1))


def test_half_of_the_batches_are_mixed_at_probability_one_half():
    mixing = MixUpCutMix(num_classes=10, prob=0.5, label_smoothing=0.0)
    batch = batch_of([1, 3])
    mixed = [mixing(batch, seed=0, step=s).labels.max() < 1 for s in range(300)]
    assert 110 < sum(bool(m) for m in mixed) < 190


def test_several_labels_are_mixed_too():
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    mixing = MixUpCutMix(num_classes=3, cutmix_alpha=0.0, label_smoothing=0.0)
    mixed = mixing(batch_of([0, 1], labels=labels), seed=0, step=0)
    share = mixed.labels[0, 0].item()
    torch.testing.assert_close(mixed.labels[0], torch.tensor([share, share, 1 - share]))


@pytest.mark.parametrize(
    "settings",
    [{"prob": 2}, {"switch_prob": -1}, {"mixup_alpha": -1}, {"label_smoothing": 1.0}],
)
def test_wrong_settings_are_told(settings):
    with pytest.raises(UserError, match=next(iter(settings)).split("_")[0]):
        MixUpCutMix(num_classes=3, **settings)
