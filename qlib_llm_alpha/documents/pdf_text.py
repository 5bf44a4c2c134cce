"""The words of a PDF that a reader of the page sees."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from qlib_llm_alpha.errors import DocumentError

if TYPE_CHECKING:
    from pypdf import PageObject, PdfReader
    from pypdf.generic import ContentStream

_log = logging.getLogger(__name__)

MOST_PAGES: Final = 2000
SMALLEST: Final = 1.0
"""Points; smaller letters are not read by people."""
DEEPEST: Final = 8
"""Forms within forms that are looked into."""
WHITE: Final = 0.96
"""From here on a colour is the paper's."""

_DRAWS: Final = (b"Tj", b"TJ", b"'", b'"')
_GREY, _RGB, _CMYK = 1, 3, 4
_INVISIBLE: Final = (3, 7)
_Matrix = tuple[float, float, float, float, float, float]
_SAME: Final[_Matrix] = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)


def pdf_text(data: bytes, name: str) -> str:
    """Return the text of a PDF, pages apart by an empty line.

    Left out is what the page does not show: text drawn invisibly, in white, smaller than a point or outside the page.
    White letters on a dark ground are lost with it.

    Parameters
    ----------
    data : bytes
        The file.
    name : str
        For messages.

    Raises
    ------
    DocumentError
        The PDF is broken, encrypted with a password, has too many pages, or holds no text, such as a scan.
    """
    from pypdf.errors import PyPdfError

    # Files of strangers break a reader in more ways than it has errors for.
    broken = (PyPdfError, ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, RecursionError,
              ArithmeticError, AssertionError, NotImplementedError, MemoryError)  # fmt: skip
    dropped = 0
    pages: list[str] = []
    quiet = logging.getLogger("pypdf")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        reader = _reader(data, name)
        for page in reader.pages:
            dropped += _drop_unseen(page, reader)
            pages.append(page.extract_text())
    except DocumentError:
        raise
    except broken as error:
        raise DocumentError(
            f"{name!r} is a broken PDF ({type(error).__name__}: {error}); expected one that a reader opens; save it "
            "again from a reader, or give its text as a .txt file"
        ) from error
    finally:
        quiet.setLevel(level)
    text = "\n\n".join(pages)
    if not text.strip():
        hidden = f" besides {dropped} pieces that it does not show" if dropped else ""
        raise DocumentError(
            f"{name!r} is a PDF of {len(pages)} pages without extractable text{hidden}; it may be a scan; expected "
            "words; run text recognition over it, or give its text as a .txt file"
        )
    if dropped:
        _log.warning("%r holds %d pieces of text that its pages do not show; they are left out", name, dropped)
    return text


def _reader(data: bytes, name: str) -> PdfReader:
    from pypdf import PasswordType, PdfReader
    from pypdf.errors import DependencyError

    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted:
        try:
            # Many files are encrypted with no password, against printing only.
            opened = reader.decrypt("") != PasswordType.NOT_DECRYPTED
        except (DependencyError, NotImplementedError):
            opened = False
        if not opened:
            raise DocumentError(f"{name!r} is an encrypted PDF; expected one without a password; save it without one")
    if len(reader.pages) > MOST_PAGES:
        raise DocumentError(f"{name!r} has {len(reader.pages)} pages; at most {MOST_PAGES} are read; split it")
    return reader


@dataclass(frozen=True)
class _Pen:
    """What decides whether letters show: where they are drawn, how large, in what colour."""

    page: _Matrix = _SAME
    line: _Matrix = _SAME
    size: float = 1.0
    leading: float = 0.0
    mode: int = 0
    colour: tuple[float, ...] = field(default=(0.0,))

    def shows(self, box: tuple[float, float, float, float]) -> bool:
        a, b, c, d, x, y = _product(self.line, self.page)
        height = abs(self.size) * max((c * c + d * d) ** 0.5, 0.0)
        width = abs(self.size) * (a * a + b * b) ** 0.5
        left, bottom, right, top = box
        inside = left - 1 <= x <= right + 1 and bottom - 1 <= y <= top + 1
        return self.mode not in _INVISIBLE and min(height, width) >= SMALLEST and inside and not self._is_white()

    def _is_white(self) -> bool:
        if len(self.colour) == _CMYK:
            return max(self.colour) <= 1 - WHITE
        return len(self.colour) in (_GREY, _RGB) and min(self.colour) >= WHITE


