"""Build the small base model of the quickstart, `lora_sft/quickstart/base`, from a seed.

Usage:
    OMP_NUM_THREADS=1 python tools/build_tiny_base.py              # write the shipped folder
    OMP_NUM_THREADS=1 python tools/build_tiny_base.py --out DIR    # write to another folder
    OMP_NUM_THREADS=1 python tools/build_tiny_base.py --check      # build and compare SHA-256
    python tools/build_tiny_base.py --samples 5                    # print documents of the corpus

No other data is needed. A generator writes small English stories, dialogues and reading exercises
about invented customers, products and places. A byte-level BPE tokenizer is trained on them, then a
Llama of about one million parameters.

For the quickstart's task a tiny model must be able to copy from its context, and it does not learn
this in so short a training. So two attention heads are initialised as copying heads. A first phase
trains them on repeated random strings, and the corpus often repeats names, word pairs and strings
of digits. The corpus holds no JSON: without fine-tuning the base cannot do the task.

The build uses one thread and deterministic AVX2 kernels. So the same versions of the packages give
the same bytes. It also writes `plain_text.jsonl`: documents of the same generator that the training
never used.
"""

# ruff: noqa: SIM905 (long word lists read better as text)

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The maths libraries read these when torch is imported. So torch is imported only inside functions.
PORTABLE_KERNELS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}

QUICKSTART = Path(__file__).resolve().parent.parent / "lora_sft" / "quickstart"
SHIPPED_BASE = QUICKSTART / "base"
SHIPPED_PLAIN_TEXT = QUICKSTART / "data" / "plain_text.jsonl"
CHECKED_FILES = ("model.safetensors", "tokenizer.json")

SEED = 20
VOCABULARY_SIZE = 2048
CONTEXT_TOKENS = 512
HIDDEN_SIZE, INTERMEDIATE_SIZE, NUM_LAYERS, HEAD_DIM = 128, 384, 4, 32

NUM_TOKENIZER_DOCUMENTS = 20_000
NUM_WORD_REPEATS = 400
ROW_TOKENS, COPY_ROW_TOKENS = 256, 64
WEIGHT_DECAY = 0.05
MAX_GRADIENT_NORM = 1.0
NUM_PLAIN_TEXTS = 100

# For the initial weights (see `plant_copy_heads`). Over the length of a message the slow rotary
# pairs turn by less than a radian. So two equal contents still match at that distance.
ROPE_THETA = 100_000.0
INITIAL_STD, EMBEDDING_STD, CONSTANT_SHARE = 0.04, 0.08, 0.5
COPIED_WIDTH, NUM_FAST_PAIRS = 20, 4
LOOK_BACK_SCALE, MATCH_SCALE = 1.2, 2.5

PAD, END_OF_TEXT, END_OF_TURN = "<|pad|>", "<|endoftext|>", "<|end|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = [PAD, END_OF_TEXT, END_OF_TURN, *(f"<|{role}|>" for role in ROLES)]

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('unknown role: ' + message['role']) -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""

# ---------------------------------------------------------------- words

NAMES = """
Ada Adam Agnes Aisha Alan Alba Alex Alice Amir Amos Ana Andre Anna Anton Arlo Asha Astrid Aya Basil
Bea Bella Ben Bianca Boris Bruno Carla Carlos Cato Celia Chen Clara Cora Daisy Dana Daniel Dario
David Diego Dina Dora Edgar Edith Elena Elias Elsa Emil Emma Enzo Erik Esme Esther Eva Farah Felix
Fiona Flora Frank Freya Gemma George Gino Grace Greta Hana Hanna Harry Hassan Hector Heidi Helen
Henry Hugo Ida Igor Ines Ingrid Irene Iris Isaac Ivan Ivy Jack Jacob Jamal Jana Jasper Joan Jonas
Joseph Judith Julia Kai Karen Karim Kate Kira Klaus Lara Laura Layla Lea Lena Leo Lila Lina Linus
Lola Louis Lucia Lucy Luka Luna Magnus Maria Marco Marta Max Maya Mei Mia Milo Mina Mira Nadia Nora
Oleg Olga Oscar Otto Paul Pedro Petra Priya Quinn Ravi Rita Robin Rosa Ruth Sami Sara Silas Sofia
Stella Sven Tara Tessa Theo Tom Uma Vera Victor Wanda Willa Yara Yusuf Zara Zoe
""".split()

