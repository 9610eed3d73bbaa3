"""Vectors of a frozen model: what they are, the files that hold them, and a run that is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from clips import write_clip
from randomness import redraw
from test_guarded_video import serve_or_worse
from test_predict import SPEC, TINY, tiny_model, write_checkpoint

from hiera_video import build_model
from hiera_video.commands import features as command
from hiera_video.commands import search as search_command
from hiera_video.data.views import load_test_views, read_views
from hiera_video.errors import DataError, DecodeError, RunFailed, UserError
from hiera_video.features import describe, table
from hiera_video.features.describe import Described, Describer, every_window
from hiera_video.features.encoder import EncoderOptions, input_of_head, load_encoder
from hiera_video.features.matrices import MatrixWriter, common_folder
from hiera_video.features.settings import FeatureSettings
from hiera_video.features.table import TableWriter, read_batches, read_settings
from hiera_video.registry import MODEL_REGISTRY
from hiera_video.video.decode import open_video
from hiera_video.video.guarded_pool import GuardedPool
from hiera_video.video.sampling import window_clips

pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def model():
    return redraw(tiny_model()).eval()


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("features") / "tiny.pyth", model))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """90 frames at 30 fps, three seconds."""
    return str(write_clip(tmp_path_factory.mktemp("features") / "clip.mp4", frames=90))


def encoder_of(weights, **options):
    return load_encoder(weights, EncoderOptions(device="cpu", **options), warn=print)


@pytest.fixture(scope="module")
def head_encoder(weights):
    return encoder_of(weights)


# ---- what a vector is ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(3, 3, 4, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_head_layer_is_what_the_last_layer_takes(head_encoder, model, pixels):
    vectors = head_encoder(pixels)
    assert vectors.shape == (3, *head_encoder.shape) == (3, 128)
    assert torch.allclose(vectors, model.norm(model.forward_features(pixels).mean(dim=(1, 2))))
    assert torch.allclose(model.head.projection(vectors), model(pixels), atol=1e-5)


@torch.no_grad()
def test_stages_are_pooled_as_asked(weights, model, pixels):
    maps = model.stage_features(pixels)[2]
    assert maps.shape == (3, 2, 4, 4, 64)
    tokens = encoder_of(weights, layer="stage3", pool="tokens")
    assert tokens.shape == (2, 4, 4, 64)
    assert torch.allclose(tokens(pixels), maps, atol=1e-5)
    mean = encoder_of(weights, layer="stage3")
    assert torch.allclose(mean(pixels), maps.mean(dim=(1, 2, 3)), atol=1e-5)
    both = encoder_of(weights, layer="stage3", pool="mean_max")(pixels)
    assert torch.allclose(both[:, 64:], maps.amax(dim=(1, 2, 3)), atol=1e-5)


def test_equal_clips_are_computed_once_and_batches_do_not_matter(weights, pixels, monkeypatch):
    one = encoder_of(weights, layer="stage2", batch_size=1)
    three = encoder_of(weights, layer="stage2", batch_size=3)
    assert torch.allclose(one(pixels), three(pixels), atol=1e-5)
    seen = []
    one.model.patch_embed.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    twice = one(torch.cat([pixels, pixels]))
    assert sum(seen) == 3
    assert torch.equal(twice[:3], twice[3:])


@torch.no_grad()
def test_a_model_of_somebody_else_has_a_head(pixels, monkeypatch):
    monkeypatch.setattr(MODEL_REGISTRY, "_obj_map", dict(MODEL_REGISTRY._obj_map))
    toy = redraw(importlib.import_module("toy_models").ToyClassifier()).eval()
    sys.modules.pop("toy_models")  # it registers its models again for another test
    wanted = toy.forward_features(pixels).mean(dim=1)
    assert torch.allclose(input_of_head(toy, pixels), wanted)
    toy.forward_head = lambda features: toy.head(features).mean(dim=1)  # places until the end
    assert torch.allclose(input_of_head(toy, pixels), wanted, atol=1e-6)


def test_weights_of_pretraining_have_stages_and_no_head():
    encoder = encoder_of("motion")
    assert (encoder.layer, encoder.shape) == ("stage4", (384,))
    with pytest.raises(UserError, match="has no trained head to read; it has stage1, stage2"):
        encoder_of("motion", layer="head")


@torch.no_grad()
def test_published_weights_of_pretraining_are_read_as_their_classifier(tmp_path, pixels):
    """They are named after the classifier; its own norm and head are not trained."""
    sizes = {**TINY, "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 1}
    autoencoder = redraw(build_model("mae_hiera_base_16x224", **sizes)).eval()
    weights = str(write_checkpoint(tmp_path / "mae.pyth", autoencoder, classes=None))
    encoder = encoder_of(weights, layer="stage2")
    wanted = autoencoder.encoder.stage_features(pixels)[1].mean(dim=(1, 2, 3))
    assert torch.allclose(encoder(pixels), wanted, atol=1e-5)
    assert encoder_of(weights).layer == "stage4"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "stage5"}, "has no layer stage5 to read; it has head, stage1, stage2, stage3"),
        ({"layer": "block3"}, "layer 'block3'; choose head, or a stage"),
        ({"pool": "max"}, "pool 'max'; choose mean, mean_max, tokens"),
        ({"pool": "tokens", "layer": "head"}, "pool tokens needs a stage"),
        ({"batch_size": 0}, "batch size 0"),
        ({"dtype": "fp8"}, "dtype 'fp8'"),
    ],
)
def test_what_cannot_be_read_is_refused(options, message, weights):
    with pytest.raises(UserError, match=message):
        encoder_of(weights, **options)


def test_vectors_that_are_not_finite_are_an_error(weights, pixels):
    broken = encoder_of(weights)
    with torch.no_grad():
        broken.model.norm.bias[0] = float("inf")
    with pytest.raises(RunFailed, match="not finite in fp32"):
        broken(pixels)


# ---- videos -------------------------------------------------------------------------------------


def test_a_video_is_the_mean_over_its_test_views(head_encoder, clip):
    described = Describer(head_encoder, views=(2, 3))(clip)
    views = head_encoder(load_test_views(clip, SPEC, 2, 3))
    assert np.allclose(described.vectors, views.mean(dim=0)[None], atol=1e-6)
    assert (described.starts, described.ends) == ([0.0], [3.0])


@pytest.mark.parametrize("every", [0.1, 1.0])
def test_windows_are_those_of_a_timeline(every, head_encoder, clip):
    """Shorter than a clip (8 frames) and longer; read together, as if read one by one."""
    shares = []
    described = Describer(head_encoder, views=(2, 1), every=every)(clip, shares.append)
    with open_video(clip) as reader:
        windows = list(window_clips(reader.info.times, reader.info.fps, SPEC, every, 2))
        alone = [head_encoder(read_views(reader, w.views, SPEC, 1)).mean(dim=0) for w in windows]
    assert len(described.vectors) == len(windows) == round(3 / every)
    assert np.allclose(described.vectors, torch.stack(alone), atol=1e-5)
    assert described.starts == [w.start for w in windows]
    assert described.ends == [w.end for w in windows]
    assert shares[-1] == 1.0
    assert shares == sorted(shares)


def test_windows_of_one_video_are_bounded(head_encoder, clip, monkeypatch):
    describer = Describer(head_encoder, every=0.1)
    monkeypatch.setattr(describe, "MOST_BYTES", 128 * 4 * 29)
    with pytest.raises(DecodeError, match=r"30 windows of 128 numbers .* choose a longer --every"):
        describer(clip)
    monkeypatch.setattr(describe, "MOST_WINDOWS", 29)
    with pytest.raises(DecodeError, match="more than 29 windows"):
        describer(clip)


def test_tokens_of_several_clips_are_not_averaged(weights):
    encoder = encoder_of(weights, layer="stage4", pool="tokens")
    with pytest.raises(UserError, match="use --views 1x1"):
        Describer(encoder, views=(2, 1))


def test_a_window_without_frames_shows_the_one_before():
    found = Described([0.0, 0.5, 2.0], [0.5, 1.0, 2.5], np.arange(3, dtype=np.float32)[:, None])
    assert every_window(found, 0.5, "a.mp4")[:, 0].tolist() == [0, 1, 1, 1, 2]
    jump = dataclasses.replace(found, starts=[0.0, 0.5, 1e6])
    with pytest.raises(DecodeError, match=r"a\.mp4: its clock jumps"):
        every_window(jump, 0.5, "a.mp4")


# ---- tables -------------------------------------------------------------------------------------

SETTINGS = FeatureSettings(
    model="hiera_tiny_16x224",
    weights="tiny.pyth",
    weights_sha256="0" * 64,
    layer="stage3",
    pool="mean",
    shape=(4,),
    views=(2, 1),
    every=None,
    clip=SPEC,
    computed_in="fp32",
    stored_as="fp32",
)


def described(*numbers):
    """A window for each of the numbers, its vector four times the number."""
    starts = [float(i) for i in range(len(numbers))]
    vectors = np.repeat(np.asarray(numbers, dtype=np.float32)[:, None], 4, axis=1)
    return Described(starts, [start + 1 for start in starts], vectors)


def rows_of(path):
    """[(path, first number or None, error)]"""
    read = pq.read_table(path).to_pydict()
    firsts = [None if np.isnan(vector).all() else vector[0] for vector in read["vector"]]
    return list(zip(read["path"], firsts, read["error"], strict=True))


@pytest.mark.parametrize(("stored_as", "arrow"), [("fp32", "float"), ("fp16", "halffloat")])
def test_a_table_is_a_plain_parquet_file(stored_as, arrow, tmp_path):
    settings = dataclasses.replace(SETTINGS, stored_as=stored_as)
    with TableWriter(tmp_path / "f.parquet", settings) as writer:
        writer.add("a.mp4", described(1, 2.5))
        writer.add_error("bad.mp4", "cut off")
        writer.add("b\udcff.mp4", described(3))  # a byte that is not UTF-8
        writer.finish()
    schema = pq.read_schema(tmp_path / "f.parquet")
    assert schema.names == ["path", "start", "end", "vector", "error"]
    assert str(schema.field("vector").type) == f"fixed_size_list<element: {arrow}>[4]"
    assert json.loads(schema.metadata[b"hiera_video"])["layer"] == "stage3"
    assert rows_of(tmp_path / "f.parquet") == [
        ("a.mp4", 1.0, None),
        ("a.mp4", 2.5, None),
        ("bad.mp4", None, "cut off"),
        ("b\\udcff.mp4", 3.0, None),
    ]
    assert os.listdir(tmp_path) == ["f.parquet"]
    (batch,) = read_batches(tmp_path / "f.parquet")
    assert batch.paths == ["a.mp4", "a.mp4", "b\\udcff.mp4"]
    assert (batch.starts, batch.ends) == ([0.0, 1.0, 0.0], [1.0, 2.0, 1.0])
    assert batch.vectors.dtype == np.float32
    assert batch.vectors[:, 3].tolist() == [1.0, 2.5, 3.0]
    assert read_settings(tmp_path / "f.parquet") == settings


def test_a_table_goes_on_and_tries_failures_again(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "PART_SECONDS", 0)
    file = tmp_path / "f.parquet"
    with TableWriter(file, SETTINGS) as writer:
        writer.add("a.mp4", described(1))
        writer.add_error("b.mp4", "too slow")
    assert not file.exists()
    with pytest.raises(DataError, match="the same hiera-video features command goes on"):
        read_settings(file)
    with TableWriter(file, SETTINGS) as writer:
        assert [writer.is_done(name) for name in ("a.mp4", "b.mp4", "c.mp4")] == [
            True,
            False,
            False,
        ]
        writer.add("b.mp4", described(2))
        writer.add_error("c.mp4", "not there")
        writer.finish()
    assert [row[:2] for row in rows_of(file)] == [("a.mp4", 1.0), ("b.mp4", 2.0), ("c.mp4", None)]
    with TableWriter(file, SETTINGS) as writer:
        writer.add("c.mp4", described(3))
        writer.finish()
    expected = [("a.mp4", 1.0, None), ("b.mp4", 2.0, None), ("c.mp4", 3.0, None)]
    assert rows_of(file) == expected
    before = file.stat().st_ino
    with TableWriter(file, SETTINGS) as writer:
        writer.finish()
    assert file.stat().st_ino == before, "nothing new, and written again"
    with TableWriter(file, SETTINGS, afresh=True) as writer:
        assert not writer.is_done("a.mp4")


def test_a_kill_between_the_file_and_its_parts_leaves_no_row_twice(tmp_path):
    file, parts = tmp_path / "f.parquet", tmp_path / "f.parquet.parts"
    with TableWriter(file, SETTINGS) as writer:
        writer.add("a.mp4", described(1, 2))
    part = (parts / "000000.parquet").read_bytes()
    with TableWriter(file, SETTINGS) as writer:
        writer.finish()
    parts.mkdir()
    (parts / "000000.parquet").write_bytes(part)
    with TableWriter(file, SETTINGS) as writer:
        assert writer.is_done("a.mp4")
        writer.add("b.mp4", described(3))
        writer.finish()
    assert [row[:2] for row in rows_of(file)] == [("a.mp4", 1.0), ("a.mp4", 2.0), ("b.mp4", 3.0)]
    assert os.listdir(tmp_path) == ["f.parquet"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights_sha256": "1" * 64}, "weights_sha256 0000000000000000 there, 1111111111111111"),
        ({"layer": "head"}, "layer stage3 there, head here"),
        ({"views": (1, 1)}, r"views \(2, 1\) there, \(1, 1\) here"),
        ({"every": 0.5}, "every None there, 0.5 here"),
        ({"stored_as": "fp16"}, "stored_as fp32 there, fp16 here"),
        ({"clip": dataclasses.replace(SPEC, sampling_rate=4)}, "clip 4x2 at 30 fps"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused(change, said, finished, tmp_path):
    with TableWriter(tmp_path / "f.parquet", SETTINGS) as writer:
        writer.add("a.mp4", described(1))
        if finished:
            writer.finish()
    other = dataclasses.replace(SETTINGS, **change)
    with pytest.raises(UserError, match=said):
        TableWriter(tmp_path / "f.parquet", other)
    elsewhere = dataclasses.replace(SETTINGS, weights="moved/tiny.pyth")
    with TableWriter(tmp_path / "f.parquet", elsewhere) as writer:
        assert writer.is_done("a.mp4")


def test_one_process_writes_a_table(tmp_path):
    with (
        TableWriter(tmp_path / "f.parquet", SETTINGS),
        pytest.raises(UserError, match="another process is writing"),
    ):
        TableWriter(tmp_path / "f.parquet", SETTINGS)


def test_files_that_are_no_tables_are_named(tmp_path):
    (tmp_path / "text.parquet").write_text("PAR1 and nothing else")
    with pytest.raises(DataError, match=r"text\.parquet cannot be read as a Parquet file"):
        read_settings(tmp_path / "text.parquet")
    with pytest.raises(DataError, match="no such file"):
        read_settings(tmp_path / "none.parquet")
    import pyarrow

    pq.write_table(pyarrow.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="not one of hiera-video features"):
        TableWriter(tmp_path / "other.parquet", SETTINGS)
    foreign = pyarrow.table({"a": [1]}).replace_schema_metadata({"hiera_video": '{"format": "x"}'})
    pq.write_table(foreign, tmp_path / "newer.parquet")
    with pytest.raises(DataError, match="another version"):
        read_settings(tmp_path / "newer.parquet")


def test_a_damaged_table_is_named(tmp_path):
    file = tmp_path / "f.parquet"
    with TableWriter(file, SETTINGS) as writer:
        writer.add("a.mp4", described(*range(1000)))
        writer.finish()
    content = bytearray(file.read_bytes())
    content[4:3000] = bytes(2996)  # the pages, not the footer
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"f\.parquet is damaged"):
        list(read_batches(file))
    with pytest.raises(DataError, match=r"f\.parquet is damaged"):
        TableWriter(file, SETTINGS)


def test_numbers_beyond_fp16_are_refused(tmp_path):
    half = dataclasses.replace(SETTINGS, stored_as="fp16")
    with (
        TableWriter(tmp_path / "f.parquet", half) as writer,
        pytest.raises(RunFailed, match="store them as fp32"),
    ):
        writer.add("a.mp4", described(1e6))


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        TableWriter(tmp_path / "f.parquet", SETTINGS)


# ---- matrices -----------------------------------------------------------------------------------


def test_matrices_go_on(tmp_path):
    videos = [str(tmp_path / "in" / name) for name in ("a.mp4", "x/b.mp4", "c.mp4")]
    settings = dataclasses.replace(SETTINGS, every=1.0, root=common_folder(videos))
    out = tmp_path / "out"
    with MatrixWriter(out, settings, videos) as writer:
        writer.add(videos[0], described(1, 2))
        writer.add(videos[1], described(3))
        writer.add_error(videos[2], "cut off")
    assert np.load(out / "a.npy").tolist() == [[1, 1, 1, 1], [2, 2, 2, 2]]
    assert np.load(out / "x" / "b.npy").dtype == np.float32
    assert json.loads((out / "features.json").read_text())["every"] == 1.0
    lines = [json.loads(line) for line in (out / "videos.jsonl").read_text().splitlines()]
    assert [(x["file"], x["windows"], x["error"]) for x in lines] == [
        ("a.npy", 2, None),
        ("x/b.npy", 1, None),
        (None, 0, "cut off"),
    ]
    with open(out / "videos.jsonl", "a") as journal:
        journal.write('{"path": "torn')
    (out / "x" / "b.npy").unlink()
    with MatrixWriter(out, settings, videos) as writer:
        assert [writer.is_done(video) for video in videos] == [True, False, False]
        writer.add(videos[2], described(5))
    with MatrixWriter(out, settings, videos) as writer:
        assert [writer.is_done(video) for video in videos] == [True, False, True]
    with pytest.raises(UserError, match="layer stage3 there, head here"):
        MatrixWriter(out, dataclasses.replace(settings, layer="head"), videos)


def test_matrices_never_share_a_name(tmp_path):
    with pytest.raises(UserError, match=r"would both be written to a\.npy"):
        MatrixWriter(tmp_path, dataclasses.replace(SETTINGS, root="/v"), ["/v/a.mp4", "/v/a.avi"])


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """The current folder: four clips, a file that crashes its decoder and one that is no video."""
    (tmp_path / "in").mkdir()
    for i in range(4):
        write_clip(tmp_path / f"in/{i}.mp4", frames=20, first_index=100 * i)
    (tmp_path / "in" / "crash.mp4").write_text("worse")
    (tmp_path / "in" / "none.mp4").write_text("not a video")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def guarded(monkeypatch):
    for module in (command, search_command):
        monkeypatch.setattr(module, "decoding_process", lambda: GuardedPool(serve_or_worse))


def test_bad_videos_are_rows_and_the_others_are_found(videos, weights, monkeypatch, capsys):
    guarded(monkeypatch)
    words = ["in", "--weights", weights, "--device", "cpu", "--out", "f.parquet"]
    assert command.main(words) == 1
    out, err = capsys.readouterr()
    assert out == "wrote f.parquet: 4 videos, head, mean, 128 numbers each\n"
    assert "error: in/crash.mp4: reading it in a process of its own: crashed (SIGSEGV)" in err
    rows = {path: (number, error) for path, number, error in rows_of("f.parquet")}
    assert [path for path, (number, _) in rows.items() if number is None] == [
        "in/crash.mp4",
        "in/none.mp4",
    ]
    assert "crashed" in rows["in/crash.mp4"][1]

    query = ["f.parquet", "in/2.mp4", "in/none.mp4", "--device", "cpu", "--top", "3", "--json"]
    assert search_command.main(query) == 1
    found = json.loads(capsys.readouterr().out)
    assert [row["query"] for row in found] == ["in/2.mp4", "in/none.mp4"]
    assert found[0]["neighbours"][0]["path"] == "in/2.mp4"
    assert found[0]["neighbours"][0]["score"] == pytest.approx(1)
    assert len(found[0]["neighbours"]) == 3
    assert found[1]["neighbours"] == []
    other = write_checkpoint(videos / "other.pyth", tiny_model())
    with pytest.raises(UserError, match="are not the weights that made"):
        search_command.main([*query, "--weights", str(other)])


def read_here(monkeypatch):
    """Without a child process, which takes seconds to start."""
    monkeypatch.setattr(command, "decoding_process", lambda: contextlib.nullcontext(None))


KILLED = """
import os, signal
from hiera_video import cli
from hiera_video.commands import features
from hiera_video.features import describe, table