def _drop_unseen(page: PageObject, reader: PdfReader) -> int:
    from pypdf.generic import ContentStream, NameObject

    contents = page.get_contents()
    if contents is None:
        return 0
    stream = ContentStream(contents, reader)
    left, bottom, right, top = (float(edge) for edge in page.mediabox)
    sieve = _Sieve(reader, (left, bottom, right, top))
    stream.operations = sieve.shown(stream, page.get("/Resources"), _Pen())
    if sieve.dropped:
        page[NameObject("/Contents")] = stream
    return sieve.dropped


class _Sieve:
    """Takes what does not show out of a page, and out of the forms that are drawn into it."""

    def __init__(self, reader: PdfReader, box: tuple[float, float, float, float]) -> None:
        self.dropped = 0
        self._reader = reader
        self._box = box
        self._depth = 0

    def shown(self, stream: ContentStream, resources: Any, pen: _Pen) -> list[tuple[Any, bytes]]:
        stack: list[_Pen] = []
        kept: list[tuple[Any, bytes]] = []
        for operands, operator in stream.operations:
            if operator == b"q":
                stack.append(pen)
            elif operator == b"Q":
                pen = stack.pop() if stack else pen
            elif operator == b"Do" and operands:
                self._form(operands[0], resources, pen)
            else:
                pen = _moved(pen, operator, operands)
            if operator not in _DRAWS or pen.shows(self._box):
                kept.append((operands, operator))
                continue
            self.dropped += 1
            if operator in (b"'", b'"'):
                kept.append(([], b"T*"))
        return kept

    def _form(self, name: Any, resources: Any, pen: _Pen) -> None:
        from pypdf.generic import ContentStream, DecodedStreamObject, NameObject

        forms = _entry(_entry(resources, ""), "/XObject")
        form = _entry(forms, name)
        if form is None or form.get("/Subtype") != "/Form" or self._depth >= DEEPEST:
            return
        matrix = tuple(float(one) for one in form.get("/Matrix", _SAME))
        stream, before = ContentStream(form, self._reader), self.dropped
        self._depth += 1
        stream.operations = self.shown(
            stream, form.get("/Resources", resources), replace(pen, page=_product(_matrix(matrix), pen.page))
        )
        self._depth -= 1
        if self.dropped > before:
            cleaned = DecodedStreamObject()
            cleaned.update({key: form[key] for key in form if key not in ("/Filter", "/DecodeParms", "/Length")})
            cleaned.set_data(stream.get_data())
            forms[NameObject(name)] = cleaned


def _entry(holder: Any, key: str) -> Any:
    found = holder if not key or holder is None else holder.get(key)
    return None if found is None else found.get_object()


def _moved(pen: _Pen, operator: bytes, operands: Any) -> _Pen:
    numbers = tuple(float(one) for one in operands if isinstance(one, (int, float))) if operands else ()
    if operator == b"cm" and len(numbers) == len(_SAME):
        return replace(pen, page=_product(_matrix(numbers), pen.page))
    if operator == b"BT":
        return replace(pen, line=_SAME)
    if operator == b"Tm" and len(numbers) == len(_SAME):
        return replace(pen, line=_matrix(numbers))
    if operator in (b"Td", b"TD") and len(numbers) == 2:
        leading = -numbers[1] if operator == b"TD" else pen.leading
        return replace(pen, line=_product((1.0, 0.0, 0.0, 1.0, *numbers), pen.line), leading=leading)
    if operator in (b"T*", b"'", b'"'):
        return replace(pen, line=_product((1.0, 0.0, 0.0, 1.0, 0.0, -pen.leading), pen.line))
    if operator == b"TL" and numbers:
        return replace(pen, leading=numbers[0])
    if operator == b"Tf" and numbers:
        return replace(pen, size=numbers[-1])
    if operator == b"Tr" and numbers:
        return replace(pen, mode=int(numbers[0]))
    if operator in (b"g", b"rg", b"k", b"sc", b"scn") and numbers:
        return replace(pen, colour=numbers)
    # A new colour space begins with black.
    return replace(pen, colour=(0.0,)) if operator == b"cs" else pen


def _matrix(numbers: tuple[float, ...]) -> _Matrix:
    a, b, c, d, x, y = numbers
    return a, b, c, d, x, y


def _product(one: _Matrix, two: _Matrix) -> _Matrix:
    a, b, c, d, x, y = one
    e, f, g, h, u, v = two
    return a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h, x * e + y * g + u, x * f + y * h + v
