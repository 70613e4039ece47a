"""Character sets that bodies may name."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.api.charsets import check_json_charset, check_part_charset, form_charset
from loadbalancer.schema.errors import InvalidRequest

#: Text codecs of Python that a form must not name, and names of none.
REFUSED = ["punycode", "idna", "utf-7", "utf-16", "utf-32-le", "raw_unicode_escape", "zlib", "rot13", "cp1252", "", "?"]
FORM = "multipart/form-data; boundary=b"


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"', "utf8", "us-ascii"])
def test_json_may_be_utf_8(charset: str) -> None:
    check_json_charset(f"application/json; charset={charset}")


@pytest.mark.parametrize("content_type", ["", "application/json", "text/plain", "application/json; version=1", ";;"])
def test_json_needs_no_charset(content_type: str) -> None:
    check_json_charset(content_type)


@pytest.mark.parametrize("charset", [*REFUSED, "iso-8859-1"])
def test_json_in_another_charset_is_refused(charset: str) -> None:
    with pytest.raises(InvalidRequest, match="JSON must be UTF-8"):
        check_json_charset(f"application/json; charset={charset}")


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (FORM, "utf-8"),
        (f"{FORM}; charset=UTF-8", "utf-8"),
        (f'{FORM}; CHARSET="us-ascii"', "us-ascii"),
        (f"{FORM};charset=ISO-8859-1", "iso-8859-1"),
    ],
)
def test_form_charsets(content_type: str, expected: str) -> None:
    assert form_charset(content_type) == expected


@pytest.mark.parametrize("charset", REFUSED)
def test_other_charsets_of_forms_are_refused(charset: str) -> None:
    for check in (form_charset, lambda content_type: check_part_charset(content_type, "utf-8")):
        with pytest.raises(InvalidRequest, match=r"its character set is .* Allowed: utf-8, us-ascii, iso-8859-1"):
            check(f"{FORM}; charset={charset}")


@pytest.mark.parametrize(
    ("part", "form", "allowed"),
    [
        ("text/plain", "utf-8", True),
        ("text/plain; charset=utf-8", "utf-8", True),
        ("text/plain; charset=us-ascii", "utf-8", True),
        ("text/plain; charset=us-ascii", "iso-8859-1", True),
        ("text/plain; charset=latin1", "iso-8859-1", True),
        ("text/plain; charset=latin1", "utf-8", False),
        ("text/plain; charset=utf-8", "iso-8859-1", False),
    ],
)
def test_part_is_in_the_charset_of_the_form(part: str, form: str, allowed: bool) -> None:
    with contextlib.nullcontext() if allowed else pytest.raises(InvalidRequest, match="a part is in"):
        check_part_charset(part, form)


@given(content_type=st.text(st.characters(max_codepoint=255)))
def test_any_header_is_read_or_refused(content_type: str) -> None:
    for check in (check_json_charset, form_charset, lambda text: check_part_charset(text, "utf-8")):
        with contextlib.suppress(InvalidRequest):
            check(content_type)
