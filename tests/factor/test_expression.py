"""What an expression says about itself, and how a refusal reads."""

from __future__ import annotations

import dataclasses
import hashlib
import logging

import pytest

from qlib_llm_alpha.errors import ExpressionError, LibraryError
from qlib_llm_alpha.factor.check import CheckResult, check_expression
from qlib_llm_alpha.factor.expression import Limits, expression_of, parse
from qlib_llm_alpha.factor.factor import Factor
from qlib_llm_alpha.factor.fields import DAILY, GROUPS, REPORTED
from qlib_llm_alpha.factor.tree import Call, Code, Field, Number


def refused(text: str, **options: object) -> ExpressionError:
    with pytest.raises(ExpressionError) as caught:
        parse(text, **options)  # type: ignore[arg-type]
    return caught.value


def test_function_spellings_and_signs_give_the_same_tree() -> None:
    pairs = {
        "Add($close,$open)": "$close+$open",
        "Sub($close,$open)": "$close-$open",
        "Mul($close,$open)": "$close*$open",
        "Div($close,$open)": "$close/$open",
        "Power($close,2)": "$close**2",
        "Gt($close,$open)": "$close>$open",
        "Ge($close,$open)": "$close>=$open",
        "Lt($close,$open)": "$close<$open",
        "Le($close,$open)": "$close<=$open",
        "Eq($close,$open)": "$close==$open",
        "Ne($close,$open)": "$close!=$open",
        "And($close>$open,$high>$open)": "($close>$open)&($high>$open)",
        "Or($close>$open,$high>$open)": "($close>$open)|($high>$open)",
        "Neg($close)": "-$close",
    }
    for function, sign in pairs.items():
        assert parse(function) == parse(sign)
        assert str(parse(function)) == str(parse(sign))


def test_the_tree_keeps_what_was_written() -> None:
    assert parse("1 + $change").root == Call("Add", (Number(1), Field("$change")))
    assert parse("ChangeInstrument('SH000300',$close)").root == Call(
        "ChangeInstrument", (Code("SH000300"), Field("$close"))
    )
    assert str(parse("$close-($open-$low)")) == "$close-($open-$low)"
    assert str(parse("($close-$open)-$low")) == "$close-$open-$low"
    assert str(parse("2*3*$change")) == "2*3*$change"
    assert parse("2*3*$change").qlib == "6*$change"


@pytest.mark.parametrize(
    "text",
    [
        "-$close/$open",
        "-($close/$open)",
        "--$close",
        "$change*(-1)",
        "$change-(-1)",
        "-1+$change",
        "Neg(5)*$change",
        "($close>$open)>$change",
        "$change/($change/$change)",
        "Power($change,-2)",
        "1e-12+$volume",
        "-0.0*$change+$st",
    ],
)
def test_signs_and_parentheses_survive_the_round_trip(text: str) -> None:
    expression = parse(text)
    assert parse(str(expression)) == expression


SPELLINGS = [
    [
        "$close/Ref($close,1)-1",
        "Div(Sub($close,Ref($close,1)),Ref($close,1))",
        "-1+Div($close,Ref($close,1))",
        "Delta($close,1)/Ref($close,1)",
        "1/Ref($close,1)*($close-Ref($close,1))",
        "Neg(1-$close*Reciprocal(Ref($close,1)))",
        "-(Ref($close,1)-$close)*Power(Ref($close,1),-1)",
    ],
    ["($close-$open)/($high-$low)", "$close/($high-$low)-$open/($high-$low)", "(2*$open-2*$close)/(2*$low-2*$high)"],
    ["1/($close*($high+$low))", "1/($close*$high+$close*$low)", "1/$close/($low+$high)"],
    ["($high-$low)*($close-$open)", "($low-$high)*($open-$close)"],
    ["Power($close-$open,2)", "($open-$close)**2", "($close-$open)*($close-$open)"],
    ["($high-$low)/($high-$low)*$change", "$change", "$change*$close/$close", "0+1*$change", "$change+0*$st"],
    ["$close-$open", "($high-$low)*($close-$open)/($high-$low)", "($close-$open)/($high-$low)*($high-$low)"],
    ["$change", "+$change", "$change*Power($close,0)", "Power($st-$st,2)+$change", "0.25*($change+3*$change)"],
    ["Abs($close-$open)", "Abs($open-$close)"],
    ["Std(-$change,5)", "Std($change,5)"],
    ["Corr($close,$volume,10)", "Corr($volume,$close,10)"],
    ["If($close>$open,1,-1)", "If($open<$close,2-1,0-1)", "If(0<$close-$open,1,-1)"],
    ["Greater($open,Greater($close,$low))", "Greater(Greater($low,$open),$close)"],
    ["Clip($change,-1,1)", "Less(Greater(-1,$change),1)"],
    ["Greater(Greater($change,0),1)", "Greater(Greater(1,$change),0)", "Greater($change,1)"],
    ["Ref($close/$open,2)", "Ref($close,2)/Ref($open,2)", "Ref(Ref($close,1)/Ref($open,1),1)"],
    ["Wilder($change,14)", "EMA($change,27)"],
    ["Exp($change)", "Power(2.718281828459045,$change)"],
    ["1/Sqrt($close)", "Power($close,-0.5)"],
    ["Sqrt($close*$close)", "Power(Power($close,2),0.5)"],
    ["And($close>$open,$close>$open)", "$open<$close", "($close>$open)|($open<$close)"],
    ["$close*0.1+$close*0.2", "0.3*$close"],
    ["SignedPower($change,2)", "Sign($change)*Abs($change)*Abs($change)"],
]


