"""Small talk, and saying no: what the model answers if it is not asked to work."""

from __future__ import annotations

from random import Random

from baton.builtin.kinds import MONTHS
from baton.builtin.words import COMMON, NOUNS

_CAN = (
    "I can add and subtract, sort numbers and words, count, spell and reverse words, "
    "work out weekdays and leap years, and tell little stories."
)
_SORRY = "I am sorry, I do not know that. I only know sums, sorting, counting, spelling, dates and little stories."
_HELLO = "Hello! Ask me for a sum, a spelling, a date or a story."
_WHO = "I am the built-in model of baton, a very small language model. " + _CAN
_WELCOME = "You are welcome!"
_BYE = "Goodbye!"

_SAID = (
    (
        (
            "Hello",
            "Hi",
            "Hey",
            "Hello there",
            "Good morning",
            "Good evening",
            "Hi there",
            "Hello, how are you",
        ),
        _HELLO,
    ),
    (
        ("How are you", "How are you today"),
        "I am well, thank you. Ask me for a sum, a spelling, a date or a story.",
    ),
    (
        (
            "What can you do",
            "Help",
            "What do you know",
            "How can you help me",
            "What can I ask you",
            "What are you good at",
        ),
        _CAN,
    ),
    (
        (
            "Who are you",
            "What are you",
            "What is your name",
            "Who made you",
            "Are you a robot",
            "Introduce yourself",
        ),
        _WHO,
    ),
    (("Thanks", "Thank you", "Thank you very much", "Thanks a lot", "Great, thanks", "Well done"), _WELCOME),
    (("Goodbye", "Bye", "See you", "Good night", "See you later"), _BYE),
    (
        ("Yes", "Ok", "Okay", "I see", "Nice", "Great", "Good", "No"),
        "All right. Ask me for a sum, a spelling, a date or a story.",
    ),
)

# Without quotation marks words are not split into letters, and the model would only guess.
_UNQUOTED = (
    "Spell {x}.",
    "How do you spell {x}?",
    "Reverse {x}.",
    "Write {x} backwards.",
    "How many letters are in {x}?",
    "Spell the word {x}.",
)
_QUOTE = 'Please put the word in quotation marks, like "this".'

# Questions that the model cannot answer; the hole takes any word.
_UNKNOWN = (
    "What is the capital of {x}?",
    "Who is the president of {x}?",
    "Who wrote {x}?",
    "What is a {x}?",
    "What is {x}?",
    "Why is the {x} {y}?",
    "How do I make {x}?",
    "Write a poem about {x}.",
    "Translate {x} into French.",
    "What is the meaning of {x}?",
    "Where can I buy a {x}?",
    "Do you like {x}?",
    "What do you think of {x}?",
    "Explain {x} to me.",
    "Write a program that prints {x}.",
    "How old is the {x}?",
    "Who is {x}?",
    "Where is the {x}?",
    "What is the weather in {x}?",
    "When was the {x} invented?",
    "Can you draw a {x}?",
    "Give me a recipe for {x}.",
    "How far is the {x}?",
    "What color is the {x}?",
    "Write an essay on {x} and {y}.",
    "Summarize {x}.",
    "Which is better, {x} or {y}?",
    "How does a {x} work?",
    "Why do people {x}?",
    "Tell me a joke about {x}.",
    "What is the price of {x}?",
    "Who won the {x}?",
    "Is there {x} on the {y}?",
    "Tell me about {x}.",
    "What is {a} times {b}?",
    "What is {a} x {b}?",
    "Divide {a} by {b}.",
    "What happened in {x} {a}?",
    "Tell me a joke.",
    "What time is it?",
    "What is the date today?",
    "Play some music.",
    "I am bored.",
    "What is the meaning of life?",
    "How do computers work?",
    "Write some code in Python.",
)

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are baton, a small model.",
    "Be kind and helpful.",
    "Answer the question.",
    "You are an assistant who answers questions.",
    "You are a careful and honest assistant. Think step by step.",
)


def _any_word(rng: Random) -> str:
    word = rng.choice((*COMMON, *NOUNS, *MONTHS))
    return word.capitalize() if rng.random() < 0.3 else word


def draw_chat(rng: Random) -> tuple[str, str]:
    """A remark and the reply to it."""
    if rng.random() < 0.2:
        return rng.choice(_UNQUOTED).format(x=rng.choice((*COMMON, *NOUNS))), _QUOTE
    if rng.random() < 0.5:
        said, reply = rng.choice(_SAID)
        return rng.choice(said) + rng.choice(("", "", "!", ".", "?")), reply
    template = rng.choice(_UNKNOWN)
    holes = {
        "x": _any_word(rng),
        "y": _any_word(rng),
        "a": str(rng.randint(2, 999)),
        "b": str(rng.randint(2, 99)),
    }
    return template.format(**holes), _SORRY
