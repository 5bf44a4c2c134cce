from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qlib_llm_alpha.errors import LibraryError
from qlib_llm_alpha.factor.expression import parse
from qlib_llm_alpha.factor.factor import Factor
from qlib_llm_alpha.library.factor_set import (
    FactorSet,
    builtin_names,
    left_out,
    load_factor_set,
    read_factor_set,
)
from qlib_llm_alpha.library.seed import seed_factor, seed_factors

OWN = """
name: mine
warmup: strict
as_of: 2024-06-28
factors:
  - name: reversal
    expression: -($close/Ref($close,5)-1)
    category: mean_reversion
    hypothesis: What fell too far comes back; "quoted", and 中文.
    sources: [a paper, another]
  - name: turnover
    expression: Mean($volume,5)/Mean($volume,60)
    category: liquidity
    origin: genetic
"""


def factor(name: str, text: str) -> Factor:
    return Factor(name=name, expression=parse(text), category="momentum")


ONE = factor("one", "$close/Ref($close,5)-1")
TWO = factor("two", "$high/$low")


# What every set owes its reader


@pytest.mark.parametrize("mode", ["scale_free", "literal"])
@pytest.mark.parametrize("name", builtin_names())
def test_a_builtin_loads_by_name_and_by_id_and_survives_its_yaml(name: str, mode: str) -> None:
    loaded = load_factor_set(name, mode=mode)  # type: ignore[arg-type]
    assert loaded.name == name
    assert re.fullmatch("[0-9a-f]{12}", loaded.id)
    assert load_factor_set(loaded.id).id == loaded.id
    assert read_factor_set(loaded.to_yaml()) == loaded
    assert read_factor_set(loaded.to_yaml()).id == loaded.id


def test_sets_differ_in_id_unless_they_are_the_same() -> None:
    ids = [load_factor_set(name, mode=mode).id for name in builtin_names() for mode in ("scale_free", "literal")]
    assert len(set(ids)) == len(ids) - 4  # starter, classic, textbook and alpha158 have one form


def test_a_file_saved_is_a_file_loaded(tmp_path: Path) -> None:
    mine = read_factor_set(OWN)
    path = tmp_path / "mine.yaml"
    mine.save(path)
    for ref in (path, str(path)):
        assert load_factor_set(ref) == mine
    assert mine.as_of == "2024-06-28"
    assert mine.factors[0].sources == ("a paper", "another")
    assert [each.origin for each in mine.factors] == ["human", "genetic"]
    assert path.read_text(encoding="utf-8").count("\n") == 15


def test_lookback_and_fields_are_those_of_all_factors() -> None:
    mine = read_factor_set(OWN)
    assert mine.names == ("reversal", "turnover")
    assert mine.lookback == 59
    assert mine.fields == ("$close", "$volume")


def test_fields_that_only_this_provider_has_are_declared_and_kept() -> None:
    text = OWN.replace("warmup: strict", "warmup: strict\nfields: [$turn]").replace("$volume", "$turn")
    mine = read_factor_set(text)
    assert mine.fields == ("$close", "$turn")
    assert read_factor_set(mine.to_yaml()) == mine
    with pytest.raises(LibraryError, match="unknown_field"):
        read_factor_set(OWN.replace("$volume", "$turn"))


# The id


def test_the_id_is_frozen() -> None:
    # sha256 of {"factors": [["one", "$close/Ref($close,5)-1"], ["two", "$high/$low"]], "warmup": "strict"}
    assert FactorSet("s", (ONE, TWO), "strict").id == "52948e87098a"


def test_the_id_is_of_the_content_not_of_the_name_or_the_prose() -> None:
    base = FactorSet("s", (ONE, TWO), "strict")
    prose = replace(ONE, hypothesis="else", sources=("x",), category="quality")
    assert FactorSet("t", (prose, TWO), "strict", as_of="2024-01-01").id == base.id


def test_order_names_spelling_and_warm_up_make_another_id() -> None:
    base = FactorSet("s", (ONE, TWO), "strict").id
    respelt = factor("one", "($close-Ref($close,5))/Ref($close,5)")
    others = [
        FactorSet("s", (TWO, ONE), "strict").id,
        FactorSet("s", (replace(ONE, name="uno"), TWO), "strict").id,
        FactorSet("s", (respelt, TWO), "strict").id,
        FactorSet("s", (ONE, TWO), "qlib").id,
    ]
    assert len({base, *others}) == 5


