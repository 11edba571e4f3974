from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from weightdecay.data import corpus as corpus_module
from weightdecay.data.corpus import Corpus, open_corpus, standard_library
from weightdecay.data.heldout import split_key
from weightdecay.errors import DataError


def paths(corpus: Corpus) -> list[str]:
    return [document.path for document in corpus.documents()]


def test_the_standard_library_is_the_running_pythons_source_without_tests_and_tables(stdlib: Corpus) -> None:
    names = paths(stdlib)
    assert names == sorted(names)
    assert stdlib.summary.documents == len(names) > 400
    assert {"argparse.py", "json/decoder.py", "pydoc_data/topics.py"} <= set(names)
    for name in names:
        *folders, file = name.split("/")
        assert file.endswith(".py")
        assert not {"test", "tests", "idle_test", "encodings", "site-packages"} & set(folders)
        assert name.partition("/")[0].removesuffix(".py") in sys.stdlib_module_names
    argparse = Path(sysconfig.get_path("stdlib"), "argparse.py").read_text("utf-8")
    assert next(document.text for document in stdlib.documents() if document.path == "argparse.py") == argparse


def test_of_the_standard_library_a_twentieth_of_the_bytes_is_held_out(stdlib: Corpus) -> None:
    training, held_out = list(stdlib.training()), list(stdlib.held_out())
    held_out_bytes = sum(len(document.text.encode()) for document in held_out)
    training_bytes = sum(len(document.text.encode()) for document in training)
    assert held_out_bytes == stdlib.summary.held_out_bytes
    assert training_bytes + held_out_bytes == stdlib.summary.n_bytes
    assert 0.04 <= stdlib.summary.held_out_share <= 0.06
    assert "pydoc_data/topics.py" in {document.path for document in training}
    assert sorted(document.path for document in training + held_out) == paths(stdlib)


