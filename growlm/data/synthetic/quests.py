"""Story plots about a thing: it is lost, blown away, locked up, traded or given, or a message tells of it.

A plot takes the scene and returns its paragraphs and the questions that they settle. Who holds a thing changes
by one fixed phrase, "X gave the thing to Y", so that a reader (and the tests) can follow it.
"""

from __future__ import annotations

from growlm.data.synthetic import words
from growlm.data.synthetic.scene import (
    Character,
    Events,
    Pick,
    Question,
    Scene,
    Thing,
    capitalize_first,
    pick_distinct,
    with_article,
)


def on_the_way(character: Character, pick: Pick) -> str:
    """Return a sentence about a walk, in which the character's trait and deed predict each other."""
    deed, they = character.deed, character.they
    return pick(
        f"On the way {character} {deed}, for {they} was {character.description}.",
        f"{character} was {character.trait}, so {they} {deed}.",
        f"{character} {deed}. {capitalize_first(they)} had always been {character.trait}.",
    )


def scenery(pick: Pick) -> str:
    """Return a sentence that nothing later depends on."""
    return pick(
        "Somewhere a bird was singing.",
        "The wind blew in the leaves.",
        "There was nobody else on the road.",
        "Far away a cow said moo.",
        "A bell rang in the distance.",
        "Two crows flew by.",
    )


def color_question(thing: Thing) -> Question:
    """Ask for the color of a thing."""
    return Question(f"What colour was the {thing}?", f"It was {thing.color}.")


def holder_question(noun: str, holder: Character) -> Question:
    """Ask who holds something at the end."""
    return Question(f"Who had the {noun} now?", f"{holder} had it.")


def lost_and_found(scene: Scene, pick: Pick) -> Events:
    """Tell how the hero loses the thing, describes it to the friend, and the friend finds it."""
    hero, friend, thing, place = scene.hero, scene.friend, scene.thing, scene.place
    lost = (
        f"{pick(*words.TIMES)}, {hero} took {thing.description} to {place}. {scenery(pick)} "
        f"But when {hero} came home, the {thing} was gone! "
        + pick(
            f'"Oh no, where is my {thing}?" {hero} cried.',
            f'"I have lost my {thing}!" said {hero} with a tear in {hero.their} eye.',
        )
    )
    told = (
        f'{hero} ran to {friend}. "What does it look like?" asked {friend}. '
        f'"It is {thing.look} and {thing.color}," said {hero}. '
        f'"Then let us look for it {place.where}," said {friend}. {on_the_way(friend, pick)}'
    )
    found = (
        f"First they looked {scene.second_spot}, but there was only "
        + pick("an old shoe", "a fat beetle", "some sand", "a broken pot")
        + f". Then {friend} looked {scene.spot}. There was the {thing.color} {thing}! "
        f'{friend} gave the {thing} to {hero}. "Thank you, {friend}," said {hero}.'
    )
    questions = [
        color_question(thing),
        holder_question(thing.noun, hero),
        Question(f"Where was the {thing}?", f"It was {scene.spot}."),
        Question(f"Who found the {thing}?", f"{friend} found it."),
    ]
    return Events([lost, told, found], questions)


def storm(scene: Scene, pick: Pick) -> Events:
    """Tell how the wind carries the thing to another place, where the helper has seen it land."""
    hero, friend, helper, thing = scene.hero, scene.friend, scene.helper, scene.thing
    blown = (
        f"{pick(*words.TIMES)}, {hero} and {friend} were {scene.place.where} with "
        f"{thing.description}. "
        + pick("Then the sky turned black.", "Soon there was thunder.", "Then it began to rain.")
        + f" The wind carried the {thing} away! {hero} and {friend} hid {scene.spot} "
        "until the storm was over."
    )
    asked = (
        f"Then they met {helper.description} named {helper}. "
        f'"Have you seen {with_article(thing.color)} {thing}?" asked {friend}. '
        f'"Yes," said {helper}. "The wind dropped it {scene.far.where}. '
        f'I saw it {scene.second_spot}." {on_the_way(hero, pick)}'
    )
    found = (
        f"They ran to {scene.far}. The {thing} was {scene.second_spot}, just as {helper} had said. "
        f"It was wet, but it was still {pick('whole', 'good', 'fine')}. "
        f'{hero} gave the {thing} to {friend}. "You keep it dry," said {hero}.'
    )
    questions = [
        color_question(thing),
        holder_question(thing.noun, friend),
        Question(f"Where was the {thing}?", f"It was {scene.second_spot}."),
        Question(f"Where did {hero} and {friend} hide from the storm?", f"They hid {scene.spot}."),
    ]
    return Events([blown, asked, found], questions)


def locked_box(scene: Scene, pick: Pick) -> Events:
    """Tell of a box of one color with a thing of another; its key is hidden, found and passed on."""
    hero, friend, helper, thing = scene.hero, scene.friend, scene.helper, scene.thing
    box_color = scene.other.color
    elder = pick("grandmother", "grandfather", "uncle", "aunt")
    locked = (
        f"{pick(*words.TIMES)}, {hero} found {with_article(box_color)} box {scene.place.where}. "
        f"It was a present from {hero.their} {elder}. "
        "But the box was locked, and there was no key! "
        f'"What can be in it?" asked {friend}. {hero} did not know.'
    )
    key = (
        f"They asked {helper.description} named {helper}. "
        f'"I hid the key {scene.spot}," said {helper}, "so that nobody could lose it." '
        f"{on_the_way(hero, pick)} {hero} looked {scene.spot} and found the key. "
        f'{hero} gave the key to {friend}. "You may open it," said {hero}.'
    )
    opened = (
        f"{friend} put the key into the {box_color} box and turned it. "
        + pick("Click!", "Click, clack!", "The lock went click.")
        + f" In the box was {thing.description}. "
        f'"How {pick("pretty", "fine", "lovely")} it is!" said {friend}.'
    )
    questions = [
        Question("What colour was the box?", f"It was {box_color}."),
        color_question(thing),
        holder_question("key", friend),
        Question("Where was the key?", f"It was {scene.spot}."),
        Question(
            "What was in the box?", f"{capitalize_first(with_article(thing.noun))} was in it."
        ),
    ]
    return Events([locked, key, opened], questions)