# Refusals


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("warmup: strict", "warmup: none", "warmup: 'none'; expected strict"),
        ("warmup: strict\n", "", "lacks the key 'warmup'"),
        ("warmup: strict", "warmup: strict\nwarmup: qlib", "'warmup' is given twice"),
        ("warmup: strict", "warm_up: strict", "unknown key 'warm_up'; the keys are name, warmup, factors"),
        ("category: liquidity", "categroy: liquidity", "factor 2 has the unknown key 'categroy'"),
        ("    category: liquidity\n", "", "factor 2 lacks the key 'category'"),
        ("name: turnover", "name: reversal", "the factor name 'reversal' twice"),
        ("name: turnover", "name: on", "name: True, which is no text"),
        ("name: turnover", "name: a b", "factor name 'a b'"),
        ("expression: Mean($volume,5)/Mean($volume,60)", "expression: 1", "expression: 1, which is no text"),
        (
            "Mean($volume,60)",
            "Ref($volume,-1)",
            r"factor 2 \('turnover'\) has an expression that is refused: \[look_ahead",
        ),
        ("[a paper, another]", "a paper", "sources: 'a paper'; expected a list of texts"),
        ("origin: genetic", "origin: genetic\n    repeats: reversal", "says that 'turnover' repeats 'reversal'"),
        ("factors:", "factors: [", "not readable YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(old: str, new: str, message: str) -> None:
    text = OWN.replace(old, new)
    assert text != OWN
    with pytest.raises(LibraryError, match=message):
        read_factor_set(text, "mine.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "None at its top level"),
        ("- a", r"\['a'\] at its top level"),
        ("name: x\nwarmup: strict\nfactors: []", "has no factors; expected at least one"),
        ("name: x\nwarmup: strict\nfactors: {a: b}", "expected a list of factors"),
        ("name: x\nwarmup: strict\nfactors: [a]", "factor 1 is 'a'; expected a mapping"),
        ("name: 5\nwarmup: strict\nfactors: [{name: a, expression: $close, category: c}]", "name: 5, which is no text"),
    ],
)
def test_a_file_that_is_no_set_is_refused(text: str, message: str) -> None:
    with pytest.raises(LibraryError, match=message):
        read_factor_set(text)


def test_a_repeat_is_refused_until_it_is_named() -> None:
    again = factor("again", "($close-Ref($close,5))/Ref($close,5)")
    with pytest.raises(
        LibraryError, match=r"'again' and 'one', which are the same factor up to algebra.*`repeats: one`"
    ):
        FactorSet("s", (ONE, again), "strict")
    named = FactorSet("s", (ONE, again), "strict", repeats=(("again", "one"),))
    assert read_factor_set(named.to_yaml()) == named


def test_an_unknown_reference_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="no factor set 'starer'; expected one of starter, classic, textbook, seed"):
        load_factor_set("starer")
    with pytest.raises(LibraryError, match="no factor set '0123456789ab'"):
        load_factor_set("0123456789ab")
    with pytest.raises(LibraryError, match=r"gone.yaml' cannot be read"):
        load_factor_set(tmp_path / "gone.yaml")
    with pytest.raises(LibraryError, match="the mode is 'raw'; expected one of scale_free, literal"):
        load_factor_set("seed", mode="raw")  # type: ignore[arg-type]


# The builtin sets


def test_the_seed_sets_read_what_they_say() -> None:
    assert set(load_factor_set("seed_bars").fields) == {"$open", "$high", "$low", "$close", "$volume"}
    assert "$shares" in load_factor_set("seed").fields
    assert not any(field.startswith("$$") for field in load_factor_set("seed", mode="literal").fields)
    assert any(field.startswith("$$") for field in load_factor_set("seed_accounts").fields)
    assert len(load_factor_set("seed_accounts").factors) > len(load_factor_set("seed").factors)


@pytest.mark.parametrize("mode", ["scale_free", "literal"])
@pytest.mark.parametrize("name", ["seed", "seed_bars", "seed_accounts"])
def test_every_seed_factor_is_in_the_set_or_left_out_with_a_reason(name: str, mode: str) -> None:
    inside = set(load_factor_set(name, mode=mode).names)  # type: ignore[arg-type]
    outside = left_out(name, mode=mode)  # type: ignore[arg-type]
    assert not inside & outside.keys()
    assert inside | outside.keys() == {entry.name for entry in seed_factors()}


def test_reasons_say_duplicate_data_or_unavailable() -> None:
    reasons = left_out("seed")
    assert reasons["percent_b"] == "duplicate: an affine copy of bollinger_bands"
    assert reasons["price_to_earnings"] == "data: needs accounts, and seed is for bars and shares only"
    assert reasons["bid_ask_spread"].startswith("unavailable: needs bid and ask quotes")
    with pytest.raises(LibraryError, match="'table3' leaves out nothing by rule"):
        left_out("table3")


def test_a_duplicate_is_left_out_only_where_what_it_repeats_stays() -> None:
    for mode in ("scale_free", "literal"):
        for entry in seed_factors():
            for duplicate in entry.duplicates:
                kept = duplicate
                while seed_factor(kept.of).obstacle(mode) is not None:  # type: ignore[arg-type]
                    kept = next(d for d in seed_factor(kept.of).duplicates if d.mode in (None, mode))
                assert seed_factor(kept.of).obstacle(mode) is None  # type: ignore[arg-type]


def test_the_published_sets_are_kept_whole_with_their_repeats_named() -> None:
    assert len(load_factor_set("sheet37").factors) == 37
    assert len(load_factor_set("table3").factors) == 12
    assert load_factor_set("table3").repeats == (("moving_average_reversion", "mean_reversion"),)
    assert [len(load_factor_set(name).repeats) for name in ("sheet37", "seed", "alpha158")] == [2, 0, 0]


def test_the_starter_is_a_dozen_scale_free_forms_of_five_categories_on_bars() -> None:
    starter = load_factor_set("starter")
    assert len(starter.factors) == 12
    assert len({each.category for each in starter.factors}) == 5
    for each in starter.factors:
        entry = seed_factor(each.name)
        assert (str(each.expression), each.category, entry.needs) == (entry.scale_free, entry.category, "bars")


def test_the_library_is_read_without_qlib() -> None:
    code = (
        "import sys; from qlib_llm_alpha.library.factor_set import load_factor_set; load_factor_set('alpha158'); "
        "sys.exit('qlib' in sys.modules or 'pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
