"""The installed command: what it offers, what it refuses, and recipes by their names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from conftest import REPOSITORY

from hiera_video import build_model, load_config
from hiera_video.commands import COMMANDS, usage
from hiera_video.config.recipes import locate, recipe_names
from hiera_video.errors import ConfigError
from hiera_video.models.cost import cost_of


@pytest.fixture
def command(tmp_path):
    """Run `python -m hiera_video` in an empty folder."""

    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "hiera_video", *map(str, words)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def test_the_overview_names_every_command(command):
    said = command("--help")
    assert said.returncode == 0
    for name, about in COMMANDS.items():
        assert f"  {name} " in said.stdout
        assert about.what in said.stdout
    assert "  doctor " in said.stdout
    nothing = command()
    assert nothing.returncode == 2
    assert nothing.stderr == said.stdout
    assert command("--version").stdout.startswith("hiera_video ")


@pytest.mark.parametrize("name", [*COMMANDS, "doctor"])
def test_each_command_has_help_with_an_example(name, command):
    said = command(name, "--help")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"usage: python -m hiera_video {name}")
    assert f"\n    python -m hiera_video {name}" in said.stdout, "no example as it is typed"
    assert "\n    hiera-video " not in said.stdout
    assert "Exit codes" in said.stdout or "exit codes" in said.stdout


def test_help_does_not_wait_for_torch():
    """It is what makes a command slow to start; numpy and the readers count as well."""
    for name, about in COMMANDS.items():
        code = (
            "import sys\n"
            f"import hiera_video.commands.{about.module} as module\n"
            "try: module.main(['--help'])\n"
            "except SystemExit: pass\n"
            "print([m for m in ('torch', 'av', 'numpy') if m in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stderr.strip() == "[]", name


@pytest.mark.parametrize(
    ("word", "advice"), [("modles", "did you mean models?"), ("x", "allowed are predict")]
)
def test_an_unknown_command_is_refused(word, advice, command):
    said = command(word)
    assert said.returncode == 2
    assert said.stderr.startswith(f"error: python -m hiera_video {word}: no such command; {advice}")


def test_an_error_of_a_command_is_one_line(command):
    said = command("train", "K400/hiera_b_16x4", "SOLVER.BASE_LRR", "1")
    assert said.returncode == 2
    assert said.stderr.startswith("error: unknown config key SOLVER.BASE_LRR")
    assert "Traceback" not in said.stderr


# ---- scripts of a checkout ----------------------------------------------------------------------


def test_examples_are_shown_as_they_are_typed():
    text = "hiera-video train mine\ntorchrun -m hiera_video train mine"
    assert usage(text, "train", "hiera-video train") == text
    module = usage(text, "train", "python -m hiera_video train")
    assert module == "python -m hiera_video train mine\ntorchrun -m hiera_video train mine"
    script = usage(text, "train", "python tools/run_net.py")
    assert script == "python tools/run_net.py mine\ntorchrun tools/run_net.py mine"


@pytest.mark.parametrize(
    "script",
    [
        *(
            "demo/predict.py",
            "demo/detect.py",
            "demo/app.py",
            "tools/run_net.py",
            "tools/audit_data.py",
            "tools/prepare_data.py",
        ),
        *("tools/extract_features.py", "tools/search.py", "tools/export.py"),
        *("tools/label_dataset.py", "tools/benchmark.py", "tools/evaluate_detections.py"),
        "tools/slurm.py",
    ],
)
def test_scripts_are_the_same_code(script, tmp_path):
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / script), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python {script}")
    assert f"\n    python {script} " in done.stdout


# ---- recipes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    ["K400/hiera_b_16x4", "K400/hiera_b_16x4.yaml", "configs/K400/hiera_b_16x4.yaml"],
)
def test_a_recipe_has_a_name(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(word)
    assert config == load_config(REPOSITORY / "configs/K400/hiera_b_16x4.yaml")
    assert config.model.model_name == "hiera_base_16x224"


def test_an_own_file_comes_before_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finetune_folder").write_text("RNG_SEED: 77\n")
    assert load_config("finetune_folder").rng_seed == 77


def test_all_recipes_have_names():
    files = {p.relative_to(REPOSITORY / "configs") for p in REPOSITORY.glob("configs/**/*.yaml")}
    own = {p.with_suffix("").as_posix() for p in files if not p.parts[0].startswith("_")}
    assert set(recipe_names()) == own
    assert len(own) > 40


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("hiera_l_16", "similar ones: AVA/hiera_l_16x4, K400/hiera_l_16x4, "),
        ("K400/hiera_b_16x5", "similar ones: K400/hiera_b_16x4"),
        ("zzz", "recipe; hiera-video train --recipes lists them"),
    ],
)
def test_an_unknown_recipe_is_refused(word, advice):
    with pytest.raises(
        ConfigError, match="neither a config file nor the name of a recipe"
    ) as error:
        locate(word)
    assert advice in str(error.value)


def test_a_missing_file_is_still_a_missing_file():
    with pytest.raises(ConfigError, match=r"no config file mine/missing\.yaml"):
        load_config("mine/missing.yaml")


def test_train_takes_a_recipe_as_its_first_word(command):
    whole = command(
        "train", "--cfg", "quickstart/finetune", "SOLVER.MAX_EPOCH", "3", "--print-config"
    )
    short = command("train", "quickstart/finetune", "SOLVER.MAX_EPOCH", "3", "--print-config")
    assert short.returncode == 0, short.stderr
    assert short.stdout == whole.stdout
    assert "MAX_EPOCH: 3" in short.stdout
    key = command("train", "SOLVER.MAX_EPOCH", "3")
    assert key.returncode == 2
    assert "name a config file or a recipe" in key.stderr


def test_test_does_not_train_and_probe_takes_no_steps(command):
    tested = command("test", "small/finetune_folder", "--print-config").stdout
    assert "TRAIN:\n  ENABLE: false" in tested
    for words, kind in (
        (["--probe", "--print-config"], "linear"),
        (["--print-config", "--probe"], "linear"),
        (["--print-config", "--probe", "TRAIN.PROBE_VIEWS", "3"], "linear"),
        (["--print-config", "--probe", "attentive", "TRAIN.PROBE_VIEWS", "3"], "attentive"),
    ):
        probed = command("train", "finetune_folder", *words).stdout
        for line in (f"  PROBE: {kind}\n", "  MAX_EPOCH: 0", "  MAX_STEPS: 0", "  ENABLE: true"):
            assert line in probed
    wrong = command("train", "finetune_folder", "--probe", "atentive", "--print-config")
    assert wrong.returncode == 2
    assert "invalid choice: 'atentive'" in wrong.stderr
    assert "linear" in wrong.stderr


def test_the_table_of_recipes(command):
    said = command("train", "--recipes")
    assert said.returncode == 0
    assert len(said.stdout.splitlines()) == len(recipe_names())
    assert "K400/hiera_b_16x4 " in said.stdout
    assert "fine-tuning on Kinetics-400" in said.stdout


def test_a_missing_data_folder_is_answered_with_a_recipe_that_needs_none(command):
    said = command("train", "finetune_folder", "DATA.PATH_TO_DATA_DIR", "nowhere")
    assert said.returncode == 2
    assert "DATA.PATH_TO_DATA_DIR nowhere does not exist" in said.stderr
    (name,) = re.findall(r"--cfg (\S+) runs without any data", said.stderr)
    assert name in recipe_names()


def test_recipes_are_called_by_their_names_in_recipes():
    """The commands at the top of each file."""
    texts = [p.read_text(encoding="utf-8") for p in REPOSITORY.glob("configs/**/*.yaml")]
    named = [name for text in texts for name in re.findall(r"hiera-video train ([\w/]+)", text)]
    assert set(named) <= set(recipe_names())
    assert len(named) > 10


# ---- models -------------------------------------------------------------------------------------


def test_models_are_listed_with_what_they_cost(command):
    said = command("models", "hiera_base_*", "x3d_xs", "--json")
    assert said.returncode == 0, said.stderr
    rows = {row["model"]: row for row in json.loads(said.stdout)}
    assert set(rows) == {
        *("hiera_base_16x224", "hiera_base_224", "hiera_base_plus_16x224"),
        *("hiera_base_plus_224", "x3d_xs"),
        *("hiera_base_16x224_ava", "hiera_base_plus_16x224_ava"),
    }
    base = rows["hiera_base_16x224"]
    assert base["input"] == [16, 224, 224]
    assert base["gmacs"] == pytest.approx(102, abs=1)  # the paper's table 3
    assert base["weights"][0]["name"] == "hiera_base_16x224.mae_k400_ft_k400"
    assert base["weights"][0]["licence"] == "CC BY-NC 4.0"
    table = command("models", "hiera_base_16x224", "--fast")
    assert "51.1 M" in table.stdout
    assert "--weights camera_motion, motion" in table.stdout


def test_no_model_of_that_name(command):
    said = command("models", "hierra*")
    assert said.returncode == 2
    assert "no model is named like 'hierra*'" in said.stderr


def test_multiply_adds_are_those_of_a_real_call():
    """Linear layers counted by hand: tokens x inputs x outputs."""

    class Toy(torch.nn.Module):
        input_size = (2, 4, 4)

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 5)

        def forward(self, clips):
            return self.layer(clips.movedim(1, -1))

    cost = cost_of(Toy)
    assert cost == ((2, 4, 4), 20, pytest.approx(2 * 4 * 4 * 3 * 5 / 1e9))
    assert cost_of(Toy, count=False).gmacs is None


def test_every_command_has_a_module_with_main():
    for about in COMMANDS.values():
        assert callable(import_module(f"hiera_video.commands.{about.module}").main)
    assert build_model  # the public name stays importable beside the commands
