"""LEGW as an ordinary `torch.optim.lr_scheduler` citizen, for loops that are not ours."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from legw_hpc.legw import Baseline, scale
from legw_hpc.schedule import Constant, Decay, build


class LEGW(LRScheduler):
    """Scale each group's learning rate and warmup from its baseline batch to this one.

    The optimizer is built with the learning rates tuned at the baseline batch, one per group if
    you like; call `step()` after every optimizer step.

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)   # tuned at 128
        scheduler = LEGW(optimizer, base_batch=128, batch=8192, warmup_epochs=0.25,
                         epochs=25, steps_per_epoch=8)

    Args:
        optimizer: its groups' `lr` are the baseline's.
        base_batch: B0, samples.
        batch: B, the samples of one step over all ranks.
        warmup_epochs: w0, the warmup tuned at B0.
        epochs: the length of the run.
        steps_per_epoch: optimizer steps in an epoch at batch B.
        decay: what follows the warmup; no decay by default.
        scheme: "legw", or any other that `legw_hpc.scale` knows.
        last_epoch: as in torch: the last step done (torch's name), -1 to start.

    Raises:
        ValueError: values that make no schedule, such as a warmup longer than the run.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        base_batch: int,
        batch: int,
        warmup_epochs: float,
        epochs: float,
        steps_per_epoch: float,
        decay: Decay = Constant(),
        scheme: str = "legw",
        last_epoch: int = -1,
    ):
        if not steps_per_epoch > 0:
            raise ValueError(f"steps_per_epoch must be positive, not {steps_per_epoch}")
        self.steps_per_epoch = steps_per_epoch
        # A group's lr may be a tensor (capturable optimizers); the rule needs only the number.
        lrs = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        self._groups: list[tuple[Any, ...]] = []  # of `build`, and not the functions: those cannot be pickled
        for lr in lrs:
            scaled = scale(Baseline(base_batch, lr, warmup_epochs), batch, scheme)
            self._groups.append((scaled.lr, epochs, scaled.warmup, scaled.warmup_epochs, decay, lr))
            build(*self._groups[-1])  # refuses what makes no schedule before the optimizer is touched
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The groups' learning rates after `last_epoch` steps: a closed form of the step."""
        return [build(*group)(self.last_epoch / self.steps_per_epoch) for group in self._groups]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers only: loads with `torch.load(weights_only=True)`."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs), "_last_lr": self.get_last_lr()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after `last_epoch` steps; the optimizer's learning rates are set to match."""
        self.last_epoch = state_dict["last_epoch"]
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr
