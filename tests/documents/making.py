"""Documents and PDFs for the tests of this room."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from qlib_llm_alpha.documents.document import Document

NOON = datetime(2015, 6, 12, 4, 0, tzinfo=timezone.utc)


def day(number: int) -> datetime:
    """Noon in Shanghai, so many days after 12 June 2015."""
    return NOON + timedelta(days=number)


def written(text: str, source: str = "a source", at: datetime = NOON, **stated: object) -> Document:
    """A document that is available at a moment."""
    return Document.of(text, source=source, published=at, ingested_at=day(1000), **stated)  # type: ignore[arg-type]


def made_pdf(*contents: str, encrypt: bool = False, form: str = "") -> bytes:
    """A PDF written by hand, a page for each content stream, with Helvetica as /F1 and a form as /X1."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(contents)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(contents)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for number, content in enumerate(contents):
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> "
            f"/XObject << /X1 {4 + 2 * len(contents)} 0 R >> >> "
            f"/Contents {5 + 2 * number} 0 R >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    objects.append(
        "<< /Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
        f"/Length {len(form)} >>\nstream\n{form}\nendstream"
    )
    if encrypt:
        zeros = "0" * 64
        objects.append(f"<< /Filter /Standard /V 1 /R 2 /Length 40 /P -4 /O <{zeros}> /U <{zeros}> >>")
    out, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, start=1):
        places.append(len(out))
        out += f"{number} 0 obj\n{one}\nendobj\n".encode("latin-1")
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    locked = f" /Encrypt {len(objects)} 0 R /ID [<{'0' * 32}> <{'0' * 32}>]" if encrypt else ""
    tail = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n"
        f"<< /Size {len(objects) + 1} /Root 1 0 R{locked} >>\nstartxref\n{len(out)}\n%%EOF\n"
    )
    return out + tail.encode("latin-1")


def page(*lines: str) -> str:
    """A content stream that draws lines in black, 12 points, from the top."""
    drawn = "\n".join(f"({line}) Tj 0 -16 Td" for line in lines)
    return f"BT /F1 12 Tf 72 720 Td\n{drawn}\nET"
