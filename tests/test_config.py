"""Settings: what is read, which errors are raised, and that nothing is lost."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import pickle
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hiera_video.config import (
    Config,
    SolverConfig,
    detection,
    generated,
    load_config,
    schema,
    trackers,
    training,
)
from hiera_video.config import (
    clips as clip_sections,
)
from hiera_video.config import (
    model as model_sections,
)
from hiera_video.config.keys import SLOWFAST_KEYS, keys_of
from hiera_video.config.parse import assemble, read_text, read_words, to_yaml_text
from hiera_video.config.section import Section, settings_of
from hiera_video.config.values import check_value, choice, matching, number, setting
from hiera_video.errors import ConfigError, UserError
from hiera_video.registry import MODEL_REGISTRY


@pytest.fixture
def write(tmp_path):
    """Write a YAML file below tmp_path; returns its path."""

    def write_file(text: str, name: str = "run.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def refusal(*overrides: str, path=None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- what is read -------------------------------------------------------------------------------


def test_keys_of_slowfast_become_attributes(write):
    path = write(
        """
TRAIN:
  BATCH_SIZE: 32
SOLVER:
  BASE_LR: 1e-4        # plain YAML 1.1 reads this as text
  BETAS: [0.9, 0.95]
DATA:
  MEAN: [0.5, 0.5, 0.5]
  RANDOM_FLIP: False
MODEL:
  KWARGS: {embed_dim: 32, stages: [1, 1, 2, 1]}
