"""The right source among the first five, in both languages, and with vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from qlib_llm_alpha.documents.document import Chunk, Document
from qlib_llm_alpha.documents.store import DocumentStore
from qlib_llm_alpha.documents.words import words_of
from qlib_llm_alpha.errors import DocumentError
from tests.documents.library import PAPERS
from tests.documents.making import NOON, day, written


@pytest.fixture(scope="module")
def store() -> DocumentStore:
    filled = DocumentStore(":memory:")
    for number, (english, _, chinese, _) in enumerate(PAPERS):
        filled.add(written(english, f"en {number}", title=f"Paper {number}"))
        filled.add(written(chinese, f"zh {number}", title=f"Paper {number}"))
    return filled


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_right_source_is_among_the_first_five(store: DocumentStore, language: str) -> None:
    view = store.as_of(NOON)
    text, question = (0, 1) if language == "en" else (2, 3)
    right = 0
    for number, paper in enumerate(PAPERS):
        document = written(paper[text], f"{language} {number}").id
        right += document in [chunk.document for chunk, _ in view.search(paper[question], 5)]
    assert len(PAPERS) == 40
    assert right >= 36


def test_a_word_in_chinese_is_found_inside_a_run_of_letters_and_an_absent_one_is_not(store: DocumentStore) -> None:
    view = store.as_of(NOON)
    assert view.search("毛利", 1)[0][0].text.startswith("毛利率环比改善")
    assert view.search("换手", 5) == [one for one in view.search("换手", 5) if set("换手") & set(one[0].text)]
    assert view.search("zebra 鸵", 5) == []


def test_words_are_lower_cased_singular_and_chinese_is_cut_in_ones_and_twos() -> None:
    assert words_of("Stocks' RETURNS, companies is US-based 20-day") == [
        "stock", "return", "company", "is", "us", "based", "20", "day",
    ]  # fmt: skip
    assert words_of("毛利率A股") == ["毛", "利", "率", "毛利", "利率", "a", "股"]


def test_the_score_is_okapi_bm25_worked_by_hand() -> None:
    store = DocumentStore(":memory:")
    # The title has no words of its own, so that lengths are 3 and 5.
    store.add(written("momentum momentum works", "...", title="..."))
    store.add(written("a note on other things", ",,,", title=",,,"))
    ((chunk, score),) = store.as_of(NOON).search("momentum")
    # Two passages of mean length 4, one with the word, twice, of length 3; k1 = 1.2 and b = 0.75.
    idf = math.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    assert score == pytest.approx(idf * 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 3 / 4)), rel=1e-12)
    assert chunk.text == "momentum momentum works"


def test_ties_are_broken_by_id_not_by_what_was_stored_first() -> None:
    documents = [written("momentum works", f"source {number}", title="same") for number in range(6)]
    one, two = DocumentStore(":memory:"), DocumentStore(":memory:")
    one.add_all(documents)
    two.add_all(reversed(documents))
    found = one.as_of(NOON).search("momentum", 6)
    assert found == two.as_of(NOON).search("momentum", 6)
    assert [chunk.document for chunk, _ in found] == sorted(document.id for document in documents)


def test_one_document_can_be_kept_from_filling_the_answer() -> None:
    store = DocumentStore(":memory:", longest=40)
    long = written("\n\n".join(f"momentum momentum paragraph {number}" for number in range(9)), "long")
    short = written("A word on momentum and on many other things too.", "short")
    store.add_all([long, short])
    view = store.as_of(NOON)
    assert {chunk.document for chunk, _ in view.search("momentum", 5)} == {long.id}
    assert [chunk.document for chunk, _ in view.search("momentum", 5, per_document=2)].count(long.id) == 2
    assert short.id in {chunk.document for chunk, _ in view.search("momentum", 5, per_document=2)}


MEANINGS = {"reversal": (1.0, 0.0), "rebound": (1.0, 0.1), "margin": (0.0, 1.0), "nothing": (0.0, 0.0)}


class Embedding:
    """Vectors by the first known word of a text; counts what it was given."""

    def __init__(self) -> None:
        self.given: list[str] = []

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        self.given += texts
        return [list(next((MEANINGS[word] for word in text.split() if word in MEANINGS), (0.0, 0.0))) for text in texts]


def named(found: list[tuple[Chunk, float]], *documents: Document) -> list[str]:
    titles = {document.id: document.title for document in documents}
    return [titles[chunk.document] for chunk, _ in found]


def test_vectors_find_what_shares_no_word() -> None:
    store = DocumentStore(":memory:")
    one, two = written("reversal of losers", "a", title="right"), written("margin of firms", "b", title="wrong")
    store.add_all([one, two])
    view = store.as_of(NOON)
    assert view.search("rebound") == []
    assert named(view.search("rebound", embed=Embedding()), one, two) == ["right", "wrong"]


def test_passages_are_embedded_once_and_later_ones_never() -> None:
    store = DocumentStore(":memory:")
    one, later = written("reversal of losers"), written("margin later", "b", at=day(1))
    store.add_all([one, later])
    view, embed = store.as_of(NOON), Embedding()
    first = view.search("rebound", embed=embed)
    assert view.search("rebound", embed=embed) == first
    assert embed.given == ["rebound", "reversal of losers", "rebound"]


def test_private_text_is_not_embedded_unless_that_is_allowed() -> None:
    store = DocumentStore(":memory:")
    secret = written("reversal of losers", private=True)
    store.add(secret)
    embed = Embedding()
    assert store.as_of(NOON).search("rebound", embed=embed) == []
    assert named(store.as_of(NOON).search("losers", embed=embed), secret) == [secret.title]
    assert embed.given == ["rebound", "losers"]
    assert len(store.as_of(NOON).search("rebound", embed=embed, embed_private=True)) == 1


def test_the_fused_score_counts_words_only_where_there_is_one_in_common() -> None:
    store = DocumentStore(":memory:")
    one, two = written("reversal of losers", "a", title="1"), written("margin of firms", "b", title="2")
    store.add_all([one, two])
    scores = {chunk.document: score for chunk, score in store.as_of(NOON).search("firms rebound", embed=Embedding())}
    assert scores[one.id] == pytest.approx(1 / 61)
    assert scores[two.id] == pytest.approx(1 / 62 + 0.5 / 61)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda texts: [[1.0]],
        lambda texts: [1.0 for _ in texts],
        lambda texts: [[float("nan")] for _ in texts],
        lambda texts: [["x"] for _ in texts],
        lambda texts: [[1.0] * (1 + number) for number, _ in enumerate(texts)],
    ],
)
def test_vectors_that_do_not_fit_are_refused(wrong: object) -> None:
    store = DocumentStore(":memory:")
    store.add_all([written("reversal", "a"), written("margin", "b")])
    with pytest.raises(DocumentError, match="embedding"):
        store.as_of(NOON).search("rebound", embed=wrong)  # type: ignore[arg-type]


def test_vectors_of_another_length_for_a_later_query_are_refused() -> None:
    store = DocumentStore(":memory:")
    store.add(written("reversal"))
    view = store.as_of(NOON)
    lengths = iter((2, 3))

    def embed(texts: Sequence[str]) -> list[list[float]]:
        length = next(lengths)
        return [[1.0] * length for _ in texts]

    view.search("one", embed=embed)
    with pytest.raises(DocumentError, match="3 numbers"):
        view.search("two", embed=embed)


def test_asking_for_no_passage_is_refused_and_an_empty_store_finds_none() -> None:
    view = DocumentStore(":memory:").as_of(NOON)
    assert view.search("momentum") == []
    assert view.search("momentum", embed=Embedding()) == []
    with pytest.raises(DocumentError, match="1 or more"):
        view.search("momentum", 0)
