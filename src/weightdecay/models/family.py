"""A model family of transformers as tables: the keys of its config.json beside our fields, its modules beside ours.

A model belongs to a family if the family's words for it, read again, give the same function back: nothing else says
what a family can express.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightdecay.declared.values import pairs
from weightdecay.errors import ConfigError
from weightdecay.models.config import ModelConfig
from weightdecay.models.decoder import GPT
from weightdecay.models.tensors import Link, Piece

REQUIRED = object()


@dataclass(frozen=True)
class Key:
    """One key of a config.json and the field of ours that it sets.

    Args:
        ours: path of the field, or a name that `models.flat` has of it.
        default: what an absent key means; REQUIRED refuses that.
        older: other names of the key, read where it is absent and written beside it.
        read, write: their value to ours, and back.
        values: theirs with ours beside them, where there are few; of two that mean the same the first is written.
    """

    ours: str
    default: Any = REQUIRED
    older: tuple[str, ...] = ()
    read: Callable[[Any], Any] = lambda value: value
    write: Callable[[Any], Any] = lambda value: value
    values: Mapping[Any, Any] = field(default_factory=dict)

    def to_ours(self, value: Any) -> Any:
        """Our value for theirs.

        Raises:
            ValueError: there is none; the message says what is known.
        """
        if self.values and value not in self.values:
            raise ValueError(f"known here are {', '.join(map(repr, self.values))}")
        return self.values[value] if self.values else self.read(value)

    def to_theirs(self, value: Any) -> Any:
        """Their value for ours; the default where they have none, which then reads as something else."""
        if self.values:
            return next((theirs for theirs, ours in self.values.items() if ours == value), self.default)
        return self.write(value)


def optional(ours: str, default: int | None = None) -> Key:
    """A key for which None stands where our field has 0."""
    return Key(ours, default, read=lambda value: value or 0, write=lambda value: value or None)


# Keys that most families have.
SHAPE = {
    "vocab_size": Key("vocab_size"),
    "max_position_embeddings": Key("context"),
    "num_hidden_layers": Key("n_layers"),
    "hidden_size": Key("d_model"),
    "num_attention_heads": Key("attention.n_heads"),
}
# What an absent `rope_theta` means to most, and the keys that newer files keep in a table of their own.
ROTARY_BASE = 10_000.0
_ROTARY = ("rope_theta", "partial_rotary_factor")


@dataclass(frozen=True)
class Family:
    """One architecture of transformers.

    Args:
        model_type, architecture: as in its config.json.
        prefix: of the base model's tensors; older files lack it.
        block: of a block's tensors, after the prefix, `{}` standing for its number.
        required: what its config.json says if it is the plain architecture, and we write nothing of.
        fixed: our fields that are the same for all members.
        keys: the others, by their key.
        around, within: every module that a member may have, outside the blocks, the embedding first, and inside one.
        written: keys that only training, or only transformers, looks at.
    """

    model_type: str
    architecture: str
    prefix: str
    block: str
    required: Mapping[str, Any]
    fixed: Mapping[str, Any]
    keys: Mapping[str, Key]
    around: Sequence[Piece]
    within: Sequence[Piece]
    written: Callable[[ModelConfig], dict[str, Any]]

    def config(self, values: Mapping[str, Any]) -> ModelConfig:
        """The decoder that a config.json describes.

        Raises:
            ConfigError: it asks for what this decoder has not, or misses a key; everything is named.
        """
        faults = [
            f"{key} = {values[key]!r}: only {wanted!r} is known here"
            for key, wanted in self.required.items()
            if key in values and values[key] != wanted
        ]
        tables = [values.get(word) or {} for word in ("rope_scaling", "rope_parameters")]
        kinds = dict.fromkeys(table.get("rope_type", table.get("type", "default")) for table in tables)
        faults += [
            f"rope_type = {kind!r}: stretched rotary positions are not known here"
            for kind in kinds
            if kind != "default"
        ]
        rope = {**tables[0], **tables[1]}
        values = {**values, **rope}
        fields = dict(self.fixed)
        for name, key in self.keys.items():
            given = [values[word] for word in (name, *key.older) if word in values]
            value = given[0] if given else key.default
            if value is REQUIRED:
                faults.append(f"{name} is missing")
                continue
            try:
                fields[key.ours] = key.to_ours(value)
            except ValueError as error:
                faults.append(f"{name} = {value!r}: {error}")
        if faults:
            raise ConfigError(faults)
        return ModelConfig(**fields)

    def describe(self, config: ModelConfig) -> dict[str, Any]:
        """A decoder in this family's words, as well as it can say it."""
        words: dict[str, Any] = {}
        for name, key in self.keys.items():
            words |= dict.fromkeys((name, *key.older), key.to_theirs(config.at(key.ours)))
        if rotary := {name: words[name] for name in _ROTARY if name in words}:
            words["rope_parameters"] = {"rope_type": "default", **rotary}
        return {**words, **self.written(config)}

    def links(self, config: ModelConfig) -> list[Link]:
        """Where every tensor of this decoder lies; the embedding first."""
        ours = GPT.blueprint(config).tensors()
        places = [("", "", piece) for piece in self.around]
        for layer in range(config.n_layers):
            theirs = f"{self.prefix}{self.block.format(layer)}."
            places += [(f"blocks.{layer}.", theirs, piece) for piece in self.within]
        return [
            link
            for our_place, their_place, piece in places
            for link in piece.how(our_place + piece.ours, their_place + piece.theirs, config)
            if link.ours in ours
        ]

    def differences(self, config: ModelConfig) -> list[str]:
        """What of a decoder this family cannot say; empty if it is one of the family."""
        try:
            back = self.config(self.describe(config)).as_function()
        except ConfigError as error:
            return error.faults
        ours, theirs = pairs(config.as_function()), pairs(back)
        return [
            f"{path} = {ours[path]!r}" if path in ours else f"{path} is not there"
            for path in {**ours, **theirs}
            if ours.get(path) != theirs.get(path)
        ]