@pytest.mark.parametrize("spellings", SPELLINGS)
def test_spellings_of_one_formula_share_canonical_form_and_id(spellings: list[str]) -> None:
    expressions = [parse(text) for text in spellings]
    assert len({expression.canonical for expression in expressions}) == 1
    assert len({expression.id for expression in expressions}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("$close-$open", "$open-$close"),
        ("Std($close,5)", "Std($close,6)"),
        ("Ref($close,1)", "Ref($close,2)"),
        ("Mean(Ref($close,1),5)", "Mean($close,5)"),
        ("$close/$open", "$open/$close"),
        ("Sqrt($change*$change)", "$change"),
        ("$volume", "$volume+1e-12"),
        ("$close>$open", "$close>=$open"),
        ("If($close>$open,1,0)", "If($close>$open,0,1)"),
        ("Mean($close,5)+Mean($open,5)", "Mean($close+$open,10)"),
        ("Rank($close,5)", "CSRank($close)"),
        ("CSBucket($close,5)", "CSBucket($close,10)"),
        ("Entropy($close,5)", "Entropy(-$close,5)"),
        ("Cov($close,$open,5)", "Corr($close,$open,5)"),
        ("P($$eps_q)", "P($$sales_q)"),
        ("PRef($$eps_q,201903)", "PRef($$eps_q,201902)"),
        ("ChangeInstrument('SH000300',$close)", "ChangeInstrument('SH000905',$close)"),
        ("Skew(-$change,20)", "Skew($change,20)"),
        ("CSRank(Ref($close,1))", "Ref(CSRank($close),1)"),
    ],
)
def test_different_formulas_have_different_ids(one: str, other: str) -> None:
    assert parse(one).id != parse(other).id


def test_the_id_does_not_change_from_release_to_release() -> None:
    assert parse("$close/Ref($close,1)-1").id == "608533665dec"
    assert parse("Delta(Log($volume+1),5)").canonical == "Log($volume+1)-Log(Ref($volume,5)+1)"
    assert (
        parse("Delta(Log($volume+1),5)").id == hashlib.sha256(b"Log($volume+1)-Log(Ref($volume,5)+1)").hexdigest()[:12]
    )


@pytest.mark.parametrize(
    ("text", "lookback"),
    [
        ("$close", 0),
        ("Ref($close,3)", 3),
        ("Delta($close,3)", 3),
        ("Mean($close,3)", 2),
        ("Mean(Ref($close,3),5)", 7),
        ("Ref($close,3)/Mean($open,10)", 9),
        ("EMA($close,12)", 36),
        ("Wilder($close,14)", 81),
        ("P(Mean($$eps_q,4))", 0),
        ("Mean(P(Mean($$eps_q,4)),5)", 4),
        ("CSRank(Mean($close,5))", 4),
        ("ChangeInstrument('SH000300',Ref($close,2))", 2),
    ],
)
def test_look_back_counts_bars_before_the_day(text: str, lookback: int) -> None:
    assert parse(text).lookback == lookback


@pytest.mark.parametrize(
    ("text", "lookback", "lookahead"),
    [
        ("Ref($close,-2)/Ref($close,-1)-1", 0, 2),
        ("Ref($close,-5)/$close-1", 0, 5),
        ("Ref(Ref($close,-2),2)", 0, 0),
        ("Mean(Ref($close,-2),5)", 2, 2),
        ("Ref(Mean($close,5),-1)", 3, 1),
        ("Ref($close,1)+Ref($close,-1)", 1, 1),
    ],
)
def test_a_label_says_how_far_it_looks_ahead(text: str, lookback: int, lookahead: int) -> None:
    expression = parse(text, allow_future=True)
    assert (expression.lookback, expression.lookahead) == (lookback, lookahead)


