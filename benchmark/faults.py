"""Does every fault of the list to running processes and says what came of it.

    python benchmark/faults.py [--only TEXT] [--json FILE] [--write docs/safety.md]

Starts the controller and the policy node (without a network) as processes of this machine, on
loopback. Ends with 1 if a fault did not end as it must. `--write` puts the table between the marks
of a document.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from vla_oft_ros.config import config_dir
from vla_oft_ros.ros.processes import keep_on_loopback

BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


def main() -> int:
    """Runs the list; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only faults with this in their name")
    parser.add_argument("--json", type=Path, help="also write the verdicts as JSON")
    parser.add_argument("--write", type=Path, help="document whose table is replaced")
    parser.add_argument("--log-dir", type=Path, help="folder for the logs of the nodes")
    arguments = parser.parse_args()
    keep_on_loopback(os.environ, config_dir())
    from vla_oft_ros.ros.fault_list import FAULTS
    from vla_oft_ros.ros.faults import Verdict, run_faults
    from vla_oft_ros.ros.stepped_clock import has_compiler

    console = Console(highlight=False, soft_wrap=True)
    faults = [fault for fault in FAULTS if arguments.only in fault.name]
    if not has_compiler():
        console.print("no C compiler (cc): the faults of the wall clock are left out")
        faults = [fault for fault in faults if not fault.wall_clock]
    log_dir = arguments.log_dir or Path(tempfile.mkdtemp(prefix="faults_"))
    log_dir.mkdir(parents=True, exist_ok=True)
    os.environ["ROS_LOG_DIR"] = str(log_dir)

    def milliseconds(seconds: float | None) -> str:
        return "" if seconds is None else f"{seconds * 1e3:.0f}"

    def row(verdict: Verdict) -> list[str]:
        fault = verdict.fault
        timed = fault.outcome in ("hold", "brief hold", "stop", "silent")
        return [
            fault.name,
            fault.done,
            fault.outcome,
            verdict.told,
            milliseconds(verdict.after_s),
            milliseconds(fault.limit_s) if timed else "",
            f"{verdict.recovered_s:.1f}" if verdict.recovered_s is not None else "",
        ]

    def tell(verdict: Verdict) -> None:
        mark = f"NOT GOOD: {verdict.problem}" if verdict.problem else "good"
        console.print(" | ".join([mark, *row(verdict)]), markup=False)

    verdicts = run_faults(faults, config_dir(), log_dir, dict(os.environ), tell)
    bad = [verdict for verdict in verdicts if verdict.problem]
    console.print(f"{len(verdicts) - len(bad)} of {len(verdicts)} faults ended as they must")
    if arguments.json:
        records = [
            {
                "name": verdict.fault.name,
                "outcome": verdict.fault.outcome,
                "problem": verdict.problem,
                "told": verdict.told,
                "after_s": verdict.after_s,
                "limit_s": verdict.fault.limit_s,
                "recovered_s": verdict.recovered_s,
            }
            for verdict in verdicts
        ]
        arguments.json.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    if arguments.write and not bad:
        head = ["fault", "what is done", "ends in", "what is said", "after ms", "limit ms"]
        rows = [[*head, "moves again after s"], ["---"] * 7, *map(row, verdicts)]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
        text = arguments.write.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        arguments.write.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
