"""Batches on their way to the device: the same ones, in order, one ahead; failures in their place.

A stand-in for a GPU's copy stream only records what happens.
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
from hiera_video.engine import distributed, evaluate, plots, prefetch, train
from hiera_video.engine.prefetch import DevicePrefetcher
from hiera_video.engine.signals import Stop
from hiera_video.engine.step import Forward
from hiera_video.errors import RunFailed
from hiera_video.scoring import ScoreSettings

SPEC = ClipSpec(num_frames=4, sampling_rate=2, target_fps=10, crop_size=64)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Nine training and three validation videos."""
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Drawing takes longer than these runs."""
    monkeypatch.setattr(plots, "draw_curves", lambda folder: None)


class RecordingStream:
    """A `CopyStream` without a GPU, which records its calls."""

    def __init__(self, calls=None):
        self.calls = [] if calls is None else calls

    def _note(self, what, batch=None):
        self.calls.append(what if batch is None else (what, batch.video_ids.tolist()))

    def send(self, batch):
        self._note("send", batch)
        return batch

    def receive(self, batch):
        self._note("receive", batch)
        return batch

    def mark_end_of_work(self):
        self._note("work ends")

    def mark_arrival(self):
        self._note("is here")

    def idle_seconds(self):
        return 0.25


def batch_of(number):
    clips = torch.full((1, 3, 1, 2, 2), number, dtype=torch.uint8)
    return Batch(clips, torch.tensor([number]), torch.tensor([number]), torch.tensor([0]))


def counted(count, calls, error=None):
    """A loader of `count` batches, then the error, if there is one."""
    for number in range(count):
        calls.append(("read", [number]))
        yield batch_of(number)
    if error is not None:
        raise error


def numbers(batches):
    return [batch.labels.item() for batch in batches]


# ---- the order of things ------------------------------------------------------------------------


def test_on_a_cpu_batches_pass_through_and_nothing_is_read_ahead():
    calls = []
    batches = DevicePrefetcher(counted(3, calls), CPU, SPEC)
    batch = next(batches)
    batches.fetch()
    assert calls == [("read", [0])]
    assert batch.clips.dtype == torch.float32
    assert torch.equal(batch.clips, batch_of(0).normalized(SPEC).clips)
    assert numbers(batches) == [1, 2]


def test_the_next_batch_is_read_and_sent_while_this_one_is_worked_on():
    stream = RecordingStream()
    batches = DevicePrefetcher(counted(3, stream.calls), CPU, SPEC, stream=stream)
    for _ in range(2):
        batch = next(batches)
        stream.calls.append(("work", batch.video_ids.tolist()))
        batches.fetch()
    assert stream.calls == [
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
def test_every_batch_comes_once_however_often_fetch_is_called(fetches):
    batches = DevicePrefetcher(counted(5, []), CPU, SPEC, stream=RecordingStream())
    found = []
    for batch in batches:
        found.append(batch.labels.item())
        for _ in range(fetches):
            batches.fetch()
    assert found == [0, 1, 2, 3, 4]


def test_idle_time_is_that_of_a_batch_that_was_fetched():
    batches = DevicePrefetcher(counted(3, []), CPU, SPEC, stream=RecordingStream())
    next(batches)
    assert batches.starved == 0
    batches.fetch()
    next(batches)
    assert batches.starved == 0.25
    next(batches)
    assert batches.starved == 0


@pytest.mark.parametrize("stream", [None, RecordingStream()])
def test_a_failure_is_raised_where_its_batch_would_have_come(stream):
    batches = DevicePrefetcher(counted(2, [], RunFailed("disk gone")), CPU, SPEC, stream=stream)
    for number in (0, 1):
        assert next(batches).labels.item() == number
        batches.fetch()  # of the third: raises nothing
    with pytest.raises(RunFailed, match="disk gone"):
        next(batches)


def test_an_interrupt_is_raised_at_once():
    batches = DevicePrefetcher(
        counted(1, [], KeyboardInterrupt()), CPU, SPEC, stream=RecordingStream()
    )
    next(batches)
    with pytest.raises(KeyboardInterrupt):
        batches.fetch()


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
    (batch,) = DevicePrefetcher(
        [Batch(empty, none, none, none)], CPU, SPEC, stream=RecordingStream()
    )
    assert batch.clips.shape == (0, 3, 4, 64, 64)


# ---- whole runs ---------------------------------------------------------------------------------


@pytest.fixture
def recorded(monkeypatch):
    """Runs whose batches come through a `RecordingStream`; its calls."""
    calls = []
    for module in (train, evaluate):
        monkeypatch.setattr(
            module,
            "DevicePrefetcher",
            lambda *args: DevicePrefetcher(*args, stream=RecordingStream(calls)),
        )
    return calls


@pytest.mark.parametrize("task", ["classify", "pretrain"])
def test_a_run_prefetched_learns_the_same_and_resumes_bit_for_bit(videos, tmp_path, task, request):
    extra = (*HEAVY, "TRAIN.GRAD_ACCUM", 2) if task == "classify" else ()
    kind = PRETRAIN if task == "pretrain" else None
    plain, ahead = tmp_path / "plain", tmp_path / "ahead"
    run(config(videos, plain, *extra, task=kind))
    calls = request.getfixturevalue("recorded")
    cfg = config(videos, ahead, *extra, task=kind)
    stop, backward = Stop(), Forward.backward

    def ask(self, batches, step, *rest):
        stop.signal = signal.SIGINT if step == 2 else stop.signal
        return backward(self, batches, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forward, "backward", ask)
        assert train.train(cfg, distributed.init("cpu"), stop) == 130
    assert final(ahead)["step"] == 3
    assert run(cfg) == 0
    for key in ("model_state", "optimizer_state", "raw_state", "epoch_sums", "step"):
        assert same(final(plain).get(key), final(ahead).get(key)), key
    assert losses(plain) == losses(ahead)
    assert calls.count("work ends") >= 4


def test_scores_are_the_same_when_prefetched(videos, recorded):
    manifest = read_manifest(videos, "val")
    loader = build_loader(
        VideoDataset(manifest, TestReader(SPEC, num_views=2)), LoaderSettings(batch_size=1)
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 64 * 64, 3))
    world = distributed.init("cpu")
    ahead = evaluate.score_videos(model, loader, ScoreSettings(2), world=world)
    assert [entry for entry in recorded if entry == "work ends"] == ["work ends"] * 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "DevicePrefetcher", DevicePrefetcher)
        plain = evaluate.score_videos(model, loader, ScoreSettings(2), world=world)
    assert torch.equal(ahead.rows, plain.rows)


# ---- on a GPU -----------------------------------------------------------------------------------


@pytest.mark.gpu
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


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["classify", "pretrain"])
def test_a_step_on_a_gpu_queues_its_work_without_waiting(videos, tmp_path, monkeypatch, task):
    backward, kept = Forward.backward, []

    def strict(self, batches, step, *rest):
        if step == 0:
            return backward(self, batches, step, *rest)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return backward(self, batches, step, *rest)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            kept.append(step)

    monkeypatch.setattr(Forward, "backward", strict)
    extra = HEAVY if task == "classify" else ()
    settings = (*extra, "DEVICE", "cuda", "TRAIN.GRAD_ACCUM", 2, "TRAIN.EVAL_PERIOD", 0)
    cfg = config(videos, tmp_path, *settings, task=PRETRAIN if task == "pretrain" else None)
    assert train.train(cfg, distributed.init("cuda"), Stop()) == 0
    assert kept


@pytest.mark.gpu
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
        assert train.train(cfg, distributed.init("cuda"), Stop()) == 0
        found.append(losses(tmp_path / name))
    assert found[0].keys() == found[1].keys()
    assert max(abs(found[0][s] - found[1][s]) for s in found[0]) < 1e-3


def test_the_recording_stream_has_the_methods_of_the_real_one():
    names = {name for name in vars(prefetch.CopyStream) if not name.startswith("_")}
    assert names == {name for name in vars(RecordingStream) if not name.startswith("_")}