table.PART_SECONDS = 0
add, added = table.TableWriter.add, []

def add_and_die(self, path, described):
    add(self, path, described)
    added.append(path)
    if len(added) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    table.TableWriter.add = add_and_die
    cli.run(features.main)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_killed_run_goes_on(videos, weights, monkeypatch, capsys):
    """The second call describes what the first had not, and the file is that of one call."""
    words = ["in/[0-9].mp4", "--weights", weights, "--device", "cpu", "--out"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *words, "f.parquet"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not os.path.exists("f.parquet")
    read_here(monkeypatch)
    assert command.main([*words, "f.parquet"]) == 0
    assert "note: 2 of 4 videos are in f.parquet already" in capsys.readouterr().err
    assert command.main([*words, "straight.parquet"]) == 0
    resumed, straight = (pq.read_table(f"{n}.parquet").to_pydict() for n in ("f", "straight"))
    assert resumed["path"] == straight["path"] == [f"in/{i}.mp4" for i in range(4)]
    # one thread in the killed process or another number here: they add up in another order
    assert np.allclose(resumed["vector"], straight["vector"], atol=1e-5)
    assert not os.path.exists("f.parquet.parts")
    with pytest.raises(UserError, match="layer head there, stage2 here"):
        command.main([*words, "f.parquet", "--layer", "stage2"])


def test_ctrl_c_keeps_what_is_done(videos, weights, monkeypatch, capsys):
    read_here(monkeypatch)
    words = ["in/[0-9].mp4", "--weights", weights, "--device", "cpu", "--out", "f.parquet"]
    describe_one = Describer.__call__

    def interrupted(self, path, on_progress=None):
        if path == "in/2.mp4":
            raise KeyboardInterrupt
        return describe_one(self, path, on_progress)

    monkeypatch.setattr(Describer, "__call__", interrupted)
    assert command.main(words) == 130
    assert "interrupted after 2 of 4 videos; the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(Describer, "__call__", describe_one)
    assert command.main(words) == 0
    assert "note: 2 of 4 videos are in f.parquet already" in capsys.readouterr().err
    assert [row[0] for row in rows_of("f.parquet")] == [f"in/{i}.mp4" for i in range(4)]


def test_matrices_by_the_command(videos, weights, monkeypatch, capsys):
    read_here(monkeypatch)
    words = ["in/0.mp4", "in/3.mp4", "--weights", weights, "--device", "cpu", "--every", "0.25"]
    words += ["--format", "npy", "--out", "m", "--store", "fp16", "--layer", "stage3"]
    assert command.main(words) == 0
    matrix = np.load("m/3.npy")
    assert (matrix.shape, matrix.dtype) == ((3, 64), np.float16)
    assert command.main(words) == 0
    assert "2 of 2 videos are in m already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "none/f.parquet"], "there is no folder"),
        (["--out", "."], "is a folder; name a file"),
        (["--out", "m", "--format", "npy", "--pool", "tokens"], "one vector a window"),
        (["--out", "f.parquet", "--views", "0x1"], "views '0x1'"),
        (["--out", "f.parquet", "--every", "0"], "window of 0.0 seconds"),
        (["--out", "f.parquet", "--weights", "tinny"], "unknown weights 'tinny'"),
    ],
)
def test_wrong_use_of_the_command(words, message, videos, weights, monkeypatch):
    read_here(monkeypatch)
    with pytest.raises(UserError, match=message):
        command.main(["in", "--device", "cpu", "--weights", weights, *words])
    assert not os.path.exists("f.parquet.parts")
