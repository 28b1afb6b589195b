"""Story plots about doing something together: sharing, building, racing, cooking, hiding, traveling.

They have the same form as the plots in `quests.py`. What persists here is a count, an order, or who did what.
"""

from __future__ import annotations

from growlm.data.synthetic import words
from growlm.data.synthetic.quests import color_question, holder_question, on_the_way, scenery
from growlm.data.synthetic.scene import (
    Events,
    Pick,
    Question,
    Scene,
    capitalize_first,
    pick_distinct,
    with_article,
)


def sharing(scene: Scene, pick: Pick) -> Events:
    """Tell how the hero gives food away twice; the numbers add up."""
    hero, friend, helper = scene.hero, scene.friend, scene.helper
    food = pick(*words.FOODS)
    to_friend, to_helper, left = pick(1, 2, 3, 4), pick(1, 2, 3), pick(1, 2, 3, 4)
    start = (
        f"{pick(*words.TIMES)}, {hero} had {_count(to_friend + to_helper + left, food)} in "
        f"{with_article(scene.thing.color)} bag. {capitalize_first(hero.they)} sat down "
        f"{scene.place.where} to eat them. {scenery(pick)} Then {friend} came by. "
        f'"I have no {food[1]} and I am hungry," said {friend}. '
        f'"Then take some of mine," said {hero}. '
        f"{hero} gave {_count(to_friend, food)} to {friend}. "
        f"Now {hero} had {_count(left + to_helper, food)}."
    )
    again = (
        f"Soon {helper.description} named {helper} came along. {on_the_way(helper, pick)} "
        f'"May I have {pick("some", "a little")} too?" asked {helper}. '
        f"{hero} gave {_count(to_helper, food)} to {helper}. Now {hero} had {_count(left, food)}, "
        f"{friend} had {_count(to_friend, food)} and {helper} had {_count(to_helper, food)}. "
        + pick("They ate and laughed.", "They sat close and ate.", "It was a good meal.")
    )
    questions = [
        Question(
            f"How many {food[1]} did {person} have?",
            f"{capitalize_first(person.they)} had {words.NUMBERS[number]}.",
        )
        for person, number in ((hero, left), (friend, to_friend), (helper, to_helper))
    ]
    questions.append(Question("What colour was the bag?", f"It was {scene.thing.color}."))
    return Events([start, again], questions)


def _count(number: int, food: tuple[str, str]) -> str:
    singular, plural = food
    return f"{words.NUMBERS[number]} {singular if number == 1 else plural}"


def building(scene: Scene, pick: Pick) -> Events:
    """Tell how three characters bring three materials; the house keeps the colors it was painted in."""
    hero, friend, helper = scene.hero, scene.friend, scene.helper
    building_kind = pick(*words.BUILDINGS)
    material, second_material, third_material = pick_distinct(pick, words.MATERIALS, 3)
    door, roof = scene.thing.color, scene.other.color
    planned = (
        f'{pick(*words.TIMES)}, {hero} said, "Let us build a {building_kind} {scene.place.where}." '
        f"{friend} liked the plan. {capitalize_first(helper.description)} named {helper} came to help. "
        f"{on_the_way(helper, pick)}"
    )
    built = (
        f"{hero} brought {material}, {friend} brought {second_material} and {helper} brought "
        f"{third_material}. They worked for {pick('a day', 'two days', 'three days', 'a week')}. "
        f"{friend} painted the door {door}, and {helper} painted the roof {roof}. "
        f'"{pick("How fine it looks", "What a good place", "Now it is ready")}!" said {hero}.'
    )
    used = (
        f"In the night there was {pick('a storm', 'a lot of rain', 'a cold wind')}. "
        f"They went in by the {door} door and sat under the {roof} roof. The {material}, the "
        f"{second_material} and the {third_material} held, and everybody stayed "
        + pick("dry.", "warm.", "safe.")
    )
    questions = [
        Question("What colour was the door?", f"It was {door}."),
        Question("What colour was the roof?", f"It was {roof}."),
        Question(f"Who brought the {material}?", f"{hero} brought it."),
        Question(f"Who brought the {third_material}?", f"{helper} brought it."),
        Question("Who painted the roof?", f"{helper} painted it."),
    ]
    return Events([planned, built, used], questions)


def race(scene: Scene, pick: Pick) -> Events:
    """Tell how one runner is ahead and stops; the other wins the prize that was shown at the start."""
    hero, friend, helper, prize = scene.hero, scene.friend, scene.helper, scene.thing
    winner, loser = pick((hero, friend), (friend, hero))
    start = (
        f"{pick(*words.TIMES)}, {hero} and {friend} wanted to have a race from {scene.place} to "
        f'{scene.far}. {capitalize_first(helper.description)} named {helper} said, "Whoever gets there first '
        f'will have my {prize.look} {prize.color} {prize}." "One, two, three, go!" said {helper}.'
    )
    running = (
        f"At first {loser} was ahead. But {loser} stopped "
        + pick("to rest", "to eat", "to sleep a little", "to wait for a friend")
        + f" {scene.spot}. {winner} did not stop. {pick('Step by step', 'Little by little')} "
        f"{winner} came closer, and then {winner.they} ran past {loser}."
    )
    end = (
        f"{winner} was the first to reach {scene.far}. {helper} gave the {prize} to {winner}. "
        f'"{pick("Well done", "You ran well")}, {winner}," said {loser}. '
        f'"Next time I will not stop {scene.spot}." They walked home. {on_the_way(loser, pick)}'
    )
    questions = [
        Question("Who won the race?", f"{winner} won it."),
        color_question(prize),
        holder_question(prize.noun, winner),
        Question(
            f"Where did {loser} stop?", f"{capitalize_first(loser.they)} stopped {scene.spot}."
        ),
    ]
    return Events([start, running, end], questions)


