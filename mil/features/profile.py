"""Where a shard's time went: seconds by stage, tiles a second, the share of time that the device was busy."""

import math
import time
from dataclasses import dataclass, field


@dataclass
class Profile:
    """Seconds spent in each stage. `reading` counts the seconds of all `readers` together; those of the others are of one thread each."""

    device: str
    readers: int
    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    tiles: int = 0
    first_tile_s: float | None = None
    """Seconds from start to the first batch whose features are there."""
    wall: float = 0.0
    """Seconds from start to stop."""

    def count(self, tiles: int) -> None:
        """Count tiles whose features are there."""
        if self.first_tile_s is None:
            self.first_tile_s = time.perf_counter() - self.started
        self.tiles += tiles

    @property
    def busy(self) -> float:
        """Share of the time in which the device worked, 0 to 1 (more on a CPU with several threads)."""
        return self.seconds.get("encoder", 0.0) / self.wall

    def stop(self) -> None:
        """End of the work."""
        self.wall = max(time.perf_counter() - self.started, 1e-9)

    @property
    def rate(self) -> float:
        """Tiles a second, all in all."""
        return self.tiles / self.wall

    def add(self, stage: str, seconds: float) -> None:
        """Count `seconds` to a stage."""
        if not seconds:
            return
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def lines(self) -> list[str]:
        """The whole in a few lines: rate, the device's busy share, then each stage's own rate if it ran alone."""
        lines = [
            f"{self.tiles:,} tiles in {self.wall:,.1f} s: {self.rate:,.0f} tiles/s; {self.device} busy {self.busy:.0%}"
        ]
        for stage, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            if stage.startswith(("waiting", "compiling")):
                lines.append(f"  {stage}: {seconds:,.1f} s")
                continue
            workers = self.readers if stage == "reading" else 1
            alone = self.tiles * workers / seconds
            who = f" of {workers} readers" if workers > 1 else ""
            lines.append(f"  {stage}: {seconds:,.1f} s{who}, {alone:,.0f} tiles/s if nothing else ran")
        reading, encoder = (self.seconds.get(stage, 0.0) for stage in ("reading", "encoder"))
        if encoder and reading > encoder * self.readers and not self.device.startswith("the CPU"):
            cores = math.ceil(reading / encoder) + 1
            lines.append(
                f"  short of readers: with {cores} cores {self.device} would be busy (`set-threads: extract` of the profile)"
            )
        return lines
