"""The doctor reports what is wrong and what to install, even if libraries are missing or crash."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from packaging.requirements import Requirement
from tiny_runs import environment

from hiera_video import __main__, doctor
from hiera_video.doctor import FAIL, OK, WARN, Check, Finding


def shim(folder, **modules):
    """A folder of modules that are imported instead of the installed ones."""
    folder.mkdir(exist_ok=True)
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code)
    return folder


def run_doctor(*, shims=None, **variables):
    """`python -m hiera_video doctor` as a user runs it."""
    env = {**environment(), **{name: str(value) for name, value in variables.items()}}
    if shims is not None:
        env["PYTHONPATH"] = f"{shims}{os.pathsep}{env['PYTHONPATH']}"
    return subprocess.run(
        [sys.executable, "-m", "hiera_video", "doctor"],
        capture_output=True,
        text=True,
        timeout=600,
        env=env,
    )


def test_a_whole_report(tmp_path):
    """PyAV is enough if one decoder is missing and another one does not load."""
    shims = shim(
        tmp_path / "shims",
        torchcodec="raise RuntimeError('Could not load libtorchcodec')",
        decord="raise ModuleNotFoundError(\"No module named 'decord'\", name='decord')",
    )
    (tmp_path / "temporary").mkdir()
    done = run_doctor(shims=shims, TORCH_HOME=tmp_path / "torch", TMPDIR=tmp_path / "temporary")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for pattern in (
        r"  ok    torch \d.*, torchvision .*, av ",
        r"  warn  torchcodec cannot be imported \(Could not load libtorchcodec\)",
        r"        -> not required, PyAV is enough; .*apt-get install ffmpeg",
        r"  ok    pyav \d.* decodes 3 frames of a test clip",
        r"  warn  decord cannot be imported \(No module named 'decord'\)",
        r"  ok    \d+ CPU cores, .* GiB of .* GiB of memory free",
        rf"  ok    {doctor.MODEL} on cpu: .* s per clip",
        rf"  ok    downloaded weights .*{re.escape(str(tmp_path / 'torch'))}.*GiB free",
        r"  warn  not cached: hiera_base_16x224.mae_k400_ft_k400",
        r"everything required works, \d warnings?: see -> above",
    ):
        assert any(re.match(pattern, line) for line in lines), f"{pattern}\n{done.stdout}"
    assert not (tmp_path / "torch").exists()  # looked, and left nothing
    assert not list((tmp_path / "temporary").glob("hiera_video*"))


def test_it_runs_when_required_packages_are_missing(tmp_path):
    broken = "raise ModuleNotFoundError('No module named x', name='x')"
    done = run_doctor(shims=shim(tmp_path / "shims", torch=broken, fvcore=broken, tqdm=broken))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert re.search(r"FAIL  tqdm [\d.]+ does not import: No module named x\n +-> .*pip install "
                     r'"tqdm>=4.66"', done.stdout)  # fmt: skip
    assert "FAIL  skipped, needs fvcore, torch" in done.stdout
    assert re.match(r"\d+ failed, ", done.stdout.splitlines()[-1])


def test_a_library_that_crashes_while_it_is_imported(tmp_path):
    """The doctor itself imports none of the modules that the check tries."""
    crash = "import os, signal; print('illegal', flush=True); os.kill(os.getpid(), signal.SIGILL)"
    done = run_doctor(shims=shim(tmp_path / "shims", numpy=crash, torch=crash))
    assert done.returncode == 1
    assert "FAIL  crashed (SIGILL); last output: illegal" in done.stdout
    assert "skipped, needs" in done.stdout


# ---- one check in a child -----------------------------------------------------------------------


def crash():
    os.kill(os.getpid(), signal.SIGKILL)


def complain():
    os.write(2, b"a library's last words\n\n")
    raise OSError("no such thing\nat all")


def fine():
    os.write(1, b"noise")
    return [Finding(OK, "fine")]


def test_crashes_hangs_and_exceptions_are_lines_of_the_report(capfd):
    checks = [
        Check("One", crash, subject="decord"),
        Check("", lambda: time.sleep(600), seconds=0.5),
        Check("", complain),
        Check("Two", fine),
    ]
    assert doctor.main(checks) == 1
    printed = capfd.readouterr().out.splitlines()[1:]
    assert printed == [
        "",
        "One",
        "  FAIL  decord crashed (SIGKILL)",
        "  FAIL  no answer in 0.5 s",
        "  FAIL  OSError: no such thing; last output: a library's last words",
        "",
        "Two",
        "  ok    fine",
        "",
        "3 failed, 0 warnings: see -> above",
    ]


@pytest.mark.parametrize(
    ("level", "code", "last"),
    [
        (OK, 0, "everything required works"),
        (WARN, 0, "everything required works, 1 warning: see -> above"),
        (FAIL, 1, "1 failed, 0 warnings: see -> above"),
    ],
)
def test_the_exit_code_tells_required_from_optional(capsys, level, code, last):
    assert doctor.main([Check("x", lambda: [Finding(level, "text", "do this\nor that")])]) == code
    printed = capsys.readouterr().out
    assert f"  {level:4}  text\n        -> do this\n        -> or that\n" in printed
    assert printed.splitlines()[-1] == last


def test_wrong_use_is_two():
    for words in ([], ["nurse"]):
        assert __main__.main(words) == 2
    with pytest.raises(SystemExit) as end:
        __main__.main(["doctor", "--nurse"])
    assert end.value.code == 2


# ---- the checks ---------------------------------------------------------------------------------


def test_the_versions_are_those_of_setup_py(repository):
    tree = ast.parse((repository / "setup.py").read_text(encoding="utf-8"))
    (call,) = (n for n in ast.walk(tree) if getattr(getattr(n, "func", None), "id", "") == "setup")
    (listed,) = (k.value for k in call.keywords if k.arg == "install_requires")
    wanted = {}
    for text in ast.literal_eval(listed):
        requirement = Requirement(text)
        least = [s.version for s in requirement.specifier]
        wanted[requirement.name] = doctor._numbers(least[0] if least else "")
    ours = {name: doctor._numbers(least) for name, (_, least) in doctor.REQUIRED.items()}
    assert ours == {name: version[: len(ours[name])] for name, version in wanted.items()}


def test_packages_missing_and_too_old():
    missing = doctor._package("no-such-package", "no_such_module", "1.2")
    assert missing == Finding(
        FAIL,
        "no-such-package is missing",
        'pip install "no-such-package>=1.2"',
        ("no_such_module",),
    )
    old = doctor._package("tqdm", "tqdm", "400.1")
    assert old.level == FAIL
    assert "too old: at least 400.1 is required" in old.text
    assert doctor._package("tqdm", "tqdm", "4.9").level == OK  # 4.60 is above 4.9
    assert doctor._numbers("2.14.1+cpu") == (2, 14, 1)


@pytest.mark.parametrize("off", [0, 20])
def test_a_decoder_that_returns_wrong_frames_is_broken(monkeypatch, off):
    from hiera_video.video import decode

    read = decode.read_frames
    monkeypatch.setattr(decode, "read_frames", lambda *a, **k: read(*a, **k) + off)
    findings = doctor.decoder("pyav")
    assert findings[0].level == (FAIL if off else OK)
    assert ("wrong frames (frame 0 of a test clip)" in findings[0].text) == bool(off)


def test_folders_that_cannot_be_written_and_full_ones(tmp_path, monkeypatch):
    assert doctor._folder(tmp_path / "new" / "er", "x").level == OK
    assert not (tmp_path / "new").exists()
    locked = doctor._folder(doctor.Path("/proc/self"), "x")
    assert (locked.level, "not writable" in locked.text) == (WARN, True)
    monkeypatch.setattr(doctor, "LEAST_FREE", 1 << 80)
    full = doctor._folder(tmp_path, "x")
    assert (full.level, "only" in full.text) == (WARN, True)


def test_weights_in_the_cache(tmp_path, monkeypatch):
    import torch

    from hiera_video.models.weights.download import cached_path
    from hiera_video.models.weights.published import PUBLISHED

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = cached_path(PUBLISHED[doctor.DEFAULT].url)
    path.parent.mkdir(parents=True)
    torch.save({"model_state": {"x": torch.randn(40000)}}, path)
    whole = path.read_bytes()
    (finding,) = doctor.weights()
    assert finding == Finding(OK, "cached: hiera_base_16x224.mae_k400_ft_k400")
    path.write_bytes(whole[: len(whole) // 2])
    (finding,) = doctor.weights()
    assert finding.level == WARN
    assert "damaged: its end is missing" in finding.text
    assert str(path) in finding.advice
    path.write_bytes(b"<!doctype html><html>log in</html>")
    assert "web page" in doctor.weights()[0].text