def test_the_salt_suits_the_running_python(stdlib: Corpus) -> None:
    """What heldout.py says of it: the lowest twentieth of the hashes holds near a twentieth of the bytes."""
    lowest = [d for d in stdlib.documents() if split_key(d.path) < 2**64 // 20]
    assert 0.045 < sum(len(d.text.encode()) for d in lowest) / stdlib.summary.n_bytes < 0.055
    assert split_key("pydoc_data/topics.py") > 2**63


def test_the_standard_library_is_the_same_each_time(stdlib: Corpus) -> None:
    assert standard_library().sha256 == stdlib.sha256


@pytest.mark.parametrize("with_os", [False, True])
def test_without_a_standard_library_of_five_megabytes_data_is_asked_for(
    with_os: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if with_os:
        (tmp_path / "os.py").write_text("import sys\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    with pytest.raises(DataError, match="--data PATH") as caught:
        standard_library()
    assert caught.value.exit_code == 2


def test_a_library_with_broken_links_and_newlines_of_windows_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "os.py").write_bytes(b"import sys\r\n" * 10)
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "gone.py").symlink_to("nowhere.py")
    (tmp_path / "json" / "tests").mkdir()
    (tmp_path / "json" / "tests" / "left_out.py").write_text("assert False\n")
    (tmp_path / "sitecustomize.py").write_text("not of the library\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    monkeypatch.setattr(corpus_module, "SMALLEST_STANDARD_LIBRARY_BYTES", 1)
    assert [(d.path, d.text) for d in standard_library().documents()] == [("os.py", "import sys\n" * 10)]


def test_a_folder_is_the_same_corpus_wherever_it_lies_and_however_its_files_came_there(books: Path) -> None:
    copy = books.with_name("elsewhere")
    for path in sorted(books.rglob("*.txt"), reverse=True):
        target = copy / path.relative_to(books)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    first, second = open_corpus([str(books)]), open_corpus([str(copy)])
    assert first.sha256 == second.sha256
    assert [d.path for d in first.held_out()] == [d.path for d in second.held_out()]
    assert first.summary == second.summary
    assert first.summary.documents == 40


def test_another_text_another_path_or_another_border_between_documents_is_another_corpus(tmp_path: Path) -> None:
    hashes = set()
    for number, files in enumerate(({"a": "xy", "b": "z"}, {"a": "x", "b": "yz"}, {"a": "xy", "c": "z"}, {"a": "xyz"})):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, text in files.items():
            (folder / f"{name}.txt").write_text(text)
        hashes.add(open_corpus([str(folder)]).sha256)
    assert len(hashes) == 4


def test_a_file_named_twice_is_one_document(books: Path) -> None:
    inside = books / "shelf 1" / "book-01.txt"
    corpus = open_corpus([str(books), str(inside), str(books / "**" / "*.txt")])
    assert corpus.summary.documents == 40


def test_globs_take_what_matches_and_name_it_from_where_they_begin(books: Path) -> None:
    (books / "shelf 1" / "notes.unknown").write_text("read, since the glob asks for it\n")
    corpus = open_corpus([str(books / "shelf 1" / "*"), str(books / "*" / "book-02.txt")])
    assert "notes.unknown" in paths(corpus)
    assert "shelf 2/book-02.txt" in paths(corpus)
    assert corpus.summary.documents == 12


def test_a_folder_gives_known_suffixes_and_counts_the_rest(books: Path) -> None:
    (books / "picture.png").write_bytes(b"\x89PNG\xff")
    (books / "empty.txt").touch()
    (books / ".hidden.txt").write_text("not for anyone\n")
    (books / ".git").mkdir()
    (books / ".git" / "config.txt").write_text("nor this\n")
    (books / "broken.txt").symlink_to("nowhere")
    (books / "itself.txt").symlink_to("itself.txt")
    summary = open_corpus([str(books)]).summary
    assert (summary.documents, summary.empty, summary.ignored_files, summary.broken_links) == (40, 1, 1, 2)


def test_empty_files_are_no_documents(books: Path) -> None:
    before = open_corpus([str(books)])
    (books / "aaa.txt").touch()
    (books / "zzz.txt").touch()
    after = open_corpus([str(books)])
    assert paths(after) == paths(before)
    assert [d.path for d in after.held_out()] == [d.path for d in before.held_out()]


def test_links_to_folders_are_not_followed_so_a_loop_is_no_danger(books: Path) -> None:
    (books / "shelf 0" / "up").symlink_to("..", target_is_directory=True)
    elsewhere = books.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "other.txt").write_text("not of this folder\n")
    (books / "other").symlink_to(elsewhere, target_is_directory=True)
    summary = open_corpus([str(books)]).summary
    assert (summary.documents, summary.broken_links) == (40, 0)
    assert summary.ignored["link to a folder"] == 2
    assert any("2 link to a folder" in remark for remark in summary.remarks())


ODD_NAMES = [
    "with space.txt",
    "ünï-λ-文.txt",
    "x" * 250 + ".txt",
    "[brackets].txt",
    "new\nline.txt",
    "-dash.txt",
    "{}.txt",
]


def test_odd_file_names_are_names_like_others(tmp_path: Path) -> None:
    names = [*ODD_NAMES, b"not-utf8-\xff.txt".decode("utf-8", "surrogateescape")]
    for name in names:
        (tmp_path / name).write_text(f"{name!r}\n", "utf-8")
    for corpus in (open_corpus([str(tmp_path)]), open_corpus([str(tmp_path / name) for name in names])):
        assert sorted(paths(corpus)) == sorted(names)
        assert len(corpus.sha256) == 64


def test_all_missing_paths_are_named_at_once(books: Path, tmp_path: Path) -> None:
    missing = [str(tmp_path / "gone"), str(tmp_path / "*.gone"), str(tmp_path / ("n" * 300)), "nul\0l", ""]
    with pytest.raises(DataError) as caught:
        open_corpus([missing[0], str(books), *missing[1:]])
    assert len(caught.value.faults) == len(missing)
    assert caught.value.exit_code == 2
    for path, fault in zip(missing, caught.value.faults, strict=True):
        assert path in fault


@pytest.mark.parametrize("content", [{}, {"a.txt": ""}, {"a.bin": "x"}, {"a.jsonl": '{"text": ""}\n\n'}])
def test_a_corpus_without_text_is_refused(content: dict[str, str], tmp_path: Path) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="no text"):
        open_corpus([str(tmp_path)])


def test_no_source_at_all_and_an_unknown_way_with_bad_bytes_are_refused(books: Path) -> None:
    with pytest.raises(DataError, match="at least one file"):
        open_corpus([])
    with pytest.raises(DataError, match="'strict' or 'replace'"):
        open_corpus([str(books)], encoding_errors="ignore")  # type: ignore[arg-type]


def test_documents_are_streamed_file_by_file(books: Path) -> None:
    """A corpus that was opened reads a file only when its turn has come."""
    corpus = open_corpus([str(books)])
    documents: Iterator[object] = corpus.documents()
    next(documents)
    for path in books.rglob("*.txt"):
        path.unlink()
    last = list(documents)[-1]
    with pytest.raises(DataError, match="cannot be read"):
        assert last.text  # type: ignore[attr-defined]
