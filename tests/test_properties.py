"""What must hold for anything at all: settings, overrides, lists, sampling and the token layout.

Whatever bytes a user's file holds, the answer is the thing read or a `UserError`; nothing else.
"""

import json
import math
import os

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from hiera_video.clip_spec import ClipSpec
from hiera_video.config import Config, load_config
from hiera_video.data.manifests.layouts import read_class_names, read_manifest
from hiera_video.engine.preflight import flat_settings
from hiera_video.errors import UserError
from hiera_video.models.tokens import TokenLayout, max_pool, pick_units, unit_ids
from hiera_video.video.sampling import segment_clip, span, training_clip, uniform_views

# Times are no property of these functions: the machine may be busy. Files are written anew in one
# folder for every example.
anything = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

DEFAULTS = Config().to_yaml()
DEFAULT_VALUES = flat_settings(DEFAULTS)
KEYS = sorted(DEFAULT_VALUES)


def spoilt(text: str) -> st.SearchStrategy[bytes]:
    """`text` with up to four pieces of it cut out, doubled or overwritten."""
    raw = text.encode()
    places = st.integers(0, len(raw))
    pieces = st.one_of(
        st.just(b""),
        st.binary(max_size=8),
        st.sampled_from([b"\n", b": ", b"- ", b"[", b"}", b"&a ", b"*a", b"!!x ", b"0x", b"1e999"]),
    )

    def apply(edits):
        out = raw
        for start, length, piece in edits:
            out = out[:start] + piece + out[start + length :]
        return out

    return st.lists(st.tuples(places, st.integers(0, 40), pieces), max_size=4).map(apply)


def attempt(function, *args, **kwargs):
    """(what it gives, None), or (None, the text of a `UserError`)."""
    try:
        return function(*args, **kwargs), None
    except UserError as error:
        return None, str(error)


# ---- settings -----------------------------------------------------------------------------------


@anything
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode),
                         spoilt(DEFAULTS)))  # fmt: skip
def test_any_bytes_are_a_config_or_one_line_of_error(content, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    cfg, error = attempt(load_config, path)
    if cfg is None:
        assert "\n" not in error.strip()
    else:
        assert Config.from_yaml(cfg.to_yaml()) == cfg


words = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["0", "-1", "1e-4", "1e999", "nan", "true", "None", "[1, 2]", "[", "{a: 1}", "a.b.c", "''"]
    ),
    st.integers().map(str),
    st.floats().map(str),
)


@anything
@given(pairs=st.lists(st.tuples(st.one_of(st.sampled_from(KEYS), words), words), max_size=4),
       odd=st.one_of(st.none(), words))  # fmt: skip
def test_any_overrides_are_settings_or_an_error(pairs, odd):
    line = [word for pair in pairs for word in pair] + ([odd] if odd is not None else [])
    cfg, _ = attempt(load_config, None, line)
    if cfg is not None:
        assert odd is None
        assert Config.from_yaml(cfg.to_yaml()) == cfg


SPELLINGS = {
    "SOLVER.BASE_LR": ("1e-4", "0.1", "3"),
    "SOLVER.MAX_EPOCH": ("1", "200"),
    "DATA.NUM_FRAMES": ("4", "16"),
    "DATA.RANDOM_FLIP": ("true", "False"),
    "DATA.MEAN": ("[0.1, 0.2, 0.3]", "[0, 0, 0]"),
    "TRAIN.CHECKPOINT_FILE_PATH": ("", "a b.pyth", "1e-4"),
    "AUG.AA_TYPE": ("", "rand-m7-mstd0.5-inc1"),
    "OUTPUT_DIR": ("runs/x", "1e-4", "5"),
}
good = st.sampled_from([(key, value) for key, values in SPELLINGS.items() for value in values])


@anything
@given(pairs=st.lists(good, min_size=1, max_size=6), cut=st.integers(0, 6))
def test_the_last_word_on_a_key_counts_wherever_it_stands(pairs, cut, tmp_path):
    """A setting is the same in a file as on the command line, which comes after the file."""
    in_file, on_line = dict(pairs[:cut]), pairs[cut:]
    path = tmp_path / "x.yaml"
    lines = []
    for section in sorted({key.rpartition(".")[0] for key in in_file}):
        lines += [f"{section}:"] if section else []
        for key, value in in_file.items():
            head, _, name = key.rpartition(".")
            text = json.dumps(value) if isinstance(DEFAULT_VALUES[key], str) else value
            lines += [f"{'  ' if section else ''}{name}: {text}"] if head == section else []
    path.write_text("\n".join(lines) + "\n")
    found = load_config(path, [word for pair in on_line for word in pair])
    assert found == load_config(None, [word for pair in dict(pairs).items() for word in pair])


