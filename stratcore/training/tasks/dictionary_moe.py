"""Training a dictionary mixture-of-experts. Legend: B rows, E experts, D input size, M atoms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stratcore.models.dictionary_moe import DictionaryMoE, DictionaryMoEOutput
from stratcore.training import losses
from stratcore.training.distributed import Runtime
from stratcore.training.optimizer import ParameterGroups
from stratcore.training.task import StepResult


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    """What is minimized, per row; the first term is in nats per input dimension.

    Args:
        kind: 'mixture': negative log-likelihood of the mixture. 'expected': sum_e p_e cost_e with the gate's
            probabilities, so that every expert learns, whatever the rule that chooses one.
        balance: weight of the load balance.
        contrastive: weight of the contrastive loss on the head's output, with the domains as labels.
        margin: of the contrastive loss.
        noise: standard deviation of Gaussian noise on the training rows, as a share of their root mean square;
            keeps experts from learning rows by heart. It is part of what is reconstructed, so the learned
            variance includes it.
        coherence: weight of the mean squared cosine between atoms.
        step_lr_scale: learning rate of the encoder's step sizes over that of all else. They have far to go: the
            start is what the first dictionary, rows in all their coherence, can bear.
        revive_every: steps between revivals of atoms that no row used since the last one; 0: never.
        revive_until: last step with a revival, so that the new atoms have time to learn; None: to the end.
    """

    kind: Literal["mixture", "expected"] = "mixture"
    balance: float = 0.0
    contrastive: float = 0.0
    margin: float = 1.0
    noise: float = 0.0
    coherence: float = 0.0
    step_lr_scale: float = 1.0
    revive_every: int = 0
    revive_until: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("mixture", "expected"):
            raise ValueError(f"objective.kind: expected 'mixture' or 'expected', got {self.kind!r}")
        for name in (
            "balance",
            "contrastive",
            "margin",
            "noise",
            "coherence",
            "step_lr_scale",
            "revive_every",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"objective.{name}: expected a number >= 0, got {getattr(self, name)}")
        if self.revive_until is not None and self.revive_until < 0:
            raise ValueError(f"objective.revive_until: expected a step >= 0 or None, got {self.revive_until}")


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one split: x [N, D] and the domain of each, [N]."""

    x: Tensor
    domain: Tensor

    def to(self, device: torch.device) -> Rows:
        """The same rows on a device."""
        return Rows(self.x.to(device), self.domain.to(device))


