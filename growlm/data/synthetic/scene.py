"""The cast, things and places of a story, drawn once at its beginning so that it stays consistent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from growlm.data.synthetic import words

Option = TypeVar("Option")


class Pick(Protocol):
    """A function that returns one of its arguments, chosen uniformly."""

    def __call__(self, *options: Option) -> Option: ...  # noqa: D102


class Character(NamedTuple):
    """A named character; in an f-string it becomes its name."""

    name: str
    kind: str
    trait: str
    deed: str
    they: str
    them: str
    their: str

    def __str__(self) -> str:
        return self.name

    @property
    def description(self) -> str:
        """Trait and kind with their article: "a brave fox"."""
        return with_article(f"{self.trait} {self.kind}")


class Thing(NamedTuple):
    """An object to hold; in an f-string it becomes its noun."""

    noun: str
    color: str
    look: str

    def __str__(self) -> str:
        return self.noun

    @property
    def description(self) -> str:
        """Look, color and noun with their article: "a small red kite"."""
        return with_article(f"{self.look} {self.color} {self.noun}")


class Place(NamedTuple):
    """A place to go to; in an f-string it becomes "the forest"."""

    name: str
    where: str

    def __str__(self) -> str:
        return f"the {self.name}"


class Wish(NamedTuple):
    """A character's wish, in two forms: to "see the sea", until they "saw the sea"."""

    wanted: str
    granted: str


class Scene(NamedTuple):
    """The characters, things and places that a plot may use.

    No two characters share a name, a kind or a trait; no two things a noun or a color; the four
    places differ, and so do the two spots.
    """

    hero: Character
    friend: Character
    helper: Character
    thing: Thing
    other: Thing
    home: Place
    place: Place
    far: Place
    farther: Place
    spot: str
    second_spot: str
    wish: Wish


class Question(NamedTuple):
    """A question that the story has settled, and its answer."""

    question: str
    answer: str


class Events(NamedTuple):
    """The output of a plot: its paragraphs in order, and the questions they settle."""

    paragraphs: list[str]
    questions: list[Question]


def with_article(phrase: str) -> str:
    """Return the phrase with "a" or "an" before it, chosen by its first letter."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def capitalize_first(phrase: str) -> str:
    """Return the phrase with its first letter in upper case and the rest unchanged."""
    return phrase[0].upper() + phrase[1:]


def make_pick(draw: Callable[[], float]) -> Pick:
    """Create a `Pick` whose choices come from `draw`, which returns numbers in [0, 1)."""

    def pick(*options: Option) -> Option:
        return options[int(draw() * len(options))]

    return pick


def pick_distinct(pick: Pick, options: Sequence[Option], count: int) -> list[Option]:
    """Pick `count` different entries of `options`, in the order drawn."""
    positions = list(range(len(options)))
    chosen = []
    for _ in range(count):
        position = pick(*positions)
        positions.remove(position)
        chosen.append(options[position])
    return chosen


def draw_scene(pick: Pick) -> Scene:
    """Draw the cast, the things, the places and the wish of one story."""
    hero, friend, helper = _draw_characters(pick)
    first_noun, second_noun = pick_distinct(pick, words.THINGS, 2)
    first_color, second_color = pick_distinct(pick, words.COLORS, 2)
    home, place, far, farther = (
        Place(name, f"{preposition} the {name}")
        for name, preposition in pick_distinct(pick, words.PLACES, 4)
    )
    spot, second_spot = pick_distinct(pick, words.SPOTS, 2)
    return Scene(
        hero=hero,
        friend=friend,
        helper=helper,
        thing=Thing(first_noun, first_color, pick(*words.LOOKS)),
        other=Thing(second_noun, second_color, pick(*words.LOOKS)),
        home=home,
        place=place,
        far=far,
        farther=farther,
        spot=spot,
        second_spot=second_spot,
        wish=Wish(*pick(*words.WISHES)),
    )


def _draw_characters(pick: Pick) -> list[Character]:
    names = pick_distinct(pick, words.GIRL_NAMES + words.BOY_NAMES, 3)
    kinds = pick_distinct(pick, words.KINDS, 3)
    traits = pick_distinct(pick, words.TRAITS, 3)
    return [
        _character(name, kind, *trait)
        for name, kind, trait in zip(names, kinds, traits, strict=True)
    ]


def _character(name: str, kind: str, trait: str, deed: str) -> Character:
    if name in words.GIRL_NAMES:
        kind = "girl" if kind == "child" else kind
        return Character(name, kind, trait, deed, "she", "her", "her")
    kind = "boy" if kind == "child" else kind
    return Character(name, kind, trait, deed, "he", "him", "his")
