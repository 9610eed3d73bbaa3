"""The room of detection stands on the others, and nothing stands on it."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

WITHOUT = """
import sys
from pathlib import Path
# the finder of an editable install would find what the copy lacks
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
import hiera_video
assert Path(hiera_video.__file__).parts[-3] == sys.argv[1], hiera_video.__file__
from hiera_video import list_models, build_model, load_config
from hiera_video.engine import build, dry_run, evaluate, tasks, train
from hiera_video.registry import OBJECTIVE_REGISTRY
assert not [name for name in list_models() if name.endswith("_ava")]
assert "hiera_base_16x224" in list_models()
assert OBJECTIVE_REGISTRY.names() == ["classify", "motion", "pretrain"]
assert tasks.get("classify").validated
load_config(None)
"""


def test_the_package_works_without_it(tmp_path):
    copy = tmp_path / "without" / "hiera_video"
    shutil.copytree(ROOT / "hiera_video", copy, ignore=shutil.ignore_patterns("*.pyc", "bundled"))
    shutil.rmtree(copy / "detection")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "without"],
        cwd=copy.parent,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(copy.parent), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
