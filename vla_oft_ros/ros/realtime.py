"""Makes this process one that the scheduler serves first and the pager leaves alone.

On a machine whose cores are all busy, a process of the normal class is served milliseconds late;
no code of its own can mend that. What is not permitted is said, with what to do, and goes without.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from pathlib import Path

from vla_oft_ros.config.system import limits_hint

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # linux/mman.h
_PR_SET_TIMERSLACK = 29  # linux/prctl.h
_TIMER_SLACK_NS = 1


def be_real_time(priority: int) -> list[str]:
    """Puts all threads of this process into SCHED_FIFO, locks its memory and shortens the garbage
    collector's work. Processes started later do not inherit the class.

    Args:
        priority: 1 … 98.

    Returns:
        What was not permitted, one sentence each, with what to do about it.
    """
    problems = []
    mend = f"{limits_hint()}; realtime_priority: 0 goes without"
    try:
        _schedule(os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, priority)
    except PermissionError:
        problems.append(
            f"the real-time class SCHED_FIFO {priority} is not permitted, so a busy machine will "
            f"delay the tick by milliseconds; {mend}"
        )
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_TIMERSLACK, _TIMER_SLACK_NS)
    # A limit that is reached later would fail an allocation in the middle of a motion.
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = os.geteuid() == 0 or limit == resource.RLIM_INFINITY
    if not unlimited or libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        problems.append(
            f"locking memory is not permitted, so a machine that swaps will delay the tick; {mend}"
        )
    gc.collect()
    gc.freeze()  # what exists by now is never looked at again
    return problems


def be_normal() -> None:
    """Undoes `be_real_time`, as far as it was permitted."""
    _schedule(os.SCHED_OTHER, 0)
    ctypes.CDLL(None).munlockall()
    gc.unfreeze()


def _schedule(policy: int, priority: int) -> None:
    """The threads that speak DDS are set too: a message that waits for one is as late."""
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))
        except ProcessLookupError:
            continue  # it has ended meanwhile
