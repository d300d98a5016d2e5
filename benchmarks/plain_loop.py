"""The loop that people write, one bag per step, for `benchmarks/training_gpu.py`: gated attention, AdamW, bf16 autocast."""

import time

import torch

WIDTH, HIDDEN, ATTENTION = 1024, 512, 256


class Loop(torch.nn.Module):
    """What a notebook has: one bag in, one logit out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Sequential(torch.nn.Linear(WIDTH, HIDDEN), torch.nn.ReLU())
        self.tanh = torch.nn.Sequential(torch.nn.Linear(HIDDEN, ATTENTION), torch.nn.Tanh())
        self.gate = torch.nn.Sequential(torch.nn.Linear(HIDDEN, ATTENTION), torch.nn.Sigmoid())
        self.weigh, self.score = torch.nn.Linear(ATTENTION, 1), torch.nn.Linear(HIDDEN, 1)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tiles)
        attention = torch.softmax(self.weigh(self.tanh(hidden) * self.gate(hidden)).float(), dim=0)
        return self.score((attention.to(hidden.dtype) * hidden).sum(0))


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def loop_rate(tiles: torch.Tensor, count: int, device: torch.device, seconds: float) -> float:
    """Bags a second of the plain loop, bags cut from `tiles`."""
    torch.manual_seed(0)
    model = Loop().to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    criterion = torch.nn.BCEWithLogitsLoss()
    size, done, began = len(tiles) // count, 0, 0.0
    for step in range(10**6):
        if step == 5:
            synchronise(device)
            began = time.perf_counter()
        bag = tiles[(step % count) * size : (step % count + 1) * size].to(device)
        optimiser.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = criterion(model(bag.float()).float(), torch.ones(1, device=device) * (step % 2))
        loss.backward()
        optimiser.step()
        loss.item()
        done = step - 4
        if step >= 10 and time.perf_counter() - began > seconds:
            break
    synchronise(device)
    return done / (time.perf_counter() - began)
