"""Batches on their way to the device: the same ones, in order, one ahead; failures in their place.

A lane that only writes down what happens stands in for a GPU's copy stream.
"""

import signal

import pytest
import torch
from tiny_runs import HEAVY, PRETRAIN, config, final, losses, run, same, write_videos

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.batch import Batch
from hiera_video.data.datasets import TestReader, TrainReader, VideoDataset
from hiera_video.data.loader import LoaderSettings, build_loader
from hiera_video.data.manifests.layouts import read_manifest
from hiera_video.data.transforms.train import TrainTransform
from hiera_video.engine import distributed, evaluate, prefetch, report, train
from hiera_video.engine.prefetch import DevicePrefetcher
from hiera_video.errors import RunFailed

SPEC = ClipSpec(num_frames=4, sampling_rate=2, target_fps=10, crop_size=64)
CPU = torch.device("cpu")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Nine training and three validation videos."""
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Drawing takes longer than these runs."""
    monkeypatch.setattr(report, "draw_curves", lambda folder: None)


class Lane:
    """What a `CopyStream` does, as far as anybody can see on a CPU, with a diary."""

    def __init__(self, diary=None):
        self.diary = [] if diary is None else diary

    def _note(self, what, batch=None):
        self.diary.append(what if batch is None else (what, batch.video_ids.tolist()))

    def send(self, batch):
        self._note("send", batch)
        return batch

    def receive(self, batch):
        self._note("receive", batch)
        return batch

    def work_ends_here(self):
        self._note("work ends")

    def batch_is_here(self):
        self._note("is here")

    def idle_seconds(self):
        return 0.25


def batch_of(number):
    clips = torch.full((1, 3, 1, 2, 2), number, dtype=torch.uint8)
    return Batch(clips, torch.tensor([number]), torch.tensor([number]), torch.tensor([0]))


def counted(count, diary, error=None):
    """A loader of so many batches; then the error, where there is one."""
    for number in range(count):
        diary.append(("read", [number]))
        yield batch_of(number)
    if error is not None:
        raise error


def numbers(batches):
    return [batch.labels.item() for batch in batches]


# ---- the order of things ------------------------------------------------------------------------


def test_on_a_cpu_batches_pass_through_and_nothing_is_read_ahead():
    diary = []
    feeder = DevicePrefetcher(counted(3, diary), CPU, SPEC)
    batch = next(feeder)
    feeder.fetch()
    assert diary == [("read", [0])]
    assert batch.clips.dtype == torch.float32
    assert torch.equal(batch.clips, batch_of(0).normalized(SPEC).clips)
    assert numbers(feeder) == [1, 2]


def test_the_next_batch_is_read_and_sent_while_this_one_is_worked_on():
    lane = Lane()
    feeder = DevicePrefetcher(counted(3, lane.diary), CPU, SPEC, lane=lane)
    for _ in range(2):
        batch = next(feeder)
        lane.diary.append(("work", batch.video_ids.tolist()))
        feeder.fetch()
    assert lane.diary == [
        ("read", [0]),
        ("send", [0]),
        ("receive", [0]),
        ("work", [0]),
        "work ends",
        ("read", [1]),
        "is here",
        ("send", [1]),
        ("receive", [1]),
        ("work", [1]),
        "work ends",
        ("read", [2]),
        "is here",
        ("send", [2]),
    ]


@pytest.mark.parametrize("fetches", [0, 1, 3])
def test_however_often_it_is_told_to_fetch_every_batch_comes_once(fetches):
    feeder = DevicePrefetcher(counted(5, []), CPU, SPEC, lane=Lane())
    found = []
    for batch in feeder:
        found.append(batch.labels.item())
        for _ in range(fetches):
            feeder.fetch()
    assert found == [0, 1, 2, 3, 4]


def test_idle_time_is_that_of_a_batch_that_was_fetched():
    feeder = DevicePrefetcher(counted(3, []), CPU, SPEC, lane=Lane())
    next(feeder)
    assert feeder.starved == 0
    feeder.fetch()
    next(feeder)
    assert feeder.starved == 0.25
    next(feeder)
    assert feeder.starved == 0