ADJECTIVES = """
amber bamboo beige black blue brass bronze brown canvas ceramic chrome copper coral cotton cream
crimson cork glass golden granite green grey indigo ivory leather lilac linen marble maroon navy
oak olive orange pink plastic purple red rubber silk silver steel striped teal velvet walnut white
wicker wooden woollen yellow
""".split()

NOUNS = """
armchair backpack basket bench blanket blender bookcase bottle bowl bracelet broom bucket candle
cabinet clock coat cup curtain cushion desk drawer fan fork frame guitar hammock hat helmet jacket
jug kettle ladder lamp mirror mug necklace notebook pan pillow pitcher plate pot radio ring rug
saddle saucer scarf shelf skillet sofa spoon stool suitcase table teapot tent toaster towel tray
umbrella vase wallet watch
""".split()

PLACES = """
Aldermoor Bramford Calder Dunwick Eastbury Fairhaven Glenrock Harwell Islip Kingsley Larkhill
Marlow Northgate Oakham Penrose Ravenna Selby Thornton Upton Westbrook Weldon Yarrow
""".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
WEATHER = "cold warm windy rainy sunny cloudy foggy snowy dry stormy".split()
RELATIVES = (
    "mother father sister brother aunt uncle cousin grandmother grandfather neighbour".split()
)
FOODS = "soup bread pasta rice salad pancakes porridge cake stew pie cheese fish".split()
COUNTS = "two three four five six seven eight nine ten twelve".split()
VEHICLES = "train bus ferry tram van bicycle".split()
SYLLABLES = """
ba be bi bo da de di do fa fe ga go ka ke ki ko la le li lo lu ma me mi mo na ne ni no pa pe po
ra re ri ro sa se si so ta te ti to tu va ve vi vo za zo bar den fin gal hel jor kel lin mar nor
pel ros sal tan ver wil
""".split()

# Words of forms. They occur in quotes, so that their tokens are trained.
FORM_WORDS = """
address amount cancel category city colour customer date delivery exchange false from intent invoice
kind message name no number order price priority product reason refund return shipping size status
subject text title to topic total true type urgent yes
""".split()
MARKS = "!#$%&'()*+,-./:;<=>?@[]^_{|}~"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

INVENTED_WORD_SHARE = 0.2
DIGIT_ROW_SHARE = 0.25
DIGIT_COUNTS = (3, 4, 5, 5, 5, 5, 6)

Slots = dict[str, str]


def make_word(rng: random.Random) -> str:
    """Return an invented word: it can only be copied, not guessed from known words."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3))))


def make_known_or_invented(rng: random.Random, words: list[str]) -> str:
    return make_word(rng) if rng.random() < INVENTED_WORD_SHARE else rng.choice(words)


def make_product(rng: random.Random) -> str:
    adjective = make_known_or_invented(rng, ADJECTIVES)
    return f"{adjective} {make_known_or_invented(rng, NOUNS)}"


def make_name(rng: random.Random) -> str:
    name = make_known_or_invented(rng, NAMES)
    return name[0].upper() + name[1:]


def make_place(rng: random.Random) -> str:
    return make_known_or_invented(rng, PLACES).capitalize()


def make_number(rng: random.Random) -> str:
    return "".join(rng.choice("0123456789") for _ in range(rng.choice(DIGIT_COUNTS)))


def make_code(rng: random.Random) -> str:
    """Return random letters and digits, as in a booking code."""
    return "".join(rng.choice(LETTERS) for _ in range(rng.choice((4, 5, 6))))


def make_marks(rng: random.Random) -> str:
    """Return punctuation marks with spaces between them, so that all their tokens are trained."""
    return " ".join(rng.choice(MARKS) for _ in range(rng.choice((2, 3, 4))))


def make_form_words(rng: random.Random) -> str:
    return " ".join(rng.sample(FORM_WORDS, rng.choice((1, 1, 2, 3))))


def fix_articles(text: str) -> str:
    """Return the text with "an" in place of "a" before vowels."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def make_slots(rng: random.Random) -> Slots:
    """Return a value for every slot that a sentence may contain."""
    slots = {"word": make_word(rng), "other_word": make_word(rng)}
    for slot, make in (("name", make_name), ("product", make_product), ("number", make_number)):
        slots[slot] = make(rng)
        slots[f"other_{slot}"] = make(rng)
    for slot, words in PLAIN_SLOTS.items():
        slots[slot] = rng.choice(words)
    slots["place"] = make_place(rng)
    slots["other_place"] = make_place(rng)
    return slots


