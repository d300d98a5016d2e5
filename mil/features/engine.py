"""Tiles as bytes -> vectors: the encoder made fast on the device that is there, always in batches of one shape."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

from mil.config import EncoderSpec
from mil.encoders.entry import Encoder
from mil.errors import MilError
from mil.features.accelerate import (
    choose_precision,
    compiled,
    exact_fp32,
    fuse_batchnorm,
    in_precision,
    pays_from,
    warm_mark,
)
from mil.features.device import best_device, short_of_memory
from mil.features.plan import batch_tiles
from mil.features.preparation import Preparation
from mil.features.stain import StainNormalisation
from mil.machine import cores
from mil.progress import Reporter, quiet
from mil.user_code import in_one_line

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Tiles a step on the CPU: 16 images of 128 px keep a network's planes in the cache (16: 806 tiles/s, 64: 523, two cores).
CPU_STEP = 16
SHORTEST_STEP = 1


@dataclass(frozen=True)
class Ticket:
    """A batch on its way through the device; the events are None where the device is the CPU and all is done."""

    count: int
    vectors: torch.Tensor
    """Where its vectors arrive on the host."""
    began: "torch.cuda.Event | None" = None
    computed: "torch.cuda.Event | None" = None
    arrived: "torch.cuda.Event | None" = None
    seconds: float = 0.0

    def ready(self) -> bool:
        """Whether its vectors have arrived."""
        return self.arrived is None or self.arrived.query()

    def device_seconds(self) -> float:
        """Time that the device worked on it; only once it has arrived."""
        if self.began is None or self.computed is None:
            return self.seconds
        return self.began.elapsed_time(self.computed) / 1000


class EncoderEngine:
    """Runs one encoder on one device. Batches have one shape, padded, so that a tile's vector never depends on its neighbours."""

    def __init__(
        self,
        encoder: Encoder,
        spec: EncoderSpec,
        device: torch.device | None = None,
        tiles: int = 0,
        reporter: Reporter | None = None,
        threads: int | None = None,
    ) -> None:
        """`tiles`: number expected; on CUDA the encoder is compiled where that saves time. `threads`: none: all cores given."""
        self.encoder, self.spec = encoder, spec
        self.reporter = reporter or quiet()
        self.device = device or best_device()
        if self.device.type == "cuda":
            self.device = torch.device("cuda", self.device.index or 0)
            torch.cuda.set_device(self.device)
            exact_fp32()
        weightless = next(encoder.module.parameters(), None) is None
        self.precision = choose_precision("fp32" if weightless else spec.precision, self.device)
        self.dtype = DTYPES[self.precision]
        self.step = CPU_STEP if self.device.type == "cpu" else spec.batch_size
        module = in_precision(fuse_batchnorm(encoder.module, encoder.input_px), self.dtype, encoder.exact)
        module = module.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  torch's stub lacks it
        self.module = module
        self.compiled = False
        self.wholes: dict[int, torch.nn.Module] = {}
        if self.device.type == "cuda":
            card = torch.cuda.get_device_name(self.device)
            self.warm = warm_mark(encoder.name, encoder.weights_sha256, spec.batch_size, self.precision, card)
            self.compiled = tiles >= pays_from(module, self.warm.is_file())
        std = torch.tensor(encoder.std, device=self.device).view(1, 3, 1, 1)
        mean = torch.tensor(encoder.mean, device=self.device).view(1, 3, 1, 1)
        self.scale, self.shift = 1 / (255 * std), -mean / std
        self.stain = StainNormalisation(spec.stain, self.device) if spec.stain is not None else None
        if self.device.type == "cpu":
            # Threads with a step each, not one step on several threads: those wait for each other at every layer, and
            # where the machine is shared the slowest holds up all (39 tiles/s instead of 444 beside five busy processes).
            # A user's module may keep something between its layers (what a hook gets): one step at a time, on all threads.
            steps = 1 if encoder.name.startswith("python:") else cores(threads)
            arguments = (cores(threads) // steps,)
            self.workers = ThreadPoolExecutor(steps, initializer=torch.set_num_threads, initargs=arguments)
        else:
            self.copies, self.returns = torch.cuda.Stream(self.device), torch.cuda.Stream(self.device)

    def __call__(self, tiles: np.ndarray, stains: np.ndarray | None = None) -> np.ndarray:
        """uint8 (tiles, size, size, 3) -> float16 (tiles, width)."""
        return self.finish(self.start(torch.from_numpy(np.ascontiguousarray(tiles)), len(tiles), stains))

    def prepare(self, size_px: int) -> float:
        """Make ready for tiles of this size: the step, and on CUDA the compiled encoder. Returns the seconds of compiling.

        Where compiling fails (no C compiler, no Python.h, an old GPU) the encoder runs without, and a line says so.
        """
        if self.device.type == "cpu":
            return 0.0
        self.step = batch_tiles(self.spec.batch_size, size_px)
        if not self.compiled:
            self.whole(size_px)
            return 0.0
        started = time.perf_counter()
        try:
            self(np.zeros((self.step, size_px, size_px, 3), np.uint8))
        except (RuntimeError, OSError, ImportError) as error:  # what dynamo, inductor, triton and the C compiler raise
            self.compiled = False
            self.wholes.clear()
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            self.reporter.say(f"encoder {self.encoder.name} cannot be compiled here and runs without: {reason[:200]}")
        else:
            self.warm.parent.mkdir(parents=True, exist_ok=True)
            self.warm.touch()
        return time.perf_counter() - started

    def start(self, tiles: torch.Tensor, count: int, stains: np.ndarray | None = None) -> Ticket:
        """Begin with the first `count` of `tiles` (uint8 (n, size, size, 3) on the host, pinned for the GPU's sake)."""
        if self.device.type == "cpu":
            started = time.perf_counter()
            vectors = self._in_steps(tiles[:count], stains)
            return Ticket(count, vectors, seconds=time.perf_counter() - started)
        computing = torch.cuda.current_stream(self.device)
        began, computed = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        there = self._on_device(tiles)
        computing.wait_stream(self.copies)
        there.record_stream(computing)
        began.record(computing)
        vectors = self._in_steps(there[:count], stains)
        computed.record(computing)
        host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        self.returns.wait_event(computed)
        arrived = torch.cuda.Event()
        with torch.cuda.stream(self.returns):
            host.copy_(vectors, non_blocking=True)
            vectors.record_stream(self.returns)
            arrived.record(self.returns)
        return Ticket(count, host, began, computed, arrived)

    def _on_device(self, tiles: torch.Tensor) -> torch.Tensor:
        """A copy of the batch on the device; the batch itself where the device has no memory for all of it."""
        try:
            with torch.cuda.stream(self.copies):
                return tiles.to(self.device, non_blocking=True)
        except RuntimeError as error:
            if not short_of_memory(error):
                raise
            torch.cuda.empty_cache()
            self.reporter.say(
                f"the GPU's memory is too small for a batch of {len(tiles)} tiles; copying it step by step"
            )
            return tiles

    def finish(self, ticket: Ticket) -> np.ndarray:
        """Wait for a batch; its vectors, float16 (count, width)."""
        if ticket.arrived is not None:
            ticket.arrived.synchronize()
        return ticket.vectors[: ticket.count].numpy()

    def _in_steps(self, tiles: torch.Tensor, stains: np.ndarray | None) -> torch.Tensor:
        """All tiles, `step` at a time; the step is halved where the device's memory is too small for it."""
        while True:
            try:
                starts = range(0, len(tiles), self.step)
                pieces = [tiles[at : at + self.step] for at in starts]
                marks = [None if stains is None else stains[at : at + self.step] for at in starts]
                run = self.workers.map if self.device.type == "cpu" else map
                parts = list(run(self._step, pieces, marks))
                return torch.cat(parts) if parts else torch.empty(0, self.encoder.width, dtype=torch.float16)
            except RuntimeError as error:
                if not short_of_memory(error) and ":" in self.encoder.name:
                    raise MilError(
                        f"encoder {self.encoder.name} fails in {self.precision} on {self.device.type}: {in_one_line(error)}; try "
                        "precision fp32, and make its tensors parameters or buffers"
                    ) from error
                if not short_of_memory(error):
                    raise
                if self.step <= SHORTEST_STEP:
                    raise MilError(
                        f"the GPU's memory is too small for a single tile of encoder {self.encoder.name}; end what else "
                        "runs on it, or take a smaller encoder"
                    ) from error
                self.step = math.ceil(self.step / 2)
                torch.cuda.empty_cache()
                self.reporter.say(
                    f"the GPU's memory is too small for {self.step * 2} tiles at once; going on with {self.step}"
                )

    @torch.inference_mode()
    def _step(self, tiles: torch.Tensor, stains: np.ndarray | None) -> torch.Tensor:
        count = len(tiles)
        if count < self.step:
            tiles = torch.cat([tiles, tiles.new_zeros(self.step - count, *tiles.shape[1:])])
            stains = None if stains is None else stains[np.minimum(np.arange(self.step), count - 1)]
        tiles = tiles.to(self.device, non_blocking=True)  # there already, unless memory is short
        pixels = self._stained(tiles.permute(0, 3, 1, 2), stains)
        if self.device.type == "cpu":
            return self.module(self._prepared(pixels))[:count].to(torch.float16)
        return self.whole(pixels.shape[2])(pixels)[:count].to(torch.float16)

    def whole(self, size_px: int) -> torch.nn.Module:
        """On a GPU: preparation and encoder for tiles of this size; compiled, if the encoder is."""
        if size_px not in self.wholes:
            dtype = torch.float32 if self.encoder.exact else self.dtype
            module = Preparation(self.module, self.encoder, size_px, self.scale, self.shift, dtype).eval()
            self.wholes[size_px] = compiled(module) if self.compiled else module
        return self.wholes[size_px]

    def _stained(self, pixels: torch.Tensor, stains: np.ndarray | None) -> torch.Tensor:
        """Bytes (n, 3, size, size) with their slides' stain changed."""
        if self.stain is not None and stains is not None:
            changes = torch.from_numpy(stains)
            changes = changes if self.device.type == "cpu" else changes.pin_memory()
            pixels = self.stain.apply(pixels, changes.to(self.device, non_blocking=True))
        return pixels

    def _prepared(self, pixels: torch.Tensor) -> torch.Tensor:
        """Bytes (n, 3, size, size) -> the encoder's input on a CPU: size, normalisation, in its arithmetic."""
        size = self.encoder.resize_px or self.encoder.input_px
        if size is not None and pixels.shape[2] != size:
            pixels = interpolate(pixels, (size, size), mode=self.encoder.interpolation, antialias=True)
            pixels = pixels.clamp(0, 255)  # bicubic overshoots
        if self.encoder.resize_px is not None and self.encoder.input_px is not None:
            margin = (self.encoder.resize_px - self.encoder.input_px) // 2
            pixels = pixels[:, :, margin : margin + self.encoder.input_px, margin : margin + self.encoder.input_px]
        pixels = torch.addcmul(self.shift, pixels.float(), self.scale)
        dtype = torch.float32 if self.encoder.exact else self.dtype
        return pixels.to(dtype, memory_format=torch.channels_last)
