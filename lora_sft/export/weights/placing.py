"""Find the place of every adapter tensor: which tensors of the base it changes, and how.

Each is used or refused by its name; shapes and ranks are compared before anything is computed.
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

FITTING_BASE = f"use the base that the adapter was trained on ({ADAPTER_CONFIG_FILE} names it)"


class Placer:
    """Collects what is done to each parameter, and to the tensors on disk behind it."""

    def __init__(self, names: ParameterNames) -> None:
        self.names = names
        self.base = names.base
        self.parameters: dict[str, Weight] = {}  # whole parameters: one piece, or new ones
        self.pieces: dict[str, Weight] = {}  # by the name on disk: experts and their like
        self.trained: dict[str, SavedAdapter] = {}  # parameters that came whole
        self.base_parts: dict[str, StoredTensor] = {}  # the base's own, as an adapter saved it
        self.copies: set[StoredTensor] = set()  # what an adapter saved more than once

    @property
    def may_touch_embeddings(self) -> bool:
        """Whether a parameter outside the numbered layers is changed (only then it is asked)."""
        return any(not re.search(r"\.\d+\.", parameter) for parameter in self.parameters)

    def place(self, adapter: SavedAdapter) -> None:
        """Find the place of every tensor of one adapter."""
        for parameter, tensor in adapter.plain.items():
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
        """The adapter brings this whole tensor: trained, or the base's own (perhaps resized).

        PEFT saves an embedding up to three times; the trained one counts.
        """
        if trained is None:
            trained = adapter.is_trained_module(parameter) or parameter.endswith(".bias")
        self.copies.add(tensor)
        found = self._find_whole(parameter, tensor)
        if found is not None:
            self._check_shape(tensor, found.shape, tensor.shape, resizable=parameter)
        present = self.parameters.get(parameter)
        if not trained:
            self.base_parts.setdefault(parameter, tensor)
            if present is None:
                self.parameters[parameter] = Weight(tensor)
            return
        owner = self.trained.get(parameter)
        if (owner is not None and owner is not adapter) or (present and present.is_changed):
            raise ExportError(
                f"two adapters change {parameter}, and one brings it whole",
                str(adapter.folder),
                "merge one of them, or one after another",
            )
        self.trained[parameter] = adapter
        self.parameters[parameter] = Weight(tensor)

    def _find_whole(self, parameter: str, tensor: StoredTensor) -> StoredTensor | None:
        """The one tensor on disk of a parameter; None for a head that is tied to its embedding."""
        found = self.names.find(parameter)
        if not found and parameter in (self.names.output_head, self.names.input_embedding):
            return None
        if not found:
            self._refuse(tensor)
        if len(found) > 1:
            raise ExportError(
                f"{parameter} lies in {len(found)} pieces in the base and cannot be replaced whole",
                str(tensor.file),
                "serve the adapter as an adapter",
            )
        return found[0].tensor

    def _refuse(self, tensor: StoredTensor) -> None:
        raise ExportError(
            f"the adapter does not fit the base: {tensor.name} matches no tensor of the base",
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
        same = base_shape == needed
        if not same and resizable and base_shape[1:] == needed[1:]:
            same = self.names.is_embedding(resizable)
        if not same:
            raise ExportError(
                f"the adapter does not fit the base: {tensor.name} is for a weight of shape "
                f"{list(needed)}, the base's is {list(base_shape)}",
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
            # a head that is tied to the embedding follows it and is saved with it
            chosen = found[0] if found else next(iter(chosen.values()), None)
        if not chosen or len(chosen) != rows.shape[0]:
            raise ExportError(
                f"{rows.name} has {rows.shape[0]} rows, and trainable_token_indices of "
                f"{ADAPTER_CONFIG_FILE} names {len(chosen or ())}",
                str(rows.file),
                "save the adapter again",
            )
        self._change(f"{module}.weight", rows, rows=RowEdit(tuple(chosen), rows))

    def _change(self, parameter: str, tensor: StoredTensor, **change: Any) -> None:
        """One more change of a whole parameter."""
        weight = self.parameters.get(parameter)
        if weight is None:
            found = self._find_whole(parameter, tensor)
            weight = Weight(found or self.find_tied(tensor))
        self.parameters[parameter] = weight.add(**change)

    def find_tied(self, tensor: StoredTensor | None = None) -> StoredTensor:
        """The one tensor of an embedding and a head that are tied, as the base has it."""
        names = [name for name in (self.names.input_embedding, self.names.output_head) if name]
        for name in names:
            if name in self.base_parts:
                return self.base_parts[name]
        for name in names:
            found = self.names.find(name)
            if len(found) == 1:
                return found[0].tensor
        raise ExportError(
            "the base has no embedding on disk" + (f" for {tensor.name}" if tensor else ""),
            self.base.location,
            FITTING_BASE,
        )

    def _add_low_rank(
        self, adapter: SavedAdapter, module: ModuleTensors, roles: dict[str, StoredTensor]
    ) -> None:
        a, b, transposed = _take_pair(roles)
        targets = list(adapter.config.get("target_parameters") or ())
        own = self.names.list_targeted(module.module, targets) if targets else []
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
                f"{parameter} is no matrix (shape {list(weight.source.shape)}): only linear "
                "layers, embeddings and stacked experts are merged",
                str(a.file),
                "use PEFT's merge_and_unload",
            )
        self._check_shape(a, weight.source.shape, needed[::-1] if transposed else needed)
        _check_magnitude(weight, parameter)

    def _add_stacked(
        self, adapter: SavedAdapter, module: str, parameter: str, a: StoredTensor, b: StoredTensor
    ) -> None:
        """LoRA on a parameter itself (`target_parameters`): experts that are stacked, mostly."""
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
        """Name on disk -> weight, for all tensors of the output."""
        on_disk = {}
        for parameter, weight in self.parameters.items():
            found = self.names.find(parameter)
            on_disk[found[0].tensor.name if found else parameter] = weight
        both = on_disk.keys() & self.pieces.keys()
        if both:
            raise ExportError(
                f"{sorted(both)[0]} is changed in two ways that cannot be combined",
                self.base.location,
                "merge the adapters one after another",
            )
        placed = {**on_disk, **self.pieces}
        weights = {
            name: placed.pop(name) if name in placed else Weight(tensor)
            for name, tensor in self.base.tensors.items()
        }
        return {**weights, **placed}


def _take_pair(roles: dict[str, StoredTensor]) -> tuple[StoredTensor, StoredTensor, bool]:
    """A, B and whether they belong to an embedding, whose weight lies as [token, width].

    Raises: ExportError where one of the two is missing.
    """
    for first, second in (("embedding_a", "embedding_b"), ("a", "b")):
        if first in roles and second in roles:
            return roles[first], roles[second], first == "embedding_a"
    one = next(iter(roles.values()))
    raise ExportError(
        f"{one.name} has no partner: A and B of a module belong together",
        str(one.file),
        "save the adapter again",
    )


def _check_rank(a: StoredTensor, b: StoredTensor, rank: int) -> None:
    """Raises: ExportError where A or B have another rank than the config says."""
    for tensor, found in ((a, a.shape[0]), (b, b.shape[-1])):
        if len(tensor.shape) != 2 or found != rank:
            raise ExportError(
                f"{tensor.name} has shape {list(tensor.shape)}, and {ADAPTER_CONFIG_FILE} "
                f"says rank {rank} there",
                str(tensor.file),
                "save the adapter again: its config and its weights do not belong together",
            )


def _check_magnitude(weight: Weight, parameter: str) -> None:
    """Raises: ExportError where DoRA meets another adapter, whose sum has no meaning."""
    if len(weight.terms) > 1 and any(term.magnitude is not None for term in weight.terms):
        raise ExportError(
            f"a DoRA adapter cannot be merged together with another one ({parameter})",
            str(weight.terms[-1].a.file),
            "merge them one after another",
        )