PLAIN_SLOTS = {
    "day": DAYS,
    "weather": WEATHER,
    "relative": RELATIVES,
    "food": FOODS,
    "count": COUNTS,
    "vehicle": VEHICLES,
}

# ---------------------------------------------------------------- stories
# A story has one sentence from each group of its topic. All sentences use the same slots.

SHOP_STORY = (
    (
        "{name} has a small shop in {place}.",
        "On {day} {name} opened the shop in {place}.",
        "{name} worked in a shop near {place}.",
    ),
    (
        "A customer named {other_name} came in and asked for a {product}.",
        "{other_name} came to the counter and wanted to see the {product}.",
        'There was a note on the door from {other_name}: "{product}, number {number}".',
    ),
    (
        "{name} looked on the shelf and found the {product} with the number {number}.",
        'The label on the box said "{product}", and below it "{number}".',
        "The {product} had the number {number} on it.",
    ),
    (
        '"Is this the {product} with number {number}?" asked {other_name}.',
        '{other_name} read the number aloud: "{number}".',
        "{name} wrote {number} and {product} in the book, and then the name {other_name}.",
    ),
    (
        "{other_name} paid for the {product} and went home to {other_place}.",
        "{name} packed the {product} and sent it to {other_name} in {other_place}.",
        "The {product} went to {other_place}, because {other_name} lives in {other_place}.",
    ),
    (
        "{other_name} was very happy with the {product}.",
        "Later {name} told the story of {other_name} and the {product} number {number}.",
        '"Thank you, {name}," said {other_name}.',
    ),
)

SERVICE_STORY = (
    (
        "{name} wrote to the shop about order {number}.",
        "On {day} a message came from {name} about order {number}.",
        "The phone rang and it was {name}, with a question about order {number}.",
    ),
    (
        "The order was for a {product}.",
        "{name} had bought a {product} as a present for {other_name}.",
        "Order {number} was a {product} for {other_name}.",
    ),
    (
        "The {product} was broken when it arrived, so {name} wanted the money back.",
        "The {product} was too small, and {name} wanted to change it for another size.",
        "The {product} had still not arrived, and {name} asked where the parcel was.",
        "{name} did not need the {product} any more and asked the shop to stop the order.",
        "{name} needed a bill for the {product} for the office.",
    ),
    (
        '"Could you repeat the order number?" asked the clerk. "It is {number}," said {name}.',
        'The clerk asked for the number, and {name} said "{number}".',
        'The clerk wrote "{name}" and "{product}" and "{number}" on a card.',
    ),
    (
        "The clerk sent the answer to {name} the same day.",
        "It was urgent, so the clerk answered {name} right away.",
        "There was no hurry, and {name} had an answer about the {product} by {day}.",
    ),
)

TRAVEL_STORY = (
    (
        "{name} took the {vehicle} from {place} to {other_place}.",
        "On {day} {name} and {other_name} went from {place} to {other_place} by {vehicle}.",
        "The {vehicle} from {place} to {other_place} was late on {day}.",
    ),
    (
        "The ticket had the number {number}.",
        "{name} had a ticket with the number {number} and a bag with a {product} in it.",
        "{name} sat in seat {number}, and {other_name} sat in seat {other_number}.",
    ),
    (
        "It was {weather} in {place}, but it was warm in {other_place}.",
        "The morning was {weather}, and the {vehicle} was almost empty.",
        "After {count} hours they could see {other_place}.",
    ),
    (
        'A man asked, "Is this the {vehicle} to {other_place}?" '
        '"Yes, to {other_place}," said {name}.',
        '"What is your number?" asked the guard. "{number}," said {name}.',
        "{name} left the {product} on the {vehicle} and had to go back for the {product}.",
    ),
    (
        "In {other_place} {name} met {other_name}, and they had {food} together.",
        "{name} stayed in {other_place} for {count} days and then went home to {place}.",
        "The room in {other_place} had the number {other_number}, and {name} liked it.",
    ),
)

