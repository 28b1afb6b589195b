"""Folders of runs with made-up figures: as many steps as wanted, in milliseconds."""

import json
import math

import yaml

PHASES = ("dense", "moe", "wide", "deep")
GROW = {
    "moe": {"upcycle": {"num_experts": 8, "top_k": 2}},
    "wide": {"widen": {"scale_factor": 1.5, "noise_std": 0.01}},
    "deep": {"deepen": {"extra_layers": 2, "init": "identity"}},
}
SUMMARIES = {"moe": "8 experts", "wide": "×1.5 wider", "deep": "+2 layers"}


def write_run(folder, steps=40, name="quickstart", finished=True, layers=2, speed=1.0, **config):
    """`steps` in each of four phases; `speed` divides what they cost."""
    (folder / "checkpoints").mkdir(parents=True)
    settings = {"name": name, "seed": 0, "growth": {"noise_std": 0.01}, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    plan = [
        {
            "name": phase,
            "total_parameters": 10**6 * (i + 1),
            "active_parameters": 10**6,
            "steps": steps,
        }
        for i, phase in enumerate(PHASES)
    ]
    (folder / "plan.json").write_text(json.dumps(plan))
    lines = [line for i in range(len(PHASES)) for line in _phase(i, steps, layers, speed)]
    write_history(folder, lines)
    (folder / "boundaries.json").write_text(json.dumps([_boundary(i) for i in (1, 2, 3)]))
    if finished:
        write_summary(folder, plan, lines)
    return folder


def write_history(folder, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "checkpoints" / "training_history.jsonl").write_text(text)


def _phase(index, steps, layers, speed):
    name = PHASES[index]
    for step in range(0, steps + 1):
        at = index * steps + step
        counters = {
            "phase": name,
            "phase_index": index,
            "step": step,
            "global_step": at,
            "tokens": at * 1000,
            "flops": int(at * 10**9 / speed),
            "time_s": at * 0.5 / speed,
        }
        loss = 1 + 6 * math.exp(-3 * at / (steps * len(PHASES))) + 0.02 * math.sin(at)
        if step in (0, steps):
            yield {"event": "validation", **counters, "val_loss": loss}
        if step:
            row = {"loss": loss, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_second": 2000.0}
            loads = {"expert_loads": [[0.125] * 8] * layers} if index else {}
            yield {**counters, **row, **loads}
    yield {"event": "phase_finished", "phase": name, "val_loss": 1.0, "sample": f"Once in {name}."}


def _boundary(index):
    check = {"status": "passed", "summary": "all is well", "figures": {}}
    layers = [
        {"layer": i, "old_layer": i, "max_difference": 1e-6, "mean_difference": 1e-7}
        for i in (0, 1)
    ]
    return {
        "from": PHASES[index - 1],
        "to": PHASES[index],
        "growth": ["Something grew"],
        "operators": [GROW[PHASES[index]]],
        "summary": SUMMARIES[PHASES[index]],
        "loss_before": 2.0,
        "loss_after": 2.0 + 1e-7 * index,
        "jump": 1e-7 * index,
        "max_logit_difference": 1e-6,
        "tolerance": 1e-4,
        "lossless": True,
        "passed": True,
        "checks": {"rope": check, "functional": {**check, "figures": {"layers": layers}}},
        "noise": {},
        "optimizer_state": "carry",
        "seconds": 0.5,
    }


def write_summary(folder, plan, lines):
    rows = [line for line in lines if "event" not in line]
    phases = [
        {
            **phase,
            "tokens": 1000 * phase["steps"],
            "flops": 10**9 * phase["steps"],
            "first_loss": 2.0,
            "final_loss": 1.5,
            "initial_val_loss": 2.0,
            "val_loss": 1.5,
            "wall_time_s": 20.0,
            "tokens_per_second": 2000.0,
            "peak_memory_bytes": 10**9,
            "sample": f"Once in {phase['name']}.",
        }
        for phase in plan
    ]
    last = rows[-1]
    summary = {
        "name": "quickstart",
        "seed": 0,
        "device": "cpu",
        "precision": "32-true",
        "wall_time_s": last["time_s"],
        "tokens": last["tokens"],
        "flops": last["flops"],
        "phases": phases,
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def page_data(path):
    """What a report's script reads."""
    text = path.read_text()
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])
