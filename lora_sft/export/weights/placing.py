"""Find out which tensors of the base model each adapter tensor changes, and how.

An adapter tensor that matches nothing is refused, and the error names it. Shapes and ranks are
compared before anything is computed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lora_sft.errors import ExportError
from lora_sft.export.weights.adapter_reading import ModuleTensors, SavedAdapter
from lora_sft.export.weights.parameter_names import ParameterNames, Piece
from lora_sft.export.weights.weight_changes import AddedBias, LowRank, RowEdit, Weight
from lora_sft.file_names import ADAPTER_CONFIG_FILE
from lora_sft.model_files.stored_tensors import StoredTensor

FITTING_BASE = (
    f"use the base model that the adapter was trained on ({ADAPTER_CONFIG_FILE} names it)"
)


class Placer:
    """Collects the changes that adapters make to the parameters of a base model.

    Attributes:
        parameters: Parameter name -> weight, for parameters that are one tensor on disk or new.
        pieces: Name on disk -> weight, for parameters that are several tensors on disk.
        trained_parameters: Parameter name -> the adapter that holds the whole trained parameter.
        saved_base_tensors: Parameter name -> the base model's own tensor, as an adapter saved it.
        used_tensors: Adapter tensors that count as used, even if no weight refers to them. PEFT
            saves some tensors more than once.
    """

    def __init__(self, names: ParameterNames) -> None:
        self.names = names
        self.base = names.base
        self.parameters: dict[str, Weight] = {}
        self.pieces: dict[str, Weight] = {}
        self.trained_parameters: dict[str, SavedAdapter] = {}
        self.saved_base_tensors: dict[str, StoredTensor] = {}
        self.used_tensors: set[StoredTensor] = set()

    @property
    def may_change_embeddings(self) -> bool:
        """Whether a parameter outside the numbered layers changes, such as an embedding."""
        return any(not re.search(r"\.\d+\.", parameter) for parameter in self.parameters)

    def place(self, adapter: SavedAdapter) -> None:
        """Add the changes of every tensor of one adapter."""
        for parameter, tensor in adapter.whole_parameters.items():
            self._replace(adapter, parameter, tensor)
        for module in adapter.modules:
            self._place_module(adapter, module)

    def _place_module(self, adapter: SavedAdapter, module: ModuleTensors) -> None:
        roles = dict(module.roles)
        parameter = f"{module.module}.weight"
        for role in ("base_weight", "trained_weight"):
            if role in roles:
                self._replace(adapter, parameter, roles.pop(role), trained=role != "base_weight")
        if "base_bias" in roles:
            self._replace(adapter, f"{module.module}.bias", roles.pop("base_bias"))
        if "token_rows" in roles:
            self._edit_rows(adapter, module.module, roles.pop("token_rows"))
        if "b_bias" in roles:
            bias = AddedBias(roles.pop("b_bias"), adapter.find_scale(module.module))
            self._change(f"{module.module}.bias", bias.bias, biases=bias)
        if roles:
            self._add_low_rank(adapter, module, roles)

    def _replace(
        self,
        adapter: SavedAdapter,
        parameter: str,
        tensor: StoredTensor,
        trained: bool | None = None,
    ) -> None:
        """Replace a whole parameter by a tensor of the adapter.

        The tensor is either trained, or the base model's own and perhaps resized. PEFT saves an
        embedding up to three times; the trained tensor is used.

        Args:
            trained: Whether the tensor was trained; None: read it from the adapter's config.
        """
        if trained is None:
            trained = adapter.is_trained_module(parameter) or parameter.endswith(".bias")
        self.used_tensors.add(tensor)
        found = self._find_whole(parameter, tensor)
        if found is not None:
            self._check_shape(tensor, found.shape, tensor.shape, resizable=parameter)
        present = self.parameters.get(parameter)
        if not trained:
            self.saved_base_tensors.setdefault(parameter, tensor)
            if present is None:
                self.parameters[parameter] = Weight(tensor)
            return
        owner = self.trained_parameters.get(parameter)
        if (owner is not None and owner is not adapter) or (present and present.is_changed):
            raise ExportError(
                f"two adapters change {parameter}, and one of them replaces it",
                str(adapter.folder),
                "merge only one of them, or merge them one after the other",
            )
        self.trained_parameters[parameter] = adapter
        self.parameters[parameter] = Weight(tensor)

    def _find_whole(self, parameter: str, tensor: StoredTensor) -> StoredTensor | None:
        """Return the tensor on disk of a parameter; None for a tied embedding or output head.

        Raises: ExportError if the parameter is not exactly one tensor on disk.
        """
        found = self.names.find(parameter)
        if not found and parameter in (self.names.output_head, self.names.input_embedding):
            return None
        if not found:
            self._refuse(tensor)
        if len(found) > 1:
            raise ExportError(
                f"{parameter} is {len(found)} tensors in the files of the base model, so it cannot "
                "be replaced as a whole",
                str(tensor.file),
                "serve the adapter without merging it",
            )
        return found[0].tensor

    def _refuse(self, tensor: StoredTensor) -> None:
        raise ExportError(
            f"the adapter does not fit the base model: {tensor.name} matches no tensor of it",
            str(tensor.file),
            FITTING_BASE,
        )

    def _check_shape(
        self,
        tensor: StoredTensor,
        base_shape: tuple[int, ...],
        needed: tuple[int, ...],
        resizable: str = "",
    ) -> None:
        """Check that the base model's tensor has the shape that an adapter tensor needs.

        Args:
            tensor: The adapter tensor.
            base_shape: The shape that the base model's tensor has.
            needed: The shape that the adapter tensor needs.
            resizable: The name of a parameter that may have more or fewer rows if it is an
                embedding or an output head.

        Raises: ExportError if it has another shape.
        """
        same = base_shape == needed
        if not same and resizable and base_shape[1:] == needed[1:]:
            same = self.names.is_embedding(resizable)
        if not same:
            raise ExportError(
                f"the adapter does not fit the base model: {tensor.name} needs a weight of shape "
                f"{list(needed)}, but the base model's weight has shape {list(base_shape)}",
                str(tensor.file),
                FITTING_BASE,
            )

    def _edit_rows(self, adapter: SavedAdapter, module: str, rows: StoredTensor) -> None:
        chosen = adapter.config.get("trainable_token_indices")
        if isinstance(chosen, Mapping):
            found = [
                value
                for name, value in chosen.items()
                if module == name or module.endswith(f".{name}")
            ]
            # A tied output head has no entry of its own: it uses the rows of the embedding.
            chosen = found[0] if found else next(iter(chosen.values()), None)
        if not chosen or len(chosen) != rows.shape[0]:
            raise ExportError(
                f"{rows.name} has {rows.shape[0]} rows, but trainable_token_indices in "
                f"{ADAPTER_CONFIG_FILE} has {len(chosen or ())}",
                str(rows.file),
                "save the adapter again",
            )
        self._change(f"{module}.weight", rows, rows=RowEdit(tuple(chosen), rows))

    def _change(self, parameter: str, tensor: StoredTensor, **change: Any) -> None:
        """Add one change to a parameter that is one tensor."""
        weight = self.parameters.get(parameter)
        if weight is None:
            found = self._find_whole(parameter, tensor)
            weight = Weight(found or self.find_tied(tensor))
        self.parameters[parameter] = weight.add(**change)

    def find_tied(self, tensor: StoredTensor | None = None) -> StoredTensor:
        """Return the tensor that a tied embedding and output head share.

        Raises: ExportError if the base model's files do not hold it.
        """
        names = [name for name in (self.names.input_embedding, self.names.output_head) if name]
        for name in names:
            if name in self.saved_base_tensors:
                return self.saved_base_tensors[name]
        for name in names:
            found = self.names.find(name)
            if len(found) == 1:
                return found[0].tensor
        raise ExportError(
            "the base model's files hold no embedding" + (f" for {tensor.name}" if tensor else ""),
            self.base.location,
            FITTING_BASE,
        )

    def _add_low_rank(
        self, adapter: SavedAdapter, module: ModuleTensors, roles: dict[str, StoredTensor]
    ) -> None:
        a, b, transposed = _take_pair(roles)
        targets = list(adapter.config.get("target_parameters") or ())
        own = self.names.list_targeted_parameters(module.module, targets) if targets else []
        if own and not transposed:
            parameter = f"{module.module}.{own[len(own) - 1 - module.depth]}"
            self._add_stacked(adapter, module.module, parameter, a, b)
            return
        if module.depth:
            self._refuse(a)
        parameter, rank = f"{module.module}.weight", adapter.find_rank(module.module)
        if not transposed:
            transposed = self.names.is_conv1d(module.module)
        _check_rank(a, b, rank)
        needed = (b.shape[0], a.shape[1])
        term = LowRank(a, b, adapter.find_scale(module.module), transposed, roles.get("magnitude"))
        self._change(parameter, a, terms=term)
        weight = self.parameters[parameter]
        if len(weight.source.shape) != 2:
            raise ExportError(
                f"{parameter} is not a matrix (its shape is {list(weight.source.shape)}): only "
                "linear layers, embeddings and stacked experts can be merged",
                str(a.file),
                "merge with PEFT's merge_and_unload",
            )
        self._check_shape(a, weight.source.shape, needed[::-1] if transposed else needed)
        _check_magnitude(weight, parameter)

    def _add_stacked(
        self, adapter: SavedAdapter, module: str, parameter: str, a: StoredTensor, b: StoredTensor
    ) -> None:
        """Add A and B of `target_parameters`, which mostly targets stacked experts."""
        shape = tuple(self.names.model.get_parameter(parameter).shape)
        experts = shape[0] if len(shape) == 3 else 1
        _check_rank(a, b, adapter.find_rank(parameter) * experts)
        transposed = experts > 1 and self.names.is_stored_transposed(module)
        matrix = shape[-2:][::-1] if transposed else shape[-2:]
        self._check_shape(a, matrix, (b.shape[0], a.shape[1]))
        scale = adapter.find_scale(parameter)
        found = self.names.find(parameter)
        if not found:
            self._refuse(a)
        for piece in found:
            term = LowRank(a, b, scale, transposed, None, experts, piece.expert, piece.first_row)
            self._change_piece(piece, shape, term)

    def _change_piece(self, piece: Piece, shape: tuple[int, ...], term: LowRank) -> None:
        stored = piece.tensor
        fits = stored.shape == shape if piece.expert is None else stored.shape[1:] == shape[2:]
        if not fits or (piece.expert is not None and term.transposed):
            self._check_shape(term.a, stored.shape, shape)
        weight = self.pieces.get(stored.name, Weight(stored))
        self.pieces[stored.name] = weight.add(terms=term)

    def collect(self) -> dict[str, Weight]:
        """Return all tensors of the output: name on disk -> weight.

        Raises: ExportError if two changes to one tensor cannot be combined.
        """
        on_disk = {}
        for parameter, weight in self.parameters.items():
            found = self.names.find(parameter)
            on_disk[found[0].tensor.name if found else parameter] = weight
        both = on_disk.keys() & self.pieces.keys()
        if both:
            raise ExportError(
                f"{sorted(both)[0]} is changed in two ways that cannot be combined",
                self.base.location,
                "merge the adapters one after the other",
            )
        placed = {**on_disk, **self.pieces}
        weights = {
            name: placed.pop(name) if name in placed else Weight(tensor)
            for name, tensor in self.base.tensors.items()
        }
        return {**weights, **placed}


def _take_pair(roles: dict[str, StoredTensor]) -> tuple[StoredTensor, StoredTensor, bool]:
    """Return A, B, and whether they belong to an embedding, whose weight is [token, width].

    Raises: ExportError if A or B is missing.
    """
    for first, second in (("embedding_a", "embedding_b"), ("a", "b")):
        if first in roles and second in roles:
            return roles[first], roles[second], first == "embedding_a"
    one = next(iter(roles.values()))
    raise ExportError(
        f"{one.name} cannot be merged: the adapter does not hold both A and B of this module",
        str(one.file),
        "save the adapter again",
    )


def _check_rank(a: StoredTensor, b: StoredTensor, rank: int) -> None:
    """Check that A and B have the rank that the adapter's config gives.

    Raises: ExportError if they have another rank.
    """
    for tensor, found in ((a, a.shape[0]), (b, b.shape[-1])):
        if len(tensor.shape) != 2 or found != rank:
            raise ExportError(
                f"{tensor.name} has shape {list(tensor.shape)}, but {ADAPTER_CONFIG_FILE} "
                f"gives rank {rank} for it",
                str(tensor.file),
                "save the adapter again: its config and its weights do not match",
            )


def _check_magnitude(weight: Weight, parameter: str) -> None:
    """Check that a DoRA adapter does not share a weight with another adapter.

    The sum of their changes has no meaning.

    Raises: ExportError if it shares one.
    """
    if len(weight.terms) > 1 and any(term.magnitude is not None for term in weight.terms):
        raise ExportError(
            "a DoRA adapter cannot be merged together with another adapter: both change "
            f"{parameter}",
            str(weight.terms[-1].a.file),
            "merge them one after the other",
        )
