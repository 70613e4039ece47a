"""The checks of names and of pages find what they are for."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.check_docs import mean_words, paths_in
from scripts.check_names import denied_words, problems, words_of


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mark_started", ["mark", "started"]),
        ("TaskStore", ["task", "store"]),
        ("_LRUCache2", ["lru", "cache"]),
        ("HTTPServer", ["http", "server"]),
    ],
)
def test_names_are_split_into_words(name: str, words: list[str]) -> None:
    assert words_of(name) == words


def test_denied_words_are_found_in_every_kind_of_name(tmp_path: Path) -> None:
    folder = tmp_path / "worker"
    folder.mkdir()
    (folder / "doors.py").write_text(
        "class Door:\n    told: int\n    def be_seen(self): ...\n\n\ndef _told(seen): ...\n\n\ndef retold(): ...\n"
    )
    (folder / "door.py").write_text("")
    found = list(problems(tmp_path, denied_words("# why\ndoor: use admission\ntold: use reported\nseen: use observed")))
    assert sorted(text.split(": '")[0] for text in found) == [
        "worker/door.py:1: door",
        "worker/doors.py:1: Door",
        "worker/doors.py:2: told",
        "worker/doors.py:3: be_seen",
        "worker/doors.py:6: _told",
    ]
    assert "use admission" in found[0]


def test_paths_and_modules_of_a_page_are_found() -> None:
    page = "See `wire/messages.py`, [it](docs/engine.md) and `python -m scripts.check_docs`; not `a/b.py`."
    assert paths_in(page) == {"wire/messages.py", "docs/engine.md", "scripts/check_docs.py"}


def test_sentences_are_counted_without_code_and_tables() -> None:
    page = "# Title of five words here\n\nOne two three. Four five.\n\n| a | b |\n\n"
    page += "```\nlong line of code here\n```\n- Six\n  seven.\n"
    assert mean_words(page) == pytest.approx((3 + 2 + 3) / 3)  # the dash of the list counts
