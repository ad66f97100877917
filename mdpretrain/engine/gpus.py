"""What GPUs can do, from their makers' data sheets: the one table behind `mdpretrain plan` and the MFU that a run logs.

Sources: NVIDIA's data sheets of B200 (DGX B200), H200, H100, A100, L40S, L4, and the Ada and Ampere GA102 architecture papers for RTX 4090
and 3090. TFLOP/s are bfloat16 with float32 accumulation on the tensor cores, *dense*: data sheets print twice that, "with sparsity".
Memory is what the driver reports (nvidia-smi, MiB), a little more or less than the name says. Links: NVLink where the card has it, else
PCIe, both directions together as the sheets count. ``node_network_gbit``: what a node of eight usually has (400 or 200 Gbit/s a GPU in
DGX H100 and A100; Ethernet otherwise); clusters differ, so the plan lets it be told.
"""

from __future__ import annotations

import dataclasses

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One kind of card. ``words``: all must stand in the name that torch reports."""

    name: str
    memory_mib: int
    bf16_tflops: float
    memory_gb_per_s: float
    link_gb_per_s: float
    node_network_gbit: float
    words: tuple[str, ...]

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * MIB

    @property
    def flops_per_s(self) -> float:
        """Dense bfloat16."""
        return 1e12 * self.bf16_tflops


# More particular names stand before more general ones: a device is the first whose words are all in its name.
_GPUS = (
    Gpu("b200", 183_359, 2250.0, 8000.0, 1800.0, 3200.0, ("B200",)),
    Gpu("h200", 143_771, 989.4, 4800.0, 900.0, 3200.0, ("H200",)),
    Gpu("h100-pcie", 81_559, 756.0, 2000.0, 128.0, 1600.0, ("H100", "PCIe")),
    Gpu("h100", 81_559, 989.4, 3350.0, 900.0, 3200.0, ("H100",)),
    Gpu("a100-80", 81_920, 312.0, 2039.0, 600.0, 1600.0, ("A100", "80GB")),
    Gpu("a100-40", 40_960, 312.0, 1555.0, 600.0, 1600.0, ("A100",)),
    Gpu("l40s", 46_068, 362.0, 864.0, 64.0, 400.0, ("L40S",)),
    Gpu("l4", 23_034, 121.0, 300.0, 64.0, 100.0, ("NVIDIA L4",)),
    Gpu("4090", 24_564, 165.2, 1008.0, 64.0, 25.0, ("RTX 4090",)),
    Gpu("3090", 24_576, 71.0, 936.0, 64.0, 25.0, ("RTX 3090",)),
)
GPUS = {gpu.name: gpu for gpu in _GPUS}


def gpu_named(name: str) -> Gpu:
    """The row of the table.

    Raises:
        ValueError: there is none of that name.
    """
    found = GPUS.get(name.lower())
    if found is None:
        raise ValueError(f"--gpu {name}: not in the table (mdpretrain/engine/gpus.py); there are {', '.join(GPUS)}")
    return found


def gpu_of_device(device_name: str) -> Gpu | None:
    """The row of what ``torch.cuda.get_device_name`` says; None for a card that the table does not have."""
    return next((gpu for gpu in _GPUS if all(word in device_name for word in gpu.words)), None)
