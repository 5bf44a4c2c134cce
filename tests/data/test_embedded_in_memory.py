from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qlib_llm_alpha.data.bars import open_panel, provider_fields
from qlib_llm_alpha.data.embedded.in_memory import Universe, market_panel
from qlib_llm_alpha.data.embedded.simulate import Market, simulate
from qlib_llm_alpha.data.embedded.write import INDEX_CODE, write_market
from qlib_llm_alpha.engine.evaluate import evaluate
from qlib_llm_alpha.engine.tiles import TiledPanel
from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.factor.expression import parse

END = "2019-10-31"


@pytest.fixture(scope="module")
def market() -> Market:
    # One name lists on row 67, two never within these days.
    return simulate("planted", 20, "2019-06-03", "2019-11-29", 10)


@pytest.fixture(scope="module")
def provider(market: Market, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written")
    write_market(market, root)
    return root


def assert_same(ours: TiledPanel, theirs: TiledPanel, names: tuple[str, ...]) -> None:
    assert np.array_equal(ours.days, theirs.days)
    assert ours.instruments == theirs.instruments
    for name in names:
        mine, written = ours.column(name), theirs.column(name)
        assert mine.values.dtype == written.values.dtype == np.float32
        assert mine.values.tobytes() == written.values.tobytes(), name
        assert mine.spans.same_as(written.spans), name


@pytest.mark.parametrize("universe", ["all", "csi300"])
@pytest.mark.parametrize("end", [None, END, "2019-08-10"])
def test_a_panel_in_memory_is_that_of_the_written_provider_bit_for_bit(
    market: Market, provider: Path, universe: Universe, end: str | None
) -> None:
    ours = market_panel(market, end=end, universe=universe)
    theirs = open_panel(provider, universe, end=end)
    names = provider_fields(provider)
    assert len(names) == 12
    assert_same(ours, theirs, names)
    assert ours.member is not None
    assert theirs.member is not None
    assert np.array_equal(ours.member, theirs.member)


def test_names_enter_the_market_while_it_runs(market: Market) -> None:
    spans = market_panel(market).column("$close").spans
    first = spans.first.ravel()[:18]
    assert (first == 0).any()
    assert (first > 0).any()


def test_the_index_is_there_by_code(market: Market, provider: Path) -> None:
    ours, theirs = market_panel(market, end=END), open_panel(provider, "all", end=END)
    for name in ("$close", "$volume", "$shares"):
        assert (
            ours.of_instrument(INDEX_CODE).column(name).values.tobytes()
            == theirs.of_instrument(INDEX_CODE).column(name).values.tobytes()
        )
    relative = [parse(f"$change-ChangeInstrument('{INDEX_CODE}',$change)")]
    assert np.array_equal(evaluate(relative, ours).values, evaluate(relative, theirs).values, equal_nan=True)


def test_a_label_at_the_end_of_the_rows_sees_nothing_after_them(market: Market) -> None:
    panel = market_panel(market, end=END)
    label = evaluate([parse("Ref($close,-2)/Ref($close,-1)-1", allow_future=True)], panel).values[0]
    assert panel.days[-1] == np.datetime64(END)
    assert np.isnan(label[:, -2:]).all()
    assert np.isfinite(label[:, -3]).any()


def test_a_column_that_the_market_lacks_is_named(market: Market) -> None:
    with pytest.raises(PanelError, match=r"'P\(\$\$eps_q\)' is not in the simulated market"):
        market_panel(market).column("P($$eps_q)")


def test_no_day_up_to_the_end_and_an_unknown_universe_are_refused(market: Market) -> None:
    with pytest.raises(ConfigError, match="give a later end"):
        market_panel(market, end="2018-01-01")
    with pytest.raises(ConfigError, match="universe='csi500'"):
        market_panel(market, universe="csi500")  # type: ignore[arg-type]