def test_a_label_may_shift_but_not_difference_ahead_nor_within_reports() -> None:
    assert refused("Delta($close,-5)", allow_future=True).reason == "look_ahead"
    assert refused("P(Ref($$eps_q,-1))", allow_future=True).reason == "look_ahead"
    assert refused("Ref($close,-501)", allow_future=True).reason == "look_ahead"
    assert refused("Mean($close,-5)", allow_future=True).reason == "bad_window"


def test_fields_are_sorted_and_carry_their_sigil() -> None:
    assert parse("$close*$shares+P($$total_debt_q)").fields == ("$$total_debt_q", "$close", "$shares")


def test_every_field_of_a_provider_can_be_read() -> None:
    for name in DAILY:
        assert parse(f"Ref({name},1)").fields == (name,)
    for name in REPORTED:
        assert parse(f"P({name})").fields == (name,)
    for name in GROUPS:
        assert parse(f"CSNeutralize($close,{name})").fields == tuple(sorted(["$close", name]))


def test_a_group_can_be_compared_with_a_code_but_not_computed_with() -> None:
    assert parse("If($industry==12,$change,0)").fields == ("$change", "$industry")
    assert refused("$industry+$change").reason == "unit_clash"
    assert refused("$industry").reason == "unit_clash"


def test_further_fields_fit_any_unit() -> None:
    for text in ("$turn+$close", "$turn+$volume", "$volume>$turn", "CSNeutralize($close,$turn)", "Exp($turn)"):
        assert "$turn" in parse(text, fields=["$turn"]).fields
    assert refused("$turn").reason == "unknown_field"
    assert parse("P($$orders_q)/$close", fields=["$$orders_q"]).fields == ("$$orders_q", "$close")


@pytest.mark.parametrize(
    "text",
    [
        "$close*$volume+$amount",
        "$amount/$volume-$vwap",
        "$close*$shares+P($$total_debt_q)-P($$total_equity_q)",
        "$close/P($$eps_q)-1",
        "Log($volume+1)+Log($close)",
        "$close+Std($close,5)*2",
        "Sqrt(Var($close,5))+$close",
        "Sqrt($close*$open)-$vwap",
        "Cov($close,$volume,5)+$amount",
        "Power($close,2)+Var($close,5)",
        "Reciprocal($close)*$open-1",
        "1/$close*$open-1",
        "($close>$open)*$volume+$volume",
        "If($close>$open,$volume,0)-$volume",
        "If($close>$open,1,0)+$change",
        "Greater($close-$open,0)+$close",
        "Power($change,$close/$open)",
        "Power(2,$change)",
        "$close/$factor-$close",
        "SignedPower($close,2)-Var($close,5)",
        "CSDemean($close)+$close",
        "Exp(1)*$close+$close",
    ],
)
def test_units_that_go_together_are_accepted(text: str) -> None:
    assert parse(text).warnings == ()


def test_a_unit_clash_can_be_let_pass_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        expression = parse("Mean($close+$volume,5)-$amount", units="warn")
    assert len(expression.warnings) == 2
    assert "a price goes with a number of shares, in $close+$volume" in caplog.text
    assert refused("$close", units="ignore").reason == "bad_argument"


def test_units_are_named_in_words() -> None:
    assert "price^2 goes with a price" in refused("Power($close,2)+$close").detail
    assert "price*shares^-1 is compared with a price" in refused("$close/$volume>$close").detail
    assert "a price stands beside an amount of money" in refused("If($close>$open,$close,$amount)").detail
    assert "Exp of a price" in refused("Exp($close)").detail


def test_cross_sections_are_printed_for_our_provider_and_say_that_stock_qlib_cannot() -> None:
    expression = parse("CSRank(Mean($close,5))+CSNeutralize($change,$industry)")
    assert expression.is_cross_sectional
    assert expression.needs_engine
    assert expression.qlib == "CSRank(Mean($close,5))+CSNeutralize($change,$industry)"
    assert parse("CSBucket(Sqrt($close),5)").qlib == "CSBucket(Power($close,0.5),5)"
    assert parse("CSRank($close>$open)").qlib == "CSRank(1.0*($close>$open))"
    assert expression.canonical == "CSNeutralize($change,$industry)+CSRank(Mean($close,5))"
    assert not parse("Rank($close,5)").is_cross_sectional