"""
    )
    cfg = load_config(path)
    assert cfg.train.batch_size == 32
    assert cfg.solver.base_lr == 1e-4
    assert cfg.solver.betas == (0.9, 0.95)
    assert cfg.data.mean == (0.5, 0.5, 0.5)
    assert cfg.data.random_flip is False
    assert cfg.model.kwargs == {"embed_dim": 32, "stages": [1, 1, 2, 1]}
    untouched = dataclasses.replace(cfg.solver, base_lr=8e-4, betas=(0.9, 0.999))
    assert untouched == SolverConfig()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        ("1.e-4", 1e-4),
        (".5e1", 5.0),
        ("+0.5", 0.5),
        ("1", 1.0),
        ("1.0e+1", 10.0),
        ("010", 10.0),  # YAML 1.1: eight
    ],
)
def test_numbers_are_numbers_in_files_and_on_command_lines(write, text, value):
    for cfg in (
        load_config(write(f"SOLVER: {{BASE_LR: {text}}}")),
        load_config(None, ["SOLVER.BASE_LR", text]),
    ):
        assert cfg.solver.base_lr == value
        assert type(cfg.solver.base_lr) is float


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "yes", "on", "On"])
def test_every_spelling_of_true(write, text):
    assert load_config(write(f"TRAIN: {{COMPILE: {text}}}")).train.compile is True
    assert load_config(None, ["TRAIN.COMPILE", text]).train.compile is True


def test_off_stays_a_word_where_words_are_allowed(write):
    """PyYAML turns `off` into False; here it is the name of a number format."""
    path = write("TRAIN: {MIXED_PRECISION: off, COMPILE: off}")
    cfg = load_config(path)
    assert (cfg.train.mixed_precision, cfg.train.compile) == ("off", False)


@pytest.mark.parametrize("text", ["0.5,1", "[0.5, 1]", "(0.5, 1.0)", " [0.5,1.0] "])
def test_lists_in_every_spelling(text):
    cfg = load_config(None, ["DATA.TRAIN_JITTER_SCALES_RELATIVE", text])
    assert cfg.data.train_jitter_scales_relative == (0.5, 1.0)


def test_lists_of_any_length():
    assert load_config(None, ["IMPORTS", "one"]).imports == ("one",)
    assert load_config(None, ["IMPORTS", "one,two.three"]).imports == ("one", "two.three")
    assert load_config(None, ["IMPORTS", "[]"]).imports == ()


@pytest.mark.parametrize("text", ["None", "null", "~", ""])
def test_none_for_what_may_be_none(write, text):
    base = write("SOLVER: {CLIP_GRAD_L2NORM: 5}", "base.yaml")
    path = write(f"_BASE_: {base.name}\nSOLVER:\n  CLIP_GRAD_L2NORM: {text}\n")
    assert load_config(base).solver.clip_grad_l2norm == 5.0
    assert load_config(path).solver.clip_grad_l2norm is None
    assert load_config(base, ["SOLVER.CLIP_GRAD_L2NORM", text]).solver.clip_grad_l2norm is None


def test_text_on_a_command_line_is_taken_as_it_is():
    for text in ("1e-4", "007", "true", "a: b", "[x", "2024-01-01", "a,b", "#1", "with space", "ü"):
        assert load_config(None, ["OUTPUT_DIR", text]).output_dir == text
    assert load_config(None, ["DATA.PATH_PREFIX", "''"]).data.path_prefix == ""
    assert load_config(None, ["DATA.PATH_LABEL_SEPARATOR", " "]).data.path_label_separator == " "


def test_lower_case_keys_are_the_same_keys(write):
    assert load_config(write("solver:\n  base_lr: 0.5\n")).solver.base_lr == 0.5
    assert load_config(None, ["solver.base_lr", "0.5"]).solver.base_lr == 0.5


def test_arguments_of_the_model_keep_their_case_and_merge(write):
    base = write("MODEL: {KWARGS: {embed_dim: 96, heads: 1}}", "base.yaml")
    path = write(f"_BASE_: {base.name}\nMODEL: {{KWARGS: {{embed_dim: 32, Width: x}}}}")
    cfg = load_config(path, ["MODEL.KWARGS.stages", "[1, 2]", "MODEL.KWARGS", "{heads: None}"])
    assert cfg.model.kwargs == {"embed_dim": 32, "heads": None, "Width": "x", "stages": [1, 2]}


def test_empty_files_and_sections_change_nothing(write):
    assert load_config(write("")) == Config()
    assert load_config(write("# nothing\nSOLVER:\n  # BASE_LR: 1\n")) == Config()


def test_overrides_win_and_the_last_wins(write):
    path = write("RNG_SEED: 3")
    assert load_config(path).rng_seed == 3
    assert load_config(path, ["RNG_SEED", "4", "RNG_SEED", "5"]).rng_seed == 5


# ---- _BASE_ -------------------------------------------------------------------------------------


def test_bases_chain_and_are_found_beside_the_file_that_names_them(write, monkeypatch, tmp_path):
    write("RNG_SEED: 1\nLOG_PERIOD: 1\nSOLVER: {MAX_EPOCH: 1, BASE_LR: 0.1}", "base/a.yaml")
    write("_BASE_: a.yaml\nLOG_PERIOD: 2\nSOLVER: {MAX_EPOCH: 2}", "base/b.yaml")
    path = write("_BASE_: ../base/b.yaml\nSOLVER: {MAX_EPOCH: 3}", "runs/c.yaml")
    monkeypatch.chdir(tmp_path.parent)
    cfg = load_config(path)
    assert (cfg.rng_seed, cfg.log_period, cfg.solver.max_epoch) == (1, 2, 3)
    assert cfg.solver.base_lr == 0.1


def test_base_may_be_at_the_end_of_a_file(write):
    write("RNG_SEED: 1", "base.yaml")
    assert load_config(write("RNG_SEED: 2\n_BASE_: base.yaml\n")).rng_seed == 2


def test_circular_bases_are_refused(write):
    one, two = write("_BASE_: b.yaml", "a.yaml"), write("_BASE_: a.yaml", "b.yaml")
    assert f"circular _BASE_: {one} -> {two} -> {one}" in refusal(path=one)
    assert "circular" in refusal(path=write("_BASE_: self.yaml", "self.yaml"))


def test_a_missing_base_is_reported_with_the_file_that_names_it(write):
    path = write("_BASE_: nowhere.yaml")
    message = refusal(path=path)
    assert "nowhere.yaml" in message
    assert str(path) in message


def test_a_base_is_one_file_name(write):
    assert "_BASE_=['a', 'b'] must be one file name" in refusal(path=write("_BASE_: [a, b]"))


# ---- what is refused ----------------------------------------------------------------------------

WRONG = [
    # key, what is typed, words that must be in the answer
    ("SOLVER.BASE_LR", "fast", ["SOLVER.BASE_LR=fast", "a number", "above 0"]),
    ("SOLVER.BASE_LR", "0", ["SOLVER.BASE_LR=0", "above 0"]),
    ("SOLVER.BASE_LR", "-1e-4", ["-0.0001", "above 0"]),
    ("SOLVER.BASE_LR", ".nan", ["SOLVER.BASE_LR=nan"]),
    ("SOLVER.BASE_LR", ".inf", ["SOLVER.BASE_LR=inf"]),
    ("SOLVER.BASE_LR", "true", ["SOLVER.BASE_LR=True", "a number"]),
    ("SOLVER.BASE_LR", "None", ["SOLVER.BASE_LR=None", "a number"]),
    ("SOLVER.BASE_LR", "[1]", ["SOLVER.BASE_LR=[1]", "a number"]),
    ("SOLVER.MAX_EPOCH", "1.5", ["a whole number, at least 0"]),
    ("SOLVER.MAX_EPOCH", "0", ["trains nothing", "TRAIN.PROBE alone"]),
    ("SOLVER.MAX_EPOCH", "True", ["a whole number"]),
    ("SOLVER.BETAS", "0.9", ["SOLVER.BETAS", "2 values"]),
    ("SOLVER.BETAS", "0.9,0.95,0.99", ["2 values"]),
    ("SOLVER.BETAS", "0.9,1", ["below 1"]),
    ("SOLVER.LAYER_DECAY", "1.1", ["above 0 and at most 1"]),
    ("SOLVER.CLIP_GRAD_L2NORM", "0", ["above 0", "or None"]),
    ("SOLVER.OPTIMIZING_METHOD", "adam", ["adam", "one of adamw, sgd"]),
    ("DATA.MEAN", "0.4,x,0.4", ["3 values", "a number"]),
    ("DATA.STD", "0,0,0", ["above 0"]),
    ("DATA.VAL_FRACTION", "1", ["above 0 and below 1"]),
    ("DATA.TRAIN_JITTER_SCALES_RELATIVE", "1,0.5", ["ascending"]),
    ("TRAIN.ENABLE", "maybe", ["TRAIN.ENABLE=maybe", "true or false"]),
    ("TRAIN.ENABLE", "1", ["TRAIN.ENABLE=1", "true or false"]),
    ("TRAIN.BATCH_SIZE", "10,20", ["a whole number"]),
    ("TRAIN.MIXED_PRECISION", "True", ["one of off, bf16, fp16"]),
    ("TEST.NUM_SPATIAL_CROPS", "2", ["1 (centre) or 3"]),
    ("TEST.NUM_SPATIAL_CROPS", "4", ["at most 3"]),
    ("AUG.AA_TYPE", "autoaugment", ["empty or like rand-m7-mstd0.5-inc1"]),
    ("AUG.MASK_RATIO", "1", ["above 0 and below 1"]),
    ("AUG.GAMMA", "2,1", ["AUG.GAMMA=[2.0, 1.0]", "ascending"]),
    ("AUG.GAIN", "0,1", ["above 0"]),
    ("AUG.SPEED", "1", ["AUG.SPEED", "2 values"]),
    ("AUG.SPEED", "2,1", ["ascending"]),
    ("AUG.NOISE", "2", ["at least 0 and at most 1"]),
    ("AUG.BLUR", "-1", ["at least 0 and at most 1"]),
    ("AUG.GREY", "1.1", ["at least 0 and at most 1"]),
    ("MODEL.KWARGS", "3", ["a mapping"]),
    ("MODEL.KWARGS", "{1: 2}", ["a mapping"]),
    ("MODEL.KWARGS", "{embed-dim: 2}", ["argument names"]),
    ("MODEL.KWARGS.embed-dim", "2", ["argument names"]),
    ("MODEL.MODEL_NAME", "None", ["text", "write '' for none"]),
    ("SOLVER.BETAS", "[0.9", ["SOLVER.BETAS=[0.9", "not valid YAML"]),
    ("DATA.MEAN", "[0.1, {]", ["DATA.MEAN", "not valid YAML"]),
    ("RNG_SEED", "9" * 5000, ["RNG_SEED", "cannot read '9999", "as a number"]),
    ("RNG_SEED", str(2**63), ["RNG_SEED", "at most 9223372036854775807"]),
    ("MODEL.KWARGS.a", "[" * 5000, ["MODEL.KWARGS.a"]),
]


@pytest.mark.parametrize(("key", "text", "words"), WRONG)
def test_a_wrong_value_is_reported_with_key_value_and_what_is_allowed(key, text, words):
    message = refusal(key, text)
    for word in (key.removesuffix(".embed-dim"), *words):
        assert word in message


def test_a_wrong_value_in_a_file_is_reported_with_file_and_line(write):
    path = write("TRAIN:\n  ENABLE: true\nSOLVER:\n  MAX_EPOCH: many\n")
    assert refusal(path=path).endswith(f"({path}, line 4)")
    base = write("SOLVER:\n  MAX_EPOCH: many\n", "base.yaml")
    assert f"({base}, line 2)" in refusal(path=write("_BASE_: base.yaml"))


def test_unquoted_values_that_yaml_would_change_are_refused(write):
    assert "put it in quotes" in refusal(path=write("OUTPUT_DIR: 2024"))
    assert load_config(write("OUTPUT_DIR: '2024'")).output_dir == "2024"
    assert load_config(write("OUTPUT_DIR: 2024-01-01")).output_dir == "2024-01-01"
    assert load_config(write("OUTPUT_DIR: 12:30")).output_dir == "12:30"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("SOLVER.BSAE_LR", ["did you mean SOLVER.BASE_LR"]),
        ("TRAIN.BASE_LR", ["did you mean SOLVER.BASE_LR?"]),
        ("BASE_LR", ["did you mean SOLVER.BASE_LR?"]),
        ("SOLVR.BASE_LR", ["did you mean SOLVER.BASE_LR?"]),
        ("SOLVER.QQQQ", ["the section has", "SOLVER.MAX_EPOCH"]),
        ("QQQQ", ["RNG_SEED", "SOLVER"]),
        ("QQQQ.QQQQ", ["SOLVER"]),
        ("SOLVER.BASE_LR.DEEP", ["unknown config key SOLVER.BASE_LR.DEEP"]),
        ("NUM_GPUS", ["torchrun"]),
        ("MODEL.ARCH", ["MODEL.MODEL_NAME"]),
        ("MASK.DECODER_DEPTH", ["HIERA.DECODER_DEPTH"]),
        ("SOLVER.BASE_LR_SCALE_NUM_SHARDS", ["SOLVER.LR_BATCH"]),
        ("IMPORT", ["IMPORTS"]),
    ],
)
def test_an_unknown_key_is_reported_with_similar_ones(write, key, words):
    message = refusal(key, "1")
    assert f"unknown config key {key}" in message
    for word in words:
        assert word in message
    if "." in key:
        section, leaf = key.split(".", 1)
        in_file = refusal(path=write(f"{section}:\n  {leaf}: 1\n"))
        assert "line" in in_file
        assert "unknown config key" in in_file


def test_every_hint_points_at_a_setting_that_exists():
    for old, advice in SLOWFAST_KEYS.items():
        assert old not in keys_of(Config).specs
        for word in advice.replace(",", " ").replace(";", " ").split():
            if "." in word and word.split(".")[0].isupper():
                key = word.rstrip(".")
                assert key in keys_of(Config).specs or key.startswith("MODEL.KWARGS."), advice


def test_a_section_is_not_a_setting(write):
    assert "SOLVER is a section" in refusal("SOLVER", "3")
    message = refusal(path=write("SOLVER: 3"))
    assert "SOLVER is a section" in message
    assert "line 1" in message


def test_keys_written_twice_are_refused_with_both_lines(write):
    path = write("SOLVER:\n  MAX_EPOCH: 1\n  BASE_LR: 1\n  MAX_EPOCH: 2\n")
    assert "SOLVER.MAX_EPOCH is written twice" in refusal(path=path)
    assert "lines 2 and 4" in refusal(path=path)
    assert "SOLVER is written twice" in refusal(path=write("SOLVER: {}\nSOLVER: {}\n"))
    assert "twice" in refusal(path=write("SOLVER: {MAX_EPOCH: 1, max_epoch: 1}"))
    assert "MODEL.KWARGS.a is written twice" in refusal(path=write("MODEL: {KWARGS: {a: 1, a: 2}}"))
    assert "b is written twice" in refusal(path=write("MODEL: {KWARGS: {a: {b: 1, b: 2}}}"))


@pytest.mark.parametrize(
    "text",
    [
        "SOLVER:\n\tMAX_EPOCH: 1\n",
        "SOLVER: {MAX_EPOCH: 1",
        "- a\n- b\n",
        "just words",
        "SOLVER: &a\n  X: *b\n",
        "a: 1\n---\nb: 2\n",
        "OUTPUT_DIR: !!python/object/apply:os.system ['true']\n",
        "RNG_SEED: " + "9" * 5000,
        "RNG_SEED: !!int x",
        "MODEL: {KWARGS: {a: " + "[" * 5000 + "]" * 5000 + "}}",
        "MODEL: {KWARGS: {a: {? [x] : 1, ? [x] : 2}}}",
        "? [a, b]\n: c\n",
        "MODEL: {KWARGS: &k {a: *k}}",
        "x\x00y: 1",
    ],
)
def test_broken_or_hostile_yaml_is_one_line(write, text):
    path = write(text)
    assert str(path) in refusal(path=path)


def test_files_that_are_not_there(write, tmp_path):
    write("", "hiera_b_16x4.yaml")
    message = refusal(path=tmp_path / "hiera_b_16x5.yaml")
    assert "no config file" in message
    assert "hiera_b_16x4.yaml" in message
    assert "folder" in refusal(path=tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "cannot read" in refusal(path=tmp_path / "binary.yaml")


def test_overrides_come_in_pairs():
    assert "pairs" in refusal("SOLVER.BASE_LR")
    assert "without '='" in refusal("SOLVER.BASE_LR=1")


@pytest.mark.parametrize(
    "overrides",
    [
        ["TRAIN.BATCH_SIZE", "6", "TRAIN.GRAD_ACCUM", "4"],
        ["SOLVER.BASE_LR", "1e-4", "SOLVER.COSINE_END_LR", "1e-3"],
        ["SOLVER.BASE_LR", "1e-4", "SOLVER.WARMUP_START_LR", "1e-3"],
        ["SOLVER.MAX_EPOCH", "3", "SOLVER.WARMUP_EPOCHS", "4"],
        ["SOLVER.OPTIMIZING_METHOD", "sgd", "SOLVER.MOMENTUM", "0"],
        ["TASK", "pretrain", "MIXUP.ENABLE", "true"],
        ["DATA.MULTI_LABEL", "true"],
        ["DATA.SEGMENTS", "true", "AUG.SPEED", "[0.5,2]"],
        ["MIXUP.ENABLE", "true", "MIXUP.ALPHA", "0", "MIXUP.CUTMIX_ALPHA", "0"],
    ],
)
def test_settings_that_contradict_each_other(overrides):
    message = refusal(*overrides)
    assert overrides[0] in message or overrides[-2] in message


# ---- frozen, and whole --------------------------------------------------------------------------


def test_nothing_is_written_into_a_config():
    cfg = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.rng_seed = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.solver.base_lr = 2.0


def test_checked_from_python_too():
    with pytest.raises(ConfigError, match=r"SOLVER\.BASE_LR=-1 must be a number, above 0"):
        SolverConfig(base_lr=-1)
    assert SolverConfig(base_lr=1).base_lr == 1.0  # a float, whatever came
    with pytest.raises(ConfigError, match=r"RNG_SEED='x' must be a whole number|RNG_SEED=x"):
        dataclasses.replace(Config(), rng_seed="x")


def test_mutable_defaults_are_not_shared():
    assert Config().model.kwargs is not Config().model.kwargs


def test_the_whole_config_survives_yaml_pickle_and_another_yaml_reader():
    cfg = load_config(
        None,
        [
            "SOLVER.BASE_LR",
            "1e-5",
            "OUTPUT_DIR",
            "1e-4",
            "MODEL.KWARGS",
            "{stages: [1, 1], q: None}",
        ],
    )
    assert Config.from_yaml(cfg.to_yaml()) == cfg
    assert pickle.loads(pickle.dumps(cfg)) == cfg
    plain = yaml.safe_load(cfg.to_yaml())  # a YAML 1.1 reader gets the same values
    assert plain["SOLVER"]["BASE_LR"] == 1e-5
    assert plain["OUTPUT_DIR"] == "1e-4"
    assert plain["TRAIN"]["MIXED_PRECISION"] == "off"
    assert plain["MODEL"]["KWARGS"] == {"stages": [1, 1], "q": None}


def test_every_setting_is_printed_with_its_key():
    plain = yaml.safe_load(Config().to_yaml())
    printed = {key for key, value in plain.items() if not isinstance(value, dict)}
    printed |= {f"{s}.{k}" for s, v in plain.items() if isinstance(v, dict) for k in v}
    assert printed == set(keys_of(Config).specs)


AWKWARD = st.one_of(
    st.sampled_from(
        [
            "None",
            "null",
            "~",
            "true",
            "off",
            "1e-4",
            ".5",
            "010",
            "1:30",
            "a: b",
            "# x",
            "",
            " ",
            "'",
        ]
    ),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20),
)
NAMES = st.one_of(
    st.sampled_from(["None", "true", "null", "off", "y", "Über"]),
    st.from_regex(r"[a-zA-Z_]\w{0,9}\Z"),
).filter(str.isidentifier)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | AWKWARD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(AWKWARD, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(text=AWKWARD, kwargs=st.dictionaries(NAMES, PLAIN, max_size=3), lr=st.floats(1e-12, 1e6))
def test_any_value_survives_the_round_trip(text, kwargs, lr):
    cfg = dataclasses.replace(
        Config(),
        output_dir=text,
        imports=(text, "b"),
        model=dataclasses.replace(Config().model, kwargs=kwargs),
        solver=dataclasses.replace(
            Config().solver, base_lr=lr, cosine_end_lr=0.0, warmup_start_lr=0.0
        ),
    )
    assert Config.from_yaml(cfg.to_yaml()) == cfg


MODULES = (schema, model_sections, clip_sections, training, trackers, generated, detection)


def test_every_setting_is_documented_where_it_is_declared():
    """The string below a field is what `--settings` shows as its meaning."""
    documented = set()
    files = [ast.parse(inspect.getsource(module)) for module in MODULES]
    for node in itertools.chain.from_iterable(file.body for file in files):
        if not (isinstance(node, ast.ClassDef) and node.name.endswith("Config")):
            continue
        for declared, below in itertools.pairwise(node.body):
            meaning = getattr(getattr(below, "value", None), "value", None)
            if isinstance(declared, ast.AnnAssign) and isinstance(meaning, str):
                documented.add((node.name, declared.target.id))
    for section in (Config, *keys_of(Config).section_types.values()):
        for name in settings_of(section):
            assert (section.__name__, name) in documented


@pytest.mark.parametrize(
    "section", [Config, *keys_of(Config).section_types.values()], ids=lambda s: s.__name__
)
def test_every_default_has_a_type_that_is_checked_and_lies_in_its_range(section):
    for name, spec in settings_of(section).items():
        assert spec.is_mapping or spec.kind in (bool, int, float, str), name
        default = getattr(section(), name)
        assert check_value(default, spec, name) == default


# ---- any tree of sections -----------------------------------------------------------------------


@dataclass(frozen=True)
class Inner(Section):
    prefix = "INNER."

    speed: float = number(1.0, above=0)
    kind: str = choice("a", ("a", "b"))


@dataclass(frozen=True)
class Outer(Section):
    """Two levels, as `Config` has."""

    names: tuple[str, ...] = setting(())
    code: str = matching("", r"(x\d+)?", example="x1")
    options: dict[str, int] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)

    def check(self) -> None:
        if self.inner.kind == "b" and not self.names:
            raise ConfigError("INNER.KIND=b needs NAMES")


def test_reading_and_writing_know_nothing_of_the_settings_themselves():
    keys = keys_of(Outer)
    words = ["inner.speed", "2", "NAMES", "q,r", "CODE", "x7", "OPTIONS.Some", "3"]
    read = assemble(Outer, read_words(words, keys))
    assert read == Outer(("q", "r"), "x7", {"Some": 3}, Inner(2.0))
    assert assemble(Outer, read_text(to_yaml_text(read), "text", keys)) == read
    for words, message in (
        (["INNER.SPEED", "0"], r"INNER\.SPEED=0 must be a number, above 0"),
        (["CODE", "y"], "CODE=y must be empty or like x1"),
        (["SPEED", "2"], r"unknown config key SPEED; did you mean INNER\.SPEED"),
        (["INNER.KIND", "b"], r"INNER\.KIND=b needs NAMES"),
    ):
        with pytest.raises(ConfigError, match=message):
            assemble(Outer, read_words(words, keys))


# ---- what the parts are given -------------------------------------------------------------------


def test_clip_spec_of_training_and_test():
    data = load_config(None, ["DATA.NUM_FRAMES", "8", "DATA.SEGMENTS", "true"]).data
    data = dataclasses.replace(data, train_crop_size=64, test_crop_size=96)
    assert data.clip_spec(training=True).crop_size == 64
    spec = data.clip_spec(training=False)
    assert (spec.crop_size, spec.num_frames, spec.segments) == (96, 8, True)


def test_model_arguments_are_what_the_recipe_sets():
    cfg = Config()
    assert cfg.model_arguments() == {"input_size": (16, 224, 224)}
    cfg = load_config(
        None,
        [
            *("MODEL.DROPOUT_RATE", "0.3", "MODEL.ACT_CHECKPOINT", "true"),
            *("HIERA.DROPPATH_RATE", "0.2", "HIERA.ABS_WIN", "true"),
            *("DATA.TRAIN_CROP_SIZE", "96", "DATA.TEST_CROP_SIZE", "96", "DATA.NUM_FRAMES", "1"),
            *("MODEL.KWARGS.embed_dim", "32", "AUG.MASK_RATIO", "0.5"),
        ],
    )
    assert cfg.model_arguments() == {
        "input_size": (96, 96),
        "head_dropout": 0.3,
        "act_checkpoint": True,
        "drop_path_rate": 0.2,
        "abs_win": True,
        "embed_dim": 32,
    }


def test_model_arguments_of_pretraining():
    cfg = load_config(
        None,
        [
            *("TASK", "pretrain", "MODEL.MODEL_NAME", "mae_hiera_tiny_16x224"),
            *("HIERA.DECODER_DEPTH", "2", "MODEL.DROPOUT_RATE", "0.3"),
        ],
    )
    assert cfg.model_arguments() == {
        "input_size": (16, 224, 224),
        "mask_ratio": 0.9,
        "decoder_depth": 2,
    }


@pytest.fixture
def registry(monkeypatch):
    """The registered models, and what a test adds to them."""
    monkeypatch.setattr(MODEL_REGISTRY, "_obj_map", dict(MODEL_REGISTRY._obj_map))
    return MODEL_REGISTRY


def test_the_builder_and_not_the_name_says_what_a_model_is_given(registry):
    @registry.register
    def sized(num_classes: int = 2, input_size: tuple = (16, 224, 224)): ...

    @registry.register
    def hiera_of_any_size(num_classes: int = 2, width: int = 8): ...

    @registry.register
    def hiera_mine(num_classes: int = 2, **others): ...

    def arguments(name, *words):
        return load_config(None, ["MODEL.MODEL_NAME", name, *words]).model_arguments()

    assert arguments("sized") == {"input_size": (16, 224, 224)}
    assert arguments("hiera_of_any_size", "MODEL.KWARGS", "{width: 2}") == {"width": 2}
    assert arguments("hiera_mine") == {}
    told = arguments("hiera_mine", "MODEL.KWARGS.input_size", "[4, 64, 64]")
    assert told == {"input_size": [4, 64, 64]}


STEPS = {
    "config": """