def bargain(scene: Scene, pick: Pick) -> Events:
    """Tell of two swaps: the thing for food, and the food for the other thing."""
    hero, friend, helper = scene.hero, scene.friend, scene.helper
    thing, other = scene.thing, scene.other
    _, food = pick(*words.FOODS)
    wanted = (
        f"{friend} had {other.description}, and {hero} liked it very much. {pick(*words.TIMES)}, "
        f'{hero} asked, "May I have your {other}?" "Yes," said {friend}, "but bring me some '
        f'{food}. I am {pick("so hungry", "very hungry")}." But {hero} had no {food}. '
        f"{capitalize_first(hero.they)} only had {thing.description}."
    )
    first_swap = (
        f"So {hero} went to {scene.place}. There sat {helper.description} named {helper} with a bag "
        f'of {food}. "I will give you my {thing} for your {food}," said {hero}. '
        f'"{pick("Good", "Done", "That is fair")}," said {helper}. {hero} gave the {thing} to '
        f"{helper}, and {helper} gave the {food} to {hero}."
    )
    second_swap = (
        f"{on_the_way(hero, pick)} Then {hero} gave the {food} to {friend}, and {friend} gave the "
        f"{other} to {hero}. Everybody had what "
        + pick("they wanted most.", "they had wanted.", "made them happy.")
    )
    questions = [
        color_question(thing),
        color_question(other),
        holder_question(thing.noun, helper),
        holder_question(other.noun, hero),
        Question(f"Who had the {food} now?", f"{friend} had them."),
    ]
    return Events([wanted, first_swap, second_swap], questions)


def message(scene: Scene, pick: Pick) -> Events:
    """Tell how the hero carries a sentence, repeats it, and delivers it word for word."""
    hero, friend, helper, thing = scene.hero, scene.friend, scene.helper, scene.thing
    words_to_carry = f"The {thing.color} {thing} is {scene.spot} {scene.far.where}"
    given = (
        f"{pick(*words.TIMES)}, {hero} met {helper.description} named {helper} {scene.place.where}. "
        f'"Please take a message to {friend}," said {helper}. "Say this: {words_to_carry}." '
        f'"I will not forget it," {pick("said", "promised")} {hero}.'
    )
    carried = (
        f"{hero} walked and walked. {on_the_way(hero, pick)} "
        f'Again and again {hero.they} said, "{words_to_carry}."'
    )
    told = (
        f'At last {hero} came to {friend}. "{words_to_carry}," said {hero}. {friend} '
        + pick("jumped up", "clapped", "laughed")
        + f'. "My {thing}! I thought it was lost." They went to {scene.far} and looked '
        f"{scene.spot}, and there it was. {hero} gave the {thing} to {friend}."
    )
    questions = [
        color_question(thing),
        holder_question(thing.noun, friend),
        Question(f"Where was the {thing}?", f"It was {scene.spot}."),
        Question("Who sent the message?", f"{helper} sent it."),
    ]
    return Events([given, carried, told], questions)


def present(scene: Scene, pick: Pick) -> Events:
    """Tell how the friend guesses what is in the cloth: wrong, wrong again, then right."""
    hero, friend, thing = scene.hero, scene.friend, scene.thing
    cloth_color = scene.other.color
    wrong = pick_distinct(pick, [noun for noun in words.THINGS if noun != thing.noun], 2)
    wrapped = (
        f"{pick(*words.TIMES)}, {hero} remembered {friend}'s birthday. "
        + pick(
            f"{capitalize_first(hero.they)} went to {scene.place} and bought {thing.description}.",
            f"{capitalize_first(hero.they)} made {thing.description} with {hero.their} own hands.",
        )
        + f" Then {hero.they} wrapped it in {with_article(cloth_color)} cloth and hid it "
        f"{scene.spot}."
    )
    guessed = (
        f"Soon {friend} came to see {hero}. {on_the_way(friend, pick)} "
        f'"There is a present for you {scene.spot}," said {hero}. "Guess what it is!" '
        f'"Is it {with_article(wrong[0])}?" asked {friend}. "No," said {hero}. '
        f'"Is it {with_article(wrong[1])}?" "No, it is not."'
    )
    opened = (
        f"{friend} looked {scene.spot} and touched the {cloth_color} cloth. "
        f'"Is it {with_article(thing.noun)}?" '
        f'"Yes!" said {hero}. {hero} gave the {thing} to {friend}. '
        + pick(
            f'"I have always wanted {with_article(thing.color)} {thing}," said {friend}.',
            f'"It is {thing.color}, and I love {thing.color} things," said {friend}.',
        )
    )
    questions = [
        color_question(thing),
        Question("What colour was the cloth?", f"It was {cloth_color}."),
        holder_question(thing.noun, friend),
        Question(f"Where had {hero} hidden the present?", f"It was {scene.spot}."),
    ]
    return Events([wrapped, guessed, opened], questions)
