"""DeepSpeed ZeRO-1/2/3 on GPUs as Lightning has it, and on CPU processes (gloo) as Lightning refuses to.

Nothing is compiled at run time: the shared-memory operator that a first start on CPU would build is left out (gloo carries
the communication), and the optimiser is torch's fused AdamW.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from mdpretrain.engine.meta_build import hand_out_parameters


class DeepSpeed(DeepSpeedStrategy):
    """DeepSpeed with the options that the recipes use.

    Args:
        stage: 1 shards optimiser states over the ranks, 2 gradients too, 3 parameters too.
        offload_optimizer: Keep optimiser states in host memory (GPU only; DeepSpeed then compiles its own Adam).
        reduce_bucket_size: Elements reduced at a time.
        allgather_bucket_size: Elements gathered at a time.
        overlap_comm: Reduce gradients while backward still runs (GPU).

    Raises:
        ValueError: deepspeed is not installed, a stage other than 1, 2 or 3, or offload without a GPU.
    """

    def __init__(
        self,
        stage: int = 2,
        offload_optimizer: bool = False,
        reduce_bucket_size: int = 200_000_000,
        allgather_bucket_size: int = 200_000_000,
        overlap_comm: bool = True,
    ) -> None:
        on_gpu = torch.cuda.is_available()
        if stage not in (1, 2, 3):
            raise ValueError(f"trainer.strategy: DeepSpeed stage is 1, 2 or 3, got {stage}")
        if offload_optimizer and not on_gpu:
            raise ValueError("trainer.strategy: offload_optimizer needs a GPU; without one the optimiser is in host memory already")
        make_importable(on_gpu)
        self.stage = stage
        # (checkpoint, DeepSpeed's own way of loading) -> Lightning's part; set by ``checkpoint_loading``, which reads any checkpoint
        self.read_checkpoint: Callable[[pathlib.Path, Callable[[pathlib.Path], dict[str, Any]]], dict[str, Any]] | None = None
        super().__init__(
            stage=stage,
            offload_optimizer=offload_optimizer,
            reduce_bucket_size=reduce_bucket_size,
            allgather_bucket_size=allgather_bucket_size,
            overlap_comm=overlap_comm and on_gpu,
        )

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Backward of one batch. Lightning has divided its loss by the number of accumulated batches; DeepSpeed shall not do so again."""
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def setup_environment(self) -> None:
        """Join the process group; on CPU one indexed CPU device stands for each local process."""
        if isinstance(self.accelerator, CUDAAccelerator):
            super().setup_environment()
            return
        self.parallel_devices = [torch.device("cpu", index) for index in range(self.num_processes)]
        super(DeepSpeedStrategy, self).setup_environment()

    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> tuple[Any, Any]:
        if self.stage == 3:  # after the optimiser's groups were made, which go by whole shapes
            assert isinstance(self.config, dict)
            hand_out_parameters(model, self.config, self.root_device)
        return super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)

    @property
    def is_training(self) -> bool:
        """Whether the engine has an optimiser to fill."""
        assert self.lightning_module is not None
        return self.lightning_module.trainer.state.fn == TrainerFn.FITTING

    def load_checkpoint(self, checkpoint_path: str | pathlib.Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Fill the engine from a checkpoint of any strategy and return what else Lightning restores."""

        def native(path: pathlib.Path) -> dict[str, Any]:
            return super(DeepSpeed, self).load_checkpoint(path, weights_only)

        path = pathlib.Path(checkpoint_path)
        return native(path) if self.read_checkpoint is None else self.read_checkpoint(path, native)


def make_importable(on_gpu: bool) -> None:
    """Import deepspeed so that it neither looks for a GPU that is not there nor starts a compiler."""
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed.ops
    except ImportError as error:
        raise ValueError("trainer.strategy names DeepSpeed, which is not installed: pip install 'deepspeed>=0.19.8'") from error
    if not on_gpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