def soup(scene: Scene, pick: Pick) -> Events:
    """Tell how three characters bring three vegetables to a pot of one color."""
    hero, friend, helper = scene.hero, scene.friend, scene.helper
    first, second, third = pick_distinct(pick, words.VEGETABLES, 3)
    pot = scene.thing.color
    hungry = (
        f'{pick(*words.TIMES)}, {hero} was hungry. "I will make soup," said {hero}. '
        f"{capitalize_first(hero.they)} put {with_article(pot)} pot on the fire. "
        f"But {hero} only had {first}. "
        f'"That is not enough for {pick("soup", "good soup", "a pot of soup")}," said {hero}.'
    )
    brought = (
        f"{hero} put the {first} into the {pot} pot. Then {friend} came from {scene.place} and "
        f"brought {second}. Then {helper.description} named {helper} came from {scene.far} "
        f"and brought {third}. {on_the_way(helper, pick)}"
    )
    eaten = (
        f"{pick('Soon', 'After a while')} the soup was hot. "
        f"There were {first}, {second} and {third} in it. "
        f'"This is the best soup of all," said {friend}, "because we made it together." '
        f"They ate until the {pot} pot was {pick('empty', 'quite empty')}."
    )
    questions = [
        Question("What colour was the pot?", f"It was {pot}."),
        Question(f"Who brought the {second}?", f"{friend} brought them."),
        Question(f"Who brought the {third}?", f"{helper} brought them."),
        Question(
            f"Where did {helper} come from?",
            f"{capitalize_first(helper.they)} came from {scene.far}.",
        ),
        Question("What was in the soup?", f"There were {first}, {second} and {third} in it."),
    ]
    return Events([hungry, brought, eaten], questions)


def hide_and_seek(scene: Scene, pick: Pick) -> Events:
    """Tell how two characters hide in two spots, and the seeker finds them there."""
    hero, friend, helper = scene.hero, scene.friend, scene.helper
    number = words.NUMBERS[pick(5, 6, 7, 8, 9, 10, 11, 12)]
    start = (
        f"{pick(*words.TIMES)}, {hero} played with {friend} and with {helper.description} named "
        f"{helper} {scene.place.where}. {scenery(pick)} "
        f'"You two hide and I will count to {number}," said {hero}. '
        f"{friend} hid {scene.spot}. {helper} hid {scene.second_spot}."
    )
    seeking = (
        f'{hero} counted to {number}. "{pick("Here I come", "Ready or not")}!" said {hero}. '
        f"{on_the_way(hero, pick)} {hero} looked {scene.second_spot} and found {helper}. "
        f'"Where is {friend}?" asked {hero}. {helper} {pick("only smiled", "did not tell")}.'
    )
    found = (
        f"Then there was a little {pick('noise', 'cough', 'laugh')} {scene.spot}. "
        f'"I hear you, {friend}!" said {hero}, and {friend} came out. '
        + pick("They played again and again.", "They all laughed.", "Then it was time to eat.")
    )
    questions = [
        Question(f"Where did {friend} hide?", f"{capitalize_first(friend.they)} hid {scene.spot}."),
        Question(
            f"Where did {helper} hide?", f"{capitalize_first(helper.they)} hid {scene.second_spot}."
        ),
        Question(
            f"How far did {hero} count?", f"{capitalize_first(hero.they)} counted to {number}."
        ),
        Question("Who was found first?", f"{helper} was found first."),
    ]
    return Events([start, seeking, found], questions)


def journey(scene: Scene, pick: Pick) -> Events:
    """Tell of a walk whose three places come back in the opposite order on the way home."""
    hero, friend, helper, thing = scene.hero, scene.friend, scene.helper, scene.thing
    first, second, third = scene.place, scene.far, scene.farther
    out = (
        f"{pick(*words.TIMES)}, {hero} and {friend} went on a long walk. {scenery(pick)} "
        f"First they came to {first}, then to {second}, and at last to {third}. "
        f"{on_the_way(friend, pick)}"
    )
    met = (
        f"{capitalize_first(third.where)} they met {helper.description} named {helper}. "
        f'"What can I give you?" asked {helper}. {hero} liked {thing.description} best. '
        f'"{pick("Take it", "It is yours")}," said {helper}. '
        f"{helper} gave the {thing} to {hero}."
    )
    back = (
        f"Then it {pick('grew late', 'was time to go home', 'grew dark')}. "
        f"They went back the way they had come: from {third} to {second}, from {second} to "
        f"{first}, and from {first} home to {scene.home}. "
        f"{hero} carried the {thing.color} {thing} all the way."
    )
    questions = [
        color_question(thing),
        holder_question(thing.noun, hero),
        Question("Where did they turn back?", f"They turned back {third.where}."),
        Question(f"Who did they meet {third.where}?", f"They met {helper}."),
        Question("Where did they come first?", f"They came to {first} first."),
    ]
    return Events([out, met, back], questions)