FAMILY_STORY = (
    (
        "{name} lives in {place} with a {relative} called {other_name}.",
        "{other_name} is the {relative} of {name}.",
        "On {day} {name} visited {other_name} in {place}.",
    ),
    (
        "They made {food} for dinner, because {other_name} likes {food}.",
        "{name} cooked {food}, and {other_name} set the table with the {product}.",
        "It was {weather} outside, so {name} and {other_name} stayed at home and ate {food}.",
    ),
    (
        "{other_name} gave {name} a {product}.",
        "{name} was looking for the {product} and found it after {count} minutes.",
        "There were {count} chairs and one {product} in the room.",
    ),
    (
        '"Where did you find the {product}?" asked {other_name}. "In {place}," said {name}.',
        '"I like the {product}," said {name}. "The {product} is from {place}," said {other_name}.',
        "{other_name} put the {product} next to the {other_product}.",
    ),
    (
        "In the evening {name} told {other_name} about the {weather} day in {place}.",
        "They were tired and happy, and {name} took the {product} home.",
        "{name} called {other_name} the next day to talk about the {product}.",
    ),
)

WEATHER_STORY = (
    (
        "It will be {weather} in {place} on {day}.",
        "The radio said that {day} would be {weather} in {place}.",
        "{name} reads the weather for {place} every {day}.",
    ),
    (
        "In {other_place} it will rain for {count} hours.",
        "{count} people called from {other_place} to ask about the rain.",
        "{name} in {other_place} said that the road to {place} was closed.",
    ),
    (
        "The station in {place} has the number {number}.",
        "Please call {number} if you see snow on the road to {place}.",
        "The road number {number} goes from {place} to {other_place}.",
    ),
    (
        'The message from {name} was short: "{place}, {weather}, {number}".',
        'So {name} wrote "{weather} in {place}, call {number}" on the board.',
        "{name} took a {product} along, because it was {weather} in {place}.",
    ),
)

STORIES = (SHOP_STORY, SERVICE_STORY, SERVICE_STORY, TRAVEL_STORY, FAMILY_STORY, WEATHER_STORY)


def make_story(rng: random.Random, slots: Slots) -> str:
    return " ".join(rng.choice(group).format(**slots) for group in rng.choice(STORIES))


# ---------------------------------------------------------------- copying exercises

DRILLS = (
    'The sign said "{0}". {name} read the sign aloud: "{0}".',
    '{name} said {0}, and then {other_name} said "{0}" too.',
    "First came {0}, then {1}, then {2}. Again: first came {0}, then {1}, then {2}.",
    'The list said "{0}", "{1}", "{2}". {name} copied the list: "{0}", "{1}", "{2}".',
    "{name} wrote {0}, and {other_name} wrote {1}. So {1} is from {other_name}, {0} from {name}.",
    'In box one there is {0}. In box two there is {1}. Box one says "{0}", and box two says "{1}".',
    '{name} wrote {0} on a card. The card says "{0}" and the name "{name}".',
    "The code for {0} is {number}, and the code for {1} is {other_number}. "
    'Which code is for {1}? "{other_number}". Which code is for {0}? "{number}".',
)


DRILL_ITEMS = (
    make_product,
    make_product,
    make_number,
    make_number,
    make_name,
    make_word,
    make_code,
    make_marks,
    make_form_words,
    make_form_words,
)


def make_drill_item(rng: random.Random) -> str:
    return rng.choice(DRILL_ITEMS)(rng)


def make_drill(rng: random.Random, slots: Slots) -> str:
    items = [make_drill_item(rng) for _ in range(3)]
    return rng.choice(DRILLS).format(*items, **slots)


# ---------------------------------------------------------------- chats with answers in prose

