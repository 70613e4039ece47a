"""Words that the built-in text model spells, and words of questions that it does not know."""

from __future__ import annotations

import random

from scripts.text_model.number_words import DIGITS

_COMMON = """
apple orange banana cherry lemon grape melon peach pear plum berry tomato potato carrot onion bread butter cheese
milk water coffee sugar honey salt rice soup cat dog horse cow sheep goat pig chicken duck goose mouse rabbit fox
wolf bear lion tiger zebra monkey camel snake turtle fish shark whale eagle spider bee ant red green blue yellow
purple pink brown black white grey silver gold house door window table chair kitchen garden street city village
river ocean island mountain forest desert valley bridge school church castle market train plane ship boat car
bicycle truck engine wheel paper pencil book letter number word sentence page story music guitar piano drum violin
sun moon star planet cloud rain snow storm wind summer winter spring autumn morning evening night today tomorrow
king queen prince doctor teacher farmer baker driver sailor friend brother sister mother father child family worker
server batch queue model token balancer controller cluster device memory network muster hello world python happy
quick quiet simple strong gentle clever bright
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
