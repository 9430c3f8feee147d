"""The system clock of chosen processes, to be stepped at will; that of the machine stays as it is.

For fault injection (`faults.py`). A small library is compiled and preloaded into the processes; it
adds an offset, read from a shared file, to whatever they ask of the wall clock. The steady clock
is left alone, as it is by a real step (NTP, a user, the return of a network).
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

_FILE_VARIABLE = "VLA_OFT_CLOCK_OFFSET_FILE"
_SOURCE = (
    r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile long long *offset_ns;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("""
    f'"{_FILE_VARIABLE}"'
    r""");
  int file = path ? open(path, O_RDONLY) : -1;
  if (file < 0) return;
  void *page = mmap(0, sizeof(long long), PROT_READ, MAP_SHARED, file, 0);
  if (page != MAP_FAILED) offset_ns = page;
}

int clock_gettime(clockid_t id, struct timespec *now) {
  if (!real_clock_gettime)
    real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real_clock_gettime(id, now);
  if (result == 0 && offset_ns && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
    long long ns = now->tv_sec * 1000000000LL + now->tv_nsec + *offset_ns;
    now->tv_sec = ns / 1000000000LL;
    now->tv_nsec = ns % 1000000000LL;
  }
  return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec exact;
  int result = clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return result;
}

time_t time(time_t *into) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (into) *into = exact.tv_sec;
  return exact.tv_sec;
}
"""
)


def has_compiler() -> bool:
    """True if there is a C compiler, so that clocks can be stepped at all."""
    return shutil.which("cc") is not None


class SteppedClock:
    """A wall clock with an offset, for the processes that are started with `environment`.

    Args:
        folder: Where the library and the shared offset are kept.
        name: Distinguishes several clocks in one folder.

    Raises:
        RuntimeError: if the library cannot be compiled; says what the compiler said.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._library = folder / "stepped_clock.so"
        if not self._library.exists():
            _compile(self._library)
        self._path = folder / f"{name}.offset"
        self._path.write_bytes(bytes(8))
        with self._path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 8)
        self._offset_ns = 0

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs in its environment to live by this clock."""
        return {"LD_PRELOAD": str(self._library), _FILE_VARIABLE: str(self._path)}

    def step(self, seconds: float) -> None:
        """Steps the clock at once; negative is back."""
        self._offset_ns += round(seconds * 1e9)
        self._page[:8] = struct.pack("=q", self._offset_ns)


def _compile(library: Path) -> None:
    source = library.with_suffix(".c")
    source.write_text(_SOURCE, encoding="utf-8")
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
