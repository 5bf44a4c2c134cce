"""Documents from files: text, Markdown, PDF, HTML, and what a folder says about them."""

from __future__ import annotations

import codecs
import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from qlib_llm_alpha.documents.clocks import CHINA, NO_DELAY
from qlib_llm_alpha.documents.document import Document
from qlib_llm_alpha.documents.html_text import has_markup_that_hides, visible_text
from qlib_llm_alpha.documents.pdf_text import pdf_text
from qlib_llm_alpha.errors import DocumentError

_log = logging.getLogger(__name__)

SIDECAR: Final = "documents.yaml"
"""In a folder: a mapping of file names to what is said of each file."""
STATED: Final = ("title", "published", "accepted", "source", "private", "instruments", "language", "licence_note")
"""Keys of a file in the sidecar, and of the front matter of a Markdown file."""
MOST_BYTES: Final = 50_000_000

_FRONT: Final = re.compile(r"\A\s*---[ \t]*\n(.*?\n)---[ \t]*(?:\n|\Z)", re.DOTALL)
# What was meant to say something of the document, and would be lost among its text.
_LOST_HEAD: Final = re.compile(
    rf"\A\s*(?:---[ \t]*\r?\n(?:.*\n){{0,20}}?[ \t]*(?:{'|'.join(STATED)})|(?:.*\n){{0,10}}?[ \t]*private)[ \t]*:",
    re.IGNORECASE,
)
_MARKDOWN_COMMENT: Final = re.compile(r"^\[[^\]\n]*\]:[ \t]\S.*$", re.MULTILINE)
_MARKDOWN_TITLE: Final = re.compile(r"^# +(\S.*)$", re.MULTILINE)
_FENCED: Final = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.DOTALL | re.MULTILINE)


def read_document(
    path: Path,
    *,
    stated: Mapping[str, Any] | None = None,
    published_at: object = None,
    ingested_at: datetime | None = None,
    delay: timedelta = NO_DELAY,
    zone: str = CHINA,
    most_bytes: int = MOST_BYTES,
) -> Document:
    """Read a file.

    Parameters
    ----------
    path : Path
        ``.txt``, ``.md`` (with optional YAML front matter), ``.pdf``, ``.html``. The path is no part of the document,
        the file's name is its source where nothing else is said.
    stated : mapping, optional
        What is known of the file, keys of ``STATED``; it outranks the front matter, but what either of them calls
        private is private.
    published_at : datetime, date or str, optional
        Outranks both. Without any date the document is available from its ingestion only.
    ingested_at : datetime, optional
        Now, where it is not given; no part of the id.
    delay : timedelta
        Of the vendor.
    zone : str
        In which dates without a time are read, as the end of that day.
    most_bytes : int
        Larger files are refused.

    Raises
    ------
    DocumentError
        The file is missing, too large, of an unknown kind, broken, encrypted or without text, or a key or a date
        cannot be read.
    """
    _check_name(path.name)
    data = _bytes(path, most_bytes)
    text, said = _kind(path)(data, path.name)
    known = {**_checked(said, path.name), **_checked(stated or {}, path.name)}
    if published_at is not None:
        known["published"] = published_at
    return Document.of(
        text,
        source=known.get("source", path.name),
        title=known.get("title", path.stem),
        published=known.get("published"),
        accepted=known.get("accepted"),
        ingested_at=ingested_at or datetime.now(timezone.utc),
        delay=delay,
        zone=zone,
        language=known.get("language", ""),
        instruments=tuple(known.get("instruments", ())),
        private=bool(said.get("private") or known.get("private")),
        licence_note=known.get("licence_note", ""),
        raw_sha256=hashlib.sha256(data).hexdigest(),
    )


def read_folder(
    folder: Path, *, ingested_at: datetime | None = None, delay: timedelta = NO_DELAY, zone: str = CHINA
) -> list[Document]:
    """Read every document of a folder and of the folders in it, by name.

    Hidden files are left out, and files of other kinds with a warning. ``documents.yaml`` in the folder may say more::

        report.pdf:
          title: Momentum in small stocks
          published: 2015-06-12
          private: true

    Parameters
    ----------
    folder : Path
    ingested_at, delay, zone
        As for :func:`read_document`.

    Raises
    ------
    DocumentError
        No such folder, a link in it, which may lead out of it, a sidecar that cannot be read or that names a file
        that is not there, or a file that cannot be read: nothing is left out silently.
    """
    if not folder.is_dir():
        raise DocumentError(f"{folder.name!r} is no folder; expected one with documents; correct the name")
    now = ingested_at or datetime.now(timezone.utc)
    paths = [
        path for path in folder.rglob("*") if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    link = next((path for path in sorted(paths) if path.is_symlink()), None)
    if link is not None:
        raise DocumentError(f"{link.name!r} is a link; expected files of the folder itself; copy what it leads to")
    names = sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())
    sidecar = folder / SIDECAR
    stated = _yaml(_decoded(_bytes(sidecar, MOST_BYTES), SIDECAR), SIDECAR) if sidecar.is_file() else {}
    absent = sorted(set(stated) - set(names))
    if absent:
        raise DocumentError(f"{SIDECAR} names {absent[0]!r}, which is not in the folder; correct or remove the entry")
    documents = []
    for name in names:
        if name == SIDECAR:
            continue
        if Path(name).suffix.lower() not in _KINDS:
            _log.warning("%r is left out: %s are read", name, ", ".join(sorted(_KINDS)))
            continue
        said = stated.get(name)
        if said is not None and not isinstance(said, dict):
            raise DocumentError(f"{SIDECAR} says {said!r:.60} of {name!r}; expected keys among {', '.join(STATED)}")
        documents.append(read_document(folder / name, stated=said, ingested_at=now, delay=delay, zone=zone))
    return documents


