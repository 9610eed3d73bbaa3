"""Clips of several videos in one forward pass: whose scores are whose, and in which order.

`mixed=True` is what a GPU does, on a CPU.
"""

import pytest
import torch
from test_scoring import Logits, clips_with, tiny_hiera

from hiera_video.batched_scores import BatchedScores
from hiera_video.errors import DecodeError
from hiera_video.scoring import ScoreSettings, view_scores

pytestmark = pytest.mark.numbers

CPU = torch.device("cpu")


def logits_of(*numbers):
    return clips_with([[float(n), 0.0, 0.5] for n in numbers])


def expected(clips):
    return view_scores(Logits().eval(), clips, ScoreSettings(100))


VIDEOS = {
    "long": logits_of(*range(7)),
    "short": logits_of(9),
    "bad": DecodeError("bad", "no video"),
    "twice the same": logits_of(3, 3, 5),
    "last": logits_of(1, 2),
}


def score_all(queue, videos=VIDEOS):
    found = []
    for name, clips in videos.items():
        queue.add(name, clips)
        found += queue.finished()
    return found + list(queue.finished(wait=True))


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 100])
def test_every_video_gets_its_own_scores_in_order(mixed, batch_size):
    model = Logits().eval()
    found = score_all(BatchedScores(model, ScoreSettings(batch_size), CPU, mixed=mixed))
    assert [name for name, _ in found] == list(VIDEOS)
    for name, scores in found:
        if name == "bad":
            assert scores is VIDEOS["bad"]
        else:
            torch.testing.assert_close(scores, expected(VIDEOS[name]))
    clips = 7 + 1 + 2 + 2  # equal ones once
    sizes = [shape[0] for shape in model.batches]
    assert sum(sizes) == clips
    if mixed:  # every pass is full but the last
        assert sizes[:-1] == [batch_size] * (len(sizes) - 1)


def test_on_a_cpu_a_video_is_scored_as_if_it_were_alone():
    model = tiny_hiera()
    clips = torch.randn(5, 3, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    settings = ScoreSettings(2)
    ((_, other), (_, scores)) = score_all(
        BatchedScores(model, settings, CPU), {"other": clips[:1] + 1, "own": clips}
    )
    assert torch.equal(scores, view_scores(model, clips, settings))
    assert not torch.equal(other, scores)


def test_results_come_as_soon_as_they_are_there():
    queue = BatchedScores(Logits().eval(), ScoreSettings(2), CPU)
    queue.add("a", logits_of(1, 2, 3))
    assert [name for name, _ in queue.finished()] == ["a"]
    mixed = BatchedScores(Logits().eval(), ScoreSettings(2), CPU, mixed=True)
    mixed.add("a", logits_of(1, 2, 3))
    assert not list(mixed.finished())  # one clip waits for company
    mixed.add("b", logits_of(4))
    assert [name for name, _ in mixed.finished()] == ["a", "b"]


def test_shares_of_each_video_add_up_to_one():
    shares = {}
    queue = BatchedScores(
        Logits().eval(),
        ScoreSettings(3),
        CPU,
        mixed=True,
        on_clips=lambda name, share: shares.setdefault(name, []).append(share),
    )
    score_all(queue)
    assert {name: sum(parts) for name, parts in shares.items()} == pytest.approx(
        dict.fromkeys(["long", "short", "twice the same", "last"], 1.0)
    )
    assert len(shares["long"]) > 1


class Small(Logits):
    """Out of memory for more clips than `room`."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def forward(self, clips):
        if len(clips) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(clips)


def test_a_full_memory_makes_smaller_passes_where_that_is_allowed():
    sizes = iter([4, 2])
    queue = BatchedScores(
        Small(2).eval(), ScoreSettings(8), CPU, mixed=True, smaller=lambda: next(sizes)
    )
    for name, scores in score_all(queue):
        if name != "bad":
            torch.testing.assert_close(scores, expected(VIDEOS[name]))
    assert next(sizes, None) is None


def test_a_full_memory_costs_the_videos_of_the_pass_otherwise():
    queue = BatchedScores(Small(2).eval(), ScoreSettings(3), CPU)
    found = dict(score_all(queue))
    assert isinstance(found["long"], torch.OutOfMemoryError)
    torch.testing.assert_close(found["short"], expected(VIDEOS["short"]))
    torch.testing.assert_close(found["last"], expected(VIDEOS["last"]))


def test_clips_are_prepared_where_the_model_is():
    """uint8 goes to the device, and becomes what the model takes there."""
    seen = []

    def prepare(clips):
        seen.append(clips.dtype)
        return clips.float() / 255

    pixels = torch.randint(0, 255, (3, 3, 2, 4, 4), dtype=torch.uint8)
    settings = ScoreSettings(2, prepare=prepare)
    ((_, scores),) = score_all(BatchedScores(Logits().eval(), settings, CPU), {"a": pixels})
    torch.testing.assert_close(scores, expected(pixels.float() / 255))
    assert seen == [torch.uint8] * 2
    torch.testing.assert_close(view_scores(Logits().eval(), pixels, settings), scores)


@pytest.mark.gpu
def test_a_gpu_gives_the_scores_of_the_cpu_and_never_waits_for_a_pass():
    model = Logits().eval().cuda()
    device = torch.device("cuda", 0)
    found = score_all(BatchedScores(model, ScoreSettings(4), device))
    for name, scores in found:
        if name != "bad":
            assert scores.device.type == "cpu"
            torch.testing.assert_close(scores, expected(VIDEOS[name]))
