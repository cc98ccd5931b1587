"""Little stories from a grammar: a hero, a thing, a friend, a place, a trouble and how it ended."""

from __future__ import annotations

from random import Random

from baton.builtin.words import ANIMALS, OBJECTS, PEOPLE, PLACES

HEROES = ANIMALS + PEOPLE
TEMPLATES = (
    "Tell me a story about {hero} and {thing}.",
    "Tell me a story about {hero} and {thing}.",
    "Tell me a {length} story about {hero} and {thing}.",
    "Write a story about {hero} with {thing}.",
    "Can you tell me a story about {hero} and {thing}?",
    "I would like a {length} story about {hero} and {thing}.",
    "Tell me a story about {hero}.",
    "Tell me a {length} story about {hero}.",
    "Tell me a story.",
    "Tell me a {length} story.",
)

_NAMES = (
    "Tilly", "Milo", "Rosa", "Oskar", "Nina", "Pip", "Juno", "Felix", "Wren", "Hugo", "Ada", "Sam", "Lena",
    "Otto", "Mia", "Leo",
)  # fmt: skip

_OPENINGS = (
    "Once upon a time there was {a_hero} named {name} who lived near the {place}.",
    "Long ago, in a little house by the {place}, there lived {a_hero} named {name}.",
    "In a quiet {place} lived {a_hero}, and everyone called the {hero} {name}.",
    "There once was {a_hero} named {name}. The {place} was the only home {name} knew.",
)
_FINDS = (
    "One morning {name} found {a_thing} under an old tree.",
    "One day {name} saw {a_thing} lying on the path.",
    "On a windy day {a_thing} rolled right up to the door.",
    "For a birthday, {name} was given {a_thing}.",
)
_LIKES = (
    "It was the most beautiful {thing} in the whole land.",
    "The {thing} was small and old, but {name} loved it at once.",
    "Nobody knew where the {thing} had come from.",
    "The {thing} shone like the sun.",
)
_FRIENDS = (
    'The next day {name} showed it to {friend} the {other}. "What a fine {thing}!" said {friend}.',
    '{friend} the {other} came to look. "May I hold it?" asked {friend}, and {name} said yes.',
    'Soon {friend} the {other} heard about it. "Keep it safe," said {friend}.',
    '{name} took it to {friend} the {other}. "I have never seen such a {thing}," said {friend}.',
)
_TROUBLES = (
    "But that night a storm came, and in the morning the {thing} was gone.",
    "Then, on the way home, {name} slipped and the {thing} fell into the water.",
    "But in the evening {name} could not find the {thing} anywhere.",
    "But a rude crow came down from the sky and flew away with the {thing}.",
)
_SAD = (
    "{name} sat down and cried.",
    "{name} was very sad and did not want to eat.",
    "{name} looked here and there, but it was no use.",
    "Poor {name} did not know what to do.",
)
_HELPS = (
    '"Do not be sad," said {friend}. "We will look for it together."',
    '"I will help you," said {friend}, and the two friends set out at once.',
    'Then {friend} had an idea. "Let us ask the old woman by the {second}," said {friend}.',
    '"Two can see more than one," said {friend}, and took {name} by the hand.',
)
_SEARCHES = (
    "They looked behind every stone of the {place}, and then they went on to the {second}.",
    "They walked all day, over the fields and past the {second}, until their feet were tired.",
    "First they went to the {second}. It was dark and cold there, but they were not afraid.",
    "They asked everyone they met on the road to the {second}, but nobody had seen it.",
)
_ENDS = (
    "At last they saw something in the grass. It was the {thing}!",
    "And there, next to the {second}, lay the {thing}, wet but whole.",
    "Just as the sun went down, {friend} laughed and pointed. There was the {thing}!",
    "A kind child had found the {thing} and gave it back with a smile.",
)
_THANKS = (
    '"Thank you," said {name}. "A good friend is better than any {thing}."',
    "{name} was so happy that they danced all the way home.",
    'That evening they shared a warm soup, and {name} said, "Now the {thing} is yours as well as mine."',
    "From that day on they took turns with the {thing}.",
)
_CLOSINGS = (
    "And they lived happily ever after.",
    "And if you go to the {place} today, you may still see them there.",
    "That night the {hero} slept very well.",
    "The end.",
)
_PLOTS = {
    "short": (_OPENINGS, _FINDS, _LIKES, _CLOSINGS),
    "": (_OPENINGS, _FINDS, _LIKES, _TROUBLES, _HELPS, _ENDS, _CLOSINGS),
    "long": (
        _OPENINGS, _FINDS, _LIKES, _FRIENDS, _TROUBLES, _SAD, _HELPS, _SEARCHES, _ENDS, _THANKS, _CLOSINGS,
    ),
}  # fmt: skip


def with_article(noun: str) -> str:
    """'an owl', 'a fox'."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def draw_story(rng: Random) -> tuple[str, str]:
    """A request for a story, and the story; a hero or thing that the request leaves open is drawn."""
    hero, thing = rng.choice(HEROES), rng.choice(OBJECTS)
    length = rng.choice(("short", "long"))
    template = rng.choice(TEMPLATES)
    question = template.format(hero=with_article(hero), thing=with_article(thing), length=length)
    return question, tell(hero, thing, length if "{length}" in template else "")


def tell(hero: str, thing: str, length: str = "") -> str:
    """The story of a hero and a thing; `length` is 'short', 'long' or nothing.

    Hero and thing alone decide every choice, each of them half, so that greedy decoding tells as many stories as there
    are pairs. If choices were drawn at random, the model would tell everyone the likeliest story.
    """
    h, t = HEROES.index(hero), OBJECTS.index(thing)
    place, second = PLACES[h % len(PLACES)], PLACES[t % len(PLACES)]
    if second == place:
        second = PLACES[(t + 1) % len(PLACES)]
    other = ANIMALS[t % len(ANIMALS)]
    if other == hero:
        other = ANIMALS[(t + 1) % len(ANIMALS)]
    half = len(_NAMES) // 2
    fields = {
        "hero": hero, "a_hero": with_article(hero), "thing": thing, "a_thing": with_article(thing),
        "name": _NAMES[h % half], "friend": _NAMES[half + t % half], "other": other,
        "place": place, "second": second,
    }  # fmt: skip
    sentences = []
    for slot, choices in enumerate(_PLOTS[length]):
        chosen = choices[((t if slot % 2 else h) + slot) % len(choices)]
        sentences.append(chosen.format(**fields))
    if not length:  # the friend has not been named yet when help comes
        sentences.insert(4, f"In the afternoon {fields['friend']} the {other} came by.")
    return " ".join(sentences)
