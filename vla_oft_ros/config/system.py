"""Files for the operating system that are shipped in `config/system/`: limits and udev rules.

Nothing here installs them; the hints say how.
"""

from __future__ import annotations

from vla_oft_ros.config.fields import config_dir

LIMITS_FILE = "realtime.conf"
UDEV_FILE = "60-vla-oft.rules"


def limits_hint() -> str:
    """What to do so that the real-time class and locked memory are permitted, one clause."""
    path = config_dir() / "system" / LIMITS_FILE
    return (
        f"run `sudo install -m 644 {path} /etc/security/limits.d/{LIMITS_FILE}; "
        "sudo groupadd -f realtime; sudo usermod -aG realtime $USER` and log in again"
    )
