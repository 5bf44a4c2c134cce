"""What a language model may answer in each step of mining; anything else is refused and repaired or dropped.

Every field is required and every schema lies in the subset that strict servers take
(:func:`~qlib_llm_alpha.llm.schema.strict_schema`). Each has a way to abstain: not relevant, an empty list, a flag.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, Field

from qlib_llm_alpha.library.seed import Category

CATEGORIES: Final[dict[Category, str]] = {
    "momentum": "recent moves go on",
    "mean_reversion": "moves that went too far are corrected",
    "volatility": "how far prices scatter",
    "fundamental": "price against the accounts",
    "liquidity": "trading activity and what trading costs",
    "quality": "how soundly and efficiently the business is run",
    "growth": "accounts that expand",
    "technical": "patterns of price and volume on a chart",
    "macro_economics": "series of the whole economy",
}
"""The nine categories of the paper and what each is about."""

Sign: TypeAlias = Literal["positive", "negative"]
TemplateName: TypeAlias = Literal["breakout", "reversal_after_range", "volume_climax", "gap", "trend_strength"]
TemplateWindow: TypeAlias = Literal[5, 10, 20, 60]

TEMPLATES: Final[dict[TemplateName, str]] = {
    "breakout": "$close/Ref(Max($high,N),1)-1",
    "reversal_after_range": "0.5-($close-Min($low,N))/(Max($high,N)-Min($low,N))",
    "volume_climax": "($volume/Mean($volume,N)-1)*Sign($close-Ref($close,1))",
    "gap": "Mean($open/Ref($close,1)-1,N)",
    "trend_strength": "Sign(Slope($close,N))*Rsquare($close,N)",
}
"""What each chart pattern becomes as a formula, N being the window."""

_MOST: Final = 20
_Short: TypeAlias = Annotated[str, Field(max_length=400)]
_Long: TypeAlias = Annotated[str, Field(max_length=2000)]
_Formula: TypeAlias = Annotated[str, Field(max_length=4000)]


class EvidenceItem(BaseModel):
    """A passage that the model says it rests on; believed only once it was found in the document."""

    document: _Short = Field(description="label of the document in the prompt, such as D1")
    quote: _Long = Field(description="copied from that document word for word")


class FilterAnswer(BaseModel):
    """Whether a document holds an idea for a factor."""

    relevant: bool
    reason: _Long


class CategorisedItem(BaseModel):
    """One idea of a document."""

    category: Category
    summary: _Long
    evidence: list[EvidenceItem] = Field(max_length=_MOST)


class CategoriseAnswer(BaseModel):
    """The ideas of a document; an empty list where there are none."""

    items: list[CategorisedItem] = Field(max_length=_MOST)


class GeneratedCandidate(BaseModel):
    """One formula with what it claims."""

    name: _Short
    category: Category
    formula: _Formula
    rationale: _Long
    expected_sign: Sign = Field(description="sign of the correlation with the later return")
    horizon_days: int = Field(ge=1, le=250, description="trading days over which it should say something")
    evidence: list[EvidenceItem] = Field(max_length=_MOST)


class GenerateAnswer(BaseModel):
    """Formulas; an empty list where the model has none."""

    candidates: list[GeneratedCandidate] = Field(max_length=_MOST)


class RepairAnswer(BaseModel):
    """A refused formula, mended or given up."""

    gives_up: bool
    formula: _Formula = Field(description="empty when it gives up")
    change: _Long = Field(description="what was wrong and what was changed")


class ReviewAnswer(BaseModel):
    """What a round of results teaches."""

    lesson: _Long
    keep_directions: list[_Short] = Field(max_length=_MOST)
    drop_directions: list[_Short] = Field(max_length=_MOST)


class ChartAnswer(BaseModel):
    """What a chart suggests: one formula, or one of a few patterns with one of a few windows, or nothing."""

    abstain: bool
    use_template: bool
    template: TemplateName
    window: TemplateWindow
    formula: _Formula = Field(description="empty when a template is used")
    rationale: _Long

    @property
    def text(self) -> str:
        """The formula that follows from the answer, not yet checked; empty when the model abstains."""
        if self.abstain:
            return ""
        return TEMPLATES[self.template].replace(",N)", f",{self.window})") if self.use_template else self.formula