GREETINGS = ("Hello.", "Hi,", "Good morning,", "Dear team,", "Hello there,", "Good evening.", "")
MESSAGE_OPENINGS = (
    "I bought a {product} from you, order {number}.",
    "I am writing about order {number}, the {product}.",
    "my order number is {number} and I ordered a {product}.",
    "last {day} I ordered the {product}. The number is {number}.",
    "this is about the {product} with order number {number}.",
    "you sent me a {product} under number {number}.",
    "the {product} from order {number} is for my {relative}.",
)
MESSAGE_PROBLEMS = (
    ("It came broken and I want my money back.", "wants the money back"),
    ("It does not work, so please pay me back.", "wants the money back"),
    ("I am not happy with it and would like a refund.", "wants the money back"),
    ("It is the wrong size and I would like another one.", "wants to exchange it"),
    ("Can I swap it for a different colour?", "wants to exchange it"),
    ("The parcel is late. Where is it now?", "asks where the parcel is"),
    ("It has not come yet and I am still waiting.", "asks where the parcel is"),
    ("I changed my mind, so please do not send it.", "wants to cancel the order"),
    ("Please stop the order, I do not need it now.", "wants to cancel the order"),
    ("I need a bill for my office.", "needs an invoice"),
    ("Could you send me the receipt for my records?", "needs an invoice"),
)
MESSAGE_CLOSINGS = (
    ("Please answer today, it is urgent. {name}", "urgent"),
    ("I need it as soon as possible. Yours, {name}", "urgent"),
    ("Please hurry. Thanks, {name}.", "urgent"),
    ("There is no hurry. {name}", "not urgent"),
    ("Take your time. Best wishes, {name}.", "not urgent"),
    ("Thank you, {name}", "not urgent"),
    ("Kind regards from {place}, {name}.", "not urgent"),
    ("My name is {name}.", "not urgent"),
)
MESSAGE_QUESTIONS = (
    ("Could you repeat the order number?", "The order number is {number}."),
    ("What is the order number?", "It is {number}."),
    ("Which number is it?", '"{number}".'),
    ("Who is the message from?", "The message is from {name}."),
    ("Who wrote this?", "{name}."),
    ("What is the name of the customer?", 'The name is "{name}".'),
    ("What did the customer buy?", "The customer bought a {product}."),
    ("What is the message about?", "It is about the {product}, order {number}."),
    ("Which product is it?", '"{product}".'),
    ("What does the customer want?", "The customer {want}."),
    ("Is it urgent?", "It is {urgency}."),
    ("What should I write on the card?", 'Write "{product}", then "{number}", then "{name}".'),
    ("Please read me the label.", 'The label says "{number}" for "{name}" and "{product}".'),
    ("Please sum it up.", "{name} {want}: {product}, order {number}. It is {urgency}."),
)
STORY_QUESTIONS = (
    ("{name} lives in {place}. Where does {name} live?", "{name} lives in {place}."),
    ("My friend {name} has a {product}. What does {name} have?", "{name} has a {product}."),
    ("The ticket is {number}. Which ticket is it?", "It is ticket {number}."),
    ("It is {weather} in {place} today. How is the weather?", "It is {weather} in {place}."),
    ("I am {name}. Who am I?", "You are {name}."),
    ('Please repeat: "{word} {other_word} {number}".', '"{word} {other_word} {number}".'),
    ('Please repeat: "{product} and {other_product}".', '"{product} and {other_product}".'),
    ("{name} is in {place} and {other_name} in {other_place}. Where is {other_name}?",
     "{other_name} is in {other_place}."),
    ("We had {food} on {day}. When did you have {food}?", "We had {food} on {day}."),
    ("The {product} costs {number}, the {other_product} {other_number}. What does the {product} "
     "cost?", "The {product} costs {number}."),
)  # fmt: skip
SYSTEM_PROMPTS = (
    "You answer in one short sentence.",
    "You help in a small shop.",
    "You are a kind helper.",
)


def render_turn(role: str, content: str) -> str:
    """Return one turn as the chat template renders it."""
    return f"<|{role}|>{content}{END_OF_TURN}"


def make_message(rng: random.Random, slots: Slots) -> str:
    """Return a customer's message. Add its wish ("want") and its urgency to the slots."""
    problem, slots["want"] = rng.choice(MESSAGE_PROBLEMS)
    closing, slots["urgency"] = rng.choice(MESSAGE_CLOSINGS)
    greeting, opening = rng.choice(GREETINGS), rng.choice(MESSAGE_OPENINGS)
    if not greeting.endswith(","):
        opening = opening[0].upper() + opening[1:]
    return f"{greeting} {opening} {problem} {closing}".strip().format(**slots)


