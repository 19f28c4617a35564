"""Which files a person means: named themselves, in folders, or by globs."""

import os

import pytest

from vitrail.config import Preprocess
from vitrail.data import find_pictures, load_pictures
from vitrail.data.images import ImageRefusedError
from vitrail.errors import DataError


@pytest.fixture
def album(pictures, tmp_path, monkeypatch):
    """The folder "album" in the folder of the process: a/00.png, a/01.png, b/00.png and what is no picture."""
    pictures(tmp_path / "album", {"blue": 2, "red": 1})
    for name in (".hidden.png", "notes.txt", "blue/.git/inside.png", "__MACOSX/00.png"):
        (tmp_path / "album" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "album" / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "album"


def test_a_folder_is_searched_in_sorted_order_without_what_is_hidden_or_no_picture(album):
    assert find_pictures(["album"]) == ["album/blue/00.png", "album/blue/01.png", "album/red/00.png"]
    assert find_pictures(["./album/"]) == ["album/blue/00.png", "album/blue/01.png", "album/red/00.png"]
    assert find_pictures([str(album / "red")]) == [str(album / "red" / "00.png")]


def test_names_keep_their_order_and_each_file_comes_once_however_it_is_named(album, monkeypatch):
    names = ["album/red/00.png", "album", "./album/red/00.png", str(album / "blue" / "01.png"), "album/blue/../red"]
    assert find_pictures(names) == ["album/red/00.png", "album/blue/00.png", "album/blue/01.png"]
    monkeypatch.chdir(album)
    assert find_pictures(["./red/00.png", "red", "."]) == ["./red/00.png", "blue/00.png", "blue/01.png"]


def test_a_file_that_is_named_itself_is_taken_whatever_it_is(album):
    assert find_pictures(["album/notes.txt", "album/.hidden.png"]) == ["album/notes.txt", "album/.hidden.png"]


def test_globs_find_files_and_folders_and_pass_over_what_is_hidden(album):
    assert find_pictures(["album/*/00.png"]) == ["album/__MACOSX/00.png", "album/blue/00.png", "album/red/00.png"]
    assert find_pictures(["album/**/0[01].png"]) == [
        *("album/__MACOSX/00.png", "album/blue/00.png", "album/blue/01.png", "album/red/00.png")
    ]
    assert find_pictures(["album/b*"]) == ["album/blue/00.png", "album/blue/01.png"]
    assert find_pictures(["album/?ed/*.png"]) == ["album/red/00.png"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(album):
    (album / "red" / "00.png").rename(album / "red" / "[0]*.png")
    assert find_pictures(["album/red/[0]*.png"]) == ["album/red/[0]*.png"]


def test_links_are_followed_and_a_circle_of_them_ends(album):
    (album / "red" / "beside").symlink_to(album / "blue", target_is_directory=True)
    (album / "blue" / "back").symlink_to(album / "red", target_is_directory=True)
    (album / "red" / "up").symlink_to(album, target_is_directory=True)
    (album / "red" / "itself.png").symlink_to(album / "red" / "itself.png")
    (album / "red" / "gone.png").symlink_to(album / "nowhere.png")
    found = find_pictures(["album/red"])
    assert "album/red/00.png" in found
    assert "album/red/beside/01.png" in found
    assert len(found) == len(set(found)) == 5
    loaded = dict(zip(found, load_pictures(found, Preprocess(image_size=(8, 8))), strict=True))
    assert loaded["album/red/00.png"].shape == (8, 8, 3)
    assert isinstance(loaded["album/red/itself.png"], ImageRefusedError)
    assert loaded["album/red/gone.png"].reason == "there is no such file"


def test_a_pipe_or_a_folder_named_as_a_picture_is_refused_without_waiting(album):
    os.mkfifo(album / "red" / "pipe.png")
    found = find_pictures(["album/red"])
    assert found == ["album/red/00.png", "album/red/pipe.png"]
    assert load_pictures(found, Preprocess(image_size=(8, 8)))[1].reason == "it is not a regular file"


def test_a_hidden_folder_is_searched_where_it_is_named_itself(album):
    assert find_pictures(["album/blue/.git"]) == ["album/blue/.git/inside.png"]


@pytest.mark.parametrize("name", ["album/gren", "album/*.bmp", "album/blue/00.png/x", ""])
def test_a_name_that_leads_nowhere_is_refused_though_others_lead_somewhere(album, name):
    with pytest.raises(DataError, match=r"There is no file or folder|Nothing matches|An empty name"):
        find_pictures(["album", name])


def test_folders_without_pictures_are_refused_unless_others_have_some(album):
    (album / "empty").mkdir()
    with pytest.raises(DataError, match="There are no pictures in album/empty"):
        find_pictures(["album/empty"])
    assert find_pictures(["album/empty", "album/red"]) == ["album/red/00.png"]


@pytest.mark.parametrize("name", ["s.tar", "shards", "s.npz", "saved", "hf-dataset:org/name", "shards/{0..1}.tar"])
def test_sources_without_picture_files_are_sent_to_evaluate(album, name):
    (album / "shards").mkdir()
    for path in ("s.tar", "shards/0.tar", "shards/1.tar", "s.npz", "saved/state.json"):
        (album / path).parent.mkdir(exist_ok=True)
        (album / path).write_bytes(b"")
    given = name if name.startswith("hf-dataset:") else str(album / name)
    with pytest.raises(DataError, match=r"holds labelled images, but no picture files.*vitrail evaluate"):
        find_pictures([given])


def test_an_archive_beside_pictures_is_passed_over(album):
    (album / "red" / "s.tar").write_bytes(b"")
    assert find_pictures(["album/red"]) == ["album/red/00.png"]
