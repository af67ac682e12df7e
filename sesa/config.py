"""What the classes of numbers share, so that they can be built from a profile: unknown names, wrong types and
numbers out of range are refused with their place, "objective.clip_hihg", at any depth (pydantic). Text is no
number, not even "8" or "1e-4"; YAML reads 1e-4 as text."""

from typing import Annotated

from pydantic import ConfigDict, Field

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)
Count = Annotated[int, Field(ge=1, strict=True)]
Amount = Annotated[float, Field(ge=0, strict=True)]
