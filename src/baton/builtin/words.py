"""The words of the questions: listed ones, and made-up pronounceable ones."""

from __future__ import annotations

from random import Random

_ANIMALS = """
fox owl bear mouse rabbit cat dog duck goat horse frog turtle hedgehog squirrel wolf lion crow hen
badger otter
"""
_PEOPLE = """
baker king queen sailor farmer boy girl wizard painter teacher
"""
_OBJECTS = """
lamp key kite drum map bell boat hat book coin cup ring flute basket ladder candle clock mirror button
feather stone apple pear violin umbrella box rope blanket star shoe
"""
_PLACES = """
forest river hill garden village lake island valley market bridge
"""
_COMMON = """
about above across after again almost along always angry animal answer arm autumn away baby back bad
ball banana bank bean beautiful because bed before begin behind believe below beside better between big
bird black blue body bottle bottom bread breakfast bright bring brother brown brush build busy butter
cake call camera careful carry castle catch cause chair cheese chicken child city class clean clear
climb close cloud coat coffee cold color come cook corner country cover cow cross crowd cry dance danger
dark daughter day deep desk dinner dirty doctor door down dream dress drink drive dry early earth east
easy eat edge egg eight elbow empty engine enjoy enough evening every eye face fall family famous far
fast father fear field fight finger finish fire fish floor flower fly follow food foot forget fork four
free fresh friend fruit full funny game gate gentle gift give glass gold good grand grass gray great
green ground group grow guess hair half hammer hand happy hard hear heart heavy help high hold holiday
home honey hope hot hotel hour house hungry hurry ice idea inside iron jacket job join juice jump jungle
keep kind kitchen knee knife know large last late laugh leaf learn leave left leg lemon letter library
light listen little live long look loud love low lucky lunch machine make market meat medicine meet
middle milk minute mississippi money monkey month moon morning mother mountain mouth move music nail
name narrow near neck needle neighbor nest never new night nine noise noon north nose number nurse ocean
office often oil old onion open orange orchestra outside oven over paint paper parent park party pencil
pepper person picture piece pilot pink plane plant plate play pocket poor potato present pretty price
problem purple push quarter question quick quiet radio rain read ready red rest rice rich ride right
road rocket roof room round rule run salt sand school science sea season seat second seed sell seven
shadow share sharp sheep ship shirt shop short shoulder silver simple sing sister sky sleep slow small
smile snow soap soft song soup south space spoon sport spring square stairs station stop story strange
strawberry street strong student sugar summer sun supper sweet swim table tall tea teach telephone ten
tent thank thin thing think thousand three thunder ticket tiger time tiny tired today together tomato
tomorrow tooth top tower town train travel tree true turn twelve twenty uncle under use vegetable very
visit voice wait walk wall warm wash watch water weather week west wet wheel white wide wild wind window
winter wise woman wonder wood word work world write wrong yard year yellow yes young zebra zero
"""

# Common enough in the training text to be spelled without quotation marks.
ANIMALS, PEOPLE, OBJECTS, PLACES = (tuple(words.split()) for words in (_ANIMALS, _PEOPLE, _OBJECTS, _PLACES))
NOUNS = ANIMALS + PEOPLE + OBJECTS + PLACES
# Only ever asked in quotation marks, letter by letter.
COMMON = tuple(_COMMON.split())

_ONSETS_TEXT = "b c d f g h j k l m n p r s t v w z br cl dr fl gr pl st tr sh ch th qu x"
_VOWELS_TEXT = "a e i o u a e i o u ai ea oo ee y"
_CODAS_TEXT = "n t r s l m p d k ll ss nt rd st ck x"
_ONSETS, _VOWELS = _ONSETS_TEXT.split(), _VOWELS_TEXT.split()
_CODAS = ["", "", "", *_CODAS_TEXT.split()]


def made_up(rng: Random, longest: int) -> str:
    """A pronounceable word of at most `longest` letters that need not exist."""
    word = ""
    for _ in range(rng.randint(1, 4)):
        syllable = rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        if len(word + syllable) > longest:
            break
        word += syllable
    return word or "oak"


def a_word(rng: Random, longest: int) -> str:
    """A word as questions have it: in quotation marks.

    Each letter is then a token of its own, so any word can be asked.
    """
    if rng.random() < 0.35:
        return f'"{rng.choice([w for w in COMMON + NOUNS if len(w) <= longest])}"'
    return f'"{made_up(rng, longest)}"'
