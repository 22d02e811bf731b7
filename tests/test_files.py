"""Files and folders that are written whole or not at all; text that is safe to print."""

from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlens.answers import boxed_answer
from attnlens.errors import InputError
from attnlens.files import check_writable, nearest_existing, write_file, write_folder
from attnlens.text import one_line, printable

FEW = settings(max_examples=60, deadline=None)


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def everything(folder) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_write_file(tmp_path, umask):
    target = tmp_path / "new" / "figure.png"
    with write_file(target) as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == target.parent
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert names(target.parent) == ["figure.png"]
    assert mode(target) == 0o666 & ~umask
    assert os.umask(umask) == umask  # the mask is as it was


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_write_file_that_fails_changes_nothing(tmp_path, error):
    target = tmp_path / "summary.json"
    target.write_text("old")
    with pytest.raises(error), write_file(target) as temporary:
        temporary.write_text("half")
        raise error
    assert everything(tmp_path) == {"summary.json": "old"}


def test_write_file_replaces(tmp_path):
    target = tmp_path / "summary.json"
    target.write_text("old")
    with write_file(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert everything(tmp_path) == {"summary.json": "new"}


def test_write_folder(tmp_path, umask):
    target = tmp_path / "a" / "b"
    with write_folder(target) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("whole")
        assert temporary.parent == target.parent
        assert not target.exists()
    assert everything(tmp_path) == {"a/b/inner/file": "whole"}
    assert names(tmp_path / "a") == ["b"]
    assert mode(target) == 0o777 & ~umask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("replace", [False, True])
def test_write_folder_that_fails_changes_nothing(tmp_path, error, replace):
    target = tmp_path / "results"
    if replace:
        target.mkdir()
        (target / "old").write_text("old")
    before = everything(tmp_path)
    with pytest.raises(error), write_folder(target, replace=replace) as temporary:
        (temporary / "half").write_text("half")
        raise error
    assert everything(tmp_path) == before
    assert names(tmp_path) == (["results"] if replace else [])


def test_write_folder_replaces(tmp_path):
    target = tmp_path / "results"
    target.mkdir()
    (target / "old").write_text("old")
    with write_folder(target, replace=True) as temporary:
        (temporary / "new").write_text("new")
        assert everything(target) == {"old": "old"}
    assert everything(tmp_path) == {"results/new": "new"}
    assert names(tmp_path) == ["results"]


@pytest.mark.parametrize("failing", [1, 2])
def test_write_folder_puts_the_old_one_back(tmp_path, monkeypatch, failing):
    """A rename that fails, first or second, loses nothing."""
    target = tmp_path / "results"
    target.mkdir()
    (target / "old").write_text("old")
    replace, calls = os.replace, []

    def fails_once(source, destination):
        calls.append(source)
        if len(calls) == failing:
            raise OSError("no space left on device")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(OSError, match="no space"), write_folder(target, replace=True) as temporary:
        (temporary / "new").write_text("new")
    assert len(calls) >= failing
    assert everything(tmp_path) == {"results/old": "old"}
    assert names(tmp_path) == ["results"]


def test_write_folder_keeps_what_is_there(tmp_path):
    target = tmp_path / "results"
    target.mkdir()
    with write_folder(target) as temporary:  # an empty folder is no loss
        (temporary / "mine").write_text("mine")
    with pytest.raises(InputError, match="exists already") as refused, write_folder(target):
        pass
    assert str(target) in str(refused.value)
    assert everything(tmp_path) == {"results/mine": "mine"}


@pytest.mark.parametrize("replace", [False, True])
def test_write_folder_never_replaces_a_file(tmp_path, replace):
    target = tmp_path / "results"
    target.write_text("a file of the user")
    with pytest.raises(InputError, match="not a folder"), write_folder(target, replace=replace):
        pass
    assert everything(tmp_path) == {"results": "a file of the user"}


def test_write_folder_through_a_link(tmp_path):
    real = tmp_path / "disk" / "real"
    real.mkdir(parents=True)
    (real / "old").write_text("old")
    link = tmp_path / "link"
    link.symlink_to(real)
    with write_folder(link, replace=True) as temporary:
        (temporary / "new").write_text("new")
    assert link.is_symlink()
    assert everything(real) == everything(link) == {"new": "new"}
    assert names(tmp_path) == ["disk", "link"]
    assert names(tmp_path / "disk") == ["real"]


def test_nearest_existing(tmp_path, monkeypatch):
    assert nearest_existing(tmp_path) == tmp_path
    assert nearest_existing(tmp_path / "a" / "b" / "c") == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    assert nearest_existing((tmp_path / "d" / "e").relative_to(tmp_path)) == tmp_path / "d"


def test_check_writable_creates_nothing(tmp_path):
    check_writable(tmp_path)
    check_writable(tmp_path / "a" / "b")
    assert names(tmp_path) == []


@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_check_writable_with_a_file_in_the_way(tmp_path, below):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / below
    with pytest.raises(InputError, match="is not a folder") as refused:
        check_writable(folder)
    assert str(folder) in str(refused.value)
    assert str(tmp_path / "file") in str(refused.value)
    assert "\n" not in str(refused.value)


def deny(monkeypatch, *folders):
    """Answer as the system does to a user without permission to write in some folders."""
    monkeypatch.setattr(os, "access", lambda path, how: not (how & os.W_OK and path in folders))


def test_check_writable_without_permission(tmp_path, monkeypatch):
    deny(monkeypatch, tmp_path)
    with pytest.raises(InputError, match="no permission to write") as refused:
        check_writable(tmp_path / "results")
    assert str(tmp_path / "results") in str(refused.value)


def test_write_folder_needs_permission_beside_it(tmp_path, monkeypatch):
    """The new folder stands beside the old one before it is renamed."""
    target = tmp_path / "results"
    target.mkdir()
    deny(monkeypatch, tmp_path)
    with pytest.raises(InputError, match="no permission"), write_folder(target, replace=True):
        pass
    assert names(tmp_path) == ["results"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ntext é 图 🙂", "plain\ntext é 图 🙂"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("line\rover", "line\\rover"),
        ("a\tb\x00\x7f", "a\\tb\\x00\\x7f"),
        ("\u202eright to left", "\\u202eright to left"),
        ("not text: \udc80", "not text: \\udc80"),
        ("", ""),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


@FEW
@given(st.text(st.characters()))
def test_printable_text_can_always_be_printed(text):
    shown = printable(text)
    shown.encode("utf-8")
    assert all(c == "\n" or c.isprintable() or c.isspace() or ord(c) > 0x9F for c in shown)
    assert not set(shown) & ({chr(c) for c in [*range(32), *range(127, 160)]} - {"\n"})
    line = one_line(text)
    assert line.splitlines() in ([], [line])


def test_one_line():
    assert one_line(" two\n  lines\t\x1b[2J ") == "two lines \\x1b[2J"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{3}.", "3"),
        ("\\boxed{ red circle }", "red circle"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        ("\\boxed{1} and \\boxed{2", "1"),
        ("\\boxed{}", ""),
        ("\\boxed{图}", "图"),
        ("\\boxed {3}", "3"),
        ("\\boxed{1} no, \\boxed \n{2}", "2"),
        ("\\boxed{1 \\boxed {2} 3}", "2"),
        ("\\boxed{a\nb}", "a\nb"),
        ("\\boxed{", None),
        ("\\boxed 3", None),
        ("boxed{3}", None),
        ("", None),
    ],
)
def test_boxed_answer(text, answer):
    assert boxed_answer(text) == answer


@FEW
@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "a", " "]), max_size=12).map("".join))
def test_boxed_answer_of_any_text(text):
    closed = []
    for start in range(len(text)):
        if text.startswith("\\boxed{", start):
            begin = start + len("\\boxed{")
            for end in range(begin, len(text)):
                inner = text[begin:end]
                if text[end] == "}" and inner.count("{") == inner.count("}"):
                    closed.append(inner.strip())
                    break
    assert boxed_answer(text) == (closed[-1] if closed else None)
