"""Frame mAP: by hand, against the definition in slow loops, and against the public code."""

from __future__ import annotations

import csv
import heapq
import json
import logging
import math
import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest
from conftest import REPOSITORY
from detection_cases import write_case
from PIL import Image

from hiera_video import spreadsheet
from hiera_video.commands import evaluate_detections
from hiera_video.detection import average_precision
from hiera_video.detection.average_precision import MatchingRules, frame_map
from hiera_video.detection.files import (
    LabelMap,
    read_annotated_boxes,
    read_excluded,
    read_label_map,
    read_scored_boxes,
)
from hiera_video.detection.precision_curves import draw_curves
from hiera_video.errors import UserError

RULES = {
    "by score": MatchingRules(),
    "ActivityNet's": MatchingRules(most_per_second=50),
    "few": MatchingRules(most_per_second=5),
    "SlowFast's": MatchingRules(order="file"),
}
BOX, ELSEWHERE = "0.1,0.1,0.5,0.5", "0.6,0.6,0.9,0.9"


@pytest.fixture
def measure(tmp_path):
    """Call frame_map on lines of text."""

    def run(truth, detections, ids=(1, 2), excluded=(), iou=0.5, **rules):
        (tmp_path / "gt.csv").write_text("".join(f"{line}\n" for line in truth))
        (tmp_path / "det.csv").write_text("".join(f"{line}\n" for line in detections))
        labels = LabelMap(tuple(ids), tuple(f"action {number}" for number in ids))
        return frame_map(
            read_annotated_boxes(tmp_path / "gt.csv"),
            read_scored_boxes(tmp_path / "det.csv"),
            labels,
            set(excluded),
            iou,
            MatchingRules(**rules),
        )

    return run


# ---- by hand ------------------------------------------------------------------------------------


def test_all_found_is_one(measure):
    found = measure(
        [f"v,902,{BOX},1,0", f"v,903,{BOX},2,0"], [f"v,902,{BOX},1,.9", f"v,903,{BOX},2,.1"]
    )
    assert found.mean == 1
    assert found.per_class == {1: 1, 2: 1}
    assert (found.truths, found.seconds) == ({1: 1, 2: 1}, 2)


def test_precision_over_recall(measure):
    """Right, wrong, right of four: precision 1, 1/2, 2/3 at recall 1/4, 1/4, 2/4."""
    truth = [f"v,{second},{BOX},1" for second in (902, 903, 904, 905)]
    detections = [f"v,902,{BOX},1,.9", f"v,902,{ELSEWHERE},1,.8", f"v,903,{BOX},1,.7"]
    found = measure(truth, detections)
    assert found.per_class[1] == pytest.approx(1 / 4 + 1 / 4 * 2 / 3)
    assert found.hits[1].tolist() == [True, False, True]
    recall, precision = found.curve(1)
    assert recall.tolist() == [0.25, 0.25, 0.5]
    assert precision == pytest.approx([1, 1 / 2, 2 / 3])


def test_precision_never_rises_with_recall(measure):
    """Wrong, right, right of two: the best precision at either recall is 2/3."""
    truth = [f"v,902,{BOX},1", f"v,903,{BOX},1"]
    detections = [f"v,902,{ELSEWHERE},1,.9", f"v,902,{BOX},1,.8", f"v,903,{BOX},1,.7"]
    assert measure(truth, detections).mean == pytest.approx(2 / 3)


def test_a_box_is_found_once(measure):
    found = measure([f"v,902,{BOX},1"], [f"v,902,{BOX},1,.9", f"v,902,{BOX},1,.8"])
    assert found.hits[1].tolist() == [True, False]


def test_the_higher_score_comes_first_unless_the_file_counts(measure):
    lines = [f"v,902,{BOX},1,.1", f"v,902,{BOX},1,.9"]
    assert measure([f"v,902,{BOX},1"], lines).hits[1].tolist() == [True, False]
    assert measure([f"v,902,{BOX},1"], lines, order="file").hits[1].tolist() == [False, True]


