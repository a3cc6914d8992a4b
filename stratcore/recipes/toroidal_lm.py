"""Toroidal attention in layers of a causal language model against matched controls, over paired seeds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from stratcore.models.toroidal_lm_config import ToroidalLMOptions
from stratcore.training.optimizer import OptimizerOptions
from stratcore.training.task import Intervals, Numerics, Retention, Stage

HOST = "host"
ARMS = {
    "toroidal": "gated torus beside the host's attention",
    "open": "torus in the place of attention, the host's projections",
    "lambda_0": "gated torus, lambda frozen at 0",
    "tuned": "the host's attention, tuned alike",
    "random": "torus in the place of attention, projections drawn anew",
    "standard_random": "the host's attention, projections drawn anew",
    "fft_mixing": "circular convolution in the place of attention, which sees the future: a negative control",
}
# Arms that a torus is compared with, beside the host.
CONTROLS = {
    "toroidal": ("lambda_0", "tuned"),
    "open": ("lambda_0", "tuned"),
    "random": ("standard_random",),
}
TRAINED = ("replaced", "branches", "lora", "all")
PRECISIONS = ("float32", "bfloat16", "float16")
_NEED_PROJECTIONS = ("tuned", "random", "standard_random")


@dataclass(frozen=True, kw_only=True)
class LanguageDataOptions:
    """Texts to learn from and to foresee.

    Args:
        train: names of text sets or files, see `stratcore.data.load_texts`; a line of a .txt file is a text.
        evaluation: likewise, each scored by itself; none: a share of each training set is held out.
        rows: texts drawn from each training set; None: all.
        evaluation_rows: texts drawn from each set that is scored; None: all.
        held_out: share of a training set's texts that is held out where `evaluation` names none.
        seed: of these draws, the same for all seeds of the run.
        length: tokens of a training row.
        validation_rows: training rows that are kept for evaluation during training.
        window: tokens the model sees at once when it is scored; None: `length`.
        stride: tokens by which the window moves; None: half the window.
    """

    train: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()
    rows: int | None = None
    evaluation_rows: int | None = None
    held_out: float = 0.1
    seed: int = 0
    length: int = 256
    validation_rows: int = 16
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        least = {"length": 2, "validation_rows": 1, "rows": 1, "evaluation_rows": 1, "window": 2, "stride": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"data.{name}: expected a number >= {low}, got {value}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"data.held_out: expected a share in (0, 1), got {self.held_out}")


@dataclass(frozen=True, kw_only=True)
class ToroidalLMRun:
    """Train every arm from a fresh copy of the host on the same tokens in the same order; compare perplexities.

    Args:
        recipe: name of the recipe that this run is derived from.
        host: folder, .gguf file or hub name of a causal language model.
        host_dtype: of the host's frozen weights; trainable ones are float32.
        data: texts.
        model: layers and form of the torus; `attention` and `projections` are the arms' matter.
        arms: which to train; the host itself is always scored.
        trained: 'replaced': torus and projections of the chosen layers; 'branches': the torus alone; 'lora': torus
            and adapters of low rank on these projections; 'all'.
        branch_lr_scale: learning rate of gates, lambdas and fusions over that of the rest.
        lora_rank: of these adapters.
        transfer: steps of attention transfer before, in the arms that start away from the host; 0: none.
        transfer_lr: learning rate of it.
        seeds: each draws what is drawn, and the order of the rows; at least six make an interval worth its name.
        stage: steps, optimizer and arithmetic of the tuning.
        batch_size: rows a micro-batch.
        margin: largest rise of perplexity, in percent, that still counts as none.
        save_models: keep every trained model, with its tokenizer, in models/ARM-SEED of the run folder.
        device: 'auto' (a GPU if there is one), 'cpu' or 'cuda'.
    """

    recipe: str = "toroidal_lm"
    host: str | None = None
    host_dtype: str = "float32"
    data: LanguageDataOptions = field(default_factory=LanguageDataOptions)
    model: ToroidalLMOptions = field(default_factory=ToroidalLMOptions)
    arms: tuple[str, ...] = ("toroidal", "lambda_0", "tuned", "standard_random")
    trained: str = "replaced"
    branch_lr_scale: float = 30.0
    lora_rank: int = 8
    transfer: int = 0
    transfer_lr: float = 1e-3
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    stage: Stage
    batch_size: int = 4
    margin: float = 0.5
    save_models: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds: expected different numbers >= 0, got {self.seeds}")
        unknown = [name for name in self.arms if name not in ARMS]
        if unknown or not self.arms:
            raise ValueError(f"arms: expected some of {', '.join(ARMS)}, got {(unknown or ['none'])[0]!r}")
        for name, known in (("trained", TRAINED), ("host_dtype", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.trained == "branches" and set(self.arms) & set(_NEED_PROJECTIONS):
            raise ValueError(
                f"arms: expected none of {', '.join(_NEED_PROJECTIONS)} with trained=branches, which leaves "
                f"projections as they are, got {', '.join(self.arms)}"
            )
        if self.model.attention != "toroidal" or self.model.projections != "host":
            raise ValueError("model: expected attention and projections at their defaults; `arms` sets them")
        for name, value in (("stage.seed", self.stage.seed), ("model.seed", self.model.seed)):
            if value:
                raise ValueError(f"{name}: expected 0, the key seeds is used; got {value}")
        for name, low in (("batch_size", 1), ("lora_rank", 1), ("transfer", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}: expected a number >= {low}, got {getattr(self, name)}")
        for name in ("margin", "transfer_lr", "branch_lr_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number > 0, got {getattr(self, name)}")

    def options(self, arm: str, seed: int) -> ToroidalLMOptions:
        """The model of an arm."""
        torus = self.model.torus
        if arm == "lambda_0":
            torus = replace(torus, lambda_distance=0.0, learn_lambda=False, gate="zero")
        elif arm == "fft_mixing":
            torus = replace(torus, gate="open", depth=1, adaptive_depths=())
        elif arm != "toroidal":
            torus = replace(torus, gate="open")
        return replace(
            self.model,
            torus=torus,
            attention={"tuned": "host", "standard_random": "host", "fft_mixing": arm}.get(arm, "toroidal"),
            projections="random" if arm in ("random", "standard_random") else "host",
            seed=seed,
        )

    def starts_away(self, arm: str) -> bool:
        """Whether an arm's chosen layers differ from the host's at the start."""
        return arm in ("open", "random", "standard_random", "fft_mixing")

    def pairs(self) -> list[tuple[str, str]]:
        """Arms and the arms that they are compared with."""
        return [
            (arm, control)
            for arm in self.arms
            for control in (*CONTROLS.get(arm, ()), HOST)
            if control in (*self.arms, HOST)
        ]


def toroidal_lm() -> ToroidalLMRun:
    """Toroidal attention in layers of a language model, tuned against the same tuning without a torus."""
    stage = Stage(
        steps=200,
        accumulate=4,
        optimizer=OptimizerOptions(
            lr=1e-4, weight_decay=0.01, warmup_steps=12, schedule="cosine", clip_norm=1.0
        ),
        intervals=Intervals(log_every=20, eval_every=50),
        numerics=Numerics(precision="bf16"),
        retention=Retention(save_total_limit=1),
    )
    return ToroidalLMRun(stage=stage)
