"""Draws camera images of a MuJoCo scene off screen, with or without a GPU or a display.

MuJoCo chooses its OpenGL library when it is imported; here it is chosen when a `CameraRenderer` is
made: what the environment variable MUJOCO_GL says, else EGL if it works, else OSMesa. Both draw in
software where there is no GPU. An OpenGL context belongs to one thread: make, use and close a
renderer in the same one.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import logging
import os
import weakref
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

logger = logging.getLogger(__name__)

BACKENDS = ("egl", "osmesa")
APT_LINE = "sudo apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"
"""Debian and Ubuntu packages of EGL with Mesa's software driver."""


class CameraRenderer:
    """One OpenGL context that draws any fixed camera of one model at one size.

    Args:
        model: The scene; its off-screen buffer must hold the size.
        width: Image width, px.
        height: Image height, px.

    Raises:
        ValueError: if MUJOCO_GL names no backend for off-screen drawing, or none works.
    """

    def __init__(self, model: mujoco.MjModel, width: int, height: int) -> None:
        self._model = model
        self._gl: Any = None
        self._mjr: Any = None
        self._gl = _make_gl_context(width, height)
        self._gl.make_current()
        self._mjr = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._mjr)
        self._scene = mujoco.MjvScene(model, maxgeom=10 * model.ngeom)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = False
        self._option = mujoco.MjvOption()
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.empty((height, width, 3), np.uint8)
        _close_at_exit(self)

    def render(self, data: mujoco.MjData, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        """Draws the present scene.

        Args:
            data: State whose positions are up to date.
            cameras: Names of cameras of the model.

        Returns:
            Camera name → (H, W, 3) uint8 RGB, a new array, first row on top.

        Raises:
            RuntimeError: after `close`.
        """
        if self._mjr is None:
            raise RuntimeError("CameraRenderer: render was called after close")
        self._gl.make_current()
        images = {}
        for camera in cameras:
            self._view.fixedcamid = self._model.camera(camera).id
            everything = mujoco.mjtCatBit.mjCAT_ALL
            mujoco.mjv_updateScene(
                self._model, data, self._option, None, self._view, everything, self._scene
            )
            mujoco.mjr_render(self._rect, self._scene, self._mjr)
            mujoco.mjr_readPixels(self._pixels, None, self._rect, self._mjr)
            images[camera] = self._pixels[::-1].copy()  # OpenGL's first row is the lowest
        return images

    def close(self) -> None:
        """Frees the OpenGL context; closing twice is harmless."""
        if self._mjr is not None:
            self._gl.make_current()
            self._mjr.free()
            self._mjr = None
        if self._gl is not None:
            self._gl.free()
            self._gl = None


def _close_at_exit(renderer: CameraRenderer) -> None:
    """Closes a forgotten renderer before Python takes OpenGL apart; does not keep it alive."""
    alive = weakref.ref(renderer)

    def close() -> None:
        forgotten = alive()
        if forgotten is not None:
            forgotten.close()

    atexit.register(close)
    weakref.finalize(renderer, atexit.unregister, close).atexit = False


def choose_backend() -> str:
    """The OpenGL backend to draw with: egl or osmesa.

    Raises:
        ValueError: if MUJOCO_GL asks for another, or it is unset and neither works; with the line
            that installs one.
    """
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    if asked in BACKENDS:
        return asked
    if asked:
        raise ValueError(
            f"MUJOCO_GL: expected one of {', '.join(BACKENDS)}, or unset; got {asked!r}, "
            "which cannot draw without a window"
        )
    if _egl_works():
        return "egl"
    if _loads("libOSMesa.so.8") or _loads("libOSMesa.so.6"):
        return "osmesa"
    raise ValueError(
        "camera images: expected a working OpenGL library, EGL or OSMesa; found neither. "
        f"Install one: {APT_LINE} (or libosmesa6)"
    )


def _make_gl_context(width: int, height: int) -> Any:
    backend = choose_backend()
    try:
        context = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
    # PyOpenGL reports a missing or broken library as an ImportError, AttributeError, RuntimeError
    # or its own GLError.
    except Exception as error:
        package = APT_LINE if backend == "egl" else "sudo apt-get install libosmesa6"
        raise ValueError(
            f"camera images: expected OpenGL by {backend!r} to work; "
            f"got {type(error).__name__}: {error}. "
            f"Install it: {package}; or choose the other one with MUJOCO_GL"
        ) from error
    logger.debug("drawing with OpenGL by %s", backend)
    return context


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _egl_works() -> bool:
    """True if EGL finds a device that it can open; asked of the library itself, since PyOpenGL
    cannot be re-decided.

    The library may be there without any driver behind it, on a machine with half of the packages.
    """
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    egl.eglGetProcAddress.restype = pointer
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    devices_address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_address = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not devices_address or not display_address:
        return False
    query_devices = ctypes.CFUNCTYPE(
        ctypes.c_uint, integer, ctypes.POINTER(pointer), ctypes.POINTER(integer)
    )(devices_address)
    platform_display = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(display_address)
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    devices, count = (pointer * 16)(), integer(0)
    if not query_devices(16, devices, ctypes.byref(count)):
        return False
    platform_device = 0x313F  # EGL_PLATFORM_DEVICE_EXT (Khronos, EGL_EXT_platform_device)
    for device in devices[: count.value]:
        display = platform_display(platform_device, device, None)
        if display and egl.eglInitialize(display, None, None):
            return True
    return False
