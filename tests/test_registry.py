"""Registries: each name once, suggestions for unknown names, and the modules of users."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from hiera_video.errors import UserError
from hiera_video.registry import (
    DATASET_REGISTRY,
    MODEL_REGISTRY,
    Registry,
    UnknownNameError,
    arguments_of,
    import_user_module,
)


@pytest.fixture
def registry():
    registry = Registry("model")
    for name in ("hiera_base_224", "hiera_base_16x224", "mae_hiera_base_224", "x3d_s"):
        registry.register(name=name)(lambda name=name: name)
    return registry


def test_register_in_all_three_ways():
    registry = Registry("thing")

    @registry.register()
    def one():
        return 1

    @registry.register(name="number-two")
    def two():
        return 2

    def three():
        return 3

    assert registry.register(three) is three
    assert one() == 1  # the decorator gives the function back
    assert [registry.get(name)() for name in ("one", "number-two", "three")] == [1, 2, 3]
    assert "one" in registry
    assert "two" not in registry
    assert dict(registry)["number-two"] is two


def test_a_name_is_taken_once(registry):
    with pytest.raises(UserError, match=r"'x3d_s' is taken by tests?\S*"):
        registry.register(name="x3d_s")(print)
    assert registry.get("x3d_s")() != print


def test_similar_names_are_suggested(registry):
    with pytest.raises(UnknownNameError) as caught:
        registry.get("hiera_bas_224")
    assert str(caught.value).startswith(
        "unknown model 'hiera_bas_224'; did you mean hiera_base_224"
    )
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, UserError)


def test_names_without_a_similar_one_get_the_whole_list(registry):
    with pytest.raises(UnknownNameError, match=r"choose one of hiera_base_16x224, .*x3d_s"):
        registry.get("zzzzzz")
    with pytest.raises(UnknownNameError, match="none is registered yet"):
        Registry("thing").get("one")


def test_names_by_pattern(registry):
    assert registry.names() == [
        "hiera_base_16x224",
        "hiera_base_224",
        "mae_hiera_base_224",
        "x3d_s",
    ]
    assert registry.names("hiera*") == ["hiera_base_16x224", "hiera_base_224"]
    assert registry.names("nothing*") == []


def test_the_two_registries_say_what_they_hold():
    for registry, word in ((MODEL_REGISTRY, "model"), (DATASET_REGISTRY, "data set")):
        with pytest.raises(UnknownNameError, match=f"unknown {word} 'no such thing'"):
            registry.get("no such thing")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder; sys.path and sys.modules are restored afterwards, but for the
    package's own modules: what they registered stays registered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] != "hiera_video":
            del sys.modules[name]


# ---- the package's own names --------------------------------------------------------------------


@pytest.fixture
def things(here):
    """A registry whose home registers the name "ours" and is not imported yet."""
    (here / "things.py").write_text(
        "from hiera_video.registry import Registry\nTHINGS = Registry('thing', home='thing_home')\n"
    )
    (here / "thing_home.py").write_text(
        "from things import THINGS\n@THINGS.register\ndef ours(): ...\n"
    )
    sys.path.append(str(here))
    registry = importlib.import_module("things").THINGS
    assert "thing_home" not in sys.modules
    return registry


@pytest.mark.parametrize(
    "look_up",
    [
        lambda things: things.get("ours").__name__,
        lambda things: things.names()[0],
        lambda things: dict(things) and "ours",
        lambda things: "ours" in things and "ours",
    ],
)
def test_the_first_look_up_finds_the_packages_own_names(things, look_up):
    assert look_up(things) == "ours"


@pytest.mark.parametrize("home_first", [True, False])
def test_names_do_not_depend_on_what_was_imported_before(things, home_first):
    if home_first:
        importlib.import_module("thing_home")
    things.register(name="mine")(print)
    with pytest.raises(UserError, match="thing name 'ours' is taken by thing_home"):
        things.register(name="ours")(print)
    assert things.names() == ["mine", "ours"]


@pytest.fixture
def rooms(things, monkeypatch):
    """`things` with a further name, "far", in a module that few programs need."""
    monkeypatch.setattr("hiera_video.registry._PACKAGE", "thing_home")  # else it is a user's module
    folder = Path.cwd() / "far_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "room.py").write_text("from things import THINGS\n@THINGS.register\ndef far(): ...\n")
    things.rooms = ("far_package.room", "no_such_package.room")
    return things


def test_a_room_waits_for_a_name_that_home_does_not_know(rooms):
    assert rooms.get("ours")
    assert "ours" in rooms
    assert "far_package.room" not in sys.modules
    assert rooms.get("far").__name__ == "far"


@pytest.mark.parametrize("look", [Registry.names, dict, lambda things: "far" in things])
def test_a_room_is_always_seen(rooms, look):
    assert look(rooms)
    assert rooms.names() == ["far", "ours"]


def test_no_name_from_outside_hides_one_of_a_room(rooms):
    with pytest.raises(UserError, match=r"thing name 'far' is taken by far_package\.room"):
        rooms.register(name="far")(print)


def test_a_mistyped_name_of_a_room_is_suggested(rooms):
    with pytest.raises(UserError, match="did you mean far"):
        rooms.get("fa")


def test_the_registries_know_the_packages_names_and_are_imported_without_torch():
    code = (
        "import sys\n"
        "from hiera_video import DATASET_REGISTRY, MODEL_REGISTRY\n"
        "assert 'torch' not in sys.modules\n"
        "import hiera_video.data.manifests.class_folders\n"
        "assert 'ucf101' in DATASET_REGISTRY and 'folder' in DATASET_REGISTRY\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'hiera_base_16x224' in MODEL_REGISTRY\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


# ---- modules of users ---------------------------------------------------------------------------


def test_a_module_in_the_current_folder_registers_its_model(here):
    (here / "my_models.py").write_text(
        "from hiera_video.registry import MODEL_REGISTRY\n"
        "@MODEL_REGISTRY.register()\n"
        "def a_model_of_mine():\n"
        "    return 42\n"
    )
    import_user_module("my_models")
    import_user_module("my_models")  # twice is once
    try:
        assert MODEL_REGISTRY.get("a_model_of_mine")() == 42
    finally:
        del MODEL_REGISTRY._obj_map["a_model_of_mine"]


def test_packages_and_their_modules(here):
    (here / "my_package").mkdir()
    (here / "my_package" / "inner.py").write_text("LOADED = True\n")
    import_user_module("my_package.inner")
    assert sys.modules["my_package.inner"].LOADED


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_thing_at_all\n", ["No module named 'no_such_thing_at_all'", ":1"]),
        ("x = 1\ny = x.nothing\n", ["AttributeError", "my_broken.py:2"]),
        ("def f(:\n", ["SyntaxError"]),
        ("raise ValueError\n", ["ValueError", "my_broken.py:1"]),
        ("raise RuntimeError('no GPU')\n", ["RuntimeError: no GPU"]),
    ],
)
def test_a_module_that_fails_is_one_sentence(here, text, words):
    (here / "my_broken.py").write_text(text)
    with pytest.raises(UserError, match="cannot import module 'my_broken'") as caught:
        import_user_module("my_broken")
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_module_is_reported_with_the_folders_searched(here):
    with pytest.raises(UserError, match="No module named 'my_mdoels'") as caught:
        import_user_module("my_mdoels")
    assert str(here) in str(caught.value)


@pytest.mark.parametrize("name", ["my_models.py", "folder/my_models", "./my_models.py"])
def test_a_file_is_not_a_module(here, name):
    with pytest.raises(UserError, match="--import my_models in the folder"):
        import_user_module(name)


@pytest.mark.parametrize("name", ["", ".relative", "a..b", "1"])
def test_names_no_import_statement_takes(here, name):
    with pytest.raises(UserError):
        import_user_module(name)


def test_the_current_folder_does_not_hide_installed_packages(here):
    (here / "yaml.py").write_text("raise RuntimeError('the wrong yaml')\n")
    sys.modules.pop("yaml", None)
    import_user_module("yaml")
    assert "site-packages" in sys.modules["yaml"].__file__


# ---- what a builder takes -----------------------------------------------------------------------


class Base:
    def __init__(self, depth: int = 2, *, input_size: tuple = (4, 4)) -> None: ...


class Derived(Base):
    def __init__(self, *args, num_classes: int = 3, **kwargs) -> None: ...


class Around:
    kwargs_of = Base

    def __init__(self, *args, decoder_depth: int = 1, **kwargs) -> None: ...


def plain(width: int = 1, num_classes: int = 2): ...


def passing_on(num_classes: int = 2, **overrides) -> Derived: ...


def around(**overrides) -> Around: ...


def silent(num_classes: int = 2, **overrides): ...


@pytest.mark.parametrize(
    ("builder", "arguments"),
    [
        (plain, {"width", "num_classes"}),
        (passing_on, {"num_classes", "depth", "input_size"}),
        (around, {"decoder_depth", "depth", "input_size"}),
        (silent, {"num_classes"}),
        (Derived, {"num_classes", "depth", "input_size"}),
    ],
)
def test_arguments_of_a_builder_are_those_of_the_class_it_builds(builder, arguments):
    assert arguments_of(builder) == arguments
