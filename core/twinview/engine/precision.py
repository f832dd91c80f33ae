"""Which precision a run computes in."""
from __future__ import annotations

from pathlib import Path

import attrs

from twinview.errors import RecipeError
from twinview.recipe import Recipe


def resolve_precision(recipe: Recipe, device: str) -> Recipe:
    """`run.precision = "auto"` said plainly: bf16 where `device` (cpu or cuda) has it in hardware, else fp32.  Raises RecipeError."""
    if recipe.run.precision == "fp16" and device == "cpu":
        raise RecipeError("[run] precision: fp16 is for GPUs; on a processor it is slow where it runs at all. Write bf16, or fp32.")
    if recipe.run.precision != "auto":
        return recipe
    return attrs.evolve(recipe, run=attrs.evolve(recipe.run, precision="bf16" if _has_bf16(device) else "fp32"))


def _has_bf16(device: str) -> bool:
    if device == "cuda":
        import torch

        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(_cpu_flags(Path("/proc/cpuinfo")))


def _cpu_flags(cpuinfo: Path) -> set[str]:
    """What the first processor says it can do; nothing on systems that do not say."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), []))
