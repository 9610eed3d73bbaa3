"""The sections on boxes: where AVA's files are, and how the model scores a box."""

from __future__ import annotations

from dataclasses import dataclass

from hiera_video.config.section import Section
from hiera_video.config.values import number, setting
from hiera_video.errors import ConfigError

DETECTION_SETS = ("ava", "moving_shapes")
"""TRAIN.DATASET of the sets whose clips have boxes: AVA's layout, and the embedded set in it."""


@dataclass(frozen=True)
class AvaConfig(Section):
    """Where the files of an AVA data set are, in SlowFast's keys. Relative names begin at
    DATA.PATH_TO_DATA_DIR."""

    prefix = "AVA."

    frame_dir: str = setting("frames")
    """Folder with a folder of pictures for each video (FRAME_DIR/VIDEO/VIDEO_000001.jpg)."""
    video_dir: str = setting("videos")
    """Folder with the videos themselves (VIDEO_DIR/VIDEO.mp4), for when there are no frames."""
    frame_list_dir: str = setting("frame_lists")
    """Folder of the lists of frames."""
    annotation_dir: str = setting("annotations")
    """Folder of the boxes, the list of actions and the excluded seconds."""
    train_lists: tuple[str, ...] = setting(("train.csv",))
    """Lists of the frames of training, in FRAME_LIST_DIR."""
    test_lists: tuple[str, ...] = setting(("val.csv",))
    """Lists of the frames of validation and test."""
    train_gt_box_lists: tuple[str, ...] = setting(("ava_train_v2.2.csv",))
    """Annotated boxes of training, in ANNOTATION_DIR."""
    train_predict_box_lists: tuple[str, ...] = setting(())
    """Boxes of a person detector, with labels, that training uses too."""
    test_predict_box_lists: tuple[str, ...] = setting(("ava_val_predicted_boxes.csv",))
    """Boxes of a person detector that are scored in validation and test; none: the annotated ones
    of GROUNDTRUTH_FILE, which makes the result look better than it is."""
    detection_score_thresh: float = number(0.9, at_least=0, at_most=1)
    """Least score of a person detector's box."""
    groundtruth_file: str = setting("ava_val_v2.2.csv")
    """Annotated boxes that validation and test are measured by."""
    exclusion_file: str = setting("ava_val_excluded_timestamps_v2.2.csv")
    """Seconds that are not measured; empty: none."""
    label_map_file: str = setting("ava_action_list_v2.2_for_activitynet_2019.pbtxt")
    """The actions that count, with their ids."""
    full_test_on_val: bool = setting(False)
    """Validate on every second while training; False: on every fourth."""
    video_start: float = number(900.0, at_least=0)
    """The second of a movie at which its frames, or its video file, begin."""
    seconds: tuple[int, int] = number((902, 1798), at_least=0)
    """The first and the last second that may be annotated."""

    def check(self) -> None:
        first, last = self.seconds
        if first > last:
            raise ConfigError(f"AVA.SECONDS=[{first}, {last}] must be [first, last], ascending")
        if self.video_start > first:
            raise ConfigError(
                f"AVA.VIDEO_START={self.video_start:g} must be at most the first of AVA.SECONDS, "
                f"{first}"
            )


@dataclass(frozen=True)
class DetectionConfig(Section):
    """How a box is scored (TASK detect)."""

    prefix = "DETECTION."

    aligned: bool = setting(True)
    """RoIAlign with pixel centres (half a cell to the left and up), as SlowFast does."""
    roi_xform_resolution: int = number(7, at_least=1)
    """Side of the grid that RoIAlign reads from a box."""
    train_jitter_scales: tuple[int, int] = number((0, 0), at_least=0)
    """Short side of a training picture in pixels, (least, most), before the crop is cut out of it
    (SlowFast's DATA.TRAIN_JITTER_SCALES). (0, 0): the crop of DATA.TRAIN_JITTER_SCALES_RELATIVE."""
    box_jitter: float = number(0.0, at_least=0, below=1)
    """Corners of training boxes move by up to this share of the box's width and height."""


def check_task(task: str, datasets: dict[str, str], off: dict[str, bool]) -> None:
    """Refuse settings that boxes and the other tasks cannot share.

    datasets: keys that name a data set, and the name. off: keys that have no meaning for boxes, and
    whether each has its "off" value. Raises ConfigError.
    """
    for key, name in datasets.items():
        if (name in DETECTION_SETS) != (task == "detect"):
            raise ConfigError(
                f"{key}={name} and TASK={task} do not go together: TASK=detect needs "
                f"{' or '.join(DETECTION_SETS)}, whose clips have boxes, and these need TASK=detect"
            )
    wrong = [key for key, is_off in off.items() if not is_off]
    if task == "detect" and wrong:
        raise ConfigError(f"{wrong[0]} has no meaning with TASK=detect; leave it at its default")
