"""
Podium's native data plane. Used by server/dataplane/native and server/transport/native alone.
"""



def built_with() -> str:
    """The compiler, and the libraries that are loaded, with their versions."""
