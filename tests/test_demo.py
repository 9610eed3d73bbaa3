"""`demo/predict.py` as users call it: what comes out where, and the exit codes."""

import csv
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from clips import read_indices, write_clip
from test_guarded_video import serve_or_worse
from test_predict import CLASSES, NAME, SPEC, TINY, tiny_model, write_checkpoint

from hiera_video import Predictor, __version__
from hiera_video.errors import RunFailed, UserError
from hiera_video.labelled_video.captions import Caption, Panel
from hiera_video.spreadsheet import original
from hiera_video.video.decode import read_frames
from hiera_video.video.guarded_pool import GuardedPool


@pytest.fixture(scope="module")
def demo():
    """What `demo/predict.py` and `hiera-video predict` run."""
    return importlib.import_module("hiera_video.commands.predict")


@pytest.fixture(scope="module")
def repository_path(repository):
    """The script."""
    return repository / "demo" / "predict.py"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("demo") / "tiny.pyth"))


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """The current folder: two clips with awkward names and a file that is none."""
    write_clip(tmp_path / "-dash ü.mp4", frames=30)
    write_clip(tmp_path / "b.mp4", frames=60)
    (tmp_path / "bad.mp4").write_text("not a video")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(demo, weights, capsys):
    """Run the demo with the tiny weights on the CPU: (exit code, stdout, stderr)."""

    def run(*arguments, defaults=("--device", "cpu", "--views", "1x1")):
        argv = ["--weights", weights, *defaults, *map(str, arguments)]
        try:
            code = demo.main(argv)
        except SystemExit as end:  # argparse
            code = end.code
        except UserError as error:  # cli.run makes this exit code 2
            code = 2
            print(f"error: {error}", file=sys.stderr)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def rows_of(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


# ---- the table ----


def test_the_table_ranks_the_labels_of_each_video(call, clips):
    code, out, err = call("b.mp4", "./-dash ü.mp4", "--top-k", 2)
    assert code == 0
    lines = out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["b.mp4", "./-dash ü.mp4"]
    assert [line.split()[0] for line in lines if line.startswith(" ")] == ["1", "2", "1", "2"]
    assert all(line.split()[1].endswith("%") for line in lines if line.startswith(" "))
    assert {line.split()[2] for line in lines if line.startswith(" ")} <= set(CLASSES)
    assert "\x1b" not in out + err
    assert "\r" not in out + err


def test_a_bad_file_is_reported_and_the_rest_is_labelled(call, clips):
    code, out, err = call(".")
    assert code == 1
    names = [line for line in out.splitlines() if not line.startswith(" ")]
    assert names == ["./-dash ü.mp4", "./b.mp4", "./bad.mp4"]
    assert "      error: " in out
    assert "error: ./bad.mp4: " in err
    assert "1 of 3 files" in err


def test_a_file_that_crashes_its_decoder_is_one_error_among_labels(call, clips, demo, monkeypatch):
    os.rename("bad.mp4", "crash.mp4")
    monkeypatch.setattr(demo, "decoding_process", lambda workers: GuardedPool(serve_or_worse))
    code, out, err = call(".", "--timeline", 1)
    assert code == 1
    names = [line for line in out.splitlines() if not line.startswith(" ")]
    assert names == ["./-dash ü.mp4", "./b.mp4", "./crash.mp4"]
    assert out.count("  1 ") == 2
    assert "error: ./crash.mp4: reading it in a process of its own: crashed (SIGSEGV)" in err


def test_a_missing_path_is_one_failed_row_among_labels(call, clips):
    (clips / "empty").mkdir()
    paths = ["gone.mp4", "b.mp4", "*.mov", "empty", "bad.mp4"]
    code, out, err = call(*paths, "--json", "--csv", "out.csv")
    assert code == 1
    rows = {row["file"]: row["error"] for row in json.loads(out)}
    assert list(rows) == paths
    assert rows["b.mp4"] is None
    assert rows["gone.mp4"] == "no such file or folder"
    assert rows["*.mov"].startswith("matches nothing")
    assert rows["empty"].startswith("no videos in it")
    listed = {row["file"]: row["error"] for row in rows_of("out.csv")}
    assert listed == {**rows, "b.mp4": ""}
    assert "error: gone.mp4: no such file or folder" in err
    assert "4 of 5 files could not be labelled" in err
    assert not re.search("Traceback", err)


def test_paths_that_are_all_missing_are_wrong_use(call, clips):
    code, out, err = call("gone.mp4", "*.mov", "--csv", "out.csv")
    assert (code, out) == (2, "")
    assert "none of these 2 paths" in err
    assert "'gone.mp4': no such file or folder" in err
    assert not os.path.exists("out.csv")


def test_names_that_would_steer_the_terminal_are_escaped(call, clips):
    os.rename("b.mp4", "a\x1b[31m\n.mp4")
    code, out, _ = call("a\x1b[31m\n.mp4")
    assert code == 0
    assert out.splitlines()[0] == r"a\x1b[31m\n.mp4"


# ---- JSON ----


def test_json_is_one_list_and_nothing_else_on_stdout(call, clips, weights):
    code, out, err = call(".", "--json", "--top-k", 3)
    assert code == 1
    dash, good, bad = json.loads(out)
    assert list(good) == ["file", "labels", "timeline", "error", "model", "weights", "views"]
    assert dash["file"] == "./-dash ü.mp4"
    assert good["file"] == "./b.mp4"
    assert len(good["labels"]) == 3
    scores = [label["score"] for label in good["labels"]]
    assert scores == sorted(scores, reverse=True)
    assert good["error"] is None
    assert (good["model"], good["weights"], good["views"]) == (NAME, weights, "1x1")
    assert bad["labels"] == []
    assert bad["error"]
    assert "bad.mp4" in err


def test_the_demo_gives_the_predictors_labels(call, clips, weights):
    _, out, _ = call("b.mp4", "--json", "--top-k", 5, defaults=("--views", "2x3"))
    predictor = Predictor.load(weights=weights, views=(2, 3))
    assert json.loads(out) == [predictor("b.mp4", top_k=5).to_dict()]


def test_the_default_is_five_views_by_three_crops(call, clips):
    _, out, _ = call("b.mp4", "--json", defaults=())
    assert json.loads(out)[0]["views"] == "5x3"


# ---- timelines ----


def test_a_timeline_follows_the_labels(call, clips):
    code, out, _ = call("b.mp4", "--timeline", 0.5, "--top-k", 2)
    assert code == 0
    windows = [line for line in out.splitlines() if " - " in line]
    assert [line.split()[0] for line in windows] == ["0:00.0", "0:00.5", "0:01.0", "0:01.5"]
    assert windows[-1].split()[2] == "0:02.0"
    assert windows[0].count("%") == 2


def test_a_timeline_in_json_and_csv(call, clips):
    code, out, _ = call("b.mp4", "--timeline", 1, "--json", "--csv", "out.csv", "--top-k", 2)
    assert code == 0
    (result,) = json.loads(out)
    assert [(w["start"], w["end"]) for w in result["timeline"]] == [(0, 1), (1, 2)]
    assert all(len(w["labels"]) == 2 for w in result["timeline"])
    assert len(result["labels"]) == 2
    rows = rows_of("out.csv")
    assert [(r["start"], r["end"]) for r in rows] == (
        [("", "")] * 2 + [("0.0", "1.0")] * 2 + [("1.0", "2.0")] * 2
    )


# ---- CSV ----


def test_the_labelled_video_says_what_the_json_says(call, clips):
    code, out, err = call("b.mp4", "--timeline", 1, "--json", "--video", "out.mp4")
    assert code == 0
    assert "wrote out.mp4 (" in err
    windows = json.loads(out)[0]["timeline"]
    assert len(windows) == 2
    frames = read_frames("out.mp4", range(60))
    assert read_indices(frames) == list(range(60))
    panel = Panel(frames.shape[3], frames.shape[2])
    for frame, window in ((frames[10], windows[0]), (frames[50], windows[1])):
        labels = tuple((label["label"], label["score"]) for label in window["labels"])
        drawn = np.zeros((frames.shape[2], frames.shape[3], 3), np.uint8)
        panel.put(drawn, Caption(window["start"], window["end"], labels))
        text = drawn[-panel.height :].max(axis=-1) > 180
        shown = frame.permute(1, 2, 0).numpy()[-panel.height :].max(axis=-1)
        assert text.any()
        assert (shown[text] > 140).mean() > 0.95
        assert shown[~text].mean() < 110


def test_a_video_that_cannot_be_labelled_is_not_copied(call, clips):
    code, _, err = call("bad.mp4", "--video", "out.mp4")
    assert code == 1
    assert "error: bad.mp4" in err
    assert not os.path.exists("out.mp4")


def test_a_copy_that_fails_costs_the_exit_code_and_not_the_labels(call, clips, monkeypatch):
    def fail(*arguments, **settings):
        raise RunFailed("cannot write out.mp4: No space left on device")

    monkeypatch.setattr("hiera_video.labelled_video.write.write_labelled_video", fail)
    code, out, err = call("b.mp4", "--video", "out.mp4")
    assert code == 1
    assert "  1 " in out
    assert "error: b.mp4: --video: cannot write out.mp4: No space left on device" in err


def test_csv_has_a_row_per_label_and_one_per_failure(call, clips):
    code, out, _ = call(".", "--csv", "out.csv", "--top-k", 2)
    assert code == 1
    assert "./b.mp4" in out
    rows = rows_of("out.csv")
    assert list(rows[0]) == ["file", "rank", "label", "score", "start", "end", "error"]
    assert [(r["file"], r["rank"]) for r in rows] == [
        ("./-dash ü.mp4", "1"), ("./-dash ü.mp4", "2"), ("./b.mp4", "1"), ("./b.mp4", "2"),
        ("./bad.mp4", ""),
    ]  # fmt: skip
    assert rows[-1]["error"]
    assert float(rows[0]["score"]) >= float(rows[1]["score"])
    assert sorted(os.listdir()) == sorted(["-dash ü.mp4", "b.mp4", "bad.mp4", "out.csv"])


@pytest.mark.parametrize("target", ["no/such/folder/out.csv", "."])
def test_a_csv_that_cannot_be_written_stops_before_the_work(call, clips, target, monkeypatch):
    monkeypatch.setattr(Predictor, "load", lambda **_: pytest.fail("the model was loaded"))
    code, out, err = call("b.mp4", "--csv", target)
    assert code == 2
    assert out == ""
    assert f"--csv: cannot write {target}: " in err


def test_a_failed_start_leaves_the_old_csv_alone(call, clips):
    (clips / "out.csv").write_text("precious")
    code, _, _ = call("b.mp4", "--csv", "out.csv", "--decoder", "none")
    assert code == 2
    assert (clips / "out.csv").read_text() == "precious"
    assert sorted(os.listdir()) == sorted(["-dash ü.mp4", "b.mp4", "bad.mp4", "out.csv"])


def test_csv_never_overwrites_a_video(call, clips):
    before = (clips / "b.mp4").read_bytes()
    code, _, err = call("bad.mp4", "--csv", "b.mp4")
    assert code == 2
    assert "named like a video" in err
    assert (clips / "b.mp4").read_bytes() == before


def test_a_crash_keeps_the_rows_that_were_done(call, clips, monkeypatch):
    blank = Predictor.blank

    def crash_on_b(self, name, *rest):
        if name.endswith("b.mp4"):
            raise ZeroDivisionError
        return blank(self, name, *rest)

    monkeypatch.setattr(Predictor, "blank", crash_on_b)
    with pytest.raises(ZeroDivisionError):
        call(".", "--csv", "out.csv", "--top-k", 1)
    assert [row["file"] for row in rows_of("out.csv")] == ["./-dash ü.mp4"]


def test_csv_to_a_link_replaces_what_it_points_to_and_devices_stay(call, clips):
    (clips / "real.csv").write_text("old")
    os.symlink("real.csv", "link.csv")
    assert call("b.mp4", "--csv", "link.csv")[0] == 0
    assert os.path.islink("link.csv")
    assert rows_of("real.csv")
    assert call("b.mp4", "--csv", os.devnull)[0] == 0
    assert not os.path.isfile(os.devnull)


ODD_CLASSES = ("=1+1", "é", "None", "-x", "007")


@pytest.fixture
def odd(clips):
    """The clips under names that spreadsheets, and UTF-8, have trouble with; and class names."""
    names = ["=1+1.mp4", os.fsdecode(b"caf\xe9.mp4"), 'a "b",\n;c.mp4']
    for name in names:
        os.link("b.mp4", name)
    (clips / "classes.txt").write_text("\n".join(ODD_CLASSES), encoding="utf-8")
    return names


def test_csv_opens_right_whatever_the_names(call, clips, odd):
    code, _, err = call(*odd, "--csv", "out.csv", "--labels", "classes.txt", "--top-k", 5)
    assert code == 0, err
    assert (clips / "out.csv").read_bytes()[:3] == b"\xef\xbb\xbf"
    rows = rows_of("out.csv")  # strict: any byte that is not UTF-8 would be an error
    assert [row["file"] for row in rows[::5]] == ["./=1+1.mp4", r"caf\xe9.mp4", 'a "b",\n;c.mp4']
    assert all(os.path.exists(original(row["file"])) for row in rows)
    for first in (0, 5, 10):
        written = {row["label"] for row in rows[first : first + 5]}
        assert written == {"'=1+1", "é", "'None", "'-x", "'007"}
        assert {original(label) for label in written} == set(ODD_CLASSES)
    assert all(0 <= float(row["score"]) <= 1 for row in rows)


def test_csv_opens_right_in_pandas(call, odd):
    pandas = pytest.importorskip("pandas")
    call(*odd, "bad.mp4", "--csv", "out.csv", "--labels", "classes.txt", "--top-k", 5)
    table = pandas.read_csv("out.csv")
    assert list(table.columns) == ["file", "rank", "label", "score", "start", "end", "error"]
    assert {original(label) for label in table["label"][:15]} == set(ODD_CLASSES)
    assert all(os.path.exists(original(file)) for file in table["file"])
    assert table["score"][:15].between(0, 1).all()
    assert table["label"].isna().tolist() == [False] * 15 + [True]


def test_json_is_utf8_and_names_the_very_file(repository_path, weights, clips):
    name = os.fsdecode(b"caf\xe9.mp4")
    os.rename("b.mp4", name)
    running = subprocess.run(
        [sys.executable, repository_path, name, "./-dash ü.mp4", "--weights", weights, "--json"],
        capture_output=True,
        timeout=120,
    )
    assert running.returncode == 0, running.stderr
    text = running.stdout.decode("utf-8", "strict")
    assert [result["file"] for result in json.loads(text)] == [name, "./-dash ü.mp4"]
    assert r"caf\udce9.mp4" in text
    assert "-dash ü.mp4" in text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_names_the_csv_and_the_rest_is_written(repository_path, weights, clips):
    os.symlink("/dev/full", "out.csv")
    running = process(
        repository_path, "b.mp4", "--weights", weights, "--views", "1x1", "--json",
        "--csv", "out.csv",
    )  # fmt: skip
    out, err = running.communicate(timeout=120)
    assert running.returncode == 1
    assert "error: cannot write out.csv: No space left on device; free some space" in err
    assert "Traceback" not in err
    assert json.loads(out)[0]["labels"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs limits of Linux")
def test_a_csv_that_may_not_grow_is_named_and_the_old_one_stays(repository_path, weights, clips):
    (clips / "out.csv").write_text("precious")
    code = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:];"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, repository_path, "b.mp4", "--weights", weights,
         "--views", "1x1", "--csv", "out.csv"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "error: cannot write out.csv: File too large" in done.stderr
    assert "  1 " in done.stdout
    assert (clips / "out.csv").read_text() == "precious"
    assert sorted(os.listdir()) == sorted(["-dash ü.mp4", "b.mp4", "bad.mp4", "out.csv"])


# ---- wrong use ----


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "PATH"),
        (["missing.mp4"], "no such file"),
        (["*.mov"], ".mp4"),
        (["b.mp4", "--views", "5"], "such as 5x3"),
        (["b.mp4", "--views", "5x2"], "such as 5x3"),
        (["b.mp4", "--top-k", "0"], "--top-k"),
        (["b.mp4", "--top-k", "x"], "--top-k"),
        (["b.mp4", "--batch-size", "0"], "batch_size"),
        (["b.mp4", "--timeline", "0"], "seconds"),
        (["b.mp4", "--timeline", "nan"], "seconds"),
        (["b.mp4", "--device", "tpu"], "auto, cpu, cuda"),
        (["b.mp4", "--dtype", "int8"], "auto, fp32, fp16 or bf16"),
        (["b.mp4", "--decoder", "vlc"], "pyav"),
        (["b.mp4", "--model", "hiera_bas_16x224"], "hiera_base_16x224"),
        (["b.mp4", "--weights", "missing.pyth"], "missing.pyth"),
        (["b.mp4", "--labels", "missing.txt"], "missing.txt"),
        (["b.mp4", "--labels", "ssv2"], "174 classes, the model has 5"),
        (["b.mp4", "--cfg", "missing.yaml"], "missing.yaml"),
        (["b.mp4", "--opts", "DATA.NUM_FRAMES", "8"], "--cfg"),
        (["b.mp4", "--import", "no_such_module"], "no_such_module"),
        (["b.mp4", "--frobnicate"], "--frobnicate"),
        (["b.mp4", "--video", "out.avi"], "--video: out.avi: labelled videos are written as .mp4"),
        (["b.mp4", "--video", "b.mp4"], "is the video that is labelled"),
        (["b.mp4", "./-dash ü.mp4", "--video", "out.mp4"], "2 videos are labelled; name one"),
    ],
)
def test_wrong_use_is_exit_code_2_and_says_what_to_do(call, clips, arguments, says):
    code, out, err = call(*arguments)
    assert code == 2
    assert out == ""
    assert says in err


