"""What a method says of itself is what its file says."""

from dataclasses import dataclass, fields

from metatuner.harness.describe import describe_method, field_meanings
from metatuner.harness.registry import Registry


@dataclass(frozen=True)
class Base:
    first: int = 1
    """How many,
    in two lines."""
    second: float = 0.5
    """A share."""
    bare: int = 0


@dataclass(frozen=True)
class Derived(Base):
    first: int = 2
    """See `Base`."""
    second: float = 0.1
    """Another share."""
    third: str = "x"
    """A word."""


def test_the_text_under_a_field_is_its_meaning() -> None:
    assert field_meanings(Base) == {"first": "How many, in two lines.", "second": "A share."}


def test_a_subclass_keeps_or_replaces_what_its_base_says() -> None:
    meanings = {"first": "How many, in two lines.", "second": "Another share.", "third": "A word."}
    assert field_meanings(Derived) == meanings


def test_every_setting_of_every_method_is_explained() -> None:
    registry = Registry()
    for name in registry.names():
        described = describe_method(registry[name].cls)
        assert described["summary"], name
        assert [one["name"] for one in described["settings"]] == [
            each.name for each in fields(registry[name].cls.Settings)
        ]
        assert not [one["name"] for one in described["settings"] if not one["meaning"]], name