def test_what_a_registered_class_can_do_needs_no_engine() -> None:
    expression = parse("Mean(DecayLinear($close,5)/Entropy($volume,20),3)")
    assert not expression.needs_engine
    assert expression.qlib == "Mean(DecayLinear($close,5)/Entropy($volume,20),3)"


def test_a_residual_has_the_unit_of_what_is_explained() -> None:
    assert parse("CSResidual($close,$volume)+$open").warnings == ()
    assert refused("CSResidual($close,$volume)+$volume").reason == "unit_clash"
    assert refused("CSResidual($close,5)").reason == "constant"
    assert parse("CSResidual($close,$volume)").id != parse("CSResidual($volume,$close)").id


@pytest.mark.parametrize("count", ["1", "101", "-5", "5.0", "0.5", "$open", "1+1"])
def test_buckets_are_counted_in_whole_numbers_from_2_to_100(count: str) -> None:
    assert refused(f"CSBucket($close,{count})").reason == "bad_argument"
    assert parse("CSBucket($close,2)+CSBucket($volume,100)").warnings == ()


def test_bars_of_entropy_are_at_least_two_and_all_are_read() -> None:
    assert refused("Entropy($close,1)").reason == "bad_window"
    assert parse("Entropy($close,20)").lookback == 19
    assert parse("Entropy($close,20)").canonical == "Entropy($close,20)"


def test_a_refusal_quotes_the_place() -> None:
    assert "Mean($close,-5)" in refused("$open/Mean($close,-5)").detail
    assert refused("$close + [1]").detail == (
        "'[' is not part of the factor language at character 10: $close + -->[<--1]; there are no lists or indices; "
        "Ref(x, N) is the value N bars ago"
    )
    assert refused("$close >=> $open").detail == "invalid syntax at character 10: $close >=-->><-- $open"
    assert refused("x" * 100 + "(1").detail.startswith("'(' was never closed at character 101: ...")
    long = "Abs(" * 15 + "$close-$open*Mean($volume)" + ")" * 15
    assert "..." in refused(f"Exp({long},1)").detail


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("Delay($close,1)", "write Ref(x, N)"),
        ("SMA($close,5)", "write Mean(x, N)"),
        ("mean($close,5)", "did you mean Mean(x, N)?"),
        ("Qantile($close,5,0.5)", "did you mean Quantile(x, N, q)?"),
        ("WMA($close,5)", "write DecayLinear(x, N)"),
        ("Bananas($close)", "docs/factor_language.md"),
        ("$Close", "did you mean $close?"),
        ("P($$ep_q)", "did you mean $$eps_q?"),
        ("$zzz", "daily fields are $open"),
        ("close", "written $close"),
        ("Mean", "Mean(x, N)"),
        ("Ref($close,0)", "expands from wherever the query starts"),
        ("Mean($close,0.3)", "Wilder(x, N)"),
        ("~($close>$open)", "write Not(condition)"),
        ("$close>$open and $open>1", "write (condition) & (condition)"),
        ("$eps_q", "did you mean"),
    ],
)
def test_a_refusal_says_what_to_write_instead(text: str, hint: str) -> None:
    assert hint in refused(text).detail


def test_limits_can_be_changed() -> None:
    assert refused("Mean($close,60)", limits=Limits(window=50)).reason == "bad_window"
    assert refused("Mean(Mean($close,40),40)", limits=Limits(lookback=50)).reason == "lookback_limit"
    assert refused("$close+$open+$low", limits=Limits(nodes=4)).reason == "too_many_nodes"
    assert refused("$close+$open+$low", limits=Limits(depth=2)).reason == "too_deep"
    assert refused("$close+$open+$low", limits=Limits(text=10)).reason == "too_long"
    assert parse("Mean($close,2000)", limits=Limits(window=5000, lookback=5000)).lookback == 1999


def test_an_expression_can_be_made_from_a_tree() -> None:
    tree = Call("Mean", (Field("$close"), Number(5)))
    assert expression_of(tree) == parse("Mean($close,5)")
    with pytest.raises(ExpressionError, match="bad_window"):
        expression_of(Call("Mean", (Field("$close"), Number(-5))))
    with pytest.raises(ExpressionError, match="unknown_operator"):
        expression_of(Call("system", (Field("$close"),)))
    with pytest.raises(ExpressionError, match="unknown_field"):
        expression_of(Field("$close') + evil("))
    with pytest.raises(ExpressionError, match="bad_argument"):
        expression_of(Call("ChangeInstrument", (Code("a') + evil('"), Field("$close"))))


