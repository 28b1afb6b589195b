"""The standalone suite: growths of small models, with the check results that each must have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from growlm.growth import Deepen, MultiplyExperts, Upcycle, Widen
from growlm.growth.grow_model import Operator, build_growth_map, grow
from growlm.growth.operators.registry import available_operators
from growlm.model.config import ModelConfig
from growlm.model.keyed_rng import keyed_generator, keyed_normal
from growlm.model.transformer import TransformerLM
from growlm.runtime.errors import UserError
from growlm.verification.check_report import GrowthReport, Status
from growlm.verification.growth_check import detailed_growth_check

_SIZES = {"vocab_size": 512, "d_model": 64, "n_layers": 3, "n_heads": 4, "d_ff": 256}
GPT_CONFIG = ModelConfig.preset("gpt", **_SIZES)
LLAMA_CONFIG = ModelConfig.preset("llama", **_SIZES, n_kv_heads=2, tie_embeddings=True)
NOISE_STDS = (0.0, 1e-5, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class SuiteCase:
    """One growth, and the statuses that its checks must have."""

    section: str
    name: str
    expected: dict[str, Status]
    """The required status by check; the other checks must not fail."""
    report: GrowthReport

    def __bool__(self) -> bool:
        statuses = {name: check.status for name, check in self.report.checks.items()}
        as_expected = all(statuses[name] is status for name, status in self.expected.items())
        rest = [s for name, s in statuses.items() if name not in self.expected]
        return as_expected and Status.FAILED not in rest


MODEL_FAMILIES = {"LayerNorm": GPT_CONFIG, "RMSNorm": LLAMA_CONFIG}


def run_suite_cases() -> Iterator[SuiteCase]:
    """Run the suite case by case, in a few seconds."""
    models, mixtures = _make_models()
    for family, model in models.items():
        section = "dense to mixture of experts"
        yield _run_case(section, f"{family}, 4 experts", model, [Upcycle(num_experts=4)])
        fine = Upcycle(num_experts=4, granularity=2)
        yield _run_case(section, f"{family}, 4 × 2 finer experts", model, [fine])
    for family, mixture in mixtures.items():
        yield _run_case("more experts", f"{family}, 4 → 8", mixture, [MultiplyExperts(2)])
    for family, mixture in mixtures.items():
        for factor in (1.5, 2.0, 3.0):
            name = f"{family}, ×{factor:g} and 2 layers"
            both: list[Operator] = [
                Widen(scale_factor=factor, new_channels="copies"),
                Deepen(extra_layers=2, init="identity"),
            ]
            yield _run_case("bilateral growth of a mixture", name, mixture, both)
        fresh: list[Operator] = [Widen(scale_factor=1.5), Deepen(extra_layers=2)]
        yield _run_case("fresh channels and blocks", f"{family}, ×1.5", mixture, fresh)
    for noise in NOISE_STDS:
        widen = Widen(scale_factor=2, noise_std=noise)
        status = Status.FINDING if noise == 0 else Status.PASSED
        name = f"standard deviation {noise:g}"
        yield _run_case("noise", name, mixtures["LayerNorm"], [widen], symmetry=status)
    yield from _run_rope_cases(models)
    yield from run_operator_cases()


def _make_models() -> tuple[dict[str, TransformerLM], dict[str, TransformerLM]]:
    """Return a dense model of each family, and a mixture of each."""
    models = {family: _make_model(config) for family, config in MODEL_FAMILIES.items()}
    mixtures = {family: grow(model, [Upcycle(num_experts=4)]) for family, model in models.items()}
    return models, mixtures


def run_operator_cases() -> Iterator[SuiteCase]:
    """Run every registered operator with its default settings, on each model that they suit."""
    models, mixtures = _make_models()
    with_experts = {f"{family}, 4 experts": mixture for family, mixture in mixtures.items()}
    for name, each in available_operators().items():
        for family, model in (models | with_experts).items():
            try:
                operator = each.operator_class()
                lossless = build_growth_map(model.config, [operator]).lossless
            except (
                TypeError,
                UserError,
            ):  # it has no default settings, or they do not suit the model
                continue
            functional = Status.PASSED if lossless else Status.FINDING
            section = f"{name} by default"
            yield _run_case(section, family, model, [operator], functional=functional)


def _run_rope_cases(models: Mapping[str, TransformerLM]) -> Iterator[SuiteCase]:
    section, model = "RoPE", models["LayerNorm"]
    yield _run_case(
        section,
        "more heads, same size: keeps",
        model,
        [Widen(scale_factor=2, new_channels="copies")],
    )
    yield _run_case(
        section, "more hidden units only: keeps", model, [Widen(d_ff=512, new_channels="copies")]
    )
    grouped = models["RMSNorm"]
    yield _run_case(
        section, "more heads in a group: keeps", grouped, [Widen(n_heads=8, new_channels="copies")]
    )
    larger_heads = replace(GPT_CONFIG, d_model=128, head_dim=32, d_ff=512)
    report = detailed_growth_check(
        old_model=model, new_model=TransformerLM(larger_heads), probe=_make_probe(), device="cpu"
    )
    broken = ("rope", "symmetry", "functional", "weights")
    expected = dict.fromkeys(broken, Status.FAILED)
    yield SuiteCase(section, "larger heads: breaks", expected, report)


def _run_case(
    section: str,
    name: str,
    model: TransformerLM,
    operators: Sequence[Operator],
    **expected: Status,
) -> SuiteCase:
    report = detailed_growth_check(
        old_model=model,
        new_model=grow(model, operators),
        probe=_make_probe(),
        device="cpu",
        growth_map=build_growth_map(model.config, operators),
    )
    statuses = dict.fromkeys(("rope", "functional", "weights"), Status.PASSED)
    statuses.update(expected)
    return SuiteCase(section, name, statuses, report)


def _make_model(config: ModelConfig) -> TransformerLM:
    """Build a model whose parameters differ from their initial values, so that none is right by being 0 or 1."""
    model = TransformerLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(keyed_normal(tuple(parameter.shape), "suite", name), alpha=0.05)
    return model


def _make_probe() -> torch.Tensor:
    return torch.randint(GPT_CONFIG.vocab_size, (2, 32), generator=keyed_generator("suite probe"))
