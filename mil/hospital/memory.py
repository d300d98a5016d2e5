"""What a site keeps of a run between rounds and never sends: SCAFFOLD's control variates, FedPer's own layers.

On disk, so that a restarted site goes on exactly. One file a round. The server says which round's answer it used last, so a
round that is asked again starts from the same tensors as the first time, and an answer that came too late moves nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as packed
from torch import Tensor

from mil.errors import CorruptFile, MilError
from mil.files import write_bytes
from mil.hospital.forms import CONTROL, Slot

Named = Mapping[str, Tensor]


class Memory:
    """Of one run at one site."""

    def __init__(self, folder: Path, phase: str, used: int) -> None:
        self.folder, self.phase = folder, phase
        self.known: dict[str, Tensor] = {}
        """As they were after round `used` of the phase, named `slot:tensor`."""
        if used:
            path = self._file(used)
            if not path.is_file():
                raise MilError(
                    f"{path} does not exist, so the site cannot go on with this run; restore the workspace's backup"
                )
            try:
                self.known = load_file(path)
            except SafetensorError as error:
                raise CorruptFile(f"{path}: was damaged ({error}); restore the workspace's backup") from error
        for old in folder.glob(f"{phase}.*.safetensors"):
            if int(old.suffixes[0][1:]) < used:
                old.unlink()

    def of(self, slot: Slot, default: Named) -> dict[str, Tensor]:
        """A slot's tensors; those of `default` where the site has none yet."""
        return {name: self.known.get(f"{slot.name}:{name}", value) for name, value in default.items()}

    def controls(self, models: Named, slots: Sequence[Slot]) -> list[tuple[Named, Named]]:
        """Of each slot the server's control variate, from the question, and the site's own."""
        pairs = []
        for row, slot in enumerate(slots):
            server = {
                name.removeprefix(CONTROL): value[row] for name, value in models.items() if name.startswith(CONTROL)
            }
            pairs.append((server, self.of(slot, {name: torch.zeros_like(value) for name, value in server.items()})))
        return pairs

    def keep(self, number: int, slots: Sequence[Slot], kept: Sequence[Named]) -> None:
        """Write what they are after round `number`; slots that were not asked for stay as they are."""
        now = {
            f"{slot.name}:{name}": value
            for slot, state in zip(slots, kept, strict=True)
            for name, value in state.items()
        }
        tensors = {name: value.contiguous() for name, value in (self.known | now).items()}
        write_bytes(self._file(number), packed(tensors))

    def _file(self, number: int) -> Path:
        return self.folder / f"{self.phase}.{number}.safetensors"