def test_a_detection_is_about_the_box_that_it_overlaps_most(measure):
    """The second detection is on the first box, which is taken; that it overlaps the other one by
    more than half does not help."""
    truth = ["v,902,0,0,0.5,0.5,1", "v,902,0,0,0.5,0.4,1"]
    detections = ["v,902,0,0,0.5,0.5,1,.9", "v,902,0,0,0.5,0.48,1,.8"]
    assert measure(truth, detections).hits[1].tolist() == [True, False]


@pytest.mark.parametrize(("iou", "right"), [(0.5, True), (0.51, False)])
def test_half_is_enough(measure, iou, right):
    found = measure(["v,902,0,0,0.5,0.5,1"], ["v,902,0,0,0.5,0.25,1,.9"], iou=iou)
    assert found.hits[1].tolist() == [right]


def test_what_is_left_out_and_what_is_wrong(measure):
    truth = [
        *(f"v,902,{BOX},1", f"v,902,{BOX},,3", f"v,902,{BOX},7", f"w,905,{BOX},1"),
        "v,904,0.2,0.2,0.2,0.3,1",
    ]
    detections = [
        *(f"v,902,{BOX},1,.5", f"v,902,{BOX},7,.9", f"w,905,{BOX},1,.9"),
        *(f"v,906,{BOX},1,.4", f"new,902,{BOX},1,.3"),
        *("v,902,0.1,0.1,0.1,0.5,1,.99", f"v,902,{BOX},,.9"),
    ]
    found = measure(truth, detections, excluded=[("w", 905), ("unknown", 3)])
    assert found.truths == {1: 2, 2: 0}, "one of them without area, which cannot be found"
    assert found.hits[1].tolist() == [True, False, False]
    assert found.per_class[1] == 0.5
    assert math.isnan(found.per_class[2])
    assert found.mean == 0.5, "an action that is not annotated does not count"
    left = found.truth_rows
    assert (left.rows, left.used, left.no_action, left.other_action, left.excluded) == (
        5,
        2,
        1,
        1,
        1,
    )
    left = found.detection_rows
    assert (left.rows, left.used, left.no_action, left.other_action, left.excluded) == (
        7,
        3,
        1,
        1,
        1,
    )
    assert (left.no_area, left.without_truth, left.beyond_most) == (1, 2, 0)


def test_nothing_found_and_nothing_annotated(measure):
    assert measure([f"v,902,{BOX},1"], []).mean == 0
    empty = measure([], [f"v,902,{BOX},1,.5"])
    assert math.isnan(empty.mean)
    assert all(math.isnan(value) for value in empty.per_class.values())
    assert measure([f"v,902,{BOX},1"], [f"v,902,{BOX},2,.5"]).per_class[1] == 0


def test_the_best_of_a_second(measure):
    lines = [f"v,902,{BOX},{action},{score}" for action, score in ((1, 0.2), (2, 0.3), (1, 0.1))]
    found = measure([f"v,902,{BOX},1"], lines, most_per_second=1)
    assert (found.per_class[1], len(found.hits[2])) == (0, 1)
    assert found.detection_rows.beyond_most == 2
    assert measure([f"v,902,{BOX},1"], lines, most_per_second=2).per_class[1] == 1


def test_seconds_are_numbers(measure):
    """The official code compares 0902, which both of 902 and 0902 are."""
    assert measure([f"v,0902,{BOX},1"], [f"v,902,{BOX},1,.5"], excluded=[("v", 903)]).mean == 1


@pytest.mark.parametrize("iou", [0, -1, 1.1, math.nan])
def test_an_overlap_that_makes_no_sense_is_refused(measure, iou):
    with pytest.raises(ValueError, match="iou="):
        measure([], [], iou=iou)


# ---- the definition, in loops -------------------------------------------------------------------


