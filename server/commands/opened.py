"""A version's files, opened as a server would open them: to prove them, or to see what they answer.

Floor 7: the lifecycle's loader over folders that are in no repository.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from server.core.monitoring_settings import ValidationSettings
from server.core.settings import ModelSettings
from server.lifecycle.replica import Loaded
from server.optional import loader_over
from server.registry.source import FoundVersion


@contextmanager
def opened(found: FoundVersion, settings: ModelSettings) -> Iterator[Loaded]:
    """Loaded, warm, and proven by its golden examples where it has any; closed at the end. Raises: LoadFailed."""
    loaded = loader_over(lambda _: None, None).load(found, _alone(settings))
    try:
        yield loaded
    finally:
        loaded.backend.close()


def _alone(settings: ModelSettings) -> ModelSettings:
    """Without what changes no answer: names of classes, which may lie beside the versions, and what requests must bring. One
    instance on one device says as much as several.
    """
    outputs = tuple(tensor.model_copy(update={"labels": None}) for tensor in settings.outputs)
    alone = {"outputs": outputs, "instances": 1, "devices": settings.devices[:1], "validation": ValidationSettings()}
    return settings.model_copy(update=alone)
