"""The native door of a server: the one file of this package that needs the compiled module.

Floor 6. Loaded by name, when a native data plane is to be served.
"""

from typing import Any

import podium_native

from server.core.settings import ServerSettings
from server.transport.native.server import NativeServer
from server.transport.options import native_config
from server.transport.tls import Certificates


def open_native(settings: ServerSettings, plane: Any = None) -> NativeServer:
    """A door that is not bound yet. Ownership: the running event loop.

    `plane`: the C++ plane, which then answers the inferences it can; None: handlers answer every call.
    Raises: OSError for certificates that cannot be used.
    """
    native = podium_native.Server(
        plane,
        native_config(settings),
        settings.io_threads,
        subjects=settings.tls.client_ca_file is not None,
        max_stream_requests=settings.max_stream_requests,
        max_stream_bytes=settings.max_stream_bytes,
    )
    certificates = None if settings.tls.cert_file is None else Certificates(settings.tls)
    return NativeServer(native, certificates, reuse_port=settings.reuse_port)