# ---- lists --------------------------------------------------------------------------------------

# No separator's own character at the ends: a list cannot tell it from the separator.
stems = st.text(
    st.characters(blacklist_categories=["Cs", "Cc", "Zl", "Zp"], blacklist_characters='/\\"'),
    min_size=1,
    max_size=12,
).filter(lambda name: name == name.strip() and name.strip(",; \t") and name not in (".", ".."))
rows = st.lists(st.tuples(stems, st.integers(0, 999)), min_size=1, max_size=8)


@anything
@given(rows=rows, separator=st.sampled_from([" ", ",", "\t", ";"]))
def test_a_list_reads_back_as_it_was_written(rows, separator, tmp_path):
    lines = [f"clips/{stem}.mp4{separator}{label}" for stem, label in rows]
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = read_manifest(tmp_path, "train", separator=separator)
    assert [found.paths.relative(i) for i in range(len(found))] == [
        f"clips/{s}.mp4" for s, _ in rows
    ]
    assert [found.label(i) for i in range(len(found))] == [label for _, label in rows]
    assert found.num_classes == 1 + max(label for _, label in rows)
    assert found.class_counts().sum() == len(rows)


LISTS = {
    "train.csv": "a.mp4 0\nb/c d.mp4 1\n",
    "train.txt": "a.mp4,0\nb.mp4,12\n",
    "names.csv": 'video;class\n"a; b.mp4";run\nc.mp4;"walk, slowly"\n',
    "parts.csv": "file,label,split\na.mp4,run,train\nb.mp4,walk,val\n",
    "kinetics.csv": "label,youtube_id,time_start,time_end,split\nrun,abc,1,11,train\n",
    "x.json": json.dumps([{"id": "1", "template": "Moving [something]"}]),
}


@anything
@given(name=st.sampled_from(sorted(LISTS)), multi=st.booleans(), need=st.booleans(), data=st.data())
def test_any_list_is_read_or_refused(name, multi, need, data, tmp_path):
    path = tmp_path / name
    path.write_bytes(data.draw(st.one_of(st.binary(max_size=80), spoilt(LISTS[name]))))
    found, error = attempt(read_manifest, path, "train", multi_label=multi, need_labels=need)
    if found is None:
        assert str(tmp_path) in error
        return
    for i in range(len(found)):
        assert found.paths[i].startswith(os.sep)
        label = found.label(i)
        for one in label if isinstance(label, tuple) else (label,):
            assert -1 <= one < max(found.num_classes, 1)


CLASSES = {
    "classes.txt": "1 run\n2 walk\n",
    "classes.csv": "id,name\n0,run\n1,walk\n",
    "classes.json": json.dumps({"run": 0, "walk": "1"}),
}


@anything
@given(name=st.sampled_from(sorted(CLASSES)), data=st.data())
def test_any_file_of_class_names_is_read_or_refused(name, data, tmp_path):
    path = tmp_path / name
    path.write_bytes(data.draw(st.one_of(st.binary(max_size=60), spoilt(CLASSES[name]))))
    names, error = attempt(read_class_names, path)
    if names is None:
        assert str(path) in error
        return
    assert names
    assert len(set(names)) == len(names)
    assert all(isinstance(name, str) for name in names)


@anything
@given(content=st.one_of(st.binary(max_size=80), spoilt("video,class,source\na.mp4,run,s1\n")))
def test_any_table_of_labels_is_read_or_refused(content, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "labels.csv").write_bytes(content)
    found, error = attempt(
        read_manifest, tmp_path, "train", format="folder", val_fraction=0.5, need_labels=False
    )
    if found is None:
        assert str(tmp_path) in error
    for i in range(len(found or ())):
        assert found.paths.relative(i)
        assert -1 <= found.label(i) < max(found.num_classes, 1)


# ---- sampling -----------------------------------------------------------------------------------

unit = st.floats(0, 1, exclude_max=True)
frames = st.integers(1, 5000)
rates = st.floats(0.5, 480)
specs = st.builds(
    ClipSpec,
    num_frames=st.sampled_from([1, 2, 4, 16, 32]),
    sampling_rate=st.integers(1, 8),
    target_fps=st.sampled_from([12.0, 25.0, 30000 / 1001, 30.0]),
)


@anything
@given(count=frames, fps=rates, spec=specs, a=unit, b=unit)
def test_a_clip_is_the_same_pattern_wherever_it_starts(count, fps, spec, a, b):
    """Motion keeps its speed: two clips of a video differ by a shift, but for the end."""
    first, second = sorted((training_clip(count, fps, spec, u) for u in (a, b)), key=lambda c: c[0])
    shifted = np.minimum(first + (second[0] - first[0]), count - 1)
    assert np.array_equal(shifted, second)
    assert (training_clip(count, fps, spec, max(a, b))[0]
            >= training_clip(count, fps, spec, min(a, b))[0])  # fmt: skip