from hiera_video.config import load_config
names = {"hiera_mine": False, "hiera_base_16x224": True, "x3d_m": True}
configs = [load_config(None, ["MODEL.MODEL_NAME", n, "DATA.TEST_CROP_SIZE", "256"]) for n in names]
""",
    "own model": """
from hiera_video.registry import MODEL_REGISTRY
@MODEL_REGISTRY.register
def hiera_mine(num_classes: int = 2, width: int = 8): ...
""",
    "models": "import hiera_video.models",
}


@pytest.mark.parametrize(
    "order",
    [
        ("config", "own model"),
        ("own model", "config"),
        ("config", "models", "own model"),
        ("models", "own model", "config"),
    ],
    ids=", ".join,
)
def test_a_config_means_the_same_whatever_was_imported_before(order):
    """The builder says which arguments a model takes, whether or not it is named like ours."""
    check = "assert ['input_size' in c.model_arguments() for c in configs] == list(names.values())"
    code = "\n".join([*(STEPS[step] for step in order), check])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_arguments_of_a_model_that_nobody_registered_are_not_guessed():
    with pytest.raises(UserError, match="unknown model 'hiera_nowhere'"):
        load_config(None, ["MODEL.MODEL_NAME", "hiera_nowhere"]).model_arguments()


# ---- from outside ------------------------------------------------------------------------------


def test_reading_a_config_needs_no_torch():
    """`--help` and a mistyped key need not wait for torch."""
    code = (
        "import sys; from hiera_video.config import load_config; load_config(None);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_config_errors_are_user_errors():
    assert issubclass(ConfigError, UserError)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("num_classes", "MODEL.NUM_CLASSES"),
        ("pretrained", "TRAIN.CHECKPOINT_FILE_PATH"),
        ("name", "MODEL.MODEL_NAME"),
        ("classes", "DATA.CLASS_NAMES"),
    ],
)
def test_arguments_with_a_setting_are_not_taken_from_kwargs(name, instead):
    with pytest.raises(UserError, match=rf"MODEL\.KWARGS\.{name}=5 .* set {instead}"):
        load_config(None, [f"MODEL.KWARGS.{name}", "5"])


def test_pretraining_needs_no_multi_label_loss():
    words = ["DATA.MULTI_LABEL", "true"]
    with pytest.raises(UserError, match="bce_logit"):
        load_config(None, words)
    assert load_config(None, [*words, "TASK", "pretrain"]).data.multi_label
