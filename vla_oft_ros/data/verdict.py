"""What is wrong with a recording, and how bad that is: the words of live checks and doctor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Verdict(IntEnum):
    """How good something is; values of EpisodeStatus.quality."""

    UNKNOWN = 0
    GOOD = 1
    SUSPECT = 2
    BAD = 3


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with an episode.

    Attributes:
        verdict: SUSPECT if a person should look, BAD if it is not fit for training.
        text: One sentence: what was seen and what was expected.
        check: Short name of the check, for tables; may be empty.
    """

    verdict: Verdict
    text: str
    check: str = ""


def worst(findings: Iterable[Finding]) -> Verdict:
    """The verdict on something with these findings."""
    return max((finding.verdict for finding in findings), default=Verdict.GOOD)
