"""NVIDIA GPUs as their driver describes them, through NVML (nvidia-ml-py, the extra ``gpu``)."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any

from nanogpt_cli import extras

# Bits of why a clock is below its best (nvmlClocksEventReasons in nvml.h); bit 0, an idle GPU,
# is none.
REASONS = {
    0x2: "application clocks", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost",
    0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake",
    0x100: "display clocks", 0x200: "board limit", 0x400: "reliability",
}  # fmt: skip
_SM, _MEMORY = 1, 2  # nvmlClockType_t
_CORE = 0  # nvmlTemperatureSensors_t


class Nvml:
    """Reads the GPUs of this machine; without a library or a driver there are none.

    Args:
        only: UUIDs of the GPUs that matter, with or without ``GPU-``; empty: all of the machine.
        library: ``pynvml``, or what stands for it.
    """

    def __init__(self, only: Collection[str] = (), library: Any = None) -> None:
        self.gpus: list[tuple[str, Any]] = []  # UUID, handle
        self.why_not = ""
        try:
            self._library = library or importlib.import_module("pynvml")
            self._library.nvmlInit()
        except ImportError:
            self.why_not = f"nvidia-ml-py is not installed: {extras.install_command('gpu')}"
            return
        except Exception as error:  # NVMLError: no driver, no permission, ...
            self.why_not = f"NVML: {error}"
            return
        wanted = {bare(uuid) for uuid in only}
        for index in range(self._ask("nvmlDeviceGetCount") or 0):
            handle = self._ask("nvmlDeviceGetHandleByIndex", index)
            uuid = bare(_text(self._ask("nvmlDeviceGetUUID", handle)))
            if handle is not None and (not wanted or uuid in wanted):
                self.gpus.append((uuid, handle))

    def read(self) -> dict[str, dict[str, Any]]:
        """Of each GPU, by its UUID, what the driver tells now; what it does not tell is absent.

        ``utilization``: share of the last sampling period (up to a second) in which a kernel ran;
        ``memory_used``, ``memory_total``: bytes, of all programs; ``power_w``, ``power_limit_w``:
        watts; ``temperature_c``: °C; ``sm_mhz``, ``sm_max_mhz``, ``memory_mhz``: clocks;
        ``throttled``: names of what holds the clocks back, see ``REASONS``; and ``name``.
        """
        return {uuid: self._one(handle) for uuid, handle in self.gpus}

    def _one(self, handle: Any) -> dict[str, Any]:
        ask = self._ask
        busy = ask("nvmlDeviceGetUtilizationRates", handle)
        memory = ask("nvmlDeviceGetMemoryInfo", handle)
        power = ask("nvmlDeviceGetPowerUsage", handle)
        limit = ask("nvmlDeviceGetEnforcedPowerLimit", handle)
        bits = ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        found = {
            "name": _text(ask("nvmlDeviceGetName", handle)) or None,
            "utilization": None if busy is None else busy.gpu / 100,
            "memory_used": None if memory is None else int(memory.used),
            "memory_total": None if memory is None else int(memory.total),
            "power_w": None if power is None else power / 1000,
            "power_limit_w": None if limit is None else limit / 1000,
            "temperature_c": ask("nvmlDeviceGetTemperature", handle, _CORE),
            "sm_mhz": ask("nvmlDeviceGetClockInfo", handle, _SM),
            "sm_max_mhz": ask("nvmlDeviceGetMaxClockInfo", handle, _SM),
            "memory_mhz": ask("nvmlDeviceGetClockInfo", handle, _MEMORY),
            "throttled": None
            if bits is None
            else [name for bit, name in REASONS.items() if bits & bit],
        }
        return {key: value for key, value in found.items() if value is not None}

    def _ask(self, name: str, *arguments: Any) -> Any:
        """What a call returns; ``None`` where this GPU, driver or library does not answer it."""
        try:
            return getattr(self._library, name)(*arguments)
        except Exception:  # NVMLError_NotSupported, a function that is missing, a GPU that is lost
            return None

    def close(self) -> None:
        """Let the library go."""
        if not self.why_not:
            self._ask("nvmlShutdown")
        self.gpus, self.why_not = [], "closed"


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def bare(uuid: str) -> str:
    """A UUID as PyTorch and NVML both can write it."""
    return uuid.removeprefix("GPU-").lower()
