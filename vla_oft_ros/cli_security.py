"""The subcommand of `vla_oft` that makes keys for DDS security."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from rich.console import Console
from rich.markup import escape

_MAKE_KEYSTORE = """\
Makes a keystore of SROS 2: an authority, and for every node, the robot's drivers and the operator
keys, a certificate and signed permissions that allow what they need and nothing else. With it, and
a middleware that was built with security (`vla_oft check` says so), only these may speak on the
robot's network: see docs/security.md. Never overwrites anything. Ends with 0 once the keystore is
written."""

DEFAULT_DAYS = 365


def add_security_command(add: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """Adds the command; `add` takes a name, a summary and a description."""
    make = add("make-keystore", "keys, so that only our nodes may move the robot", _MAKE_KEYSTORE)
    make.add_argument("directory", type=Path, help="folder to make; must not exist or be empty")
    source = make.add_mutually_exclusive_group(required=True)
    source.add_argument("--profile", help="robot profile, whose shipped policy is taken")
    source.add_argument(
        "--policy", type=Path, metavar="FILE", help="a policy of your own, SROS 2 version 0.2.0"
    )
    make.add_argument(
        "--domain-id", type=int, help="where the keys are good (default: ROS_DOMAIN_ID, else 0)"
    )
    make.add_argument(
        "--days",
        type=int,
        default=DEFAULT_DAYS,
        help=f"until they expire, 1 to 3650 (default: {DEFAULT_DAYS})",
    )
    make.set_defaults(run=_run_make_keystore)


def _run_make_keystore(arguments: argparse.Namespace, console: Console) -> int:
    from vla_oft_ros.security.keystore import make_keystore
    from vla_oft_ros.security.policy import read_policy, shipped_policies

    path = arguments.policy
    if path is None:
        shipped = shipped_policies()
        if arguments.profile not in shipped:
            raise ValueError(
                f"--profile: expected one of {', '.join(shipped)}; got {arguments.profile!r}"
            )
        path = shipped[arguments.profile]
    domain_id = arguments.domain_id
    if domain_id is None:
        told = os.environ.get("ROS_DOMAIN_ID") or "0"
        if not told.isdecimal():
            raise ValueError(f"ROS_DOMAIN_ID: expected a number; got {told!r}")
        domain_id = int(told)
    enclaves, now = read_policy(path), datetime.now(timezone.utc)
    make_keystore(
        arguments.directory, enclaves, domain_id=domain_id, valid_days=arguments.days, now=now
    )
    until = now + timedelta(days=arguments.days)
    console.print(
        f"{escape(str(arguments.directory))}: {len(enclaves)} enclaves for domain {domain_id}, "
        f"good until {until:%Y-%m-%d}\n"
        f"  {escape(' '.join(enclaves))}\n"
        "Keep private/ on this machine only; copy public/ and enclaves/ to the robot",
        soft_wrap=True,
    )
    return 0
