"""A flipped camera-motion clip has the label that an independent eye sees."""

import pytest
import torch
from motion_eye import camera_seen

from hiera_video.data.batch import Batch
from hiera_video.data.synthetic import camera_motion as synthetic
from hiera_video.data.synthetic.camera_motion import LABELS
from hiera_video.data.transforms.flips import LABEL_SWAPS, LabelAwareFlips, apply_flip
from hiera_video.errors import UserError


def batch_of(labels, repeats=1):
    clips = [synthetic.render_clip(LABELS[n], 40 + n, frames=8, size=48, fps=5) for n in labels]
    ids = torch.arange(len(labels)).repeat_interleave(repeats)
    return Batch(
        clips=torch.stack(clips).transpose(1, 2).float()[ids],
        labels=torch.tensor(labels)[ids],
        video_ids=ids,
        views=torch.arange(len(ids)) % repeats,
    )


@pytest.mark.parametrize("flip", LABEL_SWAPS)
@pytest.mark.parametrize("label", LABELS)
def test_the_new_label_is_what_is_seen(label, flip):
    seeds = [s for s in range(3, 120, 17) if seen_of(label, s) == label][:4]
    assert len(seeds) == 4
    becomes = LABELS[LabelAwareFlips(LABELS).new_labels[flip][LABELS.index(label)]]
    seen = [seen_of(label, seed, flip) for seed in seeds]
    assert seen.count(becomes) >= 3, (becomes, seen)


def seen_of(label, seed, flip=None):
    clip = synthetic.render_clip(label, seed, plain=True).transpose(0, 1)
    return camera_seen((apply_flip(clip, flip) if flip else clip).transpose(0, 1))


def test_all_eight_appear_with_labels_that_follow_and_the_batch_is_left_alone():
    batch = batch_of([1], repeats=200)
    before = batch.clips.clone()
    new = LabelAwareFlips(LABELS)(batch, seed=0, epoch=0)
    assert torch.equal(batch.clips, before)
    assert (batch.labels == 1).all()
    pixels = [clip.numpy().tobytes() for clip in new.clips]
    assert len(set(pixels)) == 8
    assert len(set(zip(pixels, new.labels.tolist(), strict=True))) == 8
    counts = torch.bincount(new.labels, minlength=9)
    assert counts[1:5].min() > 25  # a pan left becomes each of the four slides equally often
    assert counts[1:5].sum() == 200


def test_a_clip_depends_on_seed_epoch_video_and_view_alone():
    flips, batch = LabelAwareFlips(LABELS), batch_of([1, 5, 7, 0], repeats=4)
    whole = flips(batch, seed=3, epoch=2)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = flips(Batch(*(t[order] for t in batch[:4])), seed=3, epoch=2)
    assert torch.equal(shuffled.clips, whole.clips[order])
    assert torch.equal(shuffled.labels, whole.labels[order])
    for other in (flips(batch, seed=4, epoch=2), flips(batch, seed=3, epoch=3)):
        assert not torch.equal(other.clips, whole.clips)


def test_classes_may_come_in_any_order():
    names = sorted(LABELS)
    batch = batch_of([1, 3, 5, 7])
    mapped = batch._replace(labels=torch.tensor([names.index(LABELS[n]) for n in batch.labels]))
    one = LabelAwareFlips(LABELS)(batch, seed=0, epoch=0).labels
    other = LabelAwareFlips(names)(mapped, seed=0, epoch=0).labels
    assert [LABELS[n] for n in one] == [names[n] for n in other]


def test_other_classes_are_refused():
    with pytest.raises(UserError, match=r"nine camera motions .*'golf', 'dog'.*switch it off"):
        LabelAwareFlips(["golf", "dog"])
    with pytest.raises(UserError, match="unnamed"):
        LabelAwareFlips([])


def test_an_empty_batch_passes():
    batch = batch_of([1])
    none = Batch(*(t[:0] for t in batch[:4]))
    assert len(LabelAwareFlips(LABELS)(none, seed=0, epoch=0).labels) == 0
