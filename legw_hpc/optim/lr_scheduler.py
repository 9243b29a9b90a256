"""LEGW as an ordinary `torch.optim.lr_scheduler` citizen, for loops that are not ours."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from legw_hpc.legw import FIXED_WARMUP_EPOCHS, Baseline, scale, split_scheme
from legw_hpc.schedule import Constant, Decay, build


class LEGW(LRScheduler):
    """Scale each group's learning rate and warmup from its baseline batch to this one.

    The optimizer is built with the learning rates tuned at the baseline batch, one per group if
    you like; call `step()` after every optimizer step.

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)   # tuned at 128
        scheduler = LEGW(optimizer, base_batch=128, batch=8192, warmup_epochs=0.25,
                         epochs=25, steps_per_epoch=8)

    What follows the warmup is `decay`: another scheduler chained behind this one would begin at the baseline's rate.

    Args:
        optimizer: its groups' `lr` are the baseline's.
        base_batch: B0, samples.
        batch: B, the samples of one step over all ranks.
        warmup_epochs: w0, the warmup tuned at B0.
        epochs: the length of the run.
        steps_per_epoch: optimizer steps in an epoch at batch B.
        decay: what follows the warmup, of `legw_hpc.schedule`; no decay by default.
        scheme: "legw", or any other that `legw_hpc.scale` knows.
        fixed_warmup_epochs: of the schemes whose warmup does not depend on the batch, such as "linear".
        last_epoch: as in torch (and in its name): of a scheduler in this one's place that has done n steps, n - 1; -1 to start.

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
        fixed_warmup_epochs: float = FIXED_WARMUP_EPOCHS,
        last_epoch: int = -1,
    ):
        if not steps_per_epoch > 0:
            raise ValueError(f"steps_per_epoch must be positive, not {steps_per_epoch}")
        if not isinstance(decay, Decay):
            raise ValueError(f"decay must be one of legw_hpc.schedule, such as Poly(power=2), not {decay!r}")
        self.steps_per_epoch = steps_per_epoch
        # A group's lr may be a tensor (capturable optimizers); the rule needs only the number.
        lrs = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        # What the rates are made of, as far as they are.
        self._made_of = {
            "base_batch": base_batch, "batch": batch, "warmup_epochs": warmup_epochs, "steps_per_epoch": steps_per_epoch,
            "decay": str(decay), "scheme": scheme,
        }  # fmt: skip
        if decay != Constant():
            self._made_of["epochs"] = epochs
        if split_scheme(scheme)[1] not in ("none", "legw"):
            self._made_of["fixed_warmup_epochs"] = fixed_warmup_epochs
        # Of `build`, and not the functions: those cannot be pickled.  None: a group whose rate is 0, and stays so.
        self._groups: list[tuple[Any, ...] | None] = []
        for lr in lrs:
            scaled = scale(Baseline(base_batch, lr or 1.0, warmup_epochs), batch, scheme, fixed_warmup_epochs)
            group = (scaled.lr, epochs, scaled.warmup, scaled.warmup_epochs, decay, lr)
            build(*group)  # refuses what makes no schedule before the optimizer is touched
            self._groups.append(group if lr else None)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The groups' learning rates after `last_epoch` steps: a closed form of the step.

        Raises:
            ValueError: the optimizer has got another group since.
        """
        if len(self.optimizer.param_groups) != len(self._groups):
            raise ValueError(
                f"the optimizer has {len(self.optimizer.param_groups)} groups, and had {len(self._groups)} when LEGW was made: "
                "make it anew with last_epoch=scheduler.last_epoch - 1, each group with its initial_lr"
            )
        epoch = self.last_epoch / self.steps_per_epoch
        return [0.0 if group is None else build(*group)(epoch) for group in self._groups]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers only: loads with `torch.load(weights_only=True)`."""
        return {"last_epoch": self.last_epoch} | self._comparable() | {"_last_lr": [float(lr) for lr in self.get_last_lr()]}

    def _comparable(self) -> dict[str, Any]:
        return self._made_of | {"base_lrs": [float(lr) for lr in self.base_lrs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after `last_epoch` steps; the optimizer's learning rates are set to match.

        Raises:
            ValueError: the state is of another schedule, whose rates would not be gone on with.
        """
        mine = self._comparable()
        if other := {key: state_dict[key] for key, own in mine.items() if state_dict.get(key, own) != own}:
            was, now = (", ".join(f"{key}={values[key]}" for key in other) for values in (other, mine))
            raise ValueError(f"this state is of {was}, the scheduler of {now}: it would not go on at the same rates")
        self.last_epoch = state_dict["last_epoch"]
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
