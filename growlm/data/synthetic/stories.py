"""The embedded corpus: stories from a seeded grammar, so that a plan runs without downloads.

A story is a pure function of (seed, index). It is built so that long context helps: a tiny model soon
learns a corpus whose sentences stand alone, and a larger one then has nothing to gain. What is said
once and needed again, one sentence or a whole story later:

- names, kinds and pronouns of three characters, and the hero's home;
- each character's trait, which decides what that character does on a walk;
- the hero's wish, first as "see the sea", in the last paragraph as "saw the sea";
- noun, look and color of things, and the colors of boxes, doors, pots and bags;
- where something is hidden or somebody hides, in the same words each time;
- who holds what after every "X gave the thing to Y", counts that add up, places that return in
  reverse order, a message repeated word for word;
- one or two questions before the end, whose answers are these facts and nothing else.

The rest (plot, wording, weather) is drawn anew for each story. Only `random.Random.random()` is
used, the one drawing method whose sequence Python promises not to change.
"""

from __future__ import annotations

import random

from growlm.data.synthetic import gatherings as story_gatherings
from growlm.data.synthetic import quests as story_quests
from growlm.data.synthetic.scene import (
    Events,
    Pick,
    Question,
    Scene,
    capitalize_first,
    draw_scene,
    make_pick,
)

CORPUS_VERSION = "73238fa58a716fa30cc7baa794bd7b9e8862ffacfdaac6ad88c9da54df4f5299"
"""Identifier of the stories' text in runs and caches. Change it whenever the text of any story changes."""
PLOTS = (
    story_quests.lost_and_found,
    story_quests.storm,
    story_quests.locked_box,
    story_quests.bargain,
    story_quests.message,
    story_quests.present,
    story_gatherings.sharing,
    story_gatherings.building,
    story_gatherings.race,
    story_gatherings.soup,
    story_gatherings.hide_and_seek,
    story_gatherings.journey,
)


def generate_story(seed: int, index: int) -> str:
    """Generate story `index` of the corpus with this seed.

    Args:
        seed: Seed of the corpus; any integer.
        index: Index of the story; any integer, usually from 0 up.

    Returns:
        Five or six paragraphs of ASCII text with an empty line between them, 150 to 220 words, and
        no line break at the end. The same in every process and Python version.
    """
    pick = make_pick(random.Random(f"growlm story {seed} {index}").random)
    scene = draw_scene(pick)
    events = pick(*PLOTS)(scene, pick)
    paragraphs = [
        _opening(scene, pick),
        *events.paragraphs,
        _questions_paragraph(scene, events, pick),
    ]
    return "\n\n".join([*paragraphs, _ending(scene, pick)])


def _opening(scene: Scene, pick: Pick) -> str:
    hero, friend, home, wanted = scene.hero, scene.friend, scene.home, scene.wish.wanted
    they, their = capitalize_first(hero.they), capitalize_first(hero.their)
    who = pick(
        f"Once upon a time there was {hero.description} named {hero}. {they} lived {home.where}.",
        f"{capitalize_first(home.where)} lived {hero.description} called {hero}.",
        f"This is a story about {hero}, {hero.description} who lived {home.where}.",
        f"Long ago {hero.description} lived {home.where}. {their} name was {hero}.",
    )
    wish = pick(
        f"More than anything, {hero} wished to {wanted}.",
        f"{hero} had one wish. {they} wanted to {wanted}.",
        f'"One day I will {wanted}," {hero} often said.',
        f"Every night {hero} dreamed of the same thing. {they} wanted to {wanted}.",
    )
    companion = pick(
        f"{their} best friend was {friend.description} named {friend}.",
        f"Next door lived {friend}, {friend.description}.",
        f"{hero} had a friend, {friend.description} called {friend}.",
    )
    return f"{who} {wish} {companion}"


def _questions_paragraph(scene: Scene, events: Events, pick: Pick) -> str:
    hero, friend = scene.hero, scene.friend
    questions = [
        *events.questions,
        Question(
            f"Where did {hero} live?", f"{capitalize_first(hero.they)} lived {scene.home.where}."
        ),
        Question(f"Who was {friend.trait}?", f"{friend} was {friend.trait}."),
    ]
    frame = pick("", "", "Do you remember? ", "Now think back. ", "Who can tell? ")
    first = pick(*questions)
    second = pick(*questions)
    if second is first:
        return f"{frame}{first.question} {first.answer}"
    return f"{frame}{first.question} {first.answer} {second.question} {second.answer}"


def _ending(scene: Scene, pick: Pick) -> str:
    hero, friend, (wanted, granted) = scene.hero, scene.friend, scene.wish
    wish = pick(
        f"A few days later {hero} and {friend} {granted} at last. {hero}'s wish had come true.",
        f'"I know your wish," said {friend}. "You want to {wanted}." So they {granted} together.',
        f"And the wish? The very next day {hero} {granted}, and {friend} helped {hero.them}.",
        f"Before the week was over {hero} {granted}, just as {hero.they} had wished.",
    )
    close = pick(
        f"From then on {hero} and {friend} were the best of friends.",
        f"It is good to have a friend who is {friend.trait}.",
        f'"Good night, {friend}," said {hero}. "Good night, {hero}," said {friend}.',
        f"{hero} was the happiest {hero.kind} {scene.home.where}.",
    )
    return f"{wish} {close}"