def test_cuda_without_a_gpu_is_wrong_use(call, clips, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = call("b.mp4", "--device", "cuda")
    assert code == 2
    assert "--device cpu" in err


def test_an_empty_folder_says_what_was_looked_for(call, tmp_path):
    code, _, err = call(tmp_path)
    assert code == 2
    assert ".webm" in err


# ---- a config file ----


@pytest.fixture
def yaml(clips, weights):
    """A config of the tiny model with sampling of its own."""
    path = clips / "tiny.yaml"
    path.write_text(
        f"""
MODEL: {{MODEL_NAME: {NAME}, KWARGS: {{embed_dim: 16, num_heads: 1, stages: [1, 1, 1, 1]}}}}
DATA: {{NUM_FRAMES: 4, SAMPLING_RATE: 8, TRAIN_CROP_SIZE: 64, TEST_CROP_SIZE: 64}}
TEST: {{NUM_ENSEMBLE_VIEWS: 3, NUM_SPATIAL_CROPS: 1, CHECKPOINT_FILE_PATH: {weights}}}
"""
    )
    return path


def test_a_config_brings_model_views_sampling_and_weights(demo, yaml, capsys, monkeypatch):
    loaded = {}
    load = Predictor.load

    def recording(**choices):
        loaded["predictor"] = load(**choices)
        return loaded["predictor"]

    monkeypatch.setattr(Predictor, "load", recording)
    assert demo.main(["b.mp4", "--json", "--cfg", str(yaml), "DATA.SAMPLING_RATE", "5"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["views"] == "3x1"
    assert loaded["predictor"].spec.sampling_rate == 5
    assert loaded["predictor"].spec.crop_size == SPEC.crop_size
    # What the command line says comes first.
    assert demo.main(["b.mp4", "--json", "--views", "2x3", "--cfg", str(yaml)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["views"] == "2x3"


def test_settings_stand_anywhere_between_the_videos(call, yaml):
    for line in (
        ["b.mp4", "--cfg", yaml, "TEST.NUM_ENSEMBLE_VIEWS", "2", "--json", "./-dash ü.mp4"],
        ["TEST.NUM_ENSEMBLE_VIEWS", "2", "--cfg", yaml, "b.mp4", "./-dash ü.mp4", "--json"],
    ):
        code, out, err = call(*line, defaults=("--device", "cpu"))
        assert code == 0, err
        found = [(row["file"], row["views"]) for row in json.loads(out)]
        assert found == [("b.mp4", "2x1"), ("./-dash ü.mp4", "2x1")]


def test_a_config_for_pretraining_gives_no_labels(call, yaml):
    code, _, err = call("b.mp4", "--cfg", yaml, "TASK", "pretrain")
    assert code == 2
    assert "pretrain" in err


def test_a_model_of_ones_own_is_imported(demo, clips, capsys):
    (clips / "my_demo_module.py").write_text(
        "from hiera_video import build_model\n"
        "from hiera_video.registry import MODEL_REGISTRY\n"
        "@MODEL_REGISTRY.register()\n"
        "def my_demo_net(num_classes=5, **kwargs):\n"
        f"    return build_model({NAME!r}, num_classes=num_classes, **kwargs)\n"
    )
    kwargs = {k: list(v) if isinstance(v, tuple) else v for k, v in TINY.items()}
    write_checkpoint(clips / "my.pyth", stored={"name": "my_demo_net", "kwargs": kwargs})
    arguments = ["b.mp4", "--views", "1x1", "--json", "--weights", "my.pyth"]
    assert demo.main([*arguments, "--import", "my_demo_module"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["model"] == "my_demo_net"


# ---- as a process ----


def process(repository_path, *arguments, **kwargs):
    return subprocess.Popen(
        [sys.executable, str(repository_path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def test_a_name_with_a_leading_dash_after_two_dashes(repository_path, weights, clips):
    arguments = ["--weights", weights, "--views", "1x1", "--json", "--", "-dash ü.mp4"]
    # An ASCII terminal must not change JSON.
    running = process(repository_path, *arguments, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert json.loads(out)[0]["file"] == "-dash ü.mp4"


def test_help_and_version_need_no_model(repository_path, tmp_path):
    version = process(repository_path, "--version", cwd=tmp_path)
    shown = process(repository_path, "--help", cwd=tmp_path)
    assert version.communicate(timeout=120)[0] == f"hiera_video {__version__}\n"
    out, _ = shown.communicate(timeout=120)
    assert "--timeline SECONDS" in out
    assert (version.returncode, shown.returncode) == (0, 0)


def test_wrong_use_is_one_line_without_a_traceback(repository_path, clips):
    running = process(repository_path, "missing.mp4")
    out, err = running.communicate(timeout=120)
    assert running.returncode == 2
    assert out == ""
    assert err.startswith("error: 'missing.mp4': no such file")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "weights", ["missing.pyth", ".", "bad.mp4"], ids=["missing", "folder", "text"]
)
def test_wrong_weights_are_one_line_and_nothing_else(repository_path, clips, weights):
    """The process that decodes has been started by then; it must not say anything of its own."""
    running = process(repository_path, "b.mp4", "--weights", weights)
    out, err = running.communicate(timeout=120)
    assert (running.returncode, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert weights in err


def test_ctrl_c_writes_what_is_done(repository_path, weights, clips):
    write_clip(clips / "long.mp4", frames=6000, size=(32, 32))
    running = process(
        repository_path, "b.mp4", "long.mp4", "--weights", weights, "--views", "1x1", "--json",
        "--csv", "out.csv", "--timeline", "0.04",
    )  # fmt: skip
    for _ in range(1200):  # until rows of the long video are on the disk
        if any("long.mp4" in part.read_text() for part in clips.glob(".out.csv.*.tmp")):
            break
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "Traceback" not in err
    done, broken_off = json.loads(out)
    assert done["error"] is None
    assert done["labels"]
    assert broken_off["error"] == "interrupted"
    assert 0 < len(broken_off["timeline"]) < 1250
    assert {"b.mp4", "long.mp4"} == {row["file"] for row in rows_of("out.csv")}


def test_a_reader_that_goes_away_is_no_traceback(repository_path, weights, clips):
    running = process(repository_path, "b.mp4", "b.mp4", "--weights", weights, "--views", "1x1")
    running.stdout.close()
    err = running.stderr.read()
    running.stderr.close()
    assert running.wait(timeout=120) == 141
    assert "Traceback" not in err


def test_the_model_of_the_tests_tells_its_classes_apart():
    # Ranks over five equal scores would prove nothing above.
    clips = torch.randn(4, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    assert tiny_model().eval()(clips).softmax(-1).std(dim=-1).min() > 0.01
