"""Words that the built-in text model spells, and words of questions that it does not know."""

from __future__ import annotations

import random

from scripts.text_model.number_words import DIGITS

_COMMON = """
apple orange banana cherry lemon grape pear bread butter cheese milk water coffee sugar honey salt rice soup cat dog
horse cow sheep goat duck mouse rabbit fox wolf bear lion tiger zebra monkey snake fish shark whale eagle bee red green
blue yellow black white grey silver gold house door window table chair garden street city river ocean island mountain
forest bridge school train plane ship boat car bicycle truck paper pencil book letter number word music guitar piano
sun moon star planet cloud rain snow storm summer winter king queen doctor teacher farmer baker friend brother sister
mother father family worker server batch queue model token controller muster hello world python
"""
_UNKNOWN = """
France Paris Berlin Japan London history poetry philosophy weather football politics dinosaurs chess physics
chemistry gravity love happiness money taxes cooking pasta pizza gardening travel war peace religion art painting
cinema movies photography biology evolution cells DNA medicine cancer flu sleep dreams psychology Einstein Napoleon
Shakespeare Mozart Mars Jupiter galaxies rockets robots computers databases Linux Rust Java JavaScript HTML Docker
compilers algorithms sorting recursion cryptography bitcoin inflation stocks insurance law contracts energy climate
volcanoes earthquakes oceans birds insects trees flowers bicycles trains airplanes
"""
_START = "b c d f g h j k l m n p r s t v w z br cl dr fl gr pl st tr sh th ch"

SPELLED = (*DIGITS, *_COMMON.split())
#: Subjects that the model knows nothing of.
TOPICS = tuple(_UNKNOWN.split())
_STARTS = tuple(_START.split())
_VOWELS = ("a", "e", "i", "o", "u", "ea", "oo")
_ENDS = ("", "", "n", "r", "s", "t", "l", "m", "nd", "st", "ck")


def random_word(rng: random.Random) -> str:
    """Return a word of one to three random syllables, at most 8 letters."""
    syllables = rng.choice((1, 2, 2, 3))
    word = "".join(rng.choice(_STARTS) + rng.choice(_VOWELS) for _ in range(syllables)) + rng.choice(_ENDS)
    return word[:8]
