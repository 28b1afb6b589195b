"""A training loop in double precision that grows the model on the way, as a run does at its boundaries."""

import torch

from growlm.config.schema import OptimizerConfig
from growlm.growth import GrowthRng, apply_growth, build_growth_map, grow_optimizer_state
from growlm.growth.step_scaling import AsymmetricScaling, ExactScaling, StepScaling
from growlm.optim.optimizer_factory import build_optimizer
from growlm.optim.optimizer_states import (
    check_optimizer,
    get_optimizer_states,
    restore_optimizer_states,
)
from tests.model.tiny_models import random_tokens

LR = 1e-2
OPTIMIZERS = {
    "adamw": OptimizerConfig(),
    "sgd": OptimizerConfig(
        name="sgd", momentum=0.9, beta1=None, beta2=None, eps=None, weight_decay=0.05
    ),
    "adafactor": OptimizerConfig(
        name="adafactor", beta2_decay=-0.8, beta1=None, beta2=None, eps=None
    ),
    "muon": OptimizerConfig(name="muon", momentum=0.95),
}


class Training:
    """A model, its optimizer, and what scales its steps."""

    def __init__(self, model, settings=OPTIMIZERS["adamw"], clip=1.0, lr=LR):
        self.model, self.settings, self.clip, self.lr = model, settings, clip, lr
        self.scaling, self.factors, self.done, self.norms = StepScaling(), {}, 0, []
        self._begin({})

    def _begin(self, states):
        self.optimizer = build_optimizer(self.model, self.settings, self.lr, self.scaling.lr_factor)
        self.scaling.scale_state(states)
        restore_optimizer_states(self.model, [self.optimizer], states)
        check_optimizer(self.model, self.optimizer)

    def steps(self, count):
        for _ in range(count):
            batch = random_tokens(self.model.config, batch=4, time=9, seed=100 + self.done)
            routings = []
            loss = self.model.loss(batch, routings)
            if routings:
                loss = loss + 0.01 * torch.stack([r.balance_loss() for r in routings]).mean()
            loss.backward()
            self.norms.append(
                float(self.scaling.before_step(self.model, self.optimizer, self.clip))
            )
            self.optimizer.step()
            self.scaling.after_step()
            self.model.zero_grad(set_to_none=True)
            self.done += 1
        return self

    def grow(self, operators, mode, peak=1.3, warmup=5):
        growth_map = build_growth_map(self.model.config, operators)
        states = get_optimizer_states(self.model, [self.optimizer])
        self.model = apply_growth(self.model, growth_map, GrowthRng(0))
        self.scaling.unscale_state(states)
        with torch.no_grad():
            states = grow_optimizer_state(growth_map, states, mode)
        if mode == "exact":
            self.factors = growth_map.scale_factors(self.factors)
            self.scaling = ExactScaling(self.factors)
        elif mode == "asymmetric":
            betas = None if self.settings.beta1 is None else (0.9, 0.95)
            self.factors = {}
            self.scaling = AsymmetricScaling(growth_map.scale_factors(), peak, warmup, betas)
        else:
            self.factors, self.scaling = {}, StepScaling()
        self._begin(states)
        return self