@pytest.mark.parametrize("name", ["turn", "$", "$a b", "$a') + evil('", "$$$a", ""])
def test_further_fields_must_be_names_of_fields(name: str) -> None:
    assert refused("$close", fields=[name]).reason == "bad_argument"


def test_an_expression_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse("$close").lookback = 0  # type: ignore[misc]


def test_a_verdict_has_exactly_the_promised_keys() -> None:
    keys = ["expression", "ok", "canonical", "id", "lookback", "fields", "reason", "detail"]
    assert [field.name for field in dataclasses.fields(CheckResult)] == keys
    good = check_expression(" $close / Ref($close, 1) - 1 ")
    assert good == CheckResult(
        "$close/Ref($close,1)-1", True, "$close/Ref($close,1)-1", "608533665dec", 1, ("$close",), None, None
    )
    bad = check_expression("$close+")
    assert (bad.expression, bad.ok, bad.reason, bad.fields) == ("$close+", False, "syntax_error", ())
    let_pass = check_expression("$close+$volume", units="warn")
    assert (let_pass.ok, let_pass.reason) == (True, "unit_clash")
    assert check_expression("Ref($close,-1)", allow_future=True).ok
    assert check_expression("$turn", fields=["$turn"]).ok
    assert not check_expression("$close+$open", limits=Limits(nodes=2)).ok


def test_a_factor_has_the_id_of_its_expression() -> None:
    factor = Factor("ROC1", parse("$close/Ref($close,1)-1"), "momentum", "winners go on", ("a paper",), "seed")
    again = Factor("other", parse("Delta($close,1)/Ref($close,1)"))
    assert factor.id == again.id == factor.expression.id
    assert factor != again


@pytest.mark.parametrize("name", ["", "1ROC", "a b", "a/b", "x" * 81, "名", "a\n"])
def test_a_factor_name_that_cannot_be_a_column_is_refused(name: str) -> None:
    with pytest.raises(LibraryError, match="name of a column"):
        Factor(name, parse("$close"))


def test_the_sources_of_a_factor_are_a_tuple() -> None:
    with pytest.raises(LibraryError, match="expected a tuple"):
        Factor("ROC", parse("$close"), sources="a paper")  # type: ignore[arg-type]


def test_the_published_self_ratio_of_alpha360_is_the_only_formula_without_a_field_that_passes() -> None:
    assert parse("$close/$close").canonical == "1"
    for text in ("$open/$open", "2*($close/$close)", "$close-$close", "$close/$close*1"):
        assert refused(text).reason == "constant"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("$change+Log($close/$close)", "$change"),
        ("$open*Power(4*$close/$close,0.5)", "2*$open"),
        ("$open*Greater($close/$close,2)", "2*$open"),
        ("$open+Abs($close-$close)", "$open"),
        ("$change+Power(2*$st-$st-$st,0.5)", "$change"),
        ("If($close>$open,$low,$low)", "$low"),
    ],
)
def test_functions_of_constants_that_algebra_leaves_are_computed(text: str, canonical: str) -> None:
    assert parse(text).canonical == canonical


@pytest.mark.parametrize(
    "text",
    [
        "Power(Power($close,2),5)",
        "Power(Sqrt(Power($close,10)),2)",
        "Power(Rank(Power($close,5),5),5)",
        "Power(Log(Power($close,10)),10)",
        "Exp(Exp($change))",
        "Exp(Log(1+Exp(Exp($change))))",
        "Exp(Tanh(Exp(Exp($change))))",
    ],
)
def test_growth_within_the_limits_and_growth_that_is_undone_pass(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "If($industry==Ref($industry,5),$change,0)",
        "Mean($industry==12,5)",
        "Ref(Ref($industry,5),5)!=$industry",
        "CSRank(CSNeutralize($change,$industry))",
    ],
)
def test_group_codes_are_compared_and_grouped_by(text: str) -> None:
    assert "$industry" in parse(text).fields


def test_a_group_code_that_is_computed_with_is_let_pass_with_a_warning_on_request() -> None:
    assert parse("Mean($industry,5)", units="warn").warnings == (
        "a group code is no quantity; compare it with a code, or with its Ref, or group by it, in Mean($industry,5)",
    )


def test_a_needless_zero_is_refused_in_our_words() -> None:
    assert refused("Ref($close,05)").detail == (
        "a number does not begin with a needless 0; write 5 at character 12: Ref($close,-->05<--)"
    )
