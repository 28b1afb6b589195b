"""The vocabulary of the embedded stories: characters, things, places and wishes.

Stories draw from these tuples by position. Adding, removing or moving an entry changes the stories of
every seed, and so the tokenizer that was trained on them (`scripts/train_tokenizer.py`). Words that
begin with a silent h, or with a u pronounced "you", are excluded: "a" or "an" is chosen by the letter.
"""

from __future__ import annotations

GIRL_NAMES = (
    *("Mia", "Anna", "Lucy", "Rosa", "Nora", "Ella", "Ruby", "Ivy", "Dora", "Tess"),
    *("Wren", "Maya", "Zoe", "Lena", "Hazel", "Pia"),
)
BOY_NAMES = (
    *("Tom", "Ben", "Sam", "Leo", "Max", "Finn", "Hugo", "Oscar", "Theo", "Jack"),
    *("Otto", "Ravi", "Noah", "Emil", "Gus", "Kofi"),
)

# "child" becomes girl or boy, depending on the name.
KINDS = (
    *("child", "fox", "bear", "rabbit", "mouse", "owl", "duck", "frog", "goat"),
    *("squirrel", "hedgehog", "otter", "badger", "turtle", "cat", "dog", "pony"),
)

# A trait, and what a character with that trait does on any walk.
TRAITS = (
    ("brave", "was not afraid of the dark"),
    ("careful", "looked at everything twice"),
    ("clever", "soon had a plan"),
    ("kind", "stopped to help a lost ant"),
    ("patient", "did not mind waiting"),
    ("curious", "asked about everything"),
    ("cheerful", "sang a merry song"),
    ("quiet", "did not make a sound"),
    ("strong", "carried all the bags"),
    ("stubborn", "would not give up"),
    ("polite", "said good morning to every bird"),
    ("gentle", "spoke in a soft voice"),
    ("sleepy", "had to rest twice"),
    ("funny", "told three jokes"),
)

THINGS = (
    *("kite", "ball", "drum", "bell", "book", "hat", "scarf", "lamp", "cup", "boat"),
    *("ring", "map", "basket", "whistle", "blanket", "spoon", "flute", "coat", "cart", "mirror"),
)
COLORS = (
    *("red", "blue", "green", "yellow", "white", "black"),
    *("brown", "pink", "orange", "purple", "grey", "silver"),
)
LOOKS = ("big", "small", "tiny", "old", "new", "pretty", "fine", "little")

# A place, and its preposition.
PLACES = (
    ("forest", "in"),
    ("river", "by"),
    ("hill", "on"),
    ("garden", "in"),
    ("beach", "on"),
    ("farm", "at"),
    ("market", "at"),
    ("park", "in"),
    ("meadow", "in"),
    ("lake", "by"),
    ("barn", "in"),
    ("school", "at"),
    ("village", "in"),
    ("mill", "at"),
    ("harbour", "at"),
    ("valley", "in"),
    ("cave", "in"),
    ("castle", "at"),
    ("orchard", "in"),
    ("island", "on"),
)

# Where a thing can lie or a character can hide.
SPOTS = (
    "behind a flat stone",
    "behind an oak tree",
    "inside a hollow log",
    "under a wooden bench",
    "in the tall grass",
    "behind a broken fence",
    "beside a deep well",
    "under a thorn bush",
    "under a pile of leaves",
    "behind a clay wall",
    "in an empty barrel",
    "between two rocks",
    "behind a stack of hay",
    "under a fallen branch",
    "in a muddy ditch",
    "behind a wide door",
)

# A wish in the infinitive and in the past tense.
WISHES = (
    ("see the sea", "saw the sea"),
    ("sing for the king", "sang for the king"),
    ("learn to swim", "learned to swim"),
    ("bake a cake", "baked a cake"),
    ("ride a horse", "rode a horse"),
    ("paint a picture", "painted a picture"),
    ("sleep under the stars", "slept under the stars"),
    ("plant a tree", "planted a tree"),
    ("catch a fish", "caught a fish"),
    ("dance in the rain", "danced in the rain"),
    ("climb a mountain", "climbed a mountain"),
    ("build a tower", "built a tower"),
    ("count the clouds", "counted the clouds"),
    ("write a letter", "wrote a letter"),
    ("jump over a stream", "jumped over a stream"),
    ("make a snowman", "made a snowman"),
)

# Countable food, singular and plural.
FOODS = (
    ("apple", "apples"),
    ("pear", "pears"),
    ("nut", "nuts"),
    ("plum", "plums"),
    ("bun", "buns"),
    ("cherry", "cherries"),
    ("biscuit", "biscuits"),
    ("egg", "eggs"),
    ("pancake", "pancakes"),
    ("fig", "figs"),
)
VEGETABLES = (
    *("carrots", "onions", "beans", "peas", "leeks", "potatoes"),
    *("mushrooms", "turnips", "tomatoes", "radishes"),
)
NUMBERS = (
    *("no", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
MATERIALS = ("wood", "stone", "mud", "straw", "clay", "glass", "rope", "cloth")
BUILDINGS = ("house", "tower", "boat shed", "hut", "tree house", "shop")

TIMES = (
    "One sunny morning",
    "One cold morning",
    "One warm afternoon",
    "One windy day",
    "One fine day",
    "On the first day of spring",
    "On a summer day",
    "On a grey autumn day",
    "After breakfast",
    "The next day",
)
