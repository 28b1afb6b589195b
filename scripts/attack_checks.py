"""Test the growth checks with corrupted tensors, and with correct growths that are hard to tell from wrong ones.

    python scripts/attack_checks.py                     (2,000 of each; a few minutes on one core)
    python scripts/attack_checks.py --corruptions 500 --growths 0 --json FILE

The checks must find every corruption, unless the growth map says that the entry is drawn at random or the change
is no larger than rounding. They must pass every correct growth. The exit code is 1 if either fails.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from growlm.growth import Deepen, GrowthRng, MultiplyExperts, Operator, Upcycle, Widen
from growlm.growth.grow_model import apply_growth, build_growth_map
from growlm.growth.growth_map import GrowthMap, TensorMap
from growlm.model import ModelConfig, TransformerLM
from growlm.model.keyed_rng import keyed_generator, keyed_normal
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.verification import detailed_growth_check
from growlm.verification.weights import check_weight_integrity

FAMILIES: list[dict[str, Any]] = [
    {"norm": "layernorm", "feed_forward": "gelu", "bias": True},
    {"norm": "rmsnorm", "feed_forward": "swiglu", "bias": False},
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ROUNDING = 6
"""Changes of up to this many `eps`, relative to the largest entry of the tensor, count as rounding."""
CORRUPTIONS_PER_GROWTH = 20
SEED, BOUNDARY = 5, 1


def random_config(rng: random.Random) -> ModelConfig:
    """Return the config of a random tiny model."""
    mixture = {"num_experts": 4, "top_k": 2, "router_bias_step": rng.choice([0.0, 0.01])}
    return ModelConfig(
        vocab_size=23, d_model=16, n_layers=2, n_heads=4, n_kv_heads=rng.choice([1, 2, 4]),
        head_dim=4, d_ff=24, max_seq_len=32, tie_embeddings=rng.random() < 0.5,
        **rng.choice(FAMILIES), **(mixture if rng.random() < 0.4 else {}),
    )  # fmt: skip


def build(config: ModelConfig, dtype: torch.dtype, rng: random.Random) -> TransformerLM:
    """Build a model in which no parameter is exactly 0 or 1."""
    model = TransformerLM(config, rng.randrange(1000))
    std = rng.choice([0.002, 0.05])
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.add_(keyed_normal(tuple(tensor.shape), "attack", name), alpha=std)
    return model.to(dtype).eval()


def random_operator(rng: random.Random, noise: float | None = None) -> Operator:
    """Return a random operator with random settings; it may not fit the model."""
    noise_std = rng.choice([0.0, 1e-3, 1e-2, 0.1]) if noise is None else noise
    kind = rng.choice(["widen", "widen", "fresh", "upcycle", "deepen", "experts"])
    if kind == "widen":
        sizes: dict[str, Any] = rng.choice(
            [{"scale_factor": f} for f in (1.5, 2, 2, 3, 7)] + [{"d_ff": 40}, {"d_model": 40}]
        )
        level = {"noise_snr_db": 10.0} if rng.random() < 0.2 else {"noise_std": noise_std}
        filler, split = rng.choice(["random", "zeros"]), rng.choice(["equal", "equal", "1:2"])
        return Widen(**sizes, **level, filler=filler, split=split)
    if kind == "fresh":
        return Widen(scale_factor=rng.choice([1.5, 2, 3]), new_channels="fresh")
    if kind == "upcycle":
        router = rng.choice(["normal", "normal", "zeros"])
        finer = 1 if router == "zeros" else rng.choice([1, 1, 2])
        dropped = rng.choice([0.0, 0.0, 0.5])
        return Upcycle(4, granularity=finer, router_init=router, drop_fraction=dropped)
    if kind == "deepen":
        placement = rng.choice(["append", "stack", "interleave"])
        init = rng.choice(["identity", "fresh", "copy"])
        return Deepen(rng.choice([1, 2]), placement, init)
    return MultiplyExperts(rng.choice([2, 3]), rng.choice([None, None, 2]), noise_std)


@dataclass
class Grown:
    """A finished growth: both models and how the new one was made."""

    old: TransformerLM
    new: TransformerLM
    growth_map: GrowthMap
    operators: list[Operator]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.dtype}, {self.operators}, {self.old.config}"


def random_operators(config: ModelConfig, rng: random.Random) -> list[Operator]:
    """Return one to three random operators that fit the model."""
    while True:
        operators = [random_operator(rng) for _ in range(rng.choice([1, 1, 2, 3]))]
        try:
            grown = build_growth_map(config, operators)
        except UserError:
            continue
        if grown.new_config.d_model <= 200 and not _redraws_twice(operators):
            return operators


def _redraws_twice(operators: list[Operator]) -> bool:
    """Return whether one growth draws units twice; which entries are random is then unknown without the seed."""
    drops = [i for i, o in enumerate(operators) if isinstance(o, Upcycle) and o.drop_fraction]
    return any(
        (isinstance(operator, Widen) and operator.new_channels == "fresh")
        or (isinstance(operator, Deepen) and operator.init == "fresh")
        for operator in operators[: max(drops, default=0)]
    )


@lru_cache(maxsize=2)
def random_growth(index: int, dtypes: tuple[torch.dtype, ...]) -> Grown:
    """Return the random growth with this index."""
    rng = random.Random(f"growth {index}")
    dtype = dtypes[index % len(dtypes)]
    config = random_config(rng)
    operators = random_operators(config, rng)
    old = build(config, dtype, rng)
    growth_map = build_growth_map(config, operators)
    new = apply_growth(old, growth_map, GrowthRng(SEED, BOUNDARY))
    return Grown(old, new, growth_map, operators, dtype)


CORRUPTIONS = (
    "entry off by a deviation", "entry of another sign", "entry zero", "entry huge", "row of another sign",
    "row zero", "row scaled", "rows swapped", "entry NaN", "entry infinite",
)  # fmt: skip


def corrupt(tensor: Tensor, kind: str, rng: random.Random) -> Tensor:
    """Return a corrupted copy of a tensor."""
    tensor = tensor.clone()
    flat = tensor.view(-1)
    rows = tensor.view(-1, tensor.shape[-1]) if tensor.ndim > 1 else tensor.view(-1, 1)
    entry, row, other = (
        rng.randrange(len(flat)),
        rng.randrange(len(rows)),
        rng.randrange(len(rows)),
    )
    spread = float(tensor.float().std()) or 1.0
    if kind == "entry off by a deviation":
        flat[entry] += rng.choice([-1, 1]) * rng.uniform(0.2, 3.0) * spread
    elif kind == "entry of another sign":
        flat[entry] *= -1
    elif kind == "entry zero":
        flat[entry] = 0
    elif kind == "entry huge":
        flat[entry] = torch.finfo(tensor.dtype).max / 8
    elif kind == "row of another sign":
        rows[row] *= -1
    elif kind == "row zero":
        rows[row] = 0
    elif kind == "row scaled":
        rows[row] *= rng.choice([0.5, 1.5, 2.0])
    elif kind == "rows swapped":
        rows[[row, other]] = rows[[other, row]]
    else:
        flat[entry] = torch.nan if kind == "entry NaN" else torch.inf
    return tensor


OUTCOMES = ("found", "free", "noise", "rounding", "missed")


@dataclass(frozen=True)
class Attack:
    """A corruption and its outcome."""

    kind: str
    tensor: str
    outcome: str
    """`found`; `free`: the entry is random; `noise`: the change still cancels; `rounding`; or `missed`."""
    growth: Grown


def attack(index: int, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)) -> Attack:
    """Corrupt a random tensor of a growth and run the check on it."""
    grown = random_growth(index // CORRUPTIONS_PER_GROWTH, dtypes)
    rng = random.Random(f"corruption {index}")
    state = grown.new.state_dict()
    name, kind = rng.choice(list(state)), rng.choice(CORRUPTIONS)
    right = state[name].clone()
    wrong = corrupt(right, kind, rng)
    state[name].copy_(wrong)
    try:
        report = check_weight_integrity(grown.old, grown.new, growth_map=grown.growth_map)
    finally:
        state[name].copy_(right)
    outcome = "found" if not report else _excuse(grown, name, right, wrong)
    return Attack(kind, name, outcome, grown)


def _excuse(grown: Grown, name: str, right: Tensor, wrong: Tensor) -> str:
    tensor_map = grown.growth_map.tensors[name]
    change = wrong.double() - right.double()
    if not change.isfinite().all():
        return "missed"
    shape = () if tensor_map.source is None else grown.growth_map.old_shapes[tensor_map.source]
    change[tensor_map.unconstrained_entries(shape, GrowthRng(SEED, BOUNDARY))] = 0
    rounding = ROUNDING * torch.finfo(right.dtype).eps * float(right.abs().max())
    for outcome, left in (("free", change), ("noise", _without_noise(tensor_map, change))):
        if float(left.abs().max()) == 0:
            return outcome
        if float(left.abs().max()) <= rounding:
            return "rounding" if outcome == "free" else outcome
    return "missed"


def _without_noise(tensor_map: TensorMap, change: Tensor) -> Tensor:
    """Return the change summed over copies that differ by noise, because any noise that cancels is valid."""
    for index, transform in enumerate(tensor_map.transforms):
        later = tensor_map.transforms[index + 1 :]
        inserted = sum(getattr(after, "inserts_dim", False) for after in later)
        for dim in range(change.ndim):
            if transform.adds_noise_along(dim) and not any(
                after.selects_along(dim) for after in later
            ):
                channels = transform.channels
                fillers = change.index_select(
                    dim + inserted, channels.is_filler.nonzero().flatten()
                )
                sums = channels.sum_copies(change, dim + inserted)
                change = torch.cat((sums, fillers), dim + inserted)
    return change


HARD = (
    "plain",
    "weights x0.01",
    "weights x100",
    "constant matrices",
    "ties",
    "noise 1",
    "large weights, noise 1",
)


def right_growth(index: int) -> tuple[str, Grown, Any]:
    """Return a correct growth that is hard to tell from a wrong one, with its kind and its report."""
    rng = random.Random(f"right {index}")
    kind, dtype = HARD[index % len(HARD)], DTYPES[index // len(HARD) % len(DTYPES)]
    while True:
        config = random_config(rng)
        noise = 1.0 if "noise" in kind else None
        operators = [random_operator(rng, noise) for _ in range(rng.choice([1, 1, 2]))]
        try:
            growth_map = build_growth_map(config, operators)
        except UserError:
            continue
        if growth_map.new_config.d_model <= 200:
            break
    old = build(config, dtype, rng)
    change_weights(old, kind, rng)
    new = apply_growth(old, growth_map, GrowthRng(SEED, BOUNDARY))
    probe = torch.randint(
        config.vocab_size, (2, 12), generator=keyed_generator("attack probe", index)
    )
    report = detailed_growth_check(
        old_model=old, new_model=new, probe=probe, device="cpu", growth_map=growth_map
    )
    return kind, Grown(old, new, growth_map, operators, dtype), report


@torch.no_grad()
def change_weights(model: TransformerLM, kind: str, rng: random.Random) -> None:
    """Change the weights of the old model as the kind says."""
    factor = {"weights x0.01": 0.01, "weights x100": 100.0, "large weights, noise 1": 10.0}.get(
        kind
    )
    for name, tensor in model.state_dict().items():
        if factor is not None and tensor.ndim > 1:
            tensor *= factor
        # With equal router rows and different experts, multiplying experts is not lossless.
        can_be_constant = tensor.ndim > 1 and "router" not in name
        if kind == "constant matrices" and can_be_constant and rng.random() < 0.5:
            tensor.fill_(rng.choice([0.0, 0.02, -0.3]))
        if kind == "ties" and "experts" in name:
            tensor.copy_(tensor[:1].expand_as(tensor))  # equal experts, as after upcycling
        if kind == "ties" and "router" in name:
            tensor[1::2] = tensor[::2]


def attacks(count: int) -> Iterator[Attack]:
    """Return the given number of corruptions."""
    return (attack(index) for index in range(count))


def main() -> int:
    """Run both tests, print the tables, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corruptions", type=int, default=2000)
    parser.add_argument("--growths", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console()
    outcomes: Counter[tuple[str, str]] = Counter()
    for result in attacks(arguments.corruptions):
        outcomes[result.kind, result.outcome] += 1
        if result.outcome == "missed":
            console.print(
                f"missed: {result.kind} in {result.tensor} of {result.growth}", markup=False
            )
    failed: Counter[tuple[str, str]] = Counter()
    for index in range(arguments.growths):
        kind, grown, report = right_growth(index)
        failed[kind, "right"] += 1
        for name, check in report.checks.items():
            if not check:
                failed[kind, "failed"] += 1
                console.print(
                    f"failed: {index} {kind}: {name}: {check.summary}; {grown}", markup=False
                )
    _print(console, "corruption", outcomes, OUTCOMES)
    _print(console, "right growth", failed, ("right", "failed"))
    if arguments.json:
        counts = {
            f"{kind}: {what}": n
            for table in (outcomes, failed)
            for (kind, what), n in table.items()
        }
        arguments.json.write_text(json.dumps(counts, indent=2) + "\n")
    return int(
        any(n for (_, what), n in (outcomes + failed).items() if what in ("missed", "failed"))
    )


def _print(
    console: Console, title: str, counts: Counter[tuple[str, str]], columns: tuple[str, ...]
) -> None:
    table = Table(title, *columns)
    for kind in dict.fromkeys(kind for kind, _ in counts):
        table.add_row(kind, *(str(counts[kind, column]) for column in columns))
    totals = [sum(n for (_, what), n in counts.items() if what == column) for column in columns]
    table.add_row("all", *map(str, totals))
    console.print(table)


if __name__ == "__main__":
    run_main_and_exit(main)
