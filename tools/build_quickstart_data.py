"""Write the rows of the quickstart, `lora_sft/quickstart/data`, from a seed.

Usage:
    python tools/build_quickstart_data.py              # write the shipped files
    python tools/build_quickstart_data.py --out DIR    # write to another folder
    python tools/build_quickstart_data.py --check      # compare with the shipped files

The task is to read a customer's message to a shop and to answer with one line of JSON. It holds the
intent, the product, the order number, a greeting with the customer's name, and whether the message
is urgent.

A row is a frame (greeting, opening, problem, closing, and the order of the parts) with three
values: product, order number and customer. A hash decides the split of each frame and of each
value. So a frame, a product, an order number or a name occurs in only one split, and
`check_disjoint` checks this. Single sentences and the single words of a product occur in several
splits: the task is to combine and to copy, not to guess unknown words.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from build_tiny_base import ADJECTIVES, NAMES, NOUNS, QUICKSTART, fix_articles

SHIPPED_DATA = QUICKSTART / "data"
SEED = 7
NUM_ROWS = {"train": 3900, "validation": 200, "test": 200}
# The hash buckets, of a hundred, that belong to each split. The others belong to "train".
HELD_OUT_BUCKETS = {"test": range(0, 15), "validation": range(15, 30)}

GREETINGS = (
    "Hello,",
    "Hi,",
    "Hi there,",
    "Hello team,",
    "Good morning,",
    "Good evening,",
    "Dear shop,",
    "To whom it may concern,",
)
OPENINGS = (
    "I ordered a {product} and the order number is {order}.",
    "my order {order} was for a {product}.",
    "this is about order {order}, the {product}.",
    "I am writing about the {product} from order {order}.",
    "last week I bought a {product} from you, number {order}.",
    "we placed order {order} for a {product} on your site.",
    "I have a question about my {product}. The number is {order}.",
    "order number {order} here, one {product}.",
    "you have an order from me for a {product}, {order}.",
    "I bought the {product} as a present, and it is order {order}.",
)
PROBLEMS = {
    "refund": (
        "It came broken and I want my money back.",
        "It does not work, so please pay me back.",
        "I am not happy with it and would like a refund.",
        "It fell apart after a day. Please return my money.",
        "This is not what I paid for. Can I have a refund?",
    ),
    "exchange": (
        "It is the wrong size and I would like another one.",
        "Can I swap it for a different colour?",
        "Please exchange it for a bigger one.",
        "I was sent the wrong colour. Could you change it for me?",
        "I like it, but it is too small. Is a swap possible?",
    ),
    "delivery": (
        "The parcel is late. Where is it now?",
        "It has not come yet and I am still waiting.",
        "When will it arrive at my door?",
        "The tracking page has not moved for days.",
        "I was at home all week and nothing was delivered.",
    ),
    "cancel": (
        "I changed my mind, so please do not send it.",
        "Please stop the order, I do not need it now.",
        "I found it elsewhere and want to cancel.",
        "Kindly cancel it before it leaves the store.",
        "I ordered it twice by mistake, so drop this one.",
    ),
    "invoice": (
        "I need a bill for my office.",
        "Could you send me the receipt for my records?",
        "Please mail me an invoice with the full price.",
        "There was no invoice in the box.",
        "My boss wants a receipt for it.",
    ),
}
CLOSINGS = {
    True: (
        "Please answer today, it is urgent. {customer}",
        "I need an answer as soon as possible. Yours, {customer}",
        "Please hurry. Thanks, {customer}",
        "This cannot wait. Regards, {customer}",
        "Call me right away. {customer}",
    ),
    False: (
        "There is no hurry. {customer}",
        "Take your time. Best wishes, {customer}",
        "Thank you, {customer}",
        "Kind regards, {customer}",
        "An answer next week is fine. {customer}",
    ),
}


@dataclass(frozen=True)
class Frame:
    """The sentences of a message, with their intent and their urgency."""

    greeting: str
    opening: str
    problem: str
    closing: str
    is_problem_first: bool
    intent: str
    urgent: bool

    @property
    def frame_id(self) -> str:
        """A text that is different for every frame."""
        order = "problem first" if self.is_problem_first else "opening first"
        return " | ".join((self.greeting, self.opening, self.problem, self.closing, order))


@dataclass(frozen=True)
class Example:
    """One example: its frame, and the value of each slot."""

    frame: Frame
    slots: tuple[tuple[str, str], ...]

    def render_message(self) -> str:
        """Return the customer's message."""
        frame = self.frame
        parts = [frame.opening, frame.problem]
        if frame.is_problem_first:
            parts = [lower_first(frame.problem), capitalise_first(frame.opening)]
        text = " ".join((frame.greeting, *parts, frame.closing))
        return fix_articles(text.format(**dict(self.slots)))

    def render_answer(self) -> str:
        """Return the answer that the model learns: one line of JSON."""
        slots = dict(self.slots)
        answer: dict[str, str | bool] = {"intent": self.frame.intent}
        answer |= {"product": slots["product"], "order": slots["order"]}
        answer |= {"greeting": f"Dear {slots['customer']}", "urgent": self.frame.urgent}
        return json.dumps(answer)

    def render_row(self) -> str:
        """Return the row as a line of the file."""
        messages = [
            {"role": "user", "content": self.render_message()},
            {"role": "assistant", "content": self.render_answer()},
        ]
        return json.dumps({"messages": messages}, separators=(",", ":")) + "\n"


