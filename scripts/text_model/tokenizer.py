"""The tokenizer: byte-level BPE whose numbers up to 100 are single tokens, with the chat template."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from scripts.text_model.chat import ADDED_TOKENS, END, END_OF_TEXT, SPECIAL_TOKENS
from scripts.text_model.counting import MAX_NUMBER
from scripts.text_model.domain import conversation
from scripts.text_model.words import SPELLED

VOCABULARY = 1024
TEMPLATE = Path(__file__).with_name("chat_template.jinja")
_CONVERSATIONS = 6000


def train_tokenizer(seed: int, conversations: int = _CONVERSATIONS) -> Tokenizer:
    """Train on conversations of the domain. The special tokens have the ids 0 to 2."""
    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(ADDED_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = ("".join(part.text for part in conversation(rng, 2)) for _ in range(conversations))
    tokenizer.train_from_iterator(itertools.chain(texts, _whole_tokens() * (conversations // 20)), trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED_TOKENS])
    return tokenizer


def _whole_tokens() -> list[str]:
    """Return texts that become single tokens: numbers and spelled words, at the start of a text and inside."""
    numbers = [str(number) for number in range(MAX_NUMBER + 1)]
    return [*numbers, *(f" {each}" for each in (*numbers, *SPELLED))]


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Save it with its chat template as transformers reads it."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE.read_text()
    fast.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    # The name that every version of transformers knows.
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n"
    )
