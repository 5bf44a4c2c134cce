"""What a moment sees of a document store: filtered first, ranked after.

Every figure that a score is made of (how rare a word is, how long passages are) is taken over the passages that are
visible, so no document that came later changes any score. A full-text engine's own ranking would not do: it counts
words over everything that is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from qlib_llm_alpha.documents.citations import find_quote
from qlib_llm_alpha.documents.clocks import utc_text
from qlib_llm_alpha.documents.document import Chunk, Document, Quote
from qlib_llm_alpha.documents.row import COLUMNS, document_from
from qlib_llm_alpha.documents.words import words_of
from qlib_llm_alpha.errors import DocumentError

if TYPE_CHECKING:
    import sqlite3

    import numpy as np
    import numpy.typing as npt

    from qlib_llm_alpha.documents.masking import Masked

Embed = Callable[[Sequence[str]], Sequence[Sequence[float]]]
"""Texts to vectors of one length, in order."""

SATURATION: Final = 1.2
LENGTH_WEIGHT: Final = 0.75
"""The usual constants of Okapi BM25."""
RANK_OFFSET: Final = 60
"""Of reciprocal rank fusion: a passage at rank r counts 1 / (60 + r)."""
LEXICAL_WEIGHT: Final = 0.5
"""Of words against embeddings where both rank: equal weights hurt the better of the two."""
_MOST_WORDS: Final = 128


class DocumentView:
    """The documents that were available at a moment; made by :meth:`DocumentStore.as_of`.

    Corrected documents are left out where the correction is visible. Nothing that is stored after the view was made
    changes it.
    """

    def __init__(self, database: sqlite3.Connection, when: datetime) -> None:
        self.when = when
        self._database = database
        rows = database.execute(
            f"SELECT {COLUMNS}, corrects FROM documents WHERE available_at <= ? ORDER BY available_at, id",  # noqa: S608
            (utc_text(when),),
        ).fetchall()
        replaced = {str(row[-1]) for row in rows if row[-1]}
        self._documents = {row[0]: document_from(row[:-1]) for row in rows if row[0] not in replaced}
        self._chunks: dict[int, Chunk] = {}
        self._lengths: dict[int, int] = {}
        for row, document, start, end, words in database.execute(
            'SELECT row, document, start, "end", words FROM chunks ORDER BY row'
        ):
            if document in self._documents:
                self._chunks[row] = Chunk(document, start, end, self._documents[document].text[start:end])
                self._lengths[row] = words
        self._vectors: tuple[Embed, dict[int, npt.NDArray[np.float64]]] | None = None

    def __len__(self) -> int:
        return len(self._documents)

    def documents(self) -> list[Document]:
        """Return the documents, by availability and id."""
        return list(self._documents.values())

    def get(self, document: str) -> Document:
        """Return a document by its id.

        Raises
        ------
        DocumentError
            There is none, it was not available yet, or it was corrected by then.
        """
        found = self._documents.get(document)
        if found is None:
            raise DocumentError(
                f"no document {document!r:.60} is visible as of {self.when}; expected an id of documents(); it may be "
                "unknown, not available yet, or corrected by then"
            )
        return found

    def text_of(self, document: str) -> str | None:
        """Return the text of a document that is visible, None of any other."""
        found = self._documents.get(document)
        return None if found is None else found.text

    def chunks(self, document: str) -> list[Chunk]:
        """Return the passages of a document in order; errors as :meth:`get`."""
        known = self.get(document).id
        return sorted((one for one in self._chunks.values() if one.document == known), key=lambda one: one.start)

    def search(
        self,
        query: str,
        k: int = 5,
        *,
        embed: Embed | None = None,
        embed_private: bool = False,
        per_document: int | None = None,
    ) -> list[tuple[Chunk, float]]:
        """Return the passages that suit a query best.

        Parameters
        ----------
        query : str
            Any text; English and Chinese.
        k : int
            How many at most.
        embed : callable, optional
            Texts to vectors. With it, ranks by cosine and by words are fused; a passage without a common word counts
            by its cosine alone.
        embed_private : bool
            Whether texts of private documents may be given to ``embed``: only where that stays on this machine.
            Without it they are found by words alone.
        per_document : int, optional
            Most passages of one document.

        Returns
        -------
        list of (Chunk, float)
            Best first; ties by id and place. Without ``embed`` the score is Okapi BM25 over the visible passages and
            passages without a common word are left out. With it, the fused score.

        Raises
        ------
        DocumentError
            ``k`` below 1, or vectors of other number or length than asked for.
        """
        if k < 1:
            raise DocumentError(f"the number of passages is {k}; expected 1 or more")
        scores = self._lexical(query)
        if embed is not None:
            scores = _fused(self._ranked(scores), self._ranked(self._cosines(query, embed, embed_private)))
        found: list[tuple[Chunk, float]] = []
        taken: dict[str, int] = {}
        for row in self._ranked(scores):
            chunk = self._chunks[row]
            taken[chunk.document] = taken.get(chunk.document, 0) + 1
            if per_document is None or taken[chunk.document] <= per_document:
                found.append((chunk, scores[row]))
            if len(found) == k:
                break
        return found

    def verify(self, document: str, quote: str, masked: Masked | None = None) -> Quote | None:
        """Return where a document holds a quote, or None: the document is not visible, or does not say that.

        Parameters
        ----------
        document : str
            Id as a model gave it.
        quote : str
            As a model gave it; blanks and quotation marks need not agree, letters and their case must.
        masked : Masked, optional
            The whole document as the model saw it; the quote is looked up there and mapped back.

        Returns
        -------
        Quote or None
            With offsets into the stored text.
        """
        stored = self._documents.get(document)
        if stored is None:
            return None
        found = find_quote(stored.text if masked is None else masked.text, quote)
        if found is None:
            return None
        start, end = found if masked is None else masked.original_span(*found)
        return Quote(document, start, end, stored.text[start:end])

    def _ranked(self, scores: Mapping[int, float]) -> list[int]:
        def order(row: int) -> tuple[float, str, int]:
            return -scores[row], self._chunks[row].document, self._chunks[row].start

        return sorted(scores, key=order)

    def _lexical(self, query: str) -> dict[int, float]:
        if not self._lengths:
            return {}
        count = len(self._lengths)
        mean = sum(self._lengths.values()) / count
        scores: dict[int, float] = {}
        for word in sorted(dict.fromkeys(words_of(query)[:_MOST_WORDS])):
            places = self._database.execute("SELECT doc, COUNT(*) FROM places WHERE term = ? GROUP BY doc", (word,))
            times = {row: number for row, number in places if row in self._lengths}
            weight = math.log1p((count - len(times) + 0.5) / (len(times) + 0.5))
            for row, number in times.items():
                damped = SATURATION * (1 - LENGTH_WEIGHT + LENGTH_WEIGHT * self._lengths[row] / mean)
                scores[row] = scores.get(row, 0.0) + weight * number * (SATURATION + 1) / (number + damped)
        return scores

    def _cosines(self, query: str, embed: Embed, embed_private: bool) -> dict[int, float]:
        import numpy as np

        if self._vectors is None or self._vectors[0] is not embed:
            self._vectors = (embed, {})
        known = self._vectors[1]
        rows = [row for row, one in self._chunks.items() if embed_private or not self._documents[one.document].private]
        missing = [row for row in rows if row not in known]
        vectors = _unit_vectors(embed, [query, *(self._chunks[row].text for row in missing)])
        known.update(zip(missing, vectors[1:], strict=True))
        if not rows:
            return {}
        table = np.stack([known[row] for row in rows])
        if table.shape[1] != len(vectors[0]):
            raise DocumentError(
                f"the query's vector has {len(vectors[0])} numbers, the passages' {table.shape[1]}; expected one "
                "length; use one embedding model"
            )
        return dict(zip(rows, (table @ vectors[0]).tolist(), strict=True))


def _unit_vectors(embed: Embed, texts: Sequence[str]) -> list[npt.NDArray[np.float64]]:
    import numpy as np

    try:
        table = np.asarray(embed(texts), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DocumentError(f"the embedding gave no table of numbers ({error}); expected one vector a text") from error
    if table.ndim != 2 or len(table) != len(texts) or not np.isfinite(table).all():
        raise DocumentError(
            f"the embedding gave an array of shape {table.shape} for {len(texts)} texts; expected one finite vector "
            "for each; check the embedding model"
        )
    norms = np.linalg.norm(table, axis=1, keepdims=True)
    return list(table / np.where(norms > 0, norms, 1.0))


def _fused(lexical: Sequence[int], semantic: Sequence[int]) -> dict[int, float]:
    scores: dict[int, float] = {}
    for weight, ranking in ((1.0, semantic), (LEXICAL_WEIGHT, lexical)):
        for rank, row in enumerate(ranking, start=1):
            scores[row] = scores.get(row, 0.0) + weight / (RANK_OFFSET + rank)
    return scores
