"""The side port: `/metrics`, `/healthz`, `/readyz` and `/consumers` over HTTP.

Floor 6, beside the gRPC door: for scrapers and orchestrators that do not speak gRPC. No inference ever comes in here, and a
scrape never holds up the loop: it is rendered on a thread.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel

_LOG = logging.getLogger(__name__)

# 0.0.4 and not what prometheus_client calls latest: every Prometheus since 2014 reads it, and so does perf_analyzer
_TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"

# Pages that are made at once: the interpreter is shared with the door, and other work of the process has its own threads.
_THREADS = 2

# An orchestrator that asks while the server stops must not hold up its end.
_SHUTDOWN_S = 2.0


async def start_http(
    address: str,
    metrics: Callable[[], bytes],
    ready: Callable[[], list[str]],
    consumers: Callable[[str | None], Sequence[BaseModel]] = lambda model: (),
    fatal: Callable[[], list[str]] = list,
    *,
    shutdown_s: float = _SHUTDOWN_S,
) -> web.AppRunner:
    """Listen on `address` ("HOST:PORT", "[IPV6]:PORT"; port 0: any that is free) until the runner's `cleanup`.

    `/healthz` is 200 while the process answers and `fatal` returns no reason to replace it; `/readyz` is 200 exactly when
    `ready` returns no reason against it. Both show the reasons otherwise. `/consumers?model=NAME` shows what `consumers`
    returns for a model, or for None: all.
    `runner.addresses` holds what was bound.
    Ownership: `metrics` and `consumers` are called on worker threads, possibly several at once; `ready` and `fatal` on the
    event loop, so they must not block. An exception in any is answered 500 and logged.
    Raises: ValueError for what is not an address, OSError where it cannot be bound.
    """
    host, port = split_address(address)
    app = web.Application()
    pool = ThreadPoolExecutor(_THREADS, "podium-http")

    async def with_pool(_: web.Application) -> AsyncIterator[None]:
        yield
        pool.shutdown(wait=False, cancel_futures=True)

    app.cleanup_ctx.append(with_pool)
    app.add_routes(
        [
            web.get("/metrics", _metrics_page(metrics, pool)),
            web.get("/healthz", _alive_page(fatal)),
            web.get("/readyz", _ready_page(ready)),
            web.get("/consumers", _consumers_page(consumers, pool)),
        ]
    )
    # no access log: probes and scrapes would fill it
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=shutdown_s)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except BaseException:
        await runner.cleanup()
        raise
    for bound in runner.addresses:
        _LOG.info("http side port is listening", extra={"host": bound[0], "port": bound[1]})
    return runner


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT" or "[IPV6]:PORT".

    Raises: ValueError with a text that repeats the address.

    >>> split_address("127.0.0.1:8002"), split_address("[::1]:0")
    (('127.0.0.1', 8002), ('::1', 0))
    """
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"'{address}' is not an address: an IPv6 host is written in brackets, [::1]:8002")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError(f"'{address}' is not an address: HOST:PORT is wanted, with a port from 0 to 65535")
    return host, int(port)


def _metrics_page(metrics: Callable[[], bytes], pool: ThreadPoolExecutor) -> Handler:
    async def page(request: web.Request) -> web.Response:
        text = await asyncio.get_running_loop().run_in_executor(pool, metrics)
        return web.Response(body=text, headers={"Content-Type": _TEXT_FORMAT})

    return page


def _alive_page(fatal: Callable[[], list[str]]) -> Handler:
    async def page(request: web.Request) -> web.Response:
        reasons = fatal()
        if not reasons:
            return web.json_response({"alive": True})
        return web.json_response({"alive": False, "reasons": reasons}, status=503)

    return page


def _ready_page(ready: Callable[[], list[str]]) -> Handler:
    async def page(request: web.Request) -> web.Response:
        reasons = ready()
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    return page


def _consumers_page(consumers: Callable[[str | None], Sequence[BaseModel]], pool: ThreadPoolExecutor) -> Handler:
    def text(model: str | None) -> str:
        return '{"uses": [' + ",\n".join(row.model_dump_json() for row in consumers(model)) + "]}\n"

    async def page(request: web.Request) -> web.Response:
        body = await asyncio.get_running_loop().run_in_executor(pool, text, request.query.get("model"))
        return web.Response(text=body, content_type="application/json")

    return page
