"""A server without definitions: it serves models, and refuses versions that were trained on features."""

from pathlib import Path

from feature_client.contract_files import DOCUMENT_FILE
from server.core.errors import LoadFailed
from server.core.settings import ModelSettings
from server.core.signature import Signature
from server.core.versions import VersionKey


class NoFeatures:
    """What takes the place of `Installed`."""

    def bind(self, key: VersionKey, folder: Path, settings: ModelSettings, signature: Signature) -> None:
        """Raises: LoadFailed for a version that would answer with values that nobody computed as in training."""
        if (folder / DOCUMENT_FILE).exists():
            raise LoadFailed(
                f"'{key.model}' was trained on features ({DOCUMENT_FILE}), but this server has no definitions:"
                " set 'definitions' in [features] of its settings"
            )

    def readings(self) -> None:
        """There is nothing to say."""

    def close(self) -> None:
        """There is nothing to let go of."""