def capitalise_first(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def lower_first(sentence: str) -> str:
    """Return a sentence with a small first letter, as after a comma. "I" stays a capital."""
    return sentence if sentence.startswith("I ") else sentence[0].lower() + sentence[1:]


def find_split(kind: str, value: str) -> str:
    """Return the split to which a frame or a value belongs."""
    digest = hashlib.sha256(f"{SEED}/{kind}/{value}".encode()).digest()
    bucket = int.from_bytes(digest[:8], "big") % 100
    for split, buckets in HELD_OUT_BUCKETS.items():
        if bucket in buckets:
            return split
    return "train"


def make_frames(split: str) -> list[Frame]:
    """Return all frames of a split."""
    problems = [(p, intent) for intent, sentences in PROBLEMS.items() for p in sentences]
    closings = [(c, urgent) for urgent, sentences in CLOSINGS.items() for c in sentences]
    frames = (
        Frame(greeting, opening, problem, closing, is_problem_first, intent, urgent)
        for greeting, opening, (problem, intent), (closing, urgent), is_problem_first in (
            itertools.product(GREETINGS, OPENINGS, problems, closings, (False, True))
        )
    )
    return [frame for frame in frames if find_split("frame", frame.frame_id) == split]


def make_values(split: str) -> dict[str, list[str]]:
    """Return all values of a split, by slot."""
    values = {
        "product": [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS],
        "order": [str(number) for number in range(10_000, 100_000)],
        "customer": NAMES,
    }
    return {
        slot: [value for value in candidates if find_split(slot, value) == split]
        for slot, candidates in values.items()
    }


def make_examples(split: str) -> list[Example]:
    """Return the examples of a split. No two have the same frame or order number."""
    rng = random.Random(f"{SEED}/{split}")
    num_rows = NUM_ROWS[split]
    frames = rng.sample(make_frames(split), num_rows)
    values = make_values(split)
    orders = rng.sample(values["order"], num_rows)
    return [
        Example(
            frame,
            (
                ("product", rng.choice(values["product"])),
                ("order", order),
                ("customer", rng.choice(values["customer"])),
            ),
        )
        for frame, order in zip(frames, orders, strict=True)
    ]


def find_keys(examples: Iterable[Example]) -> set[tuple[str, str]]:
    """Return the frames and the (slot, value) pairs of a split's examples."""
    keys: set[tuple[str, str]] = set()
    for example in examples:
        keys.add(("frame", example.frame.frame_id))
        keys.update(example.slots)
    return keys


def check_disjoint(splits: dict[str, list[Example]]) -> int:
    """Check that no two splits share a frame or a value.

    Returns: How many frames and values were compared. It is 0 if nothing was checked.

    Raises: ValueError if two splits share a frame or a value.
    """
    keys = {split: find_keys(examples) for split, examples in splits.items()}
    num_compared = 0
    for one, other in itertools.combinations(keys, 2):
        shared = keys[one] & keys[other]
        if shared:
            raise ValueError(
                f"the splits {one} and {other} share frames or values, such as {sorted(shared)[:3]}"
            )
        num_compared += len(keys[one]) + len(keys[other])
    return num_compared


def make_files() -> dict[str, str]:
    """Return the text of each file, by file name."""
    splits = {split: make_examples(split) for split in NUM_ROWS}
    check_disjoint(splits)
    return {
        f"{split}.jsonl": "".join(example.render_row() for example in examples)
        for split, examples in splits.items()
    }


def run_check() -> int:
    differing = [
        name
        for name, text in make_files().items()
        if (SHIPPED_DATA / name).read_text(encoding="utf-8") != text
    ]
    print(
        "different from the shipped file: " + ", ".join(differing)
        if differing
        else "same as the shipped files"
    )
    return 1 if differing else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--out",
        type=Path,
        default=SHIPPED_DATA,
        help="folder to write to (default: the shipped folder)",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; compare with the shipped files"
    )
    options = parser.parse_args(arguments)
    if options.check:
        return run_check()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, text in make_files().items():
        (options.out / name).write_text(text, encoding="utf-8")
        print(f"{name}: {text.count(chr(10))} rows, {len(text):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