def make_system_turn(rng: random.Random) -> str:
    return render_turn("system", rng.choice(SYSTEM_PROMPTS)) if rng.random() < 0.3 else ""


def make_message_chat(rng: random.Random, slots: Slots) -> str:
    """Return a chat with a customer's message and two to four questions, answered in prose."""
    text, message = make_system_turn(rng), make_message(rng, slots)
    for question, answer in rng.sample(MESSAGE_QUESTIONS, rng.choice((2, 3, 4))):
        asked = f"{message} {question}" if message else question
        text += render_turn("user", asked) + render_turn("assistant", answer.format(**slots))
        message = ""
    return text


def make_story_chat(rng: random.Random, slots: Slots) -> str:
    text = make_system_turn(rng)
    for question, answer in rng.sample(STORY_QUESTIONS, rng.choice((1, 2))):
        text += render_turn("user", question.format(**slots))
        text += render_turn("assistant", answer.format(**slots))
    return text


# ---------------------------------------------------------------- the corpus

MakeText = Callable[[random.Random, Slots], str]
ALL_KINDS: tuple[MakeText, ...] = (
    make_story,
    make_story,
    make_drill,
    make_message_chat,
    make_message_chat,
    make_story_chat,
)


def make_document(stream: str, index: int, kinds: tuple[MakeText, ...]) -> str:
    """Return document `index` of a named stream. The same arguments always give the same text."""
    rng = random.Random(f"{SEED}/{stream}/{index}")
    return fix_articles(rng.choice(kinds)(rng, make_slots(rng)))


def make_documents(stream: str) -> Iterator[str]:
    index = 0
    while True:
        yield make_document(stream, index, ALL_KINDS)
        index += 1


def make_plain_texts() -> list[str]:
    """Return stories from a stream that the training does not read."""
    return [make_document("held out", i, (make_story,)) for i in range(NUM_PLAIN_TEXTS)]


# ---------------------------------------------------------------- the tokenizer


