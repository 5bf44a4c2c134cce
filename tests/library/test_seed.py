from __future__ import annotations

from collections import Counter

import pytest
import yaml

from qlib_llm_alpha.errors import LibraryError
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.library.seed import CATEGORIES, read_seed_factors, seed_factor, seed_factors

RUNNABLE = [entry for entry in seed_factors() if entry.literal is not None]

ROW = {
    "name": "x",
    "title": "X",
    "category": "momentum",
    "source_formula": "CLOSE",
    "literal": "$close/$factor",
    "scale_free": "$close/Mean($close,20)",
    "printed_scale_free": False,
    "needs": "bars",
    "fields": ["$close", "$factor"],
}


def read(*rows: object) -> object:
    return read_seed_factors(yaml.safe_dump({"factors": list(rows)}))


def test_the_nine_categories_hold_as_many_entries_as_the_appendix() -> None:
    counts = Counter(entry.category for entry in seed_factors())
    assert [counts[category] for category in CATEGORIES] == [11, 10, 10, 6, 18, 8, 10, 9, 10]
    assert len({entry.name for entry in seed_factors()}) == 92


@pytest.mark.parametrize("entry", RUNNABLE, ids=lambda entry: entry.name)
def test_both_forms_are_in_the_language_in_normal_spelling(entry) -> None:  # type: ignore[no-untyped-def]
    assert str(parse(entry.literal)) == entry.literal
    assert str(parse(entry.scale_free)) == entry.scale_free


@pytest.mark.parametrize("entry", RUNNABLE, ids=lambda entry: entry.name)
def test_the_listed_fields_are_the_fields_read(entry) -> None:  # type: ignore[no-untyped-def]
    read_by = {*parse(entry.literal).fields, *parse(entry.scale_free).fields}
    assert set(entry.fields) == read_by
    assert (entry.needs == "accounts") == any(field.startswith("$$") for field in read_by)
    assert entry.needs == "accounts" or (entry.needs == "shares") == ("$shares" in read_by)


@pytest.mark.parametrize("entry", RUNNABLE, ids=lambda entry: entry.name)
def test_only_a_formula_with_units_has_two_forms(entry) -> None:  # type: ignore[no-untyped-def]
    assert (entry.literal == entry.scale_free) == entry.printed_scale_free


def test_what_cannot_be_run_says_why() -> None:
    rest = [entry for entry in seed_factors() if entry not in RUNNABLE]
    assert [entry.name for entry in rest if entry.category != "macro_economics"] == ["bid_ask_spread"]
    macro = [entry for entry in rest if entry.category == "macro_economics"]
    assert len(macro) == 10
    assert all("cannot rank" in (entry.degenerate or "") for entry in macro)
    assert "quotes" in (seed_factor("bid_ask_spread").unavailable or "")
    with pytest.raises(LibraryError, match="'bid_ask_spread' cannot be run: it needs bid and ask"):
        seed_factor("bid_ask_spread").text("literal")


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("momentum_oscillator", "rate_of_change"),
        ("moving_average_reversion", "mean_reversion"),
        ("percent_b", "bollinger_bands"),
        ("technical_atr", "atr"),
        ("gross_margin", "gross_profit_margin"),
        ("liquidity_debt_to_equity", "debt_to_equity"),
        ("sales_growth", "revenue_growth"),
        ("stochastic_oscillator", "stochastic_momentum"),
        ("williams_r", "stochastic_momentum"),
        ("bollinger_band_span", "standard_deviation"),
    ],
)
def test_the_duplicates_of_the_paper_are_known(name: str, of: str) -> None:
    assert of in {duplicate.of for duplicate in seed_factor(name).duplicates}
    assert of in (seed_factor(name).obstacle("scale_free") or "")


