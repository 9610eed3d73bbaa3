"""A run that goes on reads its checkpoint once."""

from tiny_runs import config, final, interrupted, run, write_videos

from hiera_video.engine import checkpoint


def test_the_checkpoint_of_a_resumed_run_is_read_once(tmp_path, monkeypatch, no_curves):
    videos = write_videos(tmp_path / "videos", train=8)
    cfg = config(videos, tmp_path / "out", "TRAIN.EVAL_PERIOD", 0)
    assert interrupted(cfg, after=1) == 130
    read, loads = [], checkpoint.load

    def noting(path):
        read.append(path)
        return loads(path)

    monkeypatch.setattr(checkpoint, "load", noting)
    assert run(cfg) == 0
    assert len(read) == 1
    assert final(tmp_path / "out")["step"] > 1
