"""The files of the page: no path of a client, no other host, libraries as they were published."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from loadbalancer.page.files import FOLDER, page_file

#: What a browser loads for the page, compressed; the API's documentation is another page.
_MAX_PAGE_BYTES = 150_000


@pytest.mark.parametrize(
    "name", ["", "../files.py", "/etc/passwd", "vendor", "vendor/../../files.py", "nothing.js", "vendor/vendor.json"]
)
def test_unknown_names_have_no_file(name: str) -> None:
    assert page_file(name) is None


def test_page_is_small() -> None:
    names = ["index.html", "style.css", "icon.svg", "vendor/uplot.css", "vendor/uplot.js", "vendor/preact.js"]
    names += [path.name for path in FOLDER.glob("*.js") if path.name != "docs.js"]
    files = [page_file(name) for name in names]
    assert sum(len(each.compressed or each.data) for each in files if each is not None) < _MAX_PAGE_BYTES
    assert None not in files


def test_page_loads_nothing_from_elsewhere() -> None:
    for path in [*FOLDER.glob("*.html"), *FOLDER.glob("*.js"), *FOLDER.glob("*.css")]:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|src=\"//", text), path.name


def test_libraries_are_the_published_ones() -> None:
    packages = json.loads((FOLDER / "vendor" / "vendor.json").read_text())
    listed = {"vendor.json"}
    for package in packages:
        assert any("LICENSE" in file["from"] for file in package["files"]), package["name"]
        for file in package["files"]:
            data = (FOLDER / "vendor" / file["to"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == file["sha256"], file["to"]
            listed.add(file["to"])
    assert {path.name for path in (FOLDER / "vendor").iterdir()} == listed