@pytest.mark.parametrize("mode", ["literal", "scale_free"])
def test_equal_formulas_are_declared_the_same_and_the_rest_differ_in_canonical_form(mode) -> None:  # type: ignore[no-untyped-def]
    first: dict[str, str] = {}
    for entry in RUNNABLE:
        same = {duplicate.of for duplicate in entry.duplicates if duplicate.kind == "same"}
        known = first.setdefault(entry.factor(mode).id, entry.name)
        declared = same | {name for name in first.values() if entry.name in _same_as(name)}
        assert known == entry.name or known in declared, (entry.name, known)


def _same_as(name: str) -> set[str]:
    return {duplicate.of for duplicate in seed_factor(name).duplicates if duplicate.kind == "same"}


def test_an_entry_that_repeats_only_when_scale_free_is_kept_in_literal_mode() -> None:
    entry = seed_factor("rate_of_change")
    assert entry.obstacle("literal") is None
    assert entry.obstacle("scale_free") == "duplicate: in rank a copy of price_momentum"


def test_macro_series_are_both_unavailable_and_degenerate() -> None:
    assert "degenerate" in (seed_factor("gdp_change").obstacle("literal") or "")


# The bars a reader would count by hand: 14 for a shift, window - 1 for a window, 3N for an exponential mean of N, where
# Wilder's mean of N is the exponential mean of 2N - 1.
@pytest.mark.parametrize(
    ("name", "bars"),
    [
        ("rate_of_change", 14),
        ("price_momentum", 14),
        ("detrended_price_oscillator", 13 + 7),
        ("z_score", 19),
        ("ema_reversion", 60),
        ("ulcer_index", 13 + 13),
        ("historical_volatility", 1 + 19),
        ("volatility_ratio", 49),
        ("chaikin_volatility", 30 + 10),
        ("garman_klass", 0),
        ("yang_zhang", 1 + 19),
        ("on_balance_volume", 1 + 59),
        ("rsi", 1 + 81),
        ("rsi_momentum", 1 + 81 + 14),
        ("adx_momentum", 1 + 81 + 81 + 14),
        ("macd", 78),
        ("price_to_earnings", 0),
        ("earnings_stability", 0),
    ],
)
def test_the_warm_up_is_what_one_counts_by_hand(name: str, bars: int) -> None:
    assert seed_factor(name).factor("scale_free").expression.lookback == bars


def test_a_factor_carries_category_printed_formula_and_source() -> None:
    factor = seed_factor("price_momentum").factor("literal")
    assert (factor.name, factor.category, factor.origin) == ("price_momentum", "momentum", "seed")
    assert "CLOSE - DELAY(CLOSE,14)" in factor.hypothesis
    assert "LLM" in factor.sources[0]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(LibraryError, match="no seed factor 'momentun'"):
        seed_factor("momentun")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": "momentun"}, "category: 'momentun'; expected one of momentum"),
        ({"needs": "tape"}, "needs: 'tape'"),
        ({"scale_free": None}, "scale_free: None, which is no text"),
        ({"literally": "x"}, "unknown key 'literally'"),
        ({"unavailable": "needs more"}, "or unavailable with the reason"),
        ({"fields": "$close"}, "expected a list of texts"),
        ({"fields": [1]}, "expected a list of texts"),
        ({"duplicates": [{"of": "x", "kind": "twin"}]}, "kind: 'twin'"),
        ({"duplicates": [{"of": "x", "kind": "same", "mode": "both"}]}, "mode: 'both'"),
        ({"duplicates": [{"of": "y", "kind": "same"}]}, "a duplicate of 'y', which is not there"),
    ],
)
def test_a_wrong_entry_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(LibraryError, match=message):
        read({**ROW, **change})


def test_an_entry_with_half_its_forms_or_twice_its_name_is_refused() -> None:
    half = {key: value for key, value in ROW.items() if key != "literal"}
    with pytest.raises(LibraryError, match="printed_scale_free, scale_free; expected literal"):
        read(half)
    with pytest.raises(LibraryError, match="the name 'x' twice"):
        read(ROW, ROW)
    with pytest.raises(LibraryError, match="expected a mapping with the keys"):
        read("x")
