"""What came out of a table, as figures, as Markdown and as JSON, and into a document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from success.tables import Table
from vla_oft_ros.config import ConfigError
from vla_oft_ros.sim.loop_setting import EpisodeResult
from vla_oft_ros.sim.success_rate import Summary, summarize
from vla_oft_ros.sim.tasks import load_task

HEAD = (
    "policy",
    "n",
    "successes",
    "rate, % [95 %]",
    "won / lost",
    "done after s",
    "CPU ms",
    "tokens",
    "kept, %",
    "highest reward 0 … 4",
)

Results = Mapping[tuple[str, int], EpisodeResult]
"""Name of the condition and seed → what became of the episode."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table.

    Attributes:
        summary: Of its episodes.
        tokens: Visual tokens at the end of an inference, mean; NaN if there is no telling.
        won: Episodes that succeeded where the first row failed on the same seed.
        lost: Episodes that failed where the first row succeeded.
    """

    summary: Summary
    tokens: float
    won: int
    lost: int


def complete_seeds(table: Table, seeds: Sequence[int], results: Results) -> list[int]:
    """Seeds on which every condition of the table has been run."""
    names = [condition.name for condition in table.conditions]
    return [seed for seed in seeds if all((name, seed) in results for name in names)]


def make_rows(table: Table, seeds: Sequence[int], results: Results) -> list[Row]:
    """Puts the episodes of a table together.

    Args:
        table: What was run.
        seeds: At least one; all conditions have been run on all of them.
        results: Of the episodes.
    """
    first = table.conditions[0].name
    rows = []
    for condition in table.conditions:
        episodes = [results[condition.name, seed] for seed in seeds]
        task = load_task(condition.task)
        summary = summarize(condition.name, episodes, task.max_reward)
        pairs = [
            (episode.success, results[first, seed].success)
            for episode, seed in zip(episodes, seeds, strict=True)
        ]
        seen = condition.policy is not None and table.tokens > 0
        rows.append(
            Row(
                summary=summary,
                tokens=summary.kept * table.tokens if seen else math.nan,
                won=sum(mine and not theirs for mine, theirs in pairs),
                lost=sum(theirs and not mine for mine, theirs in pairs),
            )
        )
    return rows


def cells(row: Row) -> tuple[str, ...]:
    """What a row says, one text per column of `HEAD`."""
    summary = row.summary
    rate = 100 * summary.successes / summary.episodes
    kept = math.nan if math.isnan(row.tokens) else 100 * summary.kept
    return (
        summary.name,
        f"{summary.episodes}",
        f"{summary.successes}",
        f"{rate:.1f} [{100 * summary.low:.1f}, {100 * summary.high:.1f}]",
        f"{row.won} / {row.lost}",
        _number(summary.done_s, 2),
        _number(summary.inference_cpu_ms, 1),
        _number(row.tokens, 1),
        _number(kept, 1),
        ", ".join(map(str, summary.rewards)),
    )


def markdown(table: Table, rows: Sequence[Row], command: str, circumstances: str) -> str:
    """A table with what has to be said of it.

    Args:
        table: What was run.
        rows: From `make_rows`.
        command: That makes it again.
        circumstances: Seeds, checkpoints, joins: what all rows share.
    """
    lines = [f"`{command}`", "", circumstances, ""]
    lines += [f"| {' | '.join(HEAD)} |", f"|---|{'---:|' * (len(HEAD) - 2)}---|"]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines)


def to_json(
    table: Table, rows: Sequence[Row], seeds: Sequence[int], command: str, circumstances: str
) -> dict[str, Any]:
    """The same as plain values; null where there is no number."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and math.isnan(value) else value

    return {
        "table": table.name,
        "command": command,
        "circumstances": circumstances,
        "seeds": list(seeds),
        "checkpoints": dict(table.identities),
        "tokens_dense": table.tokens or None,
        "notes": list(table.notes),
        "rows": [
            {
                **{name: plain(value) for name, value in asdict(row.summary).items()},
                "tokens": plain(row.tokens),
                "won": row.won,
                "lost": row.lost,
            }
            for row in rows
        ],
    }


def marks(name: str) -> tuple[str, str]:
    """What stands before and after a table in a document."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def check_document(path: Path, name: str) -> None:
    """Refuses a document that has no place for a table.

    Raises:
        ConfigError: if there is no such document, or its marks are missing or in disorder.
    """
    begin, end = marks(name)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if (text.count(begin), text.count(end)) != (1, 1) or text.index(begin) > text.index(end):
        raise ConfigError(
            f"--write: expected a document with one '{begin}' and after it one '{end}'; {path} "
            "has not"
        )


def write_between(path: Path, name: str, content: str) -> None:
    """Replaces what stands between the marks of a table, and nothing else.

    Raises:
        ConfigError: see `check_document`.
    """
    check_document(path, name)
    begin, end = marks(name)
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    path.write_text(f"{before}{begin}\n{content}\n{end}{after}", encoding="utf-8")


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"
