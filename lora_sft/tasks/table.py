"""The list of all kinds of task."""

from __future__ import annotations

from lora_sft.tasks.extraction import EXTRACTION
from lora_sft.tasks.kind import TaskKind
from lora_sft.tasks.question_answering import QUESTION_ANSWERING
from lora_sft.tasks.summarization import SUMMARIZATION
from lora_sft.tasks.text_classification import TEXT_CLASSIFICATION
from lora_sft.tasks.translation import TRANSLATION

KINDS: dict[str, TaskKind] = {
    kind.name: kind
    for kind in (TEXT_CLASSIFICATION, QUESTION_ANSWERING, TRANSLATION, SUMMARIZATION, EXTRACTION)
}