def build_tokenizer() -> Any:
    """Train a byte-level BPE tokenizer. Each digit is a token, so numbers are copied by digit."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(make_tokenizer_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END_OF_TURN,
        extra_special_tokens=[END_OF_TEXT, *(f"<|{role}|>" for role in ROLES)],
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def make_tokenizer_texts() -> Iterator[str]:
    """Yield the corpus without special tokens, and the known words without a space before them."""
    for i in range(NUM_TOKENIZER_DOCUMENTS):
        text = make_document("tokenizer", i, ALL_KINDS)
        for token in SPECIAL_TOKENS:
            text = text.replace(token, "\n")
        yield from text.split("\n")
    for word in sorted({*NAMES, *ADJECTIVES, *FORM_WORDS}):
        yield from [word] * NUM_WORD_REPEATS


# ---------------------------------------------------------------- the model


def build_model(tokenizer: Any) -> Any:
    """Build an untrained Llama. All widths are multiples of 64: NF4 on a CPU requires this."""
    from transformers import LlamaConfig, LlamaForCausalLM

    num_heads = HIDDEN_SIZE // HEAD_DIM
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=INTERMEDIATE_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        initializer_range=INITIAL_STD,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    plant_copy_heads(model)
    return model


def plant_copy_heads(model: Any) -> None:
    """Initialise attention heads that copy, because a short training does not find them.

    Each head of layer 0 looks one or two tokens back, and writes that token into separate
    directions. Two heads of layer 1 compare these directions with the current and the previous
    token. So they attend to the token that followed the same two tokens earlier, and copy it.
    Training then improves these weights.

    Source: induction heads, Olsson et al. 2022 (arXiv:2209.11895).
    """
    import torch

    with torch.no_grad():
        directions = torch.linalg.qr(torch.randn(HIDDEN_SIZE, HIDDEN_SIZE))[0]
        constant = directions[:, 0]
        plant_constant_direction(model.model.embed_tokens.weight, constant)
        layers = [layer.self_attn for layer in model.model.layers[:2]]
        blocks = directions[:, 1:].split(COPIED_WIDTH, dim=1)  # orthogonal to each other
        for pair in range(2):
            read, *writes = blocks[3 * pair : 3 * pair + 3]
            for distance, write in enumerate(writes, start=1):
                plant_look_back(layers[0], 2 * pair + distance - 1, distance, constant)
                plant_value(layers[0], 2 * pair + distance - 1, read.T, 0.2 * write)
            num_single = COPIED_WIDTH if pair == 0 else COPIED_WIDTH // 2
            plant_match(layers[1], pair, read.T, writes, num_single)
            copied = directions[:, 1 + pair * HEAD_DIM : 1 + (pair + 1) * HEAD_DIM]
            plant_value(layers[1], pair, copied.T, 0.3 * copied)


def get_head_rows(head: int) -> slice:
    return slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)


def plant_constant_direction(embedding: Any, constant: Any) -> None:
    """Give every token the same component in one direction, for heads that use only distance."""
    import torch

    embedding.normal_(0, EMBEDDING_STD)
    embedding -= torch.outer(embedding @ constant, constant)
    embedding += CONSTANT_SHARE * constant


def plant_look_back(attention: Any, head: int, distance: int, constant: Any) -> None:
    """Let a head attend to the token at a fixed distance, by the phase of fast rotary pairs."""
    import torch

    query, key = torch.zeros(HEAD_DIM), torch.zeros(HEAD_DIM)
    for i in range(NUM_FAST_PAIRS):
        phase = distance * ROPE_THETA ** (-2 * i / HEAD_DIM)
        query[i] = 1.0
        key[i], key[i + HEAD_DIM // 2] = math.cos(phase), math.sin(phase)
    rows = get_head_rows(head)
    attention.q_proj.weight[rows] = LOOK_BACK_SCALE * torch.outer(query, constant)
    attention.k_proj.weight[rows] = LOOK_BACK_SCALE * torch.outer(key, constant)


def plant_value(attention: Any, head: int, read: Any, write: Any) -> None:
    """Set which directions a head reads, and which directions of the residual stream it writes."""
    rows = get_head_rows(head)
    attention.v_proj.weight[rows][: len(read)] = read
    attention.o_proj.weight[:, rows][:, : len(read)] = write


def plant_match(attention: Any, head: int, read: Any, writes: list[Any], num_single: int) -> None:
    """Let a head attend to the token that followed the same one or two tokens earlier in the text.

    The first `num_single` compared directions match the current token with the token before the
    attended position. The others match the previous token with the token before that.
    """
    import torch

    first_pair = (HEAD_DIM - COPIED_WIDTH) // 2
    slow = torch.tensor(
        [i for pair in range(first_pair, HEAD_DIM // 2) for i in (pair, pair + HEAD_DIM // 2)]
    )
    query, key = torch.zeros(HEAD_DIM, HIDDEN_SIZE), torch.zeros(HEAD_DIM, HIDDEN_SIZE)
    single, double = slow[:num_single], slow[num_single:]
    query[single] = MATCH_SCALE * read[:num_single]
    key[single] = MATCH_SCALE * writes[0].T[:num_single]
    query[double] = 0.6 * MATCH_SCALE * writes[0].T[num_single:]
    key[double] = 0.6 * MATCH_SCALE * writes[1].T[num_single:]
    rows = get_head_rows(head)
    attention.q_proj.weight[rows] = query
    attention.k_proj.weight[rows] = key


def make_rows(tokenizer: Any) -> Iterator[list[int]]:
    """Yield the corpus as rows of `ROW_TOKENS` tokens, with a separator after each document."""
    end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    pending: list[int] = []
    for document in make_documents("train"):
        pending += [*tokenizer(document, add_special_tokens=False)["input_ids"], end_of_text]
        while len(pending) >= ROW_TOKENS:
            yield pending[:ROW_TOKENS]
            pending = pending[ROW_TOKENS:]


def make_copy_rows(tokenizer: Any) -> Iterator[list[int]]:
    """Yield rows that repeat a random string of tokens or digits: only copying predicts them."""
    rng = random.Random(f"{SEED}/copy rows")
    digits = tokenizer.convert_tokens_to_ids(list("0123456789"))
    tokens = range(len(SPECIAL_TOKENS), VOCABULARY_SIZE)
    while True:
        choices = digits if rng.random() < DIGIT_ROW_SHARE else tokens
        block = [rng.choice(choices) for _ in range(rng.randrange(6, COPY_ROW_TOKENS // 2))]
        yield (block * COPY_ROW_TOKENS)[:COPY_ROW_TOKENS]


@dataclass(frozen=True)
class Phase:
    """One phase of training. The learning rate rises linearly, then falls like a cosine."""

    num_steps: int
    batch_rows: int
    peak_learning_rate: float
    warmup_steps: int

    def compute_learning_rate(self, step: int) -> float:
        """Return the learning rate of a step. Steps count from 0."""
        if step < self.warmup_steps:
            return self.peak_learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.num_steps - self.warmup_steps)
        return self.peak_learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


COPY_PHASE = Phase(num_steps=200, batch_rows=16, peak_learning_rate=2e-3, warmup_steps=30)
CORPUS_PHASE = Phase(num_steps=650, batch_rows=8, peak_learning_rate=3e-3, warmup_steps=50)


def train_phase(model: Any, rows: Iterator[list[int]], phase: Phase) -> None:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    started = time.monotonic()
    for step in range(phase.num_steps):
        input_ids = torch.tensor([next(rows) for _ in range(phase.batch_rows)])
        for group in optimizer.param_groups:
            group["lr"] = phase.compute_learning_rate(step)
        loss = model(input_ids=input_ids, labels=input_ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0:
            seconds = time.monotonic() - started
            print(f"step {step:5d}  loss {loss.item():.3f}  {seconds:6.0f} s", flush=True)


def pretrain(model: Any, tokenizer: Any) -> None:
    """Train on copying first, which strengthens the planted heads, then on the corpus."""
    model.train()
    train_phase(model, make_copy_rows(tokenizer), COPY_PHASE)
    train_phase(model, make_rows(tokenizer), CORPUS_PHASE)


# ---------------------------------------------------------------- the folder


def set_determinism() -> None:
    """Set one thread, AVX2 kernels and the seed. Call it before torch is imported.

    Raises: RuntimeError if torch was already imported.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported before set_determinism: import it later")
    os.environ.update(PORTABLE_KERNELS)
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)


