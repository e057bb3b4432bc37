"""Find the tensors on disk that make up a parameter of the model.

Usually a parameter is one tensor of the same name. Then the model is not needed. The names differ
if the model stacks experts that are separate on disk, adds a prefix, or ties its embeddings. Then
the model is built without weights, and transformers' own loading rules give the names (transformers
5.23 `rename_source_key`, `get_model_conversion_mapping`).

Rules that do more than stacking and joining are not supported: an adapter that changes such a
parameter is refused, and the error names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lora_sft.errors import ExportError
from lora_sft.model_files.base_checkpoint import BaseCheckpoint
from lora_sft.model_files.stored_tensors import StoredTensor

# The linear layers of these models are Conv1D, which stores [in, out]. The shape of a square matrix
# does not show this.
CONV1D_MODEL_TYPES = frozenset(
    {"clvp", "convbert", "decision_transformer", "gpt2", "imagegpt", "openai-gpt"}
)


@dataclass(frozen=True)
class Piece:
    """A tensor on disk that is a part of a model's parameter.

    Attributes:
        expert: The index of its expert in the parameter, or None.
        first_row: The row of the parameter at which it begins.
    """

    tensor: StoredTensor
    expert: int | None = None
    first_row: int = 0


class ParameterNames:
    """Finds the tensors on disk for the parameter names that adapters use."""

    def __init__(
        self,
        base: BaseCheckpoint,
        *,
        trust_remote_code: bool = False,
        num_tokens: int | None = None,
    ) -> None:
        """Prepare to find names. The model is built only if it is needed.

        Args:
            num_tokens: The rows of a resized embedding that an adapter holds, or None.
        """
        self.base = base
        self._trust_remote_code = trust_remote_code
        self._num_tokens = num_tokens

    def find(self, parameter: str) -> list[Piece]:
        """Return the pieces of a parameter; an empty list if the files do not hold it.

        Raises: ExportError if the model computes it from tensors in another way than by stacking
        and joining.
        """
        if parameter in self.base.tensors:
            return [Piece(self.base.tensors[parameter])]
        found = self._pieces.get(parameter, [])
        if isinstance(found, str):
            raise ExportError(
                f"the model computes {parameter} from its files by {found}, and a merge cannot "
                "reverse this",
                self.base.location,
                "serve the adapter without merging it",
            )
        return found

    def is_conv1d(self, module: str) -> bool:
        """Return whether a module stores its weight as [in, out]."""
        config = self.base.config
        if config.get("model_type") not in CONV1D_MODEL_TYPES and "auto_map" not in config:
            return False
        modules = dict(self.model.named_modules())
        return module in modules and type(modules[module]).__name__ == "Conv1D"

    def is_embedding(self, parameter: str) -> bool:
        """Return whether a parameter is the weight of the input embedding or the output head."""
        return parameter in {self.input_embedding, self.output_head}

    @cached_property
    def model(self) -> Any:
        """The model without weights, on torch's meta device."""
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
        """Whether the base model ties its output head to its embedding."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        return self.output_head in tied or self.input_embedding in tied

    def list_targeted_parameters(self, module: str, targets: list[str]) -> list[str]:
        """Return the names of a module's own parameters that are targets, in PEFT's order.

        Args:
            targets: The adapter's `target_parameters`.
        """
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
        """Return whether a module stores stacked experts as [expert, in, out].

        PEFT reads the same attribute.
        """
        return bool(getattr(self.model.get_submodule(module), "is_transposed", False))

    @cached_property
    def _pieces(self) -> Mapping[str, list[Piece] | str]:
        """Parameter name -> its pieces, or the name of an operation that is not supported."""
        from lora_sft.model.base_model import map_checkpoint_names

        pieces: dict[str, list[Piece] | str] = {}
        for parameter, sources in map_checkpoint_names(self.model, list(self.base.tensors)).items():
            if isinstance(sources, str):
                pieces[parameter] = sources
            else:
                pieces[parameter] = _make_pieces(
                    [[self.base.tensors[name] for name in group] for group in sources]
                )
        return pieces


def _make_pieces(groups: list[list[StoredTensor]]) -> list[Piece]:
    """Return the pieces of a parameter.

    Args:
        groups: Each group has one tensor per expert. The model joins the groups along the rows.
    """
    if len(groups) == 1 and len(groups[0]) == 1:
        return [Piece(groups[0][0])]
    pieces, first_row = [], 0
    for group in groups:
        pieces += [Piece(tensor, expert, first_row) for expert, tensor in enumerate(group)]
        first_row += group[0].shape[0]
    return pieces
