"""Text of strangers inside a prompt: marked as data, between marks that the text itself cannot write."""

from __future__ import annotations

from typing import Final

from qlib_llm_alpha.documents.cleaning import sha256_of

_LETTERS: Final = str.maketrans("0123456789", "ghijklmnop")


def as_data(text: str, document: str) -> str:
    """Return a text between marks for a prompt.

    The marks carry letters made from a hash of the text, so a text cannot hold its own closing mark: it would have to
    know the hash of itself. The text is not changed, so a quote of what a model saw is found again. The same text
    gives the same marks, so requests are reproducible.

    Parameters
    ----------
    text : str
        Cleaned, and masked where the prompt is blind.
    document : str
        Id of the document, which answers cite.
    """
    mark = _mark(f"{document}\0{text}")
    while mark in text.lower() or mark in document.lower():
        mark = _mark(mark)
    return f'<data-{mark} document="{document}">\n{text}\n</data-{mark}>'


def _mark(seed: str) -> str:
    return sha256_of(seed)[:16].translate(_LETTERS)
