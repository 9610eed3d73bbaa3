"""Settings on the command line: anywhere on it, among paths and options, and the table of them."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from hiera_video.config import Config, describe_settings, load_config
from hiera_video.config.command_line import (
    SettingsParser,
    add_config_arguments,
    config_from_args,
    settings_table,
)
from hiera_video.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The current folder has two configs, a video, and a folder with the name of a setting."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"x.yaml": "RNG_SEED: 7", "y.yaml": "", "a.mp4": "", "DATA.MP4": ""}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "TASK").mkdir()
    return tmp_path


def parser(*, paths: bool = False, required: bool = False) -> SettingsParser:
    """What tools/run_net.py takes, or demo/predict.py with its paths."""
    made = SettingsParser(allow_abbrev=not paths)
    if paths:
        made.add_argument("paths", nargs="+")
    add_config_arguments(made, required=required)
    made.add_argument("--dry-run", type=int)
    made.add_argument("--print-config", action="store_true")
    made.add_argument("--settings", dest="show", nargs="?", const="")
    made.add_argument("--two", nargs=2)
    return made


def parse(line: str, **kind):
    return parser(**kind).parse_args(shlex.split(line))


def refusal(line: str, capsys, **kind) -> str:
    """The error message for a command line."""
    with pytest.raises((UserError, SystemExit)) as caught:
        config_from_args(parse(line, **kind))
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 2
        return capsys.readouterr().err
    return str(caught.value)


# ---- anywhere -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "--cfg x.yaml SOLVER.BASE_LR 1e-4 TASK pretrain",
        "--cfg x.yaml --opts SOLVER.BASE_LR 1e-4 TASK pretrain",
        "--opts SOLVER.BASE_LR 1e-4 TASK pretrain --cfg x.yaml",
        "--cfg x.yaml SOLVER.BASE_LR 1e-3 --opts SOLVER.BASE_LR 1e-4 TASK pretrain",
        "--cfg x.yaml --dry-run 1 SOLVER.BASE_LR 1e-4 TASK pretrain",
        "SOLVER.BASE_LR 1e-4 TASK pretrain --cfg x.yaml",
        "SOLVER.BASE_LR 1e-4 --cfg x.yaml TASK pretrain",
        "--cfg x.yaml SOLVER.BASE_LR 1e-4 --print-config TASK pretrain",
        "--cfg=x.yaml SOLVER.BASE_LR 1e-4 --dry-run=3 --opts TASK pretrain",
        "--opts SOLVER.BASE_LR 1e-4 --cfg x.yaml --opts TASK pretrain --print-config",
        "solver.base_lr 1e-4 --dry 2 task pretrain --cfg x.yaml",
        "--two TASK classify SOLVER.BASE_LR 1e-4 --cfg x.yaml TASK pretrain",
        "--cfg x.yaml -- SOLVER.BASE_LR 1e-4 TASK pretrain",
    ],
)
def test_settings_may_be_anywhere(line):
    cfg = config_from_args(parse(line))
    assert (cfg.rng_seed, cfg.solver.base_lr, cfg.task) == (7, 1e-4, "pretrain")


def test_the_last_value_of_a_key_counts():
    args = parse("--opts RNG_SEED 1 --cfg x.yaml RNG_SEED 2 --dry-run 1 RNG_SEED 3")
    assert config_from_args(args).rng_seed == 3
    assert args.dry_run == 1


def test_a_value_may_begin_with_a_dash_or_be_empty(capsys):
    for value, shown in (("-1", "-1"), ("-0.5", "-0.5"), ("-1e-4", "-0.0001")):
        said = refusal(f"--cfg x.yaml --dry-run 1 SOLVER.BASE_LR {value}", capsys)
        assert f"SOLVER.BASE_LR={shown} must be" in said
    cfg = config_from_args(parse("DATA.GROUP_BY --cfg-is-no-option --cfg x.yaml DATA.FORMAT ''"))
    assert (cfg.data.group_by, cfg.data.format, cfg.rng_seed) == ("--cfg-is-no-option", "", 7)
    cfg = config_from_args(parse("MODEL.KWARGS.scale -2 --dry-run 1 --cfg x.yaml"))
    assert cfg.model.kwargs == {"scale": -2}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--cfg x.yaml y.yaml", "one file, then KEY VALUE ...; 'y.yaml' is a second"),
        ("--cfg x.yaml RNG_SEED 1 y.yaml", "'y.yaml' is a second file"),
        ("--cfg x.yaml --cfg y.yaml", "given twice"),
        ("y.yaml RNG_SEED 1", "name the config file with --cfg: --cfg y.yaml"),
        ("--cfg x.yaml RNG_SEED=3", "without '=': RNG_SEED 3"),
        ("--cfg x.yaml RNG_SEED=3 --dry-run 1 TASK=pretrain", "without '=': RNG_SEED 3"),
        ("--cfg x.yaml RNG_SEED", "RNG_SEED has no value"),
        ("--cfg x.yaml RNG_SEED --dry-run 1 TASK pretrain LOG_PERIOD", "RNG_SEED has no value"),
        ("--cfg x.yaml SOLVER.BASE_RL 1", "did you mean SOLVER.BASE_LR"),
        ("--cfg x.yaml --opts lr 1", "unknown config key LR"),
        ("--cfg x.yaml --dryrun 1", "--dryrun; did you mean --dry-run?"),
        ("--cfg x.yaml --frobnicate TASK pretrain", "unrecognized arguments: --frobnicate"),
        ("--cfg x.yaml -1", "unrecognized arguments: -1"),
        ("--cfg", "expected one argument"),
    ],
)
def test_a_wrong_line_is_explained(line, says, capsys):
    said = refusal(line, capsys)
    assert says in said
    assert "Traceback" not in said


# ---- beside paths -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "a.mp4 b.mp4 --cfg x.yaml RNG_SEED 3",
        "--cfg x.yaml a.mp4 b.mp4 RNG_SEED 3",
        "RNG_SEED 3 a.mp4 --cfg x.yaml b.mp4",
        "--cfg x.yaml --opts RNG_SEED 3 --dry-run 1 a.mp4 b.mp4",
        "a.mp4 RNG_SEED 3 --dry-run 1 --cfg x.yaml b.mp4",
        "--cfg x.yaml --opts rng_seed 3 a.mp4 -- b.mp4",
    ],
)
def test_settings_and_paths_are_told_apart(line):
    args = parse(line, paths=True)
    assert args.paths == ["a.mp4", "b.mp4"]
    assert config_from_args(args).rng_seed == 3


def test_existing_files_are_paths_and_lower_case_words_are_not_keys():
    args = parse("TASK DATA.MP4 task device SOLVED.MP4 --cfg x.yaml", paths=True)
    assert args.paths == ["TASK", "DATA.MP4", "task", "device", "SOLVED.MP4"]
    assert args.settings == []
    args = parse("a.mp4 --cfg x.yaml --opts TASK pretrain", paths=True)
    assert (args.paths, args.settings) == (["a.mp4"], ["TASK", "pretrain"])
    args = parse("--cfg x.yaml -- -a.mp4 RNG_SEED 3 --dry-run", paths=True)
    assert args.paths == ["-a.mp4", "RNG_SEED", "3", "--dry-run"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a.mp4 --cfg x.yaml SOLVER.BASE_RL 1", "did you mean SOLVER.BASE_LR"),
        ("a.mp4 --cfg x.yaml RNG_SEED=3", "without '=': RNG_SEED 3"),
        ("a.mp4 --cfg x.yaml y.yaml", "'y.yaml' is a second file"),
        ("a.mp4 y.yaml", "name the config file with --cfg"),
        ("a.mp4 --cfg x.yaml --frobnicate", "--frobnicate"),
        ("--cfg x.yaml RNG_SEED 3", "required: paths"),
    ],
)
def test_a_wrong_line_with_paths_is_explained(line, says, capsys):
    assert says in refusal(line, capsys, paths=True)


# ---- imports ------------------------------------------------------------------------------------


def test_imports_of_file_and_command_line_are_imported_and_kept(here, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (here / "users_first.py").write_text("")
    (here / "users_second.py").write_text("")
    (here / "x.yaml").write_text("IMPORTS: [users_first]")
    cfg = config_from_args(parse("--cfg x.yaml --import users_second"))
    assert cfg.imports == ("users_first", "users_second")
    assert {"users_first", "users_second"} <= set(sys.modules)


# ---- every setting is found ---------------------------------------------------------------------


def test_every_setting_has_a_meaning_and_a_default_that_can_be_typed():
    known = describe_settings()
    assert len(known) > 90
    for setting in known:
        assert len(setting.meaning.split()) > 1, setting.key
        assert setting.allowed
        assert load_config(None, [setting.key, setting.default]) == Config(), setting.key


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("linear", ["TRAIN.LINEAR_PROBE"]),
        ("class weights", ["TRAIN.CLASS_WEIGHTS"]),
        ("tensorboard.*", ["TENSORBOARD.ENABLE"]),
        ("SOLVER.WARMUP_?P*", ["SOLVER.WARMUP_EPOCHS"]),
        ("averages into a picture", None),
        ("Nesterov", ["SOLVER.NESTEROV"]),
        ("stochastic depth", ["HIERA.DROPPATH_RATE"]),
    ],
)
def test_settings_are_found_by_a_part_a_pattern_or_their_meaning(pattern, keys):
    if keys is None:
        with pytest.raises(UserError, match="--settings alone"):
            settings_table(pattern)
        return
    heads = [line for line in settings_table(pattern).splitlines() if not line.startswith(" ")]
    assert [head.split()[0] for head in heads] == keys


def test_a_setting_is_shown_with_what_it_means():
    assert settings_table("linear").splitlines() == [
        "TRAIN.LINEAR_PROBE  (default false; true or false)",
        "    Train the head alone; the backbone stays as it was loaded.",
    ]
    with pytest.raises(UserError, match=r"similar ones: .*SOLVER\.WARMUP_EPOCHS"):
        settings_table("warmpu")
    with pytest.raises(UserError, match=r"similar ones: TRAIN\.LINEAR_PROBE"):
        settings_table("TRAIN.LINEARPROBE")


def test_settings_are_shown_without_torch_and_without_a_config(repository):
    code = (
        "import runpy, sys; sys.argv = ['run_net.py', '--settings', 'LINEAR']\n"
        f"try: runpy.run_path({str(repository / 'tools' / 'run_net.py')!r}, run_name='__main__')\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("TRAIN.LINEAR_PROBE"), done.stderr
    assert done.stdout.endswith("0 False\n")
