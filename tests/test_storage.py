"""Videos at addresses and inside tar shards: what is opened, with how many requests, and faults."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from clips import read_indices, write_clip
from storage_servers import WebServer

from hiera_video.errors import DecodeError, UserError, hide_secrets
from hiera_video.storage import local_copies, remote, retries
from hiera_video.storage.addresses import (
    absolute,
    expand_braces,
    folder_of,
    is_shard,
    is_stored,
    join,
    member_of,
    refusal,
)
from hiera_video.storage.range_file import RangeFile, merged
from hiera_video.storage.retries import StorageError, ask
from hiera_video.storage.stored import StoredVideo
from hiera_video.video import guarded_video
from hiera_video.video.container import VideoFile
from hiera_video.video.decode import open_video, probe, read_frames
from hiera_video.video.decoding_process import decoding_process
from hiera_video.video.find import expand_paths, find_videos
from hiera_video.video.known import known_videos

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """60 frames, small."""
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", frames=60, fps=30, size=(96, 64))


def large_clip(path, *, gop=48, codec="libx264", **options):
    """A file above the size that is read whole, of pictures that do not compress."""
    import av

    noise = np.random.default_rng(0).integers(0, 256, (4, 240, 320, 3), dtype=np.uint8)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.gop_size = 320, 240, gop
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "qp": "22", "bf": "2"}
        else:
            stream.bit_rate = 20_000_000
        for i in range(240):
            picture = av.VideoFrame.from_ndarray(noise[i % 4] // 2 + i // 2, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return large_clip(tmp_path_factory.mktemp("large") / "large.mp4")


@pytest.fixture(scope="module")
def web(clip, large):
    files = {"a.mp4": clip.read_bytes(), "large.mp4": large.read_bytes()}
    files["list.m3u8"] = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    with WebServer(files) as server:
        yield server


# ---- how addresses are written ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ftp://h/a.mp4", "ftp:// are not opened; allowed are s3://"),
        ("file:///etc/passwd", "as a plain path"),
        ("FILE:///etc/passwd", "as a plain path"),
        ("simplecache::s3://b/a.mp4", "is no address"),
        ("s3://b/a.mp4::file:///etc/passwd", "chains"),
        ("zip://a.mp4::s3://b/a.zip", "chains"),
        ("python://os", "not opened"),
        ("s3://", "names no place"),
        ("https:///a.mp4", "names no host"),
        ("http://[::1/a.mp4", "chains"),
        ("http://169.254.169.254/latest/meta-data/a.mp4", "metadata"),
        ("http://[fe80::1]/a.mp4", "metadata"),
        ("http://metadata.google.internal/a.mp4", "metadata"),
        ("s3://b/a\n.mp4", "control"),
        ("a.mp4", "is no address"),
    ],
)
def test_only_the_written_list_of_schemes_is_opened(address, reason):
    assert re.search(reason, refusal(address))
    assert not refusal("s3://bucket/a b.mp4")
    assert not refusal("https://host/a.mp4?X-Amz-Signature=1")


def test_parts_of_addresses():
    assert join("s3://b/c/", "d/a.mp4") == "s3://b/c/d/a.mp4"
    assert join("/videos", "s3://b/a.mp4") == "s3://b/a.mp4"
    assert join("s3://b", "/local/a.mp4") == "/local/a.mp4"
    assert join("/videos", "a.mp4") == "/videos/a.mp4"
    assert folder_of("https://h/x/list.csv?token=1") == "https://h/x"
    assert absolute("s3://b/../a.mp4") == "s3://b/../a.mp4"
    assert absolute("x.tar!/a.mp4") == os.path.abspath("x.tar") + "!/a.mp4"
    assert member_of("s3://b/x.tar!/y/a.mp4") == ("s3://b/x.tar", "y/a.mp4")
    assert member_of("what!/a.mp4") is None
    assert is_stored("x.tar!/a.mp4")
    assert not is_stored("x.tar")
    assert is_shard("s3://b/{0..3}.tar")
    assert is_shard("https://h/a.tar?sig=1")
    assert not is_shard("a.mp4")


def test_braces_name_shards():
    assert expand_braces("a-{008..011}.tar") == [f"a-{i:03d}.tar" for i in range(8, 12)]
    assert expand_braces("{a,b}-{0..1}.tar") == ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]
    assert expand_braces("{9..11}.tar") == ["9.tar", "10.tar", "11.tar"]
    assert expand_braces("a.tar") == ["a.tar"]
    for bad in ("{5..1}.tar", "{0..99999999999}.tar", "{0..999}{0..999}.tar"):
        with pytest.raises(UserError):
            expand_braces(bad)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://b/a.mp4", "s3://b/a.mp4"),
        ("https://me:pass@h/a.mp4", "https://***@h/a.mp4"),
        (
            "https://h/a.mp4?X-Amz-Signature=abc&part=2",
            "https://h/a.mp4?X-Amz-Signature=***&part=***",
        ),
        (
            "cannot read https://u:p@h/a b.mp4?sig=x: 403",
            "cannot read https://***@h/a b.mp4?sig=*** 403",
        ),
        ("a.mp4?b=c", "a.mp4?b=c"),
    ],
)
def test_secrets_of_addresses_are_never_shown(address, shown):
    assert hide_secrets(address) == shown
    assert str(DecodeError(address, "no")) == f"{shown}: no"
    assert shown in str(StorageError(address, "no"))


# ---- few requests -------------------------------------------------------------------------------


def counted(path):
    """The info of a file, the frames 150 to 180 of it, and the fetcher with its counts."""
    with open_video(path) as video:
        frames = video.read(range(150, 182, 4))
        return video.info, frames, video._file.stored._fetch


def same_index(one, other):
    names = ("pts", "dts", "key", "closed", "hidden", "shown")
    same = all(np.array_equal(getattr(one, n), getattr(other, n)) for n in names)
    return same and (one.plain, one.sequential) == (other.plain, other.sequential)


@pytest.mark.parametrize("gop", [12, 48, 300])
@pytest.mark.parametrize("flags", ["", "+faststart"])
def test_a_clip_of_a_large_file_needs_few_requests(tmp_path, gop, flags):
    """With the table of packets at the end of the file or at its start."""
    path = large_clip(tmp_path / "v.mp4", gop=gop, **({"movflags": flags} if flags else {}))
    fsspec.filesystem("memory").pipe_file("/few/v.mp4", path.read_bytes())
    size = path.stat().st_size
    assert size > 6_000_000
    info, frames, cost = counted("memory://few/v.mp4")
    local = probe(path)
    assert same_index(info.index, local.index)
    assert (frames == read_frames(path, range(150, 182, 4))).all()
    assert cost.requests <= 40
    if gop < 300:  # else the clip needs all frames before it
        assert cost.bytes < 0.75 * size
    first = cost.requests, cost.bytes
    known = counted("memory://few/v.mp4")[2]  # the next epoch: the list of packets is known
    assert known.requests < first[0]
    assert known.bytes < first[1]
    assert VideoFile("memory://few/v.mp4").copy is None


def test_each_read_has_its_own_time_for_retries(large):
    fsspec.filesystem("memory").pipe_file("/few/large.mp4", large.read_bytes())
    with open_video("memory://few/large.mp4") as video:
        video.read([0])
        fetch = video._file.stored._fetch
        fetch.time_left = lambda: -1.0  # as a minute later
        video.read([200])
        assert fetch.time_left() > 0


def test_a_small_file_is_one_request(clip):
    fsspec.filesystem("memory").pipe_file("/few/a.mp4", clip.read_bytes())
    with open_video("memory://few/a.mp4") as video:
        assert read_indices(video.read([3, 40, 59])) == [3, 40, 59]
        assert video._file.stored._fetch.requests == 1


@pytest.mark.parametrize(
    ("name", "options"), [("v.mkv", {}), ("f.mp4", {"movflags": "frag_keyframe"})]
)
def test_files_without_one_table_are_copied_once(tmp_path, name, options):
    path = large_clip(tmp_path / name, **options)
    fsspec.filesystem("memory").pipe_file(f"/few/{name}", path.read_bytes())
    info, frames, cost = counted(f"memory://few/{name}")
    assert same_index(info.index, probe(path).index)
    assert (frames == read_frames(path, range(150, 182, 4))).all()
    assert cost.bytes < 1.8 * path.stat().st_size
    known_videos.clear()
    *_, cost = counted(f"memory://few/{name}")
    assert cost.requests == 0  # the copy
    fsspec.filesystem("memory").pipe_file(f"/few/{name}", path.read_bytes() + b"\0")
    assert counted(f"memory://few/{name}")[2].requests > 0  # another file


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize("decoder", ["pyav", "torchcodec", "decord"])
def test_every_decoder_gives_the_same_frames(tmp_path, codec, decoder):
    from hiera_video.video.decode import available_decoders

    if reason := available_decoders()[decoder]:
        pytest.skip(f"{decoder} {reason}")
    path = large_clip(tmp_path / "v.mp4", codec=codec)
    fsspec.filesystem("memory").pipe_file("/every/v.mp4", path.read_bytes())
    wanted = [0, 100, 239]
    for known in (False, True):
        frames = read_frames("memory://every/v.mp4", wanted, decoder)
        assert (frames == read_frames(path, wanted, decoder)).all(), known


def test_range_files_read_what_is_there():
    data = bytes(np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8))
    asked = []

    def fetch(start, end):
        asked.append((start, end))
        return data[start:end]

    file = RangeFile("a", fetch, len(data), block=10_000)
    rng = np.random.default_rng(1)
    for _ in range(200):
        place, size = int(rng.integers(0, 310_000)), int(rng.integers(0, 40_000))
        file.seek(place)
        assert file.read(size) == data[place : place + size]
    assert file.seek(-5, io.SEEK_END) == len(data) - 5
    assert file.read() == data[-5:]
    assert all(end - start <= 10_000 for start, end in asked)
    file.blank((50_000, 250_000), [(60_000, 60_100)], lambda rs: [data[a:b] for a, b in rs])
    file.seek(49_990)
    blank = file.read(10_120)
    assert blank[:10] == data[49_990:50_000]
    assert not any(blank[10:10_010])
    assert blank[10_010:10_110] == data[60_000:60_100]
    assert not any(blank[10_110:])
    file.unblank()
    file.seek(49_990)
    assert file.read(10_120) == data[49_990:60_110]
    assert merged([(0, 5), (8, 9), (30, 40)], 4) == [(0, 9), (30, 40)]


# ---- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["ok", "plain", "whole", "silent", "twice", "busy", "cut", "moved"])
def test_servers_that_give_the_file_in_the_end(web, clip, way):
    frames = read_frames(web.address(way, "a.mp4"), [0, 59])
    assert (frames == read_frames(clip, [0, 59])).all()


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("broken", r"error 503 \(5 tries"),
        ("denied", "permission denied .*fsspec takes credentials"),
        ("gone", "no such file"),
        ("cutting", r"connection is cut|wrong lengths"),
        ("short", "wrong lengths: [0-9,]+ bytes came instead of"),
    ],
)
def test_faults_that_stay_are_told(web, way, reason):
    address = web.address(way, "a.mp4")
    before = len(web.requests)
    with pytest.raises(DecodeError, match=reason) as caught:
        probe(address)
    assert str(caught.value).startswith(f"{address}: ")
    asked = len(web.requests) - before
    assert asked <= (2 if way in ("denied", "gone") else 2 * retries.TRIES + 2)


def test_a_server_that_stalls_is_slow_storage(web, monkeypatch):
    monkeypatch.setattr(remote, "SILENCE_LIMIT", 0.2)
    monkeypatch.setattr(retries, "TRIES", 2)
    remote._filesystem.cache_clear()
    with pytest.raises(DecodeError, match=r"slow storage: no answer within .*2 tries"):
        probe(web.address("stalls", "a.mp4"))
    remote._filesystem.cache_clear()


def test_time_that_goes_to_the_network_is_not_the_decoders(web):
    with pytest.raises(DecodeError, match="slow storage"):
        probe(web.address("slow", "large.mp4"), time_limit=0.3)


def test_a_file_that_changes_while_it_is_read_is_an_error(web):
    with pytest.raises(DecodeError, match="changed while it was read"):
        read_frames(web.address("changing", "large.mp4"), [230])


def test_nobody_there_and_strange_servers():
    with pytest.raises(DecodeError, match="cannot be reached"):
        probe("http://127.0.0.1:9/a.mp4")
    with pytest.raises(DecodeError, match="not opened"):
        probe("gopher://h/a.mp4")
    with pytest.raises(DecodeError, match="no such file"):
        probe("memory://nowhere/a.mp4")


def test_playlists_stay_refused(web):
    for way in ("ok", "moved"):
        with pytest.raises(DecodeError, match="is a playlist"):
            probe(web.address(way, "list.m3u8"))
    asked = [path for _, path, _ in web.requests if "m3u8" in path]
    assert asked
    fsspec.filesystem("memory").pipe_file("/few/x.mp4", b"<html>no</html>")
    with pytest.raises(DecodeError, match="is a web page"):
        probe("memory://few/x.mp4")


def test_retries_are_bounded(monkeypatch):
    waits = []
    monkeypatch.setattr(retries.time, "sleep", waits.append)
    tried = []

    def fails(error):
        def request():
            tried.append(1)
            raise error

        return request

    with pytest.raises(StorageError, match="5 tries"):
        ask("s3://b/a", fails(ConnectionResetError("reset")))
    assert len(tried) == 5
    assert len(waits) == 4
    assert all(wait <= 1.5 * retries.LONGEST_WAIT for wait in waits)
    for error in (FileNotFoundError(), PermissionError(), ValueError("odd")):
        tried.clear()
        with pytest.raises(StorageError):
            ask("s3://b/a", fails(error))
        assert len(tried) == 1
    tried.clear()
    with pytest.raises(StorageError):
        ask("s3://b/a", fails(ConnectionResetError()), seconds=0.0)
    assert len(tried) == 1


# ---- copies -------------------------------------------------------------------------------------


def test_copies_make_room_oldest_first(monkeypatch):
    monkeypatch.setenv(local_copies.LIMIT, "3e-6")  # 3,000 bytes
    places = []
    for number in range(4):
        place = local_copies.place_of(f"s3://b/{number}.mp4", (1000, -number))
        local_copies.store(place, 1000, lambda start, end: b"x" * (end - start))
        os.utime(place, (number, number))
        places.append(place)
    assert [place.exists() for place in places] == [False, True, True, True]
    assert local_copies.known_copy("s3://b/1.mp4", (1000, -1)) == places[1]  # used now
    local_copies.store(places[0], 1000, lambda start, end: b"x" * (end - start))
    assert [place.exists() for place in places] == [True, True, False, True]
    with pytest.raises(UserError, match=local_copies.LIMIT):
        local_copies.store(places[0], 4000, lambda start, end: b"x" * (end - start))
    monkeypatch.setenv(local_copies.LIMIT, "much")
    with pytest.raises(UserError, match="number of gigabytes"):
        local_copies.most_bytes()


def test_a_copy_that_fails_leaves_nothing():
    place = local_copies.place_of("s3://b/a.mp4", (1000, -1))

    def fetch(start, end):
        raise StorageError("s3://b/a.mp4", "cut")

    with pytest.raises(StorageError):
        local_copies.store(place, 1000, fetch)
    assert not [file for file in place.parent.iterdir() if file.name != "lock"]


# ---- shards -------------------------------------------------------------------------------------


def write_shard(path, members, **options):
    """members: (name, content), or a TarInfo without content."""
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return str(path)


def test_members_of_shards_are_videos(tmp_path, clip):
    data = clip.read_bytes()
    long = "x" * 150 + "/ü.mp4"
    shard = write_shard(tmp_path / "s.tar", [("a.mp4", data), ("a.cls", b"0"), (long, data)])
    for name in ("a.mp4", long):
        assert read_indices(read_frames(f"{shard}!/{name}", [7, 50])) == [7, 50]
    assert find_videos([shard]) == [f"{shard}!/a.mp4", f"{shard}!/{long}"]
    assert find_videos([str(tmp_path)]) == find_videos([shard])
    with pytest.raises(DecodeError, match="no member of this name"):
        probe(f"{shard}!/b.mp4")
    with pytest.raises(DecodeError, match="no such file"):
        probe(f"{shard}x.tar!/b.mp4")
    for decoder in ("torchcodec", "decord"):
        from hiera_video.video.decode import available_decoders

        if available_decoders()[decoder] is None:
            assert read_indices(read_frames(f"{shard}!/a.mp4", [7], decoder)) == [7]


def test_shards_that_cannot_be_taken_are_told(tmp_path, clip):
    data = clip.read_bytes()
    link = tarfile.TarInfo("l.mp4")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    cases = {
        "abs": ([("/etc/a.mp4", data)], "absolute name"),
        "up": ([("../a.mp4", data)], r"\.\. in its name"),
        "twice": ([("a.mp4", data), ("a.mp4", data)], "twice"),
        "none": ([("a.cls", b"1"), link], "no videos in it"),
    }
    for name, (members, reason) in cases.items():
        shard = write_shard(tmp_path / f"{name}.tar", members)
        with pytest.raises(UserError, match=reason):
            find_videos([shard])
    whole = write_shard(tmp_path / "whole.tar", [("a.mp4", data), ("b.mp4", data * 40)])
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path(whole).read_bytes()[:-20_000])
    for file, reason in {
        cut: "is cut off",
        tmp_path / "noise.tar": "no tar file",
        tmp_path / "empty.tar": "no tar file|no videos",
    }.items():
        if not file.exists():
            file.write_bytes(os.urandom(4096) if "noise" in file.name else b"")
        with pytest.raises(UserError, match=reason):
            find_videos([str(file)])
    for name, mode in {"z.tar.gz": "w:gz", "hidden.tar": "w:gz"}.items():
        with tarfile.open(tmp_path / name, mode) as tar:
            tar.add(clip, "a.mp4")
        with pytest.raises(UserError, match=r"compressed.*plain .tar"):
            find_videos([str(tmp_path / name)])


def test_a_header_of_any_size_is_refused(tmp_path):
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 8 << 30
    bomb = tmp_path / "bomb.tar"
    bomb.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096)
    with pytest.raises(UserError, match=r"damaged one|cut off"):
        find_videos([str(bomb)])


def test_a_shard_is_indexed_with_few_requests_and_once(monkeypatch):
    members = [(f"{i:04d}.{end}", b"x" * size) for i in range(400)
               for end, size in (("mp4", 20_000), ("cls", 1), ("json", 30))]  # fmt: skip
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    fsspec.filesystem("memory").pipe_file("/shards/a.tar", buffer.getvalue())
    asked = []
    real = remote.Fetcher._try
    monkeypatch.setattr(
        remote.Fetcher, "_try", lambda self, *r: (asked.append(r), real(self, *r))[1]
    )
    found = find_videos(["memory://shards/a.tar"])
    assert found[0] == "memory://shards/a.tar!/0000.mp4"
    assert len(found) == 400
    assert len(asked) < 200  # 1,200 members
    asked.clear()
    assert find_videos(["memory://shards/a.tar"]) == found
    assert not asked
    assert StoredVideo(found[17]).size == 20_000
    assert not asked


def test_a_shard_that_changes_is_read_again(tmp_path, clip):
    data = clip.read_bytes()
    shard = write_shard(tmp_path / "s.tar", [("a.mp4", data)])
    assert len(find_videos([shard])) == 1
    write_shard(shard, [("b.mp4", data), ("a.mp4", data)])
    os.utime(shard, ns=(1, time.time_ns() + 10**9))
    assert find_videos([shard]) == [f"{shard}!/b.mp4", f"{shard}!/a.mp4"]
    assert read_indices(read_frames(f"{shard}!/a.mp4", [5])) == [5]


# ---- what a command line names ------------------------------------------------------------------


def test_folders_and_globs_at_addresses(clip):
    memory = fsspec.filesystem("memory")
    for name in ("x/b.mp4", "x/a.MP4", "x/deep/c.mkv", "x/notes.txt"):
        memory.pipe_file(f"/tree/{name}", clip.read_bytes())
    names = ["memory://tree/x/a.MP4", "memory://tree/x/b.mp4", "memory://tree/x/deep/c.mkv"]
    for folder in ("memory://tree/x", "memory://tree/x/", "memory://tree/"):
        assert find_videos([folder]) == names
    assert find_videos(["memory://tree/x/*.mp4"]) == names[1:2]
    assert find_videos([names[1], names[1]]) == names[1:2]
    with pytest.raises(UserError, match="nothing there"):
        find_videos(["memory://tree/none/"])
    with pytest.raises(UserError, match="web servers do not list files"):
        find_videos(["https://host/folder/*.mp4"])
    files = expand_paths([str(clip), "ftp://h/a.mp4"])
    assert [file.error is None for file in files] == [True, False]


def test_a_guarded_process_reads_addresses(web):
    with (
        decoding_process() as process,
        guarded_video.GuardedVideo(web.address("twice", "large.mp4"), process) as video,
    ):
        assert video.info.num_frames == 240
        (crop,) = video.read_crops([3, 200], 64, 1)
        assert crop.shape == (2, 3, 64, 64)
        with pytest.raises(DecodeError, match="no such file"):
            guarded_video.GuardedVideo(web.address("gone", "a.mp4?sig=secret"), process)


def test_local_files_load_no_library_for_addresses(clip):
    code = (
        "import sys\n"
        "from hiera_video.video.decode import open_video\n"
        "from hiera_video.video.find import find_videos\n"
        "open_video(find_videos([sys.argv[1]])[0]).pixels([0])\n"
        "print([m for m in ('fsspec', 'aiohttp', 's3fs') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(clip)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(
        UserError, match=r"gs:// need fsspec and gcsfs: pip install 'hiera_video\[gcs\]'"
    ):
        probe("gs://bucket/a.mp4")


# ---- S3 -----------------------------------------------------------------------------------------


def test_videos_and_shards_on_s3(s3, clip, large, tmp_path):
    s3.pipe_file("bucket/v/a.mp4", clip.read_bytes())
    s3.pipe_file("bucket/v/large.mp4", large.read_bytes())
    shard = write_shard(tmp_path / "s.tar", [("k1.mp4", clip.read_bytes()), ("k1.cls", b"1")])
    s3.put_file(shard, "bucket/shards/000.tar")
    assert find_videos(["s3://bucket/v/"]) == ["s3://bucket/v/a.mp4", "s3://bucket/v/large.mp4"]
    info, frames, cost = counted("s3://bucket/v/large.mp4")
    assert same_index(info.index, probe(large).index)
    assert (frames == read_frames(large, range(150, 182, 4))).all()
    assert cost.requests <= 40
    assert read_indices(read_frames("s3://bucket/shards/000.tar!/k1.mp4", [9])) == [9]
    assert find_videos(["s3://bucket/shards/{000..000}.tar"]) == [
        "s3://bucket/shards/000.tar!/k1.mp4"
    ]
    with pytest.raises(DecodeError, match="no such file"):
        probe("s3://bucket/none.mp4")
    with pytest.raises(DecodeError, match="no such file"):
        probe("s3://no-bucket/none.mp4")


def test_a_file_on_s3_that_changes_is_an_error(s3, large):
    s3.pipe_file("bucket/c/v.mp4", large.read_bytes())
    with open_video("s3://bucket/c/v.mp4") as video:
        s3.pipe_file("bucket/c/v.mp4", large.read_bytes()[::-1])
        with pytest.raises(DecodeError, match="changed while it was read"):
            video.read([230])
    with pytest.raises(DecodeError, match="not a video file"):
        probe("s3://bucket/c/v.mp4")
