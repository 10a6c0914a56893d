"""What has to be found and computed for requests that bring certain inputs. **Pure.**

A value that the call states itself is never looked up, and nothing is computed that no input of the model needs: a call with
all of the model's own inputs runs without any view.
"""

from collections.abc import Set
from dataclasses import dataclass

from feature_client.feature_set import FeatureSet
from feature_client.view import View
from server.core.errors import InvalidRequest
from server.features.binding import Binding, alternatives


@dataclass(frozen=True)
class Needed:
    """For one set of names. `views` are those to find and compute; `given` their features that the call states itself.

    What `views.request` names the call brings: values, and features whose own view is not needed.
    """

    views: FeatureSet
    given: tuple[str, ...]


def needed(binding: Binding, names: Set[str]) -> Needed:
    """Raises: InvalidRequest, with what is missing and what could be given in its place."""
    for name in binding.packed & names:
        twice = sorted(set(binding.taken[name]) & names)
        if twice:
            raise InvalidRequest(f"inputs '{name}' and '{twice[0]}' are both given, but '{twice[0]}' is a column of '{name}'")
    wanted: dict[str, View] = {}
    for name, features in binding.taken.items():
        if name not in names:
            for feature in features:
                _want(binding, names, name, feature, wanted)
    every = binding.features
    views = FeatureSet([view for view in every.views if view.ref in wanted], every.states)
    return Needed(views, tuple(name for name in views.features if name in names))


def _want(binding: Binding, names: Set[str], name: str, feature: str, wanted: dict[str, View]) -> None:
    """Mark what a feature, needed for the model's input `name`, is made of."""
    if feature in names:
        return
    view = binding.features.view_of[feature]
    if view.ref in wanted:
        return
    wanted[view.ref] = view
    missing = [f"'{each}'" for each in alternatives(binding, view) if each not in names]
    if missing:
        how = "finds" if view.kind == "stored" else "computes"
        made, itself = ("it", "") if feature == name else (f"'{feature}'", f", or '{feature}' itself")
        raise InvalidRequest(
            f"input '{name}' is missing: give it, or {' and '.join(missing)} from which the view '{view.ref}' {how} {made}"
            f"{itself}"
        )
    if view.kind != "stored":
        for each in view.inputs:
            if each in binding.features.features:
                _want(binding, names, name, each, wanted)
