"""What training on a GPU asks of it, counted on the simulated card, and the rate that this allows by arithmetic. No GPU needed.

    python benchmarks/training_counts.py [--models 8] [--tiles 48] [--precision fp32]
    PYTHONPATH=<checkout of an older version> python benchmarks/training_counts.py

One round of gated attention 1024-512-256 in bf16 over a fleet of models, bags of one size and of 0.5 to 1.5 times that size; the
simulated card of `tests/ghost` counts operations, the bytes that they read and write (views none), and calls that block the host.
Bags are `--tiles` tiles, not 4,096: bytes are counted at two sizes and extended to 4,096 along the line through both. Operations per
model-bag fall with the number of pairs in a call; the version's limits of a call are scaled with the bags, so that as many bags
share a call as on a card of 80 GB. The rate is 1 / max(host, card): host = operations x 5 us; card = bytes other than those of
matrix products at 85 % of 3.35 TB/s + matrix products at 740 TFLOP/s (fp32: 50) or their bytes, whichever takes longer.
These are estimates: no kernel ran on a GPU.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / "ghost")]
sys.path.append(str(Path(__file__).resolve().parents[1]))

import guard

guard.load()

import card
import numpy as np
import torch

from mil.endpoints import build_endpoint
from mil.models import build
from mil.specs.endpoints import EndpointSpec
from mil.specs.models import GatedAttentionSpec
from mil.training import engine as engine_module
from mil.training.engine import Data, Engine, Learners, Method, Plan
from mil.training.packing import Places
from mil.training.sources import Resident

WIDTH, HIDDEN, ATTENTION, BATCH, STEPS = 1024, 512, 256, 16, 2
REAL_TILES = 4096
OPERATIONS = 2 * (2 * WIDTH * HIDDEN + 3 * HIDDEN * 2 * ATTENTION)  # per tile, without the gradient of the tiles
LAUNCH_S, BANDWIDTH = 5e-6, 0.85 * 3.35e12
MATRIX = {"bf16": 740e12, "fp32": 50e12}
PRODUCTS = ("aten.bmm.", "aten.baddbmm.", "aten.mm.", "aten.addmm.")
VIEWS = ("view", "slice", "select.int", "unsqueeze", "squeeze", "expand", "detach", "alias", "transpose", "t.default", "split", "permute", "unbind", "as_strided", "chunk", "empty", "narrow")  # fmt: skip


class Traffic:
    """Bytes that operations read and write, matrix products apart, while `operate` of the simulated card is wrapped."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.operations = 0
        self.inner = card.operate

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = self.inner(func, args, kwargs)
        name = str(func)
        if name.split(".")[1] not in {view.split(".")[0] for view in VIEWS}:
            self.operations += 1
            kind = "products" if name.startswith(PRODUCTS) else "rest"
            self.bytes[kind] += sum(map(_bytes, _tensors((args, kwargs)))) + sum(map(_bytes, _tensors(result)))
            if name.startswith("aten.index_select"):  # reads what it returns, not the whole store
                self.bytes[kind] -= _bytes(args[0]) - _bytes(result)
            if name.startswith("aten.index_add_"):
                self.bytes[kind] -= 2 * (_bytes(args[0]) - _bytes(args[3]))
        return result


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _bytes(tensor: torch.Tensor) -> int:
    """Of the numbers that differ: an axis of stride 0 is read once."""
    own = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        own *= size if stride else 1
    return own * tensor.element_size()


