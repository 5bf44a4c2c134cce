"""What a score is worth: how fast it ages, what its quantiles earn, what trading it costs, how much money it carries.

Shapes: scores, labels, weights and amounts are (T, N), days by instruments; daily series are (T,).

Timing: row ``t`` of a label is a return *after* ``t`` (Qlib's default: bought at the close of ``t + 1``, held to that
of ``t + 2``). Weights of row ``t`` come from the score of ``t``, are traded one day later and earn the label of row
``t``; so gross return, turnover and net return of one row belong to the same trade, and are known when the label is.

Units: returns are simple and daily; 1 basis point is 1e-4; weights are shares of the capital of one side. A top less
bottom portfolio holds 1 long and -1 short, so its returns are per unit of one side, not per unit of both.

NaN rule: each function says which rows it leaves out; no evidence gives NaN, not an exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qlib_llm_alpha.engine.cross_section import rank
from qlib_llm_alpha.engine.scoring import MIN_NAMES, long_short_returns, rank_ic_series
from qlib_llm_alpha.errors import ConfigError, PanelError
from qlib_llm_alpha.evaluation.statistics import mean_of

Array = NDArray[np.float64]

BASIS_POINT = 1e-4


class HalfLife(NamedTuple):
    """Lags in which a fitted exponential halves; ``extrapolated`` where that is beyond the lags that were seen."""

    lags: float
    extrapolated: bool


class Capacity(NamedTuple):
    """The largest capital of one side, in the currency of the amounts, and what bounds it.

    ``impact`` is the capital at which the mean net return is 0, ``participation`` the one at which the mean trade is
    the allowed share of a day's amount; ``capital`` is the smaller, ``bound`` says which. ``known`` is the share of
    the value traded whose amount and volatility were known.
    """

    capital: float
    bound: Literal["impact", "participation", "none"]
    impact: float
    participation: float
    known: float


def aged(score: Array, lag: int) -> Array:
    """Return the score of ``lag`` rows before, (T, N); the first ``lag`` rows are NaN."""
    if lag < 0:
        raise ConfigError(f"lag is {lag!r}; expected 0 or more days; a negative one would show the future")
    old = np.full(score.shape, np.nan)
    old[lag:] = score[: max(0, len(score) - lag)]
    return old


def decay(score: Array, label: Array, lags: Sequence[int], *, min_names: int = MIN_NAMES) -> Array:
    """Mean daily rank IC of scores that are so many days older than usual.

    Parameters
    ----------
    score : array, (T, N)
    label : array, (T, N)
        Give NaN on the rows that do not count (other segments, purged days): scores from before them are then used,
        labels outside are not.
    lags : sequence of int
        Ages in rows; 0 is the score as it is.
    min_names : int
        Days with fewer joint names have no rank IC.

    Returns
    -------
    array, (L,)
        NaN where no day has a rank IC. A larger lag has fewer days, the first ones being without a score so old.
    """
    return np.array([mean_of(rank_ic_series(aged(score, lag), label, min_names=min_names)) for lag in lags])


def half_life(lags: Sequence[int], values: Array) -> HalfLife:
    """Return in how many lags the figures of :func:`decay` halve, by an exponential fitted to them.

    Parameters
    ----------
    lags : sequence of int, L
        Increasing.
    values : array, (L,)
        Mean rank IC at each lag.

    Returns
    -------
    HalfLife
        ``ln 2 / k`` of the least squares line ``ln |value| = a - k lag``, in lags. The fit takes the leading values
        that have the sign of the first, and stops before the first that has not or is NaN: what comes after a change
        of sign is noise, and keeping its positive part would make every decay look slow. NaN with fewer than two such
        values. Where the fit does not fall, ``lags`` is infinite. ``extrapolated`` is True where ``lags`` is more than
        the stretch of lags that was fitted: the half-life is then a guess beyond the data, not seen in it.
    """
    ages = np.asarray(lags, dtype=np.float64)
    given = np.asarray(values, dtype=np.float64)
    if ages.ndim != 1 or ages.shape != given.shape or not np.all(np.diff(ages) > 0):
        raise ConfigError(
            f"lags are {list(lags)!r} for values of shape {given.shape}; expected increasing lags, one for each value"
        )
    same = given * np.sign(given[:1]) > 0
    count = len(same) if same.all() else int(np.argmin(same))
    if count < 2:
        return HalfLife(float("nan"), False)
    age = ages[:count] - ages[:count].mean()
    rate = -float(age @ np.log(np.abs(given[:count])) / (age @ age))
    if rate <= 0:
        return HalfLife(float("inf"), True)
    life = float(np.log(2.0)) / rate
    return HalfLife(life, life > ages[count - 1] - ages[0])


def quantile_of(score: Array, quantiles: int = 5, *, min_names: int = MIN_NAMES) -> Array:
    """Place each name of a day into quantiles by its score, 1 for the lowest scores.

    Parameters
    ----------
    score : array, (T, N)
    quantiles : int
        At least 2.
    min_names : int
        Days with fewer scores have no quantiles.

    Returns
    -------
    array, (T, N)
        1 to ``quantiles``, or NaN. With n scores the ends hold the names whose place from their end is at most ``n /
        quantiles``, as in ``engine.scoring.long_short_returns``; the names between are spread over the quantiles
        between by ``floor(quantiles (rank - 1/2) / n)``. Where n divides, that is n / quantiles names each, as in
        ``alphalens``; where it does not, the ends are the smaller ones. Tied names stand together by their average
        rank. With two quantiles the middle one of an odd number of names is in none.
    """
    if quantiles < 2:
        raise ConfigError(f"quantiles is {quantiles!r}; expected at least 2; 5 gives quintiles")
    ranks = rank(score)
    count = np.sum(~np.isnan(ranks), axis=-1, keepdims=True)
    share = count / quantiles + 1e-9
    middle = np.floor(quantiles * (ranks - 0.5) / np.maximum(count, 1) + 1e-9) + 1
    place = np.clip(middle, 2, quantiles - 1) if quantiles > 2 else np.full(ranks.shape, np.nan)
    place = np.where(ranks <= share, 1.0, np.where(count + 1 - ranks <= share, float(quantiles), place))
    return np.asarray(np.where(np.isnan(ranks) | (count < min_names), np.nan, place))


def quantile_returns(score: Array, label: Array, quantiles: int = 5, *, min_names: int = MIN_NAMES) -> Array:
    """Mean label of each quantile of the score, day by day.

    Parameters
    ----------
    score : array, (T, N)
    label : array, (T, N)
        Simple returns.
    quantiles : int
        As in :func:`quantile_of`, taken over the names that have both a score and a label.
    min_names : int
        Days with fewer joint names are NaN.

    Returns
    -------
    array, (T, Q)
        Lowest scores first; NaN where a quantile is empty. No cost is taken off, and no market return either.
    """
    _check(score, label)
    place = quantile_of(np.where(np.isnan(label), np.nan, score), quantiles, min_names=min_names)
    filled = np.nan_to_num(label, nan=0.0)
    result = np.full((len(score), quantiles), np.nan)
    for column in range(quantiles):
        inside = place == column + 1
        held = inside.sum(axis=-1)
        np.divide((filled * inside).sum(axis=-1), held, out=result[:, column], where=held > 0)
    return result


def quantile_spread(score: Array, label: Array, quantiles: int = 5, *, min_names: int = MIN_NAMES) -> Array:
    """Mean label of the top quantile less that of the bottom one, (T,): ``engine.scoring.long_short_returns``.

    Equal to the last less the first column of :func:`quantile_returns`, except that it is NaN where either is empty.
    """
    return long_short_returns(score, label, quantiles=quantiles, min_names=min_names)


def monotonicity(returns: Array) -> float:
    """Rank correlation of the quantile's number with its mean return, from -1 to 1.

    Parameters
    ----------
    returns : array, (T, Q)
        Of :func:`quantile_returns`. Days on which a quantile is empty are left out, so that all have the same days.

    Returns
    -------
    float
        1 where each quantile earns more than the one below. NaN without such a day, or when all means are equal. With
        5 quantiles, 1 comes by chance once in 120: it is a description, not a test.
    """
    whole = returns[~np.isnan(returns).any(axis=1)]
    if not len(whole):
        return float("nan")
    means = whole.mean(axis=0)[None]
    numbers = np.arange(means.shape[1], dtype=np.float64)[None]
    return float(rank_ic_series(numbers, means, min_names=2)[0])


def quantile_weights(
    score: Array,
    quantiles: int = 5,
    *,
    side: Literal["top", "bottom", "spread"] = "spread",
    min_names: int = MIN_NAMES,
) -> Array:
    """Equal weights of the names in the top or bottom quantile, or long the one and short the other.

    Parameters
    ----------
    score : array, (T, N)
        Known at the close of its day; the weights are then too.
    quantiles, min_names : int
        As in :func:`quantile_of`.
    side : {"top", "bottom", "spread"}
        ``spread`` is top less bottom.

    Returns
    -------
    array, (T, N)
        Each side adds up to 1 (-1 for the short one); 0 for names outside, without a score too. A day on which a side
        would be empty is NaN throughout: no portfolio was formed.
    """
    if side not in ("top", "bottom", "spread"):
        raise ConfigError(f"side is {side!r}; expected 'top', 'bottom' or 'spread'; choose one")
    place = quantile_of(score, quantiles, min_names=min_names)
    top, bottom = _equal(place == quantiles), _equal(place == 1)
    return {"top": top, "bottom": bottom, "spread": top - bottom}[side]


def value_traded(weights: Array) -> Array:
    """Value bought and sold to come from the day before's weights to this day's, per unit of capital.

    Parameters
    ----------
    weights : array, (T, N)
        Finite, or NaN throughout on days without a portfolio, as :func:`quantile_weights` makes them.

    Returns
    -------
    array, (T,)
        ``sum_i |w_t,i - w_t-1,i|``, what Qlib's report calls turnover: 2 when a long portfolio of 1 is sold and bought
        anew. NaN on the first day, and where this day or the one before has no portfolio. Drift of the weights by
        returns between two trades is left out. Known at the close of its day, traded the day after.
    """
    return np.asarray(_trades(weights).sum(axis=-1))


def portfolio_turnover(weights: Array) -> Array:
    """Half of :func:`value_traded`: 1 when a long portfolio of 1 is replaced; at most 2 for top less bottom."""
    return np.asarray(value_traded(weights) / 2.0)


def net_returns(gross: Array, traded: Array, cost_bps: float) -> Array:
    """Return ``gross - traded x cost_bps x 1e-4``, (T,), NaN where either side is.

    Parameters
    ----------
    gross : array, (T,)
        Simple daily returns.
    traded : array, (T,)
        Of the same row: :func:`value_traded`.
    cost_bps : float
        Basis points of the value traded: what one side, a purchase or a sale, costs.
    """
    _same_days(gross, traded)
    if not 0 <= cost_bps < np.inf:
        raise ConfigError(f"cost_bps is {cost_bps!r}; expected 0 or more basis points a side; 10 is usual")
    return np.asarray(gross - traded * (cost_bps * BASIS_POINT))


def break_even_cost_bps(gross: Array, traded: Array) -> float:
    """Return the cost a side at which the mean of :func:`net_returns` is 0.

    Parameters
    ----------
    gross, traded : array, (T,)
        As in :func:`net_returns`; days on which either is NaN are left out.

    Returns
    -------
    float
        ``1e4 mean(gross) / mean(traded)``. Negative when the gross mean is: no cost is low enough. NaN without such a
        day, or when nothing is ever traded.
    """
    _same_days(gross, traded)
    known = ~(np.isnan(gross) | np.isnan(traded))
    if not known.any() or not traded[known].mean() > 0:
        return float("nan")
    return float(gross[known].mean() / traded[known].mean() / BASIS_POINT)


def capacity(
    gross: Array,
    weights: Array,
    amount: Array,
    volatility: Array,
    *,
    coefficient: float = 1.0,
    max_participation: float = 0.1,
    cost_bps: float = 0.0,
) -> Capacity:
    """Return the largest capital at which the mean net return stays above 0 when one's own trades move the price.

    Parameters
    ----------
    gross : array, (T,)
        Daily returns of the weights, before cost, per unit of one side's capital.
    weights : array, (T, N)
        As in :func:`value_traded`.
    amount : array, (T, N)
        Value traded in a day, in currency: an average known at the row's close, such as that of the last 20 days.
    volatility : array, (T, N)
        Daily return deviation of the name, likewise known at the close.
    coefficient : float
        Days of volatility that it costs to trade a whole day's amount. 1 is the rule of thumb of Grinold and Kahn;
        estimates lie around 0.5 to 1.5.
    max_participation : float
        Largest share of a day's amount that a trade may be, in the mean over trades weighted by their size: the law is
        measured on trades of a few percent of the day, and means nothing beyond a tenth or so.
    cost_bps : float
        Costs besides impact, of the value traded, as in :func:`net_returns`.

    Returns
    -------
    Capacity
        ``capital`` is 0 when the mean return less ``cost_bps`` is not above 0, and never smaller for a larger return.
        Nothing bounds it (``bound`` is "none") without any trade, when it is infinite or 0, and where it is NaN: no day
        whose return and trades are known, or no trade whose amount and volatility are.

    Notes
    -----
    A trade of value ``V`` in a name with daily amount ``A`` and volatility ``s`` costs the share ``Y s sqrt(V / A)`` of
    ``V``. With capital ``C`` the trade is ``V = C |dw|``, so the mean return left is::

        mean(gross - traded cost) - sqrt(C) k,    k = mean_t sum_i Y s |dw|^(3/2) / sqrt(A)

    which is 0 at ``C = (mean / k)^2``. The other bound is linear: ``C sum dw^2 / A / sum |dw| = max_participation``.

    Days without a gross return or a trade are left out. Trades whose amount or volatility is missing (or an amount that
    is not positive) are taken to cost what the known trades cost per unit; ``known`` says how many there are.

    References
    ----------
    Grinold and Kahn (2000), "Active Portfolio Management", chapter 16 (square root law from inventory risk); Almgren,
    Thum, Hauptmann and Li (2005), "Direct estimation of equity market impact", Risk 18, who measure the exponent 3/5
    instead of 1/2 for the temporary part: larger trades then cost somewhat more than here.
    """
    _same_days(gross, weights)
    if not weights.shape == amount.shape == volatility.shape:
        raise PanelError(
            f"weights have shape {weights.shape}, amount {amount.shape}, volatility {volatility.shape}; expected the "
            "same (T, N); align them"
        )
    if not (0 < coefficient < np.inf and 0 < max_participation < np.inf and 0 <= cost_bps < np.inf):
        raise ConfigError(
            f"coefficient is {coefficient!r}, max_participation {max_participation!r}, cost_bps {cost_bps!r}; expected "
            "the first two above 0 and the last 0 or more; correct them"
        )
    trades = _trades(weights)
    days = ~(np.isnan(gross) | np.isnan(trades).any(axis=1))
    moved = trades[days]
    earned = mean_of(gross[days] - moved.sum(axis=1) * cost_bps * BASIS_POINT)
    traded = float(moved.sum())
    nothing = float("nan")
    if not days.any():
        return Capacity(nothing, "none", nothing, nothing, nothing)
    if traded == 0:
        return Capacity(float("inf") if earned > 0 else 0.0, "none", nothing, nothing, nothing)
    liquid = (amount[days] > 0) & (volatility[days] >= 0)
    size, day_amount, risk = moved[liquid], amount[days][liquid], volatility[days][liquid]
    known = float(size.sum()) / traded
    if known == 0:
        return Capacity(nothing, "none", nothing, nothing, known)
    at_unit_capital = coefficient * float((risk * size**1.5 / np.sqrt(day_amount)).sum()) / known / len(moved)
    impact = 0.0
    if earned > 0:
        impact = (earned / at_unit_capital) ** 2 if at_unit_capital > 0 else float("inf")
    participation = max_participation * float(size.sum()) / float((size**2 / day_amount).sum())
    bound: Literal["impact", "participation"] = "impact" if impact <= participation else "participation"
    return Capacity(min(impact, participation), bound, impact, participation, known)


def _equal(inside: NDArray[np.bool_]) -> Array:
    held = inside.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(inside, held, out=np.full(inside.shape, np.nan), where=held > 0))


def _trades(weights: Array) -> Array:
    """Absolute change of each weight since the row before, (T, N); NaN throughout where either row has no portfolio."""
    if weights.ndim != 2:
        raise PanelError(f"weights have shape {weights.shape}; expected (T, N), days by instruments")
    empty = np.isnan(weights)
    partly = empty.any(axis=1) & ~empty.all(axis=1)
    if partly.any() or np.isinf(weights).any():
        raise PanelError(
            f"weights of row {int(np.argmax(partly | np.isinf(weights).any(axis=1)))} are partly NaN or infinite; "
            "expected finite weights, 0 for names not held, or NaN throughout on a day without a portfolio"
        )
    result = np.full(weights.shape, np.nan)
    result[1:] = np.abs(np.diff(weights, axis=0))
    return result


def _check(score: Array, label: Array) -> None:
    if score.ndim != 2 or score.shape != label.shape:
        raise PanelError(f"score has shape {score.shape} and label {label.shape}; expected the same (T, N); align them")


def _same_days(series: Array, other: Array) -> None:
    if series.ndim != 1 or len(series) != len(other):
        raise PanelError(
            f"gross has shape {series.shape} and what goes with it {other.shape}; expected (T,) and the same days"
        )