def lines_by_second(path, ids, excluded, rules, *, most):
    """Second -> [(action, box, score)] in the order that the public code takes them."""
    seconds = defaultdict(list)
    with open(path, newline="") as file:
        for row in csv.reader(file):
            if row[6] and int(row[6]) in ids:
                x1, y1, x2, y2 = map(float, row[2:6])
                score = float(row[7]) if len(row) == 8 else 1.0
                line = (score, int(row[6]), y1, x1, y2, x2)
                seconds[row[0], int(row[1])].append(line)
    ordered = {}
    for second, lines in seconds.items():
        if second in excluded:
            continue
        if rules.order == "score":
            heap = []
            for line in lines:
                if most is None or len(heap) < most:
                    heapq.heappush(heap, line)
                elif line[0] > heap[0][0]:
                    heapq.heapreplace(heap, line)
            lines = sorted(heap, key=lambda line: -line[0])
        ordered[second] = [(a, (y1, x1, y2, x2), score) for score, a, y1, x1, y2, x2 in lines]
    return ordered


def overlap(one, other):
    height = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    width = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return height * width / (areas[0] + areas[1] - height * width)


def naive(case, rules):
    """Average precision of each action, by the definition."""
    ids, excluded = read_label_map(case.labels).ids, read_excluded(case.excluded)
    truth = lines_by_second(case.truth, ids, excluded, rules, most=None)
    found = lines_by_second(case.detections, ids, excluded, rules, most=rules.most_per_second)
    results = {}
    for action in ids:
        boxes = {s: [box for a, box, _ in lines if a == action] for s, lines in truth.items()}
        scores, right = [], []
        for second, lines in found.items():
            taken = set()
            for a, box, score in lines:
                if a != action or box[0] >= box[2] or box[1] >= box[3]:
                    continue
                overlaps = [overlap(box, other) for other in boxes.get(second, [])]
                best = max(range(len(overlaps)), key=overlaps.__getitem__, default=None)
                hit = best is not None and overlaps[best] >= 0.5 and best not in taken
                taken |= {best} if hit else set()
                scores.append(score)
                right.append(hit)
        count = sum(map(len, boxes.values()))
        results[action] = area_below(scores, right, count) if count else math.nan
    return results


def area_below(scores, right, count):
    points, hits = [], 0
    for number, place in enumerate(np.argsort(scores)[::-1].tolist(), 1):
        hits += right[place]
        points.append((hits / count, hits / number))
    area, before = 0.0, 0.0
    for number, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[number:])
        before = recall
    return area


def ours(case, rules):
    return frame_map(
        read_annotated_boxes(case.truth),
        read_scored_boxes(case.detections),
        read_label_map(case.labels),
        read_excluded(case.excluded),
        rules=rules,
    )


def assert_same(found, expected):
    assert set(found) == set(expected)
    for action, value in expected.items():
        assert found[action] == pytest.approx(value, abs=1e-9, nan_ok=True), action


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_equal_to_the_definition(rules, tmp_path):
    known = 0
    for seed in range(60):
        case = write_case(tmp_path, seed)
        found, expected = ours(case, rules), naive(case, rules)
        assert_same(found.per_class, expected)
        values = [value for value in expected.values() if not math.isnan(value)]
        if values:
            assert found.mean == pytest.approx(sum(values) / len(values), abs=1e-9)
        known += sum(value > 0 for value in values)
    assert known > 50


def test_the_rules_matter_in_these_cases(tmp_path):
    """Else they would prove nothing: each pair of rules differs in some case."""
    results = {name: [] for name in RULES}
    for seed in range(60):
        case = write_case(tmp_path, seed)
        for name, rules in RULES.items():
            results[name].append(ours(case, rules).mean)
    assert not np.allclose(results["by score"], results["SlowFast's"], equal_nan=True)
    assert not np.allclose(results["by score"], results["few"], equal_nan=True)


def test_a_few_pairs_at_a_time_are_the_same(tmp_path, monkeypatch):
    case = write_case(tmp_path, 8)
    whole = ours(case, MatchingRules())
    monkeypatch.setattr(average_precision, "_MOST_PAIRS", 3)
    assert_same(ours(case, MatchingRules()).per_class, whole.per_class)


