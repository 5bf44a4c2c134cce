"""What a language model may answer in a chat with a person; bounded, and empty lists where there is nothing to say."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Field

from qlib_llm_alpha.library.seed import Category
from qlib_llm_alpha.mining.vetoes import VetoAnswer

_Short: TypeAlias = Annotated[str, Field(max_length=400)]
_Long: TypeAlias = Annotated[str, Field(max_length=2000)]


class ClarifyAnswer(BaseModel):
    """What has to be asked before an idea is written down; an empty list where it is clear."""

    questions: list[_Short] = Field(max_length=4)


class SpecifyAnswer(BaseModel):
    """An idea that somebody else could build."""

    specification: _Long
    missing_data: list[_Short] = Field(max_length=10, description="data it needs that the fields do not give")
    vetoes: VetoAnswer


class ChatFormula(BaseModel):
    """One formula for the specification."""

    name: _Short
    category: Category
    formula: Annotated[str, Field(max_length=4000)]
    explanation: _Long = Field(description="what each part of the formula does")


class ProposeAnswer(BaseModel):
    """Formulas; an empty list where there is nothing more to propose."""

    formulas: list[ChatFormula] = Field(max_length=20)


class PersonsVerdict(BaseModel):
    """What the person thinks of one formula."""

    number: int = Field(ge=1)
    verdict: Literal["keep", "drop"]


class UnderstandAnswer(BaseModel):
    """What a person said of results."""

    vetoes: VetoAnswer
    verdicts: list[PersonsVerdict] = Field(max_length=40)
    wishes: _Long
