"""Pretraining does not use labels: no label is refused."""

import contextlib

import pytest
from test_datasets import Deadly
from tiny_runs import PRETRAIN, config, losses, run, write_videos

from hiera_video.data.manifests.layouts import read_manifest
from hiera_video.engine import build, distributed, dry_run, tasks
from hiera_video.engine.log import draw_picture, first_clips
from hiera_video.engine.run_logger import RunLogger
from hiera_video.errors import DataError, UserError

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"), train=4, val=3)


def listed(folder, videos, labels, sep=" "):
    """A list of the four training videos with these labels."""
    folder.mkdir()
    paths = sorted((videos / "train").rglob("*.mp4"))
    lines = [f"{path}{sep}{label}\n" for path, label in zip(paths, labels, strict=True)]
    (folder / "train.csv").write_text("".join(lines))
    return folder


def pretraining(data, out, *more):
    return config(data, out, "SOLVER.MAX_STEPS", 1, *more, task=PRETRAIN)


def learnt(data, out, *more):
    assert run(pretraining(data, out, *more)) == 0
    return losses(out)[1]


def turned(folder, videos):
    """The same videos in classes that a mirror would turn into each other."""
    for name, called in (("fast", "turning left"), ("slow", "turning right"), ("still", "still")):
        for split in ("train", "val"):
            (folder / split).mkdir(parents=True, exist_ok=True)
            (folder / split / called).symlink_to(videos / split / name)
    return folder


def test_videos_of_left_and_right_may_be_mirrored(videos, tmp_path):
    data = turned(tmp_path / "data", videos)
    assert learnt(data, tmp_path / "out", "DATA.RANDOM_FLIP", "true") > 0
    dry_run.run(
        pretraining(data, tmp_path / "dry", "DATA.RANDOM_FLIP", "true"),
        distributed.init("cpu"),
        steps=1,
    )
    with pytest.raises(DataError, match="mirrored videos would be labelled wrongly"):
        run(config(data, tmp_path / "b", "DATA.RANDOM_FLIP", "true"))


@pytest.mark.parametrize(
    ("labels", "more"),
    [
        ((0, 1, 2, 7), ("MODEL.NUM_CLASSES", 3)),  # of the recipe that comes after
        ((0, 1, 5, -3), ()),
        ((0, 0, 0, 0), ("TRAIN.CLASS_WEIGHTS", "balanced")),
        ((0, 1, 2, 3), ("MODEL.NUM_CLASSES", 2, "TRAIN.CLASS_WEIGHTS", "balanced")),
        (("0,1", "2", "0", "1,2"), ("DATA.MULTI_LABEL", "true")),
    ],
)
def test_numbers_of_any_kind_change_nothing(videos, tmp_path, labels, more):
    plain = learnt(listed(tmp_path / "plain", videos, (0, 1, 2, 3)), tmp_path / "a")
    assert learnt(listed(tmp_path / "odd", videos, labels), tmp_path / "b", *more) == plain


def test_a_file_of_other_names_changes_nothing(videos, tmp_path):
    data = listed(tmp_path / "data", videos, (0, 1, 2, 3))
    (data / "classes.txt").write_text("one\ntwo\n")
    assert learnt(data, tmp_path / "out", "MODEL.NUM_CLASSES", 3) > 0
    with pytest.raises(UserError, match=r"label 2 is out of range"):
        run(config(data, tmp_path / "b"))


def test_folders_beside_a_file_of_names_change_nothing(videos, tmp_path):
    (tmp_path / "names.txt").write_text("fast\nslow\n")
    names = ("DATA.CLASS_NAMES", tmp_path / "names.txt", "MODEL.NUM_CLASSES", 2)
    assert learnt(videos, tmp_path / "out", *names) > 0
    with pytest.raises(UserError, match="'still' is not among the 2 known classes"):
        run(config(videos, tmp_path / "b", *names))


def test_a_table_that_contradicts_itself_changes_nothing(videos, tmp_path):
    paths = sorted((videos / "train").rglob("*.mp4"))
    lines = [f"{path},{path.parent.name},{i},train\n" for i, path in enumerate(paths)]
    (tmp_path / "labels.csv").write_text("path,label,label_id,split\n" + "".join(lines))
    with pytest.raises(DataError, match="label_id"):
        read_manifest(tmp_path)
    assert learnt(tmp_path, tmp_path / "out") > 0


def test_the_run_goes_on_whatever_its_classes_are_called(videos, tmp_path):
    data, out = listed(tmp_path / "data", videos, (0, 1, 2, 3)), tmp_path / "out"
    (data / "classes.txt").write_text("a\nb\nc\nd\n")
    assert run(config(data, out, "SOLVER.MAX_STEPS", 2, task=PRETRAIN)) == 0
    (data / "classes.txt").write_text("d\nc\nb\na\n")
    assert run(config(data, out, "SOLVER.MAX_STEPS", 2, task=PRETRAIN)) == 0
    more = ("TRAIN.CHECKPOINT_FILE_PATH", out / "checkpoints" / "checkpoint_epoch_00002.pyth",
            "TRAIN.CHECKPOINT_EPOCH_RESET", "false")  # fmt: skip
    again = config(data, tmp_path / "b", "SOLVER.MAX_STEPS", 3, *more, task=PRETRAIN)
    assert run(again) == 0
    assert sorted(losses(tmp_path / "b")) == [3]


# ---- pictures -----------------------------------------------------------------------------------


def test_a_video_that_crashes_its_decoder_does_not_end_the_run_for_a_picture(videos, tmp_path):
    cfg = pretraining(videos, tmp_path / "out", "DATA_LOADER.NUM_WORKERS", 1)
    train_list, _ = build.read_lists(cfg)
    dataset = build.training_set(cfg, train_list)
    model, _ = build.training_model(cfg, num_classes=0)
    (tmp_path / "plain").mkdir()
    objective = tasks.get("pretrain")
    with contextlib.closing(RunLogger(tmp_path / "plain", quiet=True)) as logger:
        draw_picture(
            logger, objective, model, dataset, first_clips(dataset, 2, guarded=True), step=1
        )
    dataset.reader = Deadly(dataset.reader, {0: "SIGSEGV", 2: "exits"})
    (tmp_path / "deadly").mkdir()
    with contextlib.closing(RunLogger(tmp_path / "deadly", quiet=True)) as logger:
        draw_picture(
            logger, objective, model, dataset, first_clips(dataset, 2, guarded=True), step=1
        )
    name = "pictures/reconstruction_0000001.png"
    plain, picture = ((tmp_path / n / name).read_bytes() for n in ("plain", "deadly"))
    assert len(picture) > 1000
    assert picture != plain  # videos 1 and 3 in the place of 0 and 1


def test_a_picture_is_the_same_wherever_its_videos_are_read(videos, tmp_path):
    pictures = []
    for workers in (0, 1):
        out = tmp_path / str(workers)
        learnt(videos, out, "DATA_LOADER.NUM_WORKERS", workers, "TRAIN.PICTURE_PERIOD", 1)
        (path,) = (out / "pictures").glob("*.png")
        video = path.with_suffix(".mp4")
        pictures.append((path.read_bytes(), video.read_bytes()))
    assert pictures[0] == pictures[1]