def counted(models: int, tiles: int, mixed: bool, precision: str) -> dict[str, float]:
    """A round of two steps: operations, waits and bytes per model-bag."""
    generator, bags, cuda = np.random.default_rng(0), 3 * BATCH, torch.device("cuda")
    sizes = generator.integers(tiles // 2, tiles * 3 // 2 + 1, bags) if mixed else np.full(bags, tiles)
    head, endpoint = (
        build(GatedAttentionSpec(hidden=HIDDEN, attention=ATTENTION), WIDTH, 1),
        build_endpoint(EndpointSpec()),
    )
    host = torch.zeros(int(sizes.sum()), WIDTH, dtype=torch.float16)
    with card.simulated_card() as log:
        centre = (torch.zeros(WIDTH), torch.ones(WIDTH)) if precision == "bf16" else None
        paired = hasattr(engine_module, "Card")
        source = Resident(host, cuda, centre) if paired else Resident(host, cuda)  # type: ignore[call-arg]
        data = Data(
            source, WIDTH, torch.arange(bags).remainder(2).float()[:, None].to(cuda), torch.arange(bags).to(cuda)
        )
        engine = Engine(head, endpoint, data, Method("adamw", precision=precision), cuda)
        share = tiles / REAL_TILES
        if paired:
            fitting = engine.card.fitting
            engine.card.cost = fitting.cost = type(fitting.cost)(
                fitting.cost.tile, int(fitting.cost.pair * share), max(1, int(fitting.cost.worth * share))
            )
            fitting.budget = int(fitting.largest * share)
        else:
            engine.budget = engine.uncut = max(1, int(engine.budget * share))
            engine.limits = type(engine.limits)(engine.budget, max(1, int(engine.limits.small * share)), False)
        first = torch.from_numpy(engine.layout.flat(head.initial(np.random.default_rng(0)))).repeat(models, 1).to(cuda)
        buffers = {
            "features.mean": torch.zeros(models, WIDTH).to(cuda),
            "features.deviation": torch.ones(models, WIDTH).to(cuda),
        }
        ones = torch.ones(models, 1, device=cuda)
        learners = Learners(first, buffers, 1e-4 * ones, 1e-4 * ones, torch.ones(models, 2, device=cuda))
        orders = [generator.permutation(bags) for _ in range(models)]
        plans = [Plan([own[k * BATCH : (k + 1) * BATCH] for k in range(STEPS)]) for own in orders]
        traffic = Traffic()
        state = engine.fresh(learners.rows)
        log.waits.clear()
        card.operate = traffic
        try:
            engine.train(learners, state, plans, Places.of(np.cumsum(sizes) - sizes, sizes))
        finally:
            card.operate = traffic.inner
        passes = models * BATCH * STEPS
        return {
            "operations": traffic.operations / passes,
            "waits": sum(log.waits.values()) / passes,
            "products": traffic.bytes["products"] / passes,
            "rest": traffic.bytes["rest"] / passes,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--tiles", type=int, default=48)
    parser.add_argument(
        "--precision", choices=["bf16", "fp32"], default="bf16", help="fp32: the default of versions before `auto`"
    )
    options = parser.parse_args()
    for mixed in (False, True):
        small, large = (
            counted(options.models, tiles, mixed, options.precision) for tiles in (options.tiles // 2, options.tiles)
        )
        found = dict(large)
        for name in ("products", "rest"):
            slope = (large[name] - small[name]) / (options.tiles - options.tiles // 2)
            found[name] = large[name] + slope * (REAL_TILES - options.tiles)
        host_s = found["operations"] * LAUNCH_S
        card_s = found["rest"] / BANDWIDTH + max(
            found["products"] / BANDWIDTH, OPERATIONS * REAL_TILES / MATRIX[options.precision]
        )
        print(
            f"{'bags of 0.5 to 1.5 times the size' if mixed else 'equal bags'}, {options.models} models, {options.precision}, per model-bag: "
            f"{found['operations']:.1f} operations, {found['waits']:.3f} waits, {found['products'] / 1e6:.0f} MB of matrix products, "
            f"{found['rest'] / 1e6:.0f} MB of the rest; estimate: host {host_s * 1e6:.0f} us, card {card_s * 1e6:.0f} us, "
            f"{1 / max(host_s, card_s):,.0f} model-bags/s"
        )


if __name__ == "__main__":
    main()