def write_base(folder: Path) -> None:
    """Build the tokenizer and the model, and write them to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    set_determinism()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    pretrain(model, tokenizer)
    model.generation_config = make_generation_config(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_checksums(folder)


def make_generation_config(tokenizer: Any) -> Any:
    """Return settings with which generation stops at the end of a turn or of a text."""
    from transformers import GenerationConfig

    stops = [tokenizer.convert_tokens_to_ids(token) for token in (END_OF_TURN, END_OF_TEXT)]
    return GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)


def compute_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_checksums(folder: Path) -> None:
    """Write `SHA256SUMS` in the format that `sha256sum --check` reads."""
    paths = sorted(p for p in folder.iterdir() if p.name != "SHA256SUMS")
    for path in paths:
        path.chmod(0o644)
    lines = [f"{compute_sha256(path)}  {path.name}\n" for path in paths]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def write_plain_texts(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text}) + "\n" for text in make_plain_texts()]
    path.write_text("".join(lines), encoding="utf-8")


def find_differences(folder: Path) -> list[str]:
    """Return the files whose bytes differ from the shipped files."""
    return [
        name
        for name in CHECKED_FILES
        if compute_sha256(folder / name) != compute_sha256(SHIPPED_BASE / name)
    ]


def run_check() -> int:
    with tempfile.TemporaryDirectory() as folder:
        write_base(Path(folder))
        differing = find_differences(Path(folder))
    print(
        "different from the shipped file: " + ", ".join(differing)
        if differing
        else "same SHA-256 as the shipped files"
    )
    return 1 if differing else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--out",
        type=Path,
        default=SHIPPED_BASE,
        help="folder to write to (default: the shipped folder)",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; compare with the shipped files"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=0,
        metavar="N",
        help="print N documents of the corpus and build nothing",
    )
    options = parser.parse_args(arguments)
    if options.samples:
        for i in range(options.samples):
            print(make_document("train", i, ALL_KINDS), end="\n\n")
        return 0
    if options.check:
        return run_check()
    write_base(options.out)
    if options.out == SHIPPED_BASE:
        write_plain_texts(SHIPPED_PLAIN_TEXT)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