def test_actions_need_not_be_sorted(tmp_path):
    case = write_case(tmp_path, 8)
    before = ours(case, MatchingRules()).per_class
    entries = case.labels.read_text().split("item ")[1:]
    case.labels.write_text("".join(f"item {entry}" for entry in reversed(entries)))
    found = ours(case, MatchingRules()).per_class
    assert list(found) == list(reversed(before))
    assert_same(found, before)


# ---- the public code ----------------------------------------------------------------------------


@pytest.fixture
def slowfast(monkeypatch):
    """SlowFast's evaluation, where it is installed."""
    monkeypatch.setattr(np, "float", float, raising=False)  # it was written for an older numpy
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    return pytest.importorskip(
        "slowfast.utils.ava_eval_helper",
        reason="needs SlowFast's evaluation (pip install --no-deps slowfast==1.0; it asks for "
        "detectron2, which is in no registry, so no lock can have it)",
    )


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_equal_to_slowfasts_code(rules, slowfast, tmp_path, monkeypatch):
    """With its own reader for the order of the file; the other orders are read as ActivityNet's
    script reads, and measured by the same code."""
    results = {}
    evaluator = slowfast.object_detection_evaluation.PascalDetectionEvaluator
    evaluate = evaluator.evaluate
    monkeypatch.setattr(evaluator, "evaluate", lambda self: results.update(evaluate(self)) or {})
    for seed in range(100, 130):
        case = write_case(tmp_path, seed)
        categories, ids = slowfast.read_labelmap(case.labels)
        excluded = slowfast.read_exclusions(case.excluded)
        if rules.order == "file":
            sides = [
                slowfast.read_csv(case.truth, ids, load_score=False),
                slowfast.read_csv(case.detections, ids, load_score=True),
            ]
        else:
            limits = {case.truth: None, case.detections: rules.most_per_second}
            sides = [
                as_slowfast(slowfast, lines_by_second(path, ids, set(), rules, most=most))
                for path, most in limits.items()
            ]
        results.clear()
        slowfast.run_evaluation(categories, *sides, excluded)
        found = ours(case, rules)
        mean = results.pop("PascalBoxes_Precision/mAP@0.5IOU")
        assert found.mean == pytest.approx(mean, abs=1e-9, nan_ok=True)
        names = dict(zip(read_label_map(case.labels).names, found.per_class.values(), strict=True))
        assert_same(names, {key.rpartition("/")[2]: value for key, value in results.items()})


def as_slowfast(slowfast, seconds):
    """(boxes, labels, scores) by key, as its reader returns them."""
    columns = ({}, {}, {})
    for second, lines in seconds.items():
        key = slowfast.make_image_key(*second)
        columns[0][key] = [list(box) for _, box, _ in lines]
        columns[1][key] = [action for action, _, _ in lines]
        columns[2][key] = [score for _, _, score in lines]
    return columns


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gt.csv").write_text(f"v,0902,{BOX},1,0\nv,0903,{BOX},2,0\nv,0903,{BOX},9,0\n")
    (tmp_path / "det.csv").write_text(f"v,0902,{BOX},1,0.9\nv,0999,{BOX},2,0.5\n")
    (tmp_path / "list.pbtxt").write_text(
        'item { name: "walk" id: 1 }\nitem { name: "sit \\u001b[31m" id: 2 }\n'
        'item { name: "fly" id: 3 }'
    )
    return tmp_path


GIVEN = ["--truth", "gt.csv", "--detections", "det.csv", "--labels", "list.pbtxt"]


