"""Memory at its peak."""

import re
from pathlib import Path

import torch


class Peak:
    """Extra memory that a block of code took at its peak, in bytes: on CUDA torch's allocations, on Linux the
    process's resident set; None elsewhere, where no system counter can be reset."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.bytes: int | None = None

    def __enter__(self) -> "Peak":
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start: int | None = torch.cuda.memory_allocated(self.device)
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
                self.start = self._resident("VmRSS")
            except (OSError, TypeError):
                self.start = None
        return self

    def __exit__(self, *exception) -> None:
        if self.start is not None:
            top = torch.cuda.max_memory_allocated(self.device) if self.cuda else self._resident("VmHWM")
            self.bytes = max(0, top - self.start)

    @staticmethod
    def _resident(field: str) -> int:
        return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])