@anything
@given(count=frames, fps=rates, spec=specs, views=st.integers(2, 8))
def test_test_views_reach_both_ends(count, fps, spec, views):
    clips = uniform_views(count, fps, spec, views)
    assert clips[0, 0] == 0
    long = span(spec.num_frames, spec.sampling_rate, fps, spec.target_fps)
    reached = clips[-1, 0] + math.ceil(long)
    assert reached >= count - 1  # what is left out is less than a frame


@anything
@given(count=frames, spec=specs, u=unit, v=unit)
def test_every_segment_gives_one_frame_in_order(count, spec, u, v):
    low, high = (segment_clip(count, spec, x) for x in sorted((u, v)))
    assert (low <= high).all()
    for clip in (low, high):
        assert (np.diff(clip) >= 0).all()
        assert clip[-1] < count
        part = (count - 1) / spec.num_frames
        middles = (np.arange(spec.num_frames) + 0.5) * part
        assert (np.abs(clip - middles) <= part / 2 + 1).all()


# ---- the token layout ---------------------------------------------------------------------------


@st.composite
def layouts(draw):
    """Layouts of one to three dimensions, small enough to move around."""
    dims = draw(st.integers(1, 3))
    pools = draw(st.integers(0, 3))
    each = st.integers
    stride = [draw(each(1, 2)) for _ in range(dims)]
    rest = [draw(each(1, 2)) for _ in range(dims)]
    units = [draw(each(1, 3)) for _ in range(dims)]
    patch = [draw(each(1, 3)) for _ in range(dims)]
    inside = [s**pools * r for s, r in zip(stride, rest, strict=True)]
    size = [p * m * u for p, m, u in zip(patch, inside, units, strict=True)]
    assume(math.prod(inside) * math.prod(units) <= 20_000)
    return TokenLayout(
        input_size=size,
        patch_stride=patch,
        mask_unit_size=inside,
        q_stride=stride,
        num_pools=pools,
    )


def numbered(layout: TokenLayout) -> torch.Tensor:
    """Raster tokens [1, *grid, 1] that differ."""
    count = math.prod(layout.grid)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    return order.float().view(1, *layout.grid, 1)


@anything
@given(layout=layouts())
def test_every_token_has_one_place_and_comes_back(layout):
    raster = numbered(layout)
    tokens = layout.to_units(raster)
    assert tokens.shape == (1, layout.num_units, layout.tokens_per_unit, 1)
    assert torch.equal(layout.to_raster(tokens, pools=0), raster)
    assert torch.equal(tokens.flatten().sort().values, raster.flatten().sort().values)
    inside = layout.to_unit_raster(tokens, pools=0)
    assert torch.equal(layout.from_unit_raster(inside), tokens)


@anything
@given(layout=layouts(), data=st.data())
def test_pooling_units_is_pooling_the_picture_for_any_layout(layout, data):
    """And deleting units before or after makes no difference to those that stay."""
    pools = data.draw(st.integers(0, layout.num_pools))
    raster = numbered(layout)
    tokens = layout.to_units(raster)
    keep = torch.zeros(1, layout.num_units, dtype=torch.bool)
    kept = data.draw(st.sets(st.integers(0, layout.num_units - 1), min_size=1))
    keep[0, sorted(kept)] = True
    some = pick_units(tokens, unit_ids(keep, len(kept)))
    for _ in range(pools):
        tokens, some = (max_pool(x, layout.pool_factor) for x in (tokens, some))
    kernel = tuple(stride**pools for stride in layout.q_stride)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[layout.dims - 1]
    expected = pool(raster.movedim(-1, 1), kernel).movedim(1, -1)
    assert torch.equal(layout.to_raster(tokens, pools), expected)
    assert torch.equal(some, tokens[:, sorted(kept)])


@anything
@given(size=st.lists(st.integers(-4, 64), min_size=1, max_size=3),
       unit=st.lists(st.integers(1, 9), min_size=1, max_size=3),
       pools=st.integers(0, 4))  # fmt: skip
@example(size=[0], unit=[1], pools=0)
def test_any_sizes_fit_or_are_refused(size, unit, pools):
    layout, error = attempt(
        TokenLayout,
        input_size=size,
        patch_stride=[2] * len(size),
        mask_unit_size=unit,
        q_stride=[2] * len(size),
        num_pools=pools,
    )
    if layout is None:
        assert "input_size" in error or "mask_unit_size" in error
    else:
        assert layout.num_units * layout.tokens_per_unit == math.prod(layout.grid) > 0