class DictionaryMoETask:
    """Loss, metrics and dead-atom revival of a dictionary mixture; rows stay on the device.

    Args:
        model: built, and initialized if so wished.
        train: rows to learn from.
        validation: rows to evaluate.
        objective: what is minimized.
        runtime: ranks and device; the global batch is split evenly over ranks.
        batch_size: rows a step over all ranks.
        seed: of the order of rows.
    """

    capturable = True

    def __init__(
        self,
        model: DictionaryMoE,
        train: Rows,
        validation: Rows,
        objective: ObjectiveOptions,
        runtime: Runtime,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        if objective.contrastive and model.head is None:
            raise ValueError("objective.contrastive: expected 0 for a model without a head (model.head)")
        if not 1 <= batch_size <= train.x.shape[0] or batch_size % runtime.world_size:
            raise ValueError(
                f"batch_size: expected a multiple of {runtime.world_size} ranks in [1, {train.x.shape[0]}] "
                f"training rows, got {batch_size}"
            )
        self.model = model
        self._splits = {
            name: rows.to(runtime.device) for name, rows in (("train", train), ("validation", validation))
        }
        self._objective, self._runtime, self._batch_size, self._seed = objective, runtime, batch_size, seed
        self._noise = objective.noise * float(train.x.square().mean().sqrt())
        options = model.options
        self._used = torch.zeros(
            len(options.sparsities), options.atoms, dtype=torch.bool, device=runtime.device
        )

    def parameter_groups(self) -> ParameterGroups:
        """The encoder's step sizes, which learn at a rate of their own, and all other parameters."""
        step = self.model.experts.encoder.log_step
        others = [p for p in self.model.parameters() if p.requires_grad and p is not step]
        return [{"params": others}, {"params": [step], "lr_scale": self._objective.step_lr_scale}]

    def batches(self, epoch: int, start: int) -> Iterator[Tensor]:
        """Row indices of this rank's micro-batches; the last, smaller batch of an epoch is left out."""
        rows = self._splits["train"].x.shape[0]
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(self._seed * 1_000_003 + epoch))
        order = order.to(self._runtime.device)
        size = self._batch_size // self._runtime.world_size
        for index in range(start, rows // self._batch_size):
            first = index * self._batch_size + self._runtime.rank * size
            yield order[first : first + size]

    def step(self, model: nn.Module, batch: Tensor, micro: int) -> StepResult:
        """Loss of the rows with these indices."""
        train = self._splits["train"]
        x_BD, domain_B = train.x[batch], train.domain[batch]
        if self._objective.noise:
            x_BD = x_BD + self._noise * torch.randn_like(x_BD)
        output: DictionaryMoEOutput = model(x_BD)
        loss, metrics = self._loss(x_BD, domain_B, output)
        self._note_use(output)
        rows = x_BD.new_full((), x_BD.shape[0])
        return StepResult(loss_sum=loss * rows, weight=rows, metrics={"loss": loss.detach(), **metrics})

    def _loss(
        self, x_BD: Tensor, domain_B: Tensor, output: DictionaryMoEOutput
    ) -> tuple[Tensor, dict[str, Tensor]]:
        objective, dim = self._objective, x_BD.shape[1]
        if objective.kind == "mixture":
            cost_B = losses.mixture_cost(output.cost, output.logits)
        else:
            cost_B = losses.expected_cost(output.cost, output.probabilities)
        fit = cost_B.mean() / dim
        loss, metrics = fit, {"fit": fit.detach()}
        terms: dict[str, Callable[[], Tensor]] = {
            "balance": lambda: losses.load_balance(output.probabilities),
            "coherence": lambda: losses.coherence(self.model.experts.atoms),
        }
        if output.projection is not None:
            projection_BP = output.projection
            terms["contrastive"] = lambda: losses.contrastive_margin(
                projection_BP, domain_B, objective.margin
            )
        for name, term in terms.items():
            weight = getattr(objective, name)
            if weight:
                value = term()
                loss = loss + weight * value
                metrics[name] = value.detach()
        return loss, metrics

    @torch.no_grad()
    def _note_use(self, output: DictionaryMoEOutput) -> None:
        """Marks the atoms that rows used in the expert of their choice."""
        chosen_B = self.model.choose(output)
        rows_B = torch.arange(chosen_B.shape[0], device=chosen_B.device)
        active_BM = (output.codes[chosen_B, rows_B] != 0).to(output.codes.dtype)
        # A product, as adding row by row makes all rows of an expert wait for each other.
        active_EM = nn.functional.one_hot(chosen_B, self._used.shape[0]).to(active_BM.dtype).T @ active_BM
        self._used |= active_EM > 0

    def after_step(self, step: int) -> None:
        """Unit atoms after every step; from time to time new ones for those that were never used."""
        self.model.experts.normalize_atoms()
        every, until = self._objective.revive_every, self._objective.revive_until
        if every and step % every == 0 and (until is None or step <= until):
            self._revive(step)

    @torch.no_grad()
    def _revive(self, step: int) -> None:
        """Points unused atoms of an expert at the residuals of its own worst rows."""
        used_EM = self._runtime.reduce_sum(self._used.float()) > 0
        self._used.zero_()
        x_BD = self._splits["train"].x
        codes_EBM, each_EBD = self.model.experts(x_BD)
        residual_EBD = x_BD - each_EBD
        chosen_B = self.model.cost(residual_EBD.square().sum(-1).mT).argmin(-1)
        for expert in range(used_EM.shape[0]):
            dead = (~used_EM[expert]).nonzero().squeeze(-1)
            own_RD = residual_EBD[expert][chosen_B == expert]
            own_RD = own_RD[own_RD.norm(dim=1) > 0]
            count = min(dead.numel(), own_RD.shape[0])
            if count:
                worst = own_RD.square().sum(-1).sort(descending=True, stable=True).indices[:count]
                self.model.experts.replace_atoms(expert, dead[:count], own_RD[worst])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """FVU of the chosen expert, the gate's first, the cheapest of all, the mixture; and the mixture's cost."""
        x_BD = self._splits[split].x
        output: DictionaryMoEOutput = model(x_BD)
        total = (x_BD - self._splits["train"].x.mean(0)).square().sum()

        def share(chosen_B: Tensor) -> float:
            return float(output.residuals.gather(1, chosen_B[:, None]).sum() / total)

        return {
            "fvu": share(self.model.choose(output)),
            "fvu_gate": share(output.weights.argmax(-1)),
            "fvu_best_expert": share(output.cost.argmin(-1)),
            "fvu_mixture": float((x_BD - output.reconstruction).square().sum() / total),
            "cost": float(losses.mixture_cost(output.cost, output.logits).mean() / x_BD.shape[1]),
        }

    def after_control(self, metrics: dict[str, float]) -> None:
        """Nothing is controlled."""

    def state_dict(self) -> dict[str, Any]:
        """Atoms used since the last revival."""
        return {"used": self._used}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over `state_dict`."""
        self._used = state["used"].to(self._runtime.device).bool()
