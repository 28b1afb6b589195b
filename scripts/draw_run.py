"""Draw a run that grows, as a figure and as an animation: its loss, and below it the parameters.

    python scripts/draw_run.py RUN_DIR                 writes docs/images/growth.svg and growth_animated.svg
    python scripts/draw_run.py RUN_DIR --out FOLDER

Both are SVG: they are sharp at any size, follow the reader's light or dark mode, and need no program to be drawn.
All numbers are those of the run's own files. Below the animation stand samples of the text that each phase's model
writes; it stands still where the reader asks for reduced motion.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from growlm.reporting.reading.run_files import Run, read_run
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.number_format import format_jump, format_large_count, format_loss

ROOT = Path(__file__).resolve().parents[1]
WIDTH, LEFT, RIGHT = 860, 64, 24
LOSS_TOP, LOSS_BOTTOM, HEAD = 104, 300, 58
SIZE_TOP, SIZE_BOTTOM = 322, 424
SAMPLE_TOP, SAMPLE_LINES, SAMPLE_CHARACTERS = 482, 4, 98
SECONDS, HOLD_SECONDS = 14.0, 5.0
"""Length of the animation, and how long it stands at its end."""
BEYOND = 10
"""Pixels that the sheet of the animation moves on, so that the last point is whole."""
STYLE = """
svg { --text: #1c2330; --muted: #5b6675; --grid: #e0e4ea; --surface: #ffffff; --even: #f3f5f9; --odd: #e7ecf3;
  --training: #0072b2; --validation: #d55e00; --parameters: #008560; --bad: #b3261e; --growth: #6b7482;
  font: 13px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
@media (prefers-color-scheme: dark) { svg { --text: #e4e8ee; --muted: #9aa5b4; --grid: #2c3440; --surface: #12161c;
  --even: #1a2029; --odd: #232b36; --training: #56b4e9; --validation: #f0883e; --parameters: #3ecf9f;
  --bad: #ff9b92; --growth: #8d98a7; } }
text { fill: var(--text); } .muted { fill: var(--muted); } .small { font-size: 12px; }
.title { font-size: 16px; font-weight: 600; } .name { font-weight: 600; } .end { text-anchor: end; }
.middle { text-anchor: middle; } .surface { fill: var(--surface); } .even { fill: var(--even); }
.odd { fill: var(--odd); } .grid { stroke: var(--grid); } .growth { stroke: var(--growth); stroke-dasharray: 3 3; }
.training { stroke: var(--training); } .validation { stroke: var(--validation); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.thin { fill: none; stroke-dasharray: 2 3; } .dot { fill: var(--validation); }
.total { stroke: var(--parameters); stroke-width: 2; } .area { fill: var(--parameters); opacity: 0.14; }
.active { stroke: var(--parameters); stroke-width: 2; stroke-dasharray: 5 3; } .bad { fill: var(--bad); }
.key-training { fill: var(--training); } .key-validation { fill: var(--validation); }
.key-parameters { fill: var(--parameters); }
.sample { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 12.5px; white-space: pre; }
"""


@dataclass(frozen=True)
class DrawnPhase:
    """Phase of the run, with what the figure shows of it."""

    name: str
    start: int
    """Step of the run before its first one."""
    end: int
    total: int
    """Parameters."""
    active: int
    """Parameters that one token uses."""
    grown: str
    """Summary of the growth before it; empty for the first phase."""
    jump: float | None
    passed: bool
    sample: str


def read_phases(run: Run) -> list[DrawnPhase]:
    """Return the phases of a run that trained.

    Raises:
        UserError: If none did.
    """
    boundaries = {each["to"]: each for each in run.boundaries}
    samples = {each["phase"]: each.get("sample") or "" for each in run.history.finished_phases}
    models = {each["name"]: each for each in run.plan}
    phases: list[DrawnPhase] = []
    for name in dict.fromkeys(row["phase"] for row in run.history.rows):
        steps = [row["global_step"] for row in run.history.rows if row["phase"] == name]
        boundary = boundaries.get(name, {})
        start = phases[-1].end if phases else 0
        size = models[name]
        phases.append(
            DrawnPhase(
                name,
                start,
                max(steps),
                size["total_parameters"],
                size["active_parameters"],
                boundary.get("summary", ""),
                boundary.get("jump"),
                bool(boundary.get("passed", True)),
                samples.get(name, ""),
            )
        )
    if not phases:
        raise UserError(
            "RUN_DIR", run.folder, "has no training history; give the folder of a run that trained"
        )
    return phases


class Axis:
    """Linear or logarithmic scale from values to pixels."""

    def __init__(self, low: float, high: float, first: float, last: float, log: bool = False):
        """Map `low` to the pixel `first` and `high` to `last`."""
        self.low, self.high, self.first, self.last = low, high, first, last
        self._scale = math.log if log else float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, at = (self._scale(each) for each in (self.low, self.high, value))
        return round(self.first + (at - low) / (high - low) * (self.last - self.first), 2)


def draw(run: Run, animated: bool) -> str:
    """Return the SVG."""
    phases = read_phases(run)
    rows = [row for row in run.history.rows if math.isfinite(row["loss"])]
    validations = [row for row in run.history.validations if math.isfinite(row["val_loss"])]
    losses = [row["loss"] for row in rows] + [row["val_loss"] for row in validations]
    x = Axis(0, phases[-1].end, LEFT, WIDTH - RIGHT)
    y = Axis(min(losses) * 0.94, max(losses) * 1.06, LOSS_BOTTOM, LOSS_TOP, log=True)
    most = max(phase.total for phase in phases)
    size = Axis(0, most * 1.15, SIZE_BOTTOM, SIZE_TOP)
    height = SAMPLE_TOP + 18 * SAMPLE_LINES + 12 if animated else SIZE_BOTTOM + 40
    first, last = rows[0]["loss"], rows[-1]["loss"]
    described = (
        f"The loss of one training run falls from {format_loss(first)} to {format_loss(last)} while its model "
        f"grows from {format_large_count(phases[0].total)} to {format_large_count(phases[-1].total)} parameters "
        f"in {len(phases)} phases."
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="{escape(described)}">',
        f"<style>{STYLE}{_motion(phases) if animated else ''}</style>",
        f'<rect class="surface" width="{WIDTH}" height="{height}" rx="8"/>',
        _text(LEFT, 28, "One run, and a model that grows while it trains", "title"),
        *_key(),
        *_bands(phases, x),
        *_loss_axis(y),
        *_size_axis(size, most),
        *_step_axis(phases[-1].end, x),
        _path([(x(row["global_step"]), y(row["loss"])) for row in rows], "line training"),
        *_validation(validations, x, y),
        *_sizes(phases, x, size),
    ]
    if animated:
        parts += _cover(phases, x)
        parts += _samples(phases)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, words: str, classes: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{classes}">{escape(words)}</text>'


def _path(points: Sequence[tuple[float, float]], classes: str) -> str:
    joined = " L".join(f"{px:g},{py:g}" for px, py in points)
    return f'<path class="{classes}" d="M{joined}"/>'


def _key() -> list[str]:
    items = (
        ("training loss", "training"),
        ("validation loss", "validation"),
        ("parameters", "parameters"),
    )
    place, parts = WIDTH - RIGHT, []
    for words, name in reversed(items):
        parts.append(_text(place, 28, words, f"end small key-{name}"))
        place -= round(6.1 * len(words)) + 20
    return parts


def _bands(phases: Sequence[DrawnPhase], x: Axis) -> Iterator[str]:
    for index, phase in enumerate(phases):
        left, right = x(phase.start), x(phase.end)
        kind = "odd" if index % 2 else "even"
        box = f'x="{left}" width="{right - left:g}" class="{kind}"'
        yield f'<rect y="{LOSS_TOP - HEAD}" height="{LOSS_BOTTOM - LOSS_TOP + HEAD}" {box}/>'
        yield f'<rect y="{SIZE_TOP}" height="{SIZE_BOTTOM - SIZE_TOP}" {box}/>'
        yield _text(left + 6, LOSS_TOP - HEAD + 18, phase.name, "name")
        yield _text(left + 6, LOSS_TOP - HEAD + 34, phase.grown or "the first model", "small")
        if phase.jump is not None:
            words = f"jump {format_jump(phase.jump)}" if phase.passed else "check failed"
            kind = "small muted" if phase.passed else "small bad"
            yield _text(left + 6, LOSS_TOP - HEAD + 50, words, kind)
            yield f'<path class="growth" d="M{left},{LOSS_TOP - HEAD} V{SIZE_BOTTOM}"/>'


def _loss_axis(y: Axis) -> Iterator[str]:
    yield _text(LEFT - 10, LOSS_TOP - HEAD + 18, "loss", "end muted small")
    ticks = [each for each in (0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10) if y.low <= each <= y.high]
    for tick in ticks:
        yield f'<path class="grid" d="M{LEFT},{y(tick)} H{WIDTH - RIGHT}"/>'
        yield _text(LEFT - 10, y(tick) + 4, f"{tick:g}", "end muted small")


def _size_axis(size: Axis, most: int) -> Iterator[str]:
    step = 10 ** math.floor(math.log10(most))
    step = next(each for each in (step / 2, step, 2 * step, 5 * step) if most / each <= 4)
    for index in range(int(most / step) + 1):
        at = size(index * step)
        yield f'<path class="grid" d="M{LEFT},{at} H{WIDTH - RIGHT}"/>'
        words = format_large_count(index * step) if index else "0"
        yield _text(LEFT - 10, at + 4, words, "end muted small")


def _step_axis(steps: int, x: Axis) -> Iterator[str]:
    apart = next(
        each for each in (10, 20, 50, 100, 200, 500, 1000, 5000, 10**9) if steps / each <= 8
    )
    for step in range(0, steps + 1, apart):
        yield _text(x(step), SIZE_BOTTOM + 18, f"{step:,}", "middle muted small")
    yield _text(WIDTH - RIGHT, SIZE_BOTTOM + 34, "step", "end muted small")


def _validation(rows: Sequence[dict[str, Any]], x: Axis, y: Axis) -> Iterator[str]:
    points = [(x(row["global_step"]), y(row["val_loss"])) for row in rows]
    if points:
        yield _path(points, "thin validation")
    for px, py in points:
        yield f'<circle class="dot" cx="{px}" cy="{py}" r="4"/>'


def _sizes(phases: Sequence[DrawnPhase], x: Axis, size: Axis) -> Iterator[str]:
    total, active = ([], [])  # type: tuple[list[tuple[float, float]], list[tuple[float, float]]]
    for phase in phases:
        for points, count in ((total, phase.total), (active, phase.active)):
            points += [(x(phase.start), size(count)), (x(phase.end), size(count))]
    area = [(LEFT, SIZE_BOTTOM), *total, (total[-1][0], SIZE_BOTTOM)]
    yield _path(area, "area")
    yield _path(total, "line total")
    yield _path(active, "line active")
    for phase in phases:
        words = format_large_count(phase.total)
        yield _text(x(phase.start) + 6, size(phase.total) - 6, words, "small name")
        if phase.active != phase.total:
            words = f"{format_large_count(phase.active)} active"
            yield _text(x(phase.start) + 6, size(phase.active) - 5, words, "small muted")


def _moment(step: int, steps: int) -> float:
    """Return when the animation is at a step, in percent of its length."""
    return 100 * (1 - HOLD_SECONDS / SECONDS) * step / steps


def _motion(phases: Sequence[DrawnPhase]) -> str:
    steps, moved = phases[-1].end, WIDTH - LEFT - RIGHT
    end = _moment(steps, steps)
    rules = [
        f"@keyframes advance {{ 0% {{ transform: translateX(-{moved}px); }} "
        f"{end:.2f}%, 100% {{ transform: translateX({BEYOND}px); }} }}",
        f".cover {{ animation: advance {SECONDS}s linear infinite; }}",
    ]
    for index, phase in enumerate(phases):
        begin = _moment(phase.end, steps)
        is_last = index + 1 == len(phases)
        until = 100.0 if is_last else _moment(phases[index + 1].end, steps)
        hidden, shown = "{ opacity: 0; }", "{ opacity: 1; }"
        after = "" if is_last else f" {until:.2f}%, 100% {hidden}"
        before = f"0%, {max(begin - 0.01, 0):.2f}% {hidden}"
        rules.append(
            f"@keyframes say{index} {{ {before} {begin:.2f}%, {until - 0.01:.2f}% {shown}{after} }}"
        )
        rules.append(
            f".say{index} {{ opacity: {int(is_last)}; animation: say{index} {SECONDS}s linear infinite; }}"
        )
    rules.append(
        "@media (prefers-reduced-motion: reduce) { .cover, [class^=say] { animation: none; } }"
    )
    return "\n".join(rules) + "\n"


def _cover(phases: Sequence[DrawnPhase], x: Axis) -> list[str]:
    """Hide what is to come: a sheet of the background's color that moves to the right."""
    right, top = WIDTH - RIGHT, LOSS_TOP - HEAD
    box = f'width="{WIDTH - LEFT - RIGHT}" class="surface"'
    return [
        f'<clipPath id="plots"><rect x="{LEFT}" y="{top}" width="{right - LEFT + 6}" '
        f'height="{SIZE_BOTTOM - top}"/></clipPath>',
        f'<g clip-path="url(#plots)"><g class="cover" transform="translate({BEYOND} 0)">',
        f'<rect x="{right}" y="{top}" height="{SIZE_BOTTOM - top}" {box}/>',
        f'<path class="growth" d="M{right},{top} V{SIZE_BOTTOM}"/>',
        "</g></g>",
    ]


def _samples(phases: Sequence[DrawnPhase]) -> Iterator[str]:
    for index, phase in enumerate(phases):
        yield f'<g class="say{index}">'
        words = f"What the model of {format_large_count(phase.total)} parameters writes after phase {phase.name}:"
        yield _text(LEFT, SAMPLE_TOP, words, "small muted")
        for line, text in enumerate(wrap(phase.sample)):
            yield _text(LEFT, SAMPLE_TOP + 20 + 18 * line, text, "sample")
        yield "</g>"


def wrap(text: str) -> list[str]:
    """Return the first lines of a text, on one line each paragraph's end."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > SAMPLE_CHARACTERS:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    lines.append(line)
    if len(lines) > SAMPLE_LINES - 1:
        lines = [*lines[: SAMPLE_LINES - 2], f"{lines[SAMPLE_LINES - 2]} ..."]
    return lines


def main() -> int:
    """Draw the run of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="folder of a run")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "images", help="folder to write to"
    )
    arguments = parser.parse_args()
    run = read_run(arguments.run_dir, "RUN_DIR")
    drawn = {"growth.svg": draw(run, False), "growth_animated.svg": draw(run, True)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, svg in drawn.items():
        (arguments.out / name).write_text(svg)
        print(f"wrote {arguments.out / name} ({len(svg) / 1000:.0f} kB)")
    return 0


if __name__ == "__main__":
    run_main_and_exit(main)
