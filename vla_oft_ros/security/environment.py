"""What a process needs in its environment to speak in its enclave, or not at all.

Source: ROS 2 design, DDS-Security integration (rcl: security.c).
"""

from __future__ import annotations

from pathlib import Path

SPACE = "/vla_oft"
"""Enclaves of the shipped policies lie below."""


def secured(keystore: str, name: str) -> dict[str, str]:
    """Variables for one process of a secured robot.

    Args:
        keystore: Folder that `vla_oft make-keystore` made; empty is no security.
        name: Its enclave below `SPACE`: a node, `robot`, `operator` or `replay`.

    Raises:
        ValueError: if the keystore has no such enclave.
    """
    if not keystore:
        return {}
    folder = Path(keystore).expanduser().resolve()
    if not (folder / f"enclaves{SPACE}/{name}/permissions.p7s").is_file():
        raise ValueError(
            f"security: expected a keystore with the enclave {SPACE}/{name}; {folder} has none. "
            "Make one with vla_oft make-keystore"
        )
    return {
        "ROS_SECURITY_ENABLE": "true",
        "ROS_SECURITY_STRATEGY": "Enforce",
        "ROS_SECURITY_KEYSTORE": str(folder),
        "ROS_SECURITY_ENCLAVE_OVERRIDE": f"{SPACE}/{name}",
    }
