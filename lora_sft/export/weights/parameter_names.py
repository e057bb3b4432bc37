"""Which tensors on disk make up which parameter of the model.

Mostly they have the same name, and then nothing of the model is needed. Where they have not (an
expert each on disk and all experts stacked in the model, another prefix, embeddings that are tied)
the model is built without weights and transformers' own loading rules are asked
(transformers 5.23 `rename_source_key`, `get_model_conversion_mapping`). Rules that do more than
stack and join are not followed: an adapter that changes such a tensor is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lora_sft.errors import ExportError
from lora_sft.model_files.base_checkpoint import BaseCheckpoint
from lora_sft.model_files.stored_tensors import StoredTensor

# Their linear layers are Conv1D, which stores [in, out]; a square one cannot be told by its shape.
CONV1D_MODEL_TYPES = frozenset(
    {"clvp", "convbert", "decision_transformer", "gpt2", "imagegpt", "openai-gpt"}
)


@dataclass(frozen=True)
class Piece:
    """A tensor on disk, and where it lies in the model's parameter (an expert, from a row on)."""

    tensor: StoredTensor
    expert: int | None = None
    first_row: int = 0


class ParameterNames:
    """Finds the tensors of a base behind the parameter names that adapters use."""

    def __init__(
        self,
        base: BaseCheckpoint,
        *,
        trust_remote_code: bool = False,
        num_tokens: int | None = None,
    ) -> None:
        """`num_tokens`: rows of the embedding where the adapter comes with a resized one."""
        self.base = base
        self._trust_remote_code = trust_remote_code
        self._num_tokens = num_tokens

    def find(self, parameter: str) -> list[Piece]:
        """The pieces of a parameter; none where the base has no such parameter on disk.

        Raises: ExportError where the model computes it from several tensors in another way than by
        stacking and joining.
        """
        if parameter in self.base.tensors:
            return [Piece(self.base.tensors[parameter])]
        found = self._pieces.get(parameter, [])
        if isinstance(found, str):
            raise ExportError(
                f"the model makes {parameter} from its files by {found}, which a merge cannot undo",
                self.base.location,
                "serve the adapter as an adapter",
            )
        return found

    def is_conv1d(self, module: str) -> bool:
        """Whether a module stores its weight as [in, out]."""
        config = self.base.config
        if config.get("model_type") not in CONV1D_MODEL_TYPES and "auto_map" not in config:
            return False
        modules = dict(self.model.named_modules())
        return module in modules and type(modules[module]).__name__ == "Conv1D"

    def is_embedding(self, parameter: str) -> bool:
        """Whether a parameter is that of the input embedding or the output head."""
        return parameter in {self.input_embedding, self.output_head}

    @cached_property
    def model(self) -> Any:
        """The model without weights (on torch's meta device)."""
        from lora_sft.model.base_model import build_without_weights

        return build_without_weights(
            self.base.location,
            self.base.revision,
            trust_remote_code=self._trust_remote_code,
            num_tokens=self._num_tokens,
        )

    @cached_property
    def input_embedding(self) -> str | None:
        return self._name_weight(self.model.get_input_embeddings())

    @cached_property
    def output_head(self) -> str | None:
        return self._name_weight(self.model.get_output_embeddings())

    def _name_weight(self, module: Any) -> str | None:
        names = (name for name, each in self.model.named_modules() if each is module)
        found = next(names, None) if module is not None else None
        return f"{found}.weight" if found else None

    @property
    def is_tied(self) -> bool:
        """Whether the head is the embedding, as this base's config says."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        return self.output_head in tied or self.input_embedding in tied

    def list_targeted(self, module: str, targets: list[str]) -> list[str]:
        """Names of a module's own parameters that `target_parameters` means, in PEFT's order."""
        try:
            owner = self.model.get_submodule(module)
        except AttributeError:
            return []
        names = [name for name, _ in owner.named_parameters(recurse=False)]
        full = {name: f"{module}.{name}" for name in names}
        return [
            name
            for name in names
            if any(full[name] == each or full[name].endswith(f".{each}") for each in targets)
        ]

    def is_stored_transposed(self, module: str) -> bool:
        """Whether a module's stacked experts lie as [expert, in, out] (PEFT's own question)."""
        return bool(getattr(self.model.get_submodule(module), "is_transposed", False))

    @cached_property
    def _pieces(self) -> Mapping[str, list[Piece] | str]:
        """Parameter -> its pieces, or the name of the operation that cannot be followed."""
        from lora_sft.model.base_model import map_checkpoint_names

        pieces: dict[str, list[Piece] | str] = {}
        for parameter, sources in map_checkpoint_names(self.model, list(self.base.tensors)).items():
            if isinstance(sources, str):
                pieces[parameter] = sources
            else:
                pieces[parameter] = _place(
                    [[self.base.tensors[name] for name in group] for group in sources]
                )
        return pieces


def _place(groups: list[list[StoredTensor]]) -> list[Piece]:
    """Pieces of experts (the items of a group), whose groups are joined along the rows."""
    if len(groups) == 1 and len(groups[0]) == 1:
        return [Piece(groups[0][0])]
    pieces, first_row = [], 0
    for group in groups:
        pieces += [Piece(tensor, expert, first_row) for expert, tensor in enumerate(group)]
        first_row += group[0].shape[0]
    return pieces