def _bytes(path: Path, most: int) -> bytes:
    try:
        size = path.stat().st_size
        if size <= most:
            return path.read_bytes()
    except OSError as error:
        raise DocumentError(
            f"{path.name!r} cannot be read ({error.strerror}); expected a readable file; check it"
        ) from error
    raise DocumentError(
        f"{path.name!r} has {size} bytes; at most {most} are read; split the file or give its text alone"
    )


def _text(data: bytes, name: str) -> tuple[str, dict[str, Any]]:
    text = _decoded(data, name)
    _check_head(text, name)
    return text, {}


def _markdown(data: bytes, name: str) -> tuple[str, dict[str, Any]]:
    text = _decoded(data, name).replace("\r\n", "\n")
    front = _FRONT.match(text)
    said = _yaml(front[1], f"the front matter of {name!r}") if front else {}
    if front is None:
        _check_head(text, name)
    body = text[front.end() :] if front else text
    heading = _MARKDOWN_TITLE.search(body)
    if heading:
        said.setdefault("title", heading[1])
    return _seen(body), said


def _check_head(text: str, name: str) -> None:
    if _LOST_HEAD.match(text):
        raise DocumentError(
            f"{name!r} begins like front matter, which is read only in a .md file, between a first and a second line "
            f"of ---; expected it there, or what it says in {SIDECAR}; nothing of it is guessed"
        )


def _check_name(name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DocumentError(f"the file name {name!r} is not in UTF-8; expected one that is; rename the file") from error


def _seen(body: str) -> str:
    body = _MARKDOWN_COMMENT.sub("", body)
    # What is fenced is shown as it is written, tags and all.
    if has_markup_that_hides(_FENCED.sub("", body)):
        body = visible_text(body)[0]
    return body


def _html(data: bytes, name: str) -> tuple[str, dict[str, Any]]:
    try:
        page: bytes | str = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        page = data
    text, title = visible_text(page)
    return text, {"title": title} if title else {}


def _pdf(data: bytes, name: str) -> tuple[str, dict[str, Any]]:
    return pdf_text(data, name), {}


_KINDS: Final[dict[str, Callable[[bytes, str], tuple[str, dict[str, Any]]]]] = {
    ".txt": _text,
    ".md": _markdown,
    ".markdown": _markdown,
    ".pdf": _pdf,
    ".htm": _html,
    ".html": _html,
}


def _kind(path: Path) -> Callable[[bytes, str], tuple[str, dict[str, Any]]]:
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise DocumentError(
            f"{path.name!r} is of the kind {path.suffix!r}; expected one of {', '.join(sorted(_KINDS))}; convert it"
        )
    return kind


def _decoded(data: bytes, name: str) -> str:
    codecs_to_try = ("utf-8-sig", "gb18030")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        codecs_to_try = ("utf-16", "utf-16")
    for codec in codecs_to_try:
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        return text
    raise DocumentError(f"{name!r} is no text in UTF-8, UTF-16 or GB 18030; expected one; save it as UTF-8")


def _yaml(text: str, where: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise DocumentError(f"{where} is not readable YAML ({error}); mend it at that place") from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise DocumentError(f"{where} holds {found!r:.60}; expected a mapping of names to values")
    return found


def _checked(said: Mapping[str, Any], name: str) -> dict[str, Any]:
    for key, value in said.items():
        if key not in STATED:
            raise DocumentError(f"{name!r} has the unknown key {key!r:.60}; the keys are {', '.join(STATED)}")
        if key in ("title", "source", "language", "licence_note") and not isinstance(value, str):
            raise DocumentError(f"{name!r} has {key}: {value!r:.60}, which is no text; put it in quotation marks")
        if key == "private" and not isinstance(value, bool):
            raise DocumentError(f"{name!r} has private: {value!r:.60}; expected true or false")
        if key == "instruments" and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            raise DocumentError(f"{name!r} has instruments: {value!r:.60}; expected a list of texts")
    return dict(said)