@pytest.mark.parametrize("lane", [None, Lane()])
def test_a_failure_is_raised_where_its_batch_would_have_come(lane):
    feeder = DevicePrefetcher(counted(2, [], RunFailed("disk gone")), CPU, SPEC, lane=lane)
    for number in (0, 1):
        assert next(feeder).labels.item() == number
        feeder.fetch()  # of the third: raises nothing
    with pytest.raises(RunFailed, match="disk gone"):
        next(feeder)


def test_an_interrupt_waits_for_nothing():
    feeder = DevicePrefetcher(counted(1, [], KeyboardInterrupt()), CPU, SPEC, lane=Lane())
    next(feeder)
    with pytest.raises(KeyboardInterrupt):
        feeder.fetch()


# ---- what arrives -------------------------------------------------------------------------------

TRANSFORMS = {
    "plain": TrainTransform(SPEC),
    "noise": TrainTransform(SPEC, erase_prob=0.7, erase_count=3),
    "zero": TrainTransform(SPEC, erase_prob=1.0, erase_mode="const"),
    "all": TrainTransform(SPEC, rand_augment="rand-m7-mstd0.5-inc1-p1", erase_prob=1.0),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_clips_normalised_on_the_device_are_those_of_the_transform(videos, name, num_workers):
    manifest = read_manifest(videos, "train")
    dataset = VideoDataset(manifest, TrainReader(TRANSFORMS[name], num_augment=2, seed=5))
    loader = build_loader(
        dataset, LoaderSettings(batch_size=3, num_workers=num_workers, stop_step=4)
    )
    raw, erased = [], 0
    for step, batch in enumerate(DevicePrefetcher((raw.append(b) or b for b in loader), CPU, SPEC)):
        expected = [c for v in batch.video_ids[::2].tolist() for c in dataset[step // 3, v]]
        assert torch.equal(batch.clips, torch.stack(expected))
        assert batch.clips.is_contiguous()
        assert batch.erased.boxes == ()
        erased += len(raw[-1].erased.boxes)
    assert all(b.clips.dtype == torch.uint8 for b in raw)
    # a policy works on planes; without one, clips stay as the decoder drew them
    assert (raw[0].clips.stride(1) == 1) == (name != "all")
    assert bool(erased) == (name != "plain")
    loader.close()


def test_a_batch_without_a_clip_arrives():
    empty = torch.empty(0, 3, 4, 64, 64, dtype=torch.uint8)
    none = torch.zeros(0, dtype=torch.int64)
    (batch,) = DevicePrefetcher([Batch(empty, none, none, none)], CPU, SPEC, lane=Lane())
    assert batch.clips.shape == (0, 3, 4, 64, 64)


# ---- whole runs ---------------------------------------------------------------------------------


@pytest.fixture
def fed(monkeypatch):
    """Runs whose batches come by a lane; its diary."""
    diary = []
    for module in (train, evaluate):
        monkeypatch.setattr(
            module, "DevicePrefetcher", lambda *args: DevicePrefetcher(*args, lane=Lane(diary))
        )
    return diary


@pytest.mark.parametrize("task", ["classify", "pretrain"])
def test_a_run_fed_ahead_learns_the_same_and_goes_on_bit_for_bit(videos, tmp_path, task, request):
    extra = (*HEAVY, "TRAIN.GRAD_ACCUM", 2) if task == "classify" else ()
    kind = PRETRAIN if task == "pretrain" else None
    plain, ahead = tmp_path / "plain", tmp_path / "ahead"
    run(config(videos, plain, *extra, task=kind))
    diary = request.getfixturevalue("fed")
    cfg = config(videos, ahead, *extra, task=kind)
    stop, backward = train.Stop(), train.Forward.backward

    def ask(self, batches, step, *rest):
        stop.signal = signal.SIGINT if step == 2 else stop.signal
        return backward(self, batches, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Forward, "backward", ask)
        assert train.train(cfg, distributed.init("cpu"), stop) == 130
    assert final(ahead)["step"] == 3
    assert run(cfg) == 0
    for key in ("model_state", "optimizer_state", "raw_state", "epoch_sums", "step"):
        assert same(final(plain).get(key), final(ahead).get(key)), key
    assert losses(plain) == losses(ahead)
    assert diary.count("work ends") >= 4


def test_scores_are_the_same_when_fed_ahead(videos, fed):
    manifest = read_manifest(videos, "val")
    loader = build_loader(
        VideoDataset(manifest, TestReader(SPEC, num_views=2)), LoaderSettings(batch_size=1)
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 64 * 64, 3))
    world = distributed.init("cpu")
    ahead = evaluate.score_videos(model, loader, world=world, batch_size=2)
    assert [entry for entry in fed if entry == "work ends"] == ["work ends"] * 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "DevicePrefetcher", DevicePrefetcher)
        plain = evaluate.score_videos(model, loader, world=world, batch_size=2)
    assert torch.equal(ahead.rows, plain.rows)


# ---- on a GPU -----------------------------------------------------------------------------------


@needs_gpu
def test_batches_on_a_gpu_are_those_of_the_cpu(videos):
    manifest = read_manifest(videos, "train")
    dataset = VideoDataset(manifest, TrainReader(TRANSFORMS["all"], num_augment=4))
    device = torch.device("cuda")
    settings = {"batch_size": 3, "stop_step": 6, "pin_memory": True}
    there = DevicePrefetcher(
        build_loader(dataset, LoaderSettings(num_workers=1, **settings)), device, SPEC
    )
    here = DevicePrefetcher(build_loader(dataset, LoaderSettings(**settings)), CPU, SPEC)
    for batch, expected in zip(there, here, strict=True):
        busy = torch.randn(2048, 2048, device=device) @ torch.randn(2048, 2048, device=device)
        there.fetch()
        assert torch.equal(batch.clips.cpu(), expected.clips)
        assert torch.equal(batch.labels.cpu(), expected.labels)
        assert batch.video_ids.device.type == "cpu"
        assert torch.isfinite(busy).all()


@needs_gpu
@pytest.mark.parametrize("task", ["classify", "pretrain"])
def test_a_step_on_a_gpu_queues_its_work_without_waiting(videos, tmp_path, monkeypatch, task):
    backward, kept = train.Forward.backward, []

    def strict(self, batches, step, *rest):
        if step == 0:
            return backward(self, batches, step, *rest)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return backward(self, batches, step, *rest)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            kept.append(step)

    monkeypatch.setattr(train.Forward, "backward", strict)
    extra = HEAVY if task == "classify" else ()
    settings = (*extra, "DEVICE", "cuda", "TRAIN.GRAD_ACCUM", 2, "TRAIN.EVAL_PERIOD", 0)
    cfg = config(videos, tmp_path, *settings, task=PRETRAIN if task == "pretrain" else None)
    assert train.train(cfg, distributed.init("cuda"), train.Stop()) == 0
    assert kept


@needs_gpu
@pytest.mark.parametrize("task", ["classify", "pretrain"])
def test_cuda_graphs_learn_what_plain_code_learns(videos, tmp_path, task):
    kind = PRETRAIN if task == "pretrain" else None
    quiet = () if task == "pretrain" else ("MODEL.DROPOUT_RATE", 0)
    settings = ("DEVICE", "cuda", "TRAIN.GRAD_ACCUM", 2, "HIERA.DROPPATH_RATE", 0, *quiet)
    found = []
    for name, extra in (
        ("plain", ()),
        ("graphs", ("TRAIN.COMPILE", "true", "TRAIN.COMPILE_MODE", "reduce-overhead")),
    ):
        cfg = config(videos, tmp_path / name, *settings, *extra, task=kind)
        assert train.train(cfg, distributed.init("cuda"), train.Stop()) == 0
        found.append(losses(tmp_path / name))
    assert found[0].keys() == found[1].keys()
    assert max(abs(found[0][s] - found[1][s]) for s in found[0]) < 1e-3


def test_the_lane_of_these_tests_does_what_the_real_one_does():
    names = {name for name in vars(prefetch.CopyStream) if not name.startswith("_")}
    assert names == {name for name in vars(Lane) if not name.startswith("_")}
