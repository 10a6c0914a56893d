"""The names of an output's classes: a text file beside a version, one name a line.

Floor 2: read when a version is loaded, so that an answer never waits for a disk. Never written here.
"""

from pathlib import Path

from server.core.errors import RegistryError

MAX_BYTES = 64 * 2**20
"""More than a million names have; a file that was named by mistake must not fill the memory."""


def read_labels(folder: Path, file: str) -> tuple[str, ...]:
    """The lines of `file`, below a version's `folder` or, where it is not there, below the model's. An empty line is no name.

    Raises: RegistryError where it is missing, leads out of the model's folder, is too large, or is no UTF-8.
    """
    model = folder.parent
    path = next((found for found in (folder / file, model / file) if found.exists()), None)
    if path is None:
        raise RegistryError(f"labels '{file}' are neither in the version's folder nor in the model's")
    try:
        if not path.resolve().is_relative_to(model.resolve()):
            raise RegistryError(f"labels '{file}' are outside of the model's folder")
        with path.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise RegistryError(f"labels '{file}' have more than {MAX_BYTES} bytes")
        # lines end as text files' do: no other character that Unicode calls a line's end
        lines = data.decode().replace("\r\n", "\n").split("\n")
    except OSError as error:
        raise RegistryError(f"labels '{file}' cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RegistryError(f"labels '{file}' are no UTF-8") from None
    return tuple(lines if lines[-1] else lines[:-1])
