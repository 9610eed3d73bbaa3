"""What a run writes: the spelling of its lines, its records, its pictures."""

import io
import json
import math

import torch
from matplotlib.image import imread

from hiera_video.engine import meters, plots
from hiera_video.engine.meters import StepTimer
from hiera_video.engine.records import drop_records_after, json_stats, read_metrics
from hiera_video.engine.run_logger import RunLogger


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_json_stats_is_slowfasts_line():
    line = json_stats({"_type": "train_iter_", "lr": 1e-4, "epoch": "1/10", "iter": 3})
    assert line == 'json_stats: {"_type": "train_iter_", "epoch": "1/10", "iter": 3, "lr": 0.00010}'


def test_numbers_that_json_cannot_say_stay_readable():
    line = json_stats({"loss": math.nan, "top1_err": math.inf})
    assert json.loads(line.removeprefix("json_stats: ")) == {"loss": "nan", "top1_err": "inf"}


def test_the_log_and_the_records(tmp_path):
    out = io.StringIO()
    logger = RunLogger(tmp_path, stream=out)
    logger.info("hello")
    logger.log_stats("train_iter_", step=1, loss=1 / 3)
    logger.progress("never in a pipe")
    logger.close()
    assert out.getvalue() == "hello\n"
    log = (tmp_path / "stdout.log").read_text().splitlines()
    assert log[0] == "hello"
    assert '"loss": 0.33333' in log[1]
    assert read_metrics(tmp_path) == [{"_type": "train_iter_", "step": 1, "loss": 1 / 3}]


def test_lines_before_the_folder_are_written_once_it_is_there(tmp_path):
    with RunLogger(None, stream=io.StringIO()) as logger:
        logger.info("early")
        assert not (tmp_path / "stdout.log").exists()
        logger.open(tmp_path)
        logger.info("late")
    assert (tmp_path / "stdout.log").read_text() == "early\nlate\n"


def test_a_terminal_gets_one_redrawn_line_that_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    out = Terminal()
    logger = RunLogger(None, stream=out)
    logger.progress("x" * 100)
    logger.progress("too soon to draw again")
    logger.info("line")
    assert out.getvalue() == "\r\x1b[K" + "x" * 19 + "\r\x1b[K" + "line\n"


def test_a_resumed_run_forgets_what_it_will_do_again(tmp_path):
    logger = RunLogger(tmp_path, quiet=True)
    for step in range(1, 6):
        logger.log_stats("train_iter_", step=step, loss=float(step))
    logger.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"_type": "train_iter_", "st')  # killed in the middle of a line
    drop_records_after(tmp_path, 3)
    logger = RunLogger(tmp_path, quiet=True)
    logger.log_stats("train_iter_", step=4, loss=4.5)
    logger.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 4.5),
    ]


def test_quiet_processes_write_nothing(tmp_path, capsys):
    logger = RunLogger(None, quiet=True)
    logger.info("x")
    logger.log_stats("train_iter_", step=1)
    assert logger.add_image("a", torch.zeros(3, 4, 4), 1) is None
    logger.close()
    assert capsys.readouterr().out == ""


def test_pictures(tmp_path):
    logger = RunLogger(tmp_path, quiet=True)
    assert plots.draw_curves(tmp_path) is None
    for step in range(4):
        logger.log_stats("train_iter_", step=step, loss=1.0 / (step + 1), lr=0.1)
    logger.log_stats("train_iter_", step=4, loss=math.nan, lr=0.1)
    logger.log_stats("val_epoch", step=4, top1_err=50.0, top5_err=20.0)
    path = logger.add_image("reconstruction", torch.rand(3, 8, 24), 12)
    logger.close()
    assert path.name == "reconstruction_0000012.png"
    plots.draw_confusion(torch.tensor([[2, 0], [1, 0]]), ["a", "ünï"], tmp_path / "confusion.png")
    for picture in (path, plots.draw_curves(tmp_path), tmp_path / "confusion.png"):
        assert imread(picture).std() > 0.01, f"{picture.name} is blank"


def test_durations():
    assert meters.format_duration(0.2) == "0:00:00"
    assert meters.format_duration(3723) == "1:02:03"
    assert meters.format_duration(3 * 86400 + 15000) == "3 days, 4:10:00"
    assert meters.format_duration(math.nan) == "unknown"


def test_the_clock_shares_out_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(meters.time, "perf_counter", lambda: now[0])
    clock = StepTimer()
    for wait, work in [(1.0, 3.0), (0.0, 4.0)]:
        with clock.waiting():
            now[0] += wait
        now[0] += work
        clock.step_done(clips=8)
    assert clock.seconds == 4
    assert clock.data_seconds == 0.5
    assert clock.clips_per_second == 2
    now[0] += 100  # an evaluation
    clock.restart()
    now[0] += 4
    clock.step_done(clips=8)
    assert clock.seconds == 4