def test_the_report(files, capsys):
    written = ["--picture", "curves.png", "--per-class", "actions.csv"]
    assert evaluate_detections.main([*GIVEN, *written]) == 0
    said = capsys.readouterr().out
    assert said.startswith("frame mAP 50.00 % at IoU 0.5, the mean over 2 of 3 actions")
    assert "annotated boxes: 2 of 3 lines used; left out: 1 of actions that do not count" in said
    assert "1 of those used are wrong because nothing that counts is annotated" in said
    assert any(line.split() == ["1", "walk", "1", "1", "1", "100.00"] for line in said.splitlines())
    assert any(line.split() == ["3", "fly", "0", "0", "0", "-"] for line in said.splitlines())
    with Image.open("curves.png") as picture:
        assert min(picture.size) > 300
    with open("actions.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["average_precision"] for row in rows] == ["1.0", "0.0", ""]
    assert spreadsheet.original(rows[0]["action"]) == "walk"


def test_the_report_for_machines(files, capsys):
    (files / "ex.csv").write_text("v,0903\n")
    assert evaluate_detections.main([*GIVEN, "--json", "--excluded", "ex.csv"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["map"], said["annotated_actions"], said["annotated_seconds"]) == (1, 1, 1)
    assert said["truth"]["excluded"] == 1
    assert said["detections"]["without_truth"] == 1
    assert [row["average_precision"] for row in said["per_class"]] == [1, None, None]
    assert said["per_class"][0] == {
        **{"id": 1, "action": "walk", "truths": 1, "detections": 1, "right": 1},
        "average_precision": 1.0,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--iou", "0"], "--iou 0: above 0 and at most 1"),
        (["--iou", "nan"], "--iou nan: above 0"),
        (["--most-per-second", "0"], "--most-per-second 0: at least 1"),
        (["--picture", "curves.jpg"], "a PNG is written"),
        (["--picture", "none/curves.png"], "there is no folder"),
        (["--per-class", "./gt.csv"], "would replace a file that is read"),
        (["--per-class", "a.png", "--picture", "a.png"], "would replace a file"),
        (
            ["--excluded", "gt.csv"],
            "gt.csv: 3 lines are wrong; line 1: has 8 fields of video,second",
        ),
        (["--excluded", "all.csv"], "no box of it counts: all its seconds are in all.csv"),
        (["--labels", "gt.csv"], "gt.csv: line 1: expected item { or label {"),
        (
            ["--labels", "other.pbtxt"],
            "no box of it has an action of other.pbtxt, whose ids are 77",
        ),
        (["--detections", "gone.csv"], "gone.csv: cannot be read: No such file"),
        (["--detections", "others.csv"], "no video of it is in gt.csv: 'w' there, 'v' here"),
        (["--detections", "bad.csv"], "bad.csv: line 2: has 7 fields"),
        (["--detections", "list.pbtxt"], "list.pbtxt: 3 lines are wrong; line 1: has 1 fields"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, message, files):
    (files / "all.csv").write_text("v,902\nv,903\n")
    (files / "other.pbtxt").write_text('item { name: "x" id: 77 }')
    (files / "others.csv").write_text(f"w,902,{BOX},1,.5\n")
    (files / "bad.csv").write_text(f"v,902,{BOX},1,.5\nv,902,{BOX},1\n")
    before = (files / "gt.csv").read_text()
    with pytest.raises(UserError) as error:
        evaluate_detections.main([*GIVEN, *words])
    assert message in str(error.value)
    assert (files / "gt.csv").read_text() == before


def test_the_tool_ends_with_an_error_in_one_line(files):
    (files / "det.csv").write_text("v,902,10,20,300,400,1,.5\n")
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / "evaluate_detections.py"), *GIVEN],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: det.csv: line 1: the box 10,20,300,400 is not inside 0..1: divide pixels by the "
        "picture's width and height\n"
    )


def test_a_picture_of_many_actions_and_of_odd_names(measure, tmp_path):
    ids = tuple(range(1, 131))
    found = measure(
        [f"v,902,{BOX},{n}" for n in ids], [f"v,902,{BOX},{n},.5" for n in ids[:9]], ids
    )
    labels = LabelMap(ids, tuple(f"${n}$ \udce9" for n in ids))
    draw_curves(found, labels, tmp_path / "many.png")
    few = measure([f"v,902,{BOX},1"], [], (1, 2))
    draw_curves(few, LabelMap((1, 2), ("$a$", "\udce9")), tmp_path / "few.png")
    assert Image.open(tmp_path / "many.png").size[1] > Image.open(tmp_path / "few.png").size[1]
