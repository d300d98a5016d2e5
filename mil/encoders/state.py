"""State dictionaries as their authors publish them -> the names that the modules here use."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import interpolate

StateDict = Mapping[str, torch.Tensor]

WRAPPERS = ("model", "state_dict", "teacher")
PREFIXES = ("module.", "backbone.")
HUGGINGFACE_NAMES = (
    (r"^(vit|dinov2|model)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
)
UNUSED = re.compile(r"mask_token$|^pooler\.|^head\.|num_batches_tracked$")


def load_strictly(module: torch.nn.Module, state: StateDict) -> None:
    """Give `module` its weights by name; every name must be there and none too many."""
    module.load_state_dict(dict(state), strict=True, assign=True)


def load_known(module: torch.nn.Module, state: StateDict) -> None:
    """Give `module` its weights by name from the checkpoint of a larger network: a classifier's last layers, stages that were cut off."""
    known = module.state_dict()
    load_strictly(module, {name: tensor for name, tensor in unwrapped(state).items() if name in known})


def unwrapped(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint that wraps them (`model`, `state_dict`, `teacher`) or prefixes their names."""
    for wrapper in WRAPPERS:
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    plain = dict(state)
    for prefix in PREFIXES:
        if plain and all(name.startswith(prefix) for name in plain):
            plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
    return plain


def load_timm(module: torch.nn.Module, state: StateDict) -> None:
    """Weights in timm's names into a `Vit`; positions are resized as timm does for another input size (antialiased)."""
    _load_vit(module, unwrapped(state), antialias=True)


def load_huggingface(module: torch.nn.Module, state: StateDict) -> None:
    """Weights of a transformers ViT or DINOv2 into a `Vit`; positions are resized as transformers does (not antialiased)."""
    _load_vit(module, from_huggingface(state), antialias=False)


def from_huggingface(state: StateDict) -> dict[str, torch.Tensor]:
    """Transformers' names -> timm's, with query, key and value in one matrix."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in HUGGINGFACE_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [renamed.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        renamed[name.replace("query", "qkv")] = torch.cat(parts)
    return renamed


def from_old_swin(state: StateDict) -> dict[str, torch.Tensor]:
    """Names of timm 0.5's Swin -> today's: merging moved from a stage's end to the next one's start, masks are not stored."""
    renamed = {}
    for name, tensor in unwrapped(state).items():
        if name.endswith(("attn_mask", "relative_position_index")):
            continue
        moved = re.match(r"^layers\.(\d+)\.downsample\.", name)
        if moved:
            name = f"layers.{int(moved[1]) + 1}." + name.split(".", 2)[2]
        renamed[name] = tensor
    return renamed


def _load_vit(module: Any, state: dict[str, torch.Tensor], antialias: bool) -> None:
    net = module.net
    state = {name: tensor for name, tensor in state.items() if not UNUSED.search(name)}
    prefix = 0 if net.no_embed_class else net.num_prefix_tokens
    positions = state["pos_embed"]
    given = positions.shape[1]
    if net.no_embed_class and _side(given) is None:  # the class token's position is added to the token itself
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        positions = positions[:, 1:]
    elif not net.no_embed_class and net.num_reg_tokens and _side(given - 1) is not None:
        raise ValueError("positions lack those of the register tokens")
    state["pos_embed"] = resized_positions(positions, net.patch_embed.grid_size[0], prefix, antialias)
    load_strictly(net, state)


def resized_positions(positions: torch.Tensor, side: int, prefix: int, antialias: bool) -> torch.Tensor:
    """Position embeddings (1, prefix + n * n, width) for a grid of `side`, bicubic; the first `prefix` stay as they are."""
    kept, grid = positions[:, :prefix], positions[:, prefix:]
    given = _side(grid.shape[1])
    if given is None:
        raise ValueError(f"{grid.shape[1]} positions are no square grid")
    if given == side:
        return positions
    plane = grid.float().reshape(1, given, given, -1).permute(0, 3, 1, 2)
    plane = interpolate(plane, (side, side), mode="bicubic", antialias=antialias, align_corners=False)
    return torch.cat([kept, plane.permute(0, 2, 3, 1).flatten(1, 2).to(kept.dtype)], dim=1)


def _side(count: int) -> int | None:
    side = round(count**0.5)
    return side if side * side == count else None
