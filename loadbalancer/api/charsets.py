"""Character sets that request bodies may name.

Python's codecs decode any of a hundred. Some take quadratic time (`punycode`, `idna`), so a body names one of a few.
"""

from __future__ import annotations

from python_multipart.multipart import parse_options_header

from loadbalancer.schema.errors import InvalidRequest, UnsupportedMediaType
from loadbalancer.schema.parsing import shorten

_UTF_8 = frozenset({"utf-8", "utf8"})
_ASCII = frozenset({"us-ascii", "ascii"})
_LATIN_1 = frozenset({"iso-8859-1", "iso8859-1", "latin-1", "latin1"})
_FORM = _UTF_8 | _ASCII | _LATIN_1


def check_json_charset(content_type: str) -> None:
    """Raises `InvalidRequest` for JSON in another character set than UTF-8 (RFC 8259)."""
    charset = _charset(content_type)
    if charset is not None and charset not in _UTF_8 | _ASCII:
        text = f"The request body is in the character set {shorten(charset)}. JSON must be UTF-8."
        raise InvalidRequest(text, code="invalid_json")


def check_text_charset(content_type: str) -> None:
    """Raises `UnsupportedMediaType` for a text in another character set than UTF-8: engines get its bytes."""
    charset = _charset(content_type)
    if charset is not None and charset not in _UTF_8 | _ASCII:
        raise UnsupportedMediaType(f"The text is in the character set {shorten(charset)}. Texts must be UTF-8.")


def form_charset(content_type: str) -> str:
    """The character set of a form's texts, by default UTF-8. Raises `InvalidRequest` for one that is not allowed."""
    charset = _charset(content_type)
    if charset is not None and charset not in _FORM:
        raise _refused(charset)
    return charset or "utf-8"


def check_part_charset(content_type: str, charset_of_form: str) -> None:
    """Raises `InvalidRequest` for a part whose character set is not the form's."""
    charset = _charset(content_type)
    if charset is None:
        return
    if charset not in _FORM:
        raise _refused(charset)
    names = next(names for names in (_UTF_8, _ASCII, _LATIN_1) if charset in names)
    if names is not _ASCII and charset_of_form not in names:
        text = f"a part is in {shorten(charset)} and the form in {shorten(charset_of_form)}"
        raise InvalidRequest(f"The form cannot be read: {text}.", code="invalid_form")


def _charset(content_type: str) -> str | None:
    """The parameter in lower case; None where it is absent."""
    charset = parse_options_header(content_type)[1].get(b"charset")
    return None if charset is None else charset.decode("latin-1").lower()


def _refused(charset: str) -> InvalidRequest:
    text = f"The form cannot be read: its character set is {shorten(charset)}. Allowed: utf-8, us-ascii, iso-8859-1."
    return InvalidRequest(text, code="invalid_form")
