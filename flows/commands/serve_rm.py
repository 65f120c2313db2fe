"""`alignflow serve-rm MODEL`."""

from __future__ import annotations

import signal
import socket
from contextlib import suppress
from dataclasses import dataclass

from data_processing.errors import ConfigError
from flows.commands.named_models import find_model
from rlhf_core.addresses import is_loopback
from rlhf_core.precision import Dtype, native_dtype
from tasks.runtime.contract.home import Home
from tasks.runtime.store.places import store_of

_LONGEST_END_S = 10  # that requests in progress have when the server ends


@dataclass(frozen=True)
class Serving:
    """Where and how a reward model is served; lengths in tokens. `dtype` None: what the device computes natively."""

    host: str
    port: int
    key_from: str | None
    dtype: Dtype | None
    batch_tokens: int
    max_length_tokens: int
    gpus: float
    trust_remote_code: bool


def serve_reward_model(name: str, serving: Serving) -> None:
    """Answer requests for rewards until Ctrl-C or SIGTERM. Raises `ConfigError` for a model, an address or a key that cannot be."""
    import uvicorn

    from rlhf_core.serving.scoring_queue import ScoringQueue
    from rlhf_core.serving.served_model import ServedModel
    from rlhf_core.serving.server import app_of

    key = _key(serving)
    home = Home.open(to_read=True)
    store = store_of(home)  # lives as long as the server, and the model stays on this disk with it
    folder = find_model(home, store, name).folder(store)
    with _bound(serving.host, serving.port) as listening:
        model = ServedModel(
            folder,
            dtype=serving.dtype or native_dtype(on_gpu=serving.gpus > 0),
            batch_tokens=serving.batch_tokens,
            max_length_tokens=serving.max_length_tokens,
            gpus=serving.gpus,
            trust_remote_code=serving.trust_remote_code,
        )
        queue = ScoringQueue(model.score)
        config = uvicorn.Config(
            app_of(queue.submit, name, key), log_level="warning", access_log=False, timeout_graceful_shutdown=_LONGEST_END_S
        )
        listening.listen()
        for line in (*model.notes, f"{name} is served at {_url(listening)}/rewards, /score and /get_reward; Ctrl-C ends it"):
            print(line, flush=True)
        _serve(uvicorn.Server(config), listening)
        queue.close()
    print("ended", flush=True)


def _serve(server: object, listening: socket.socket) -> None:
    """Run a uvicorn server. It ends in order at a signal and then raises that again, which here ends nothing more."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listening])  # type: ignore[attr-defined]
    finally:
        signal.signal(signal.SIGTERM, before)


def _key(serving: Serving) -> str | None:
    from rlhf_core.rewards.services.service import read_key

    if serving.key_from is not None:
        return read_key(serving.key_from)
    if not is_loopback(serving.host):
        raise ConfigError(
            f"--host {serving.host} can be reached from other machines: name in --key-from the environment variable with the key that "
            "clients must send, or serve at 127.0.0.1"
        )
    return None


def _bound(host: str, port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise ConfigError(
            f"--host {host} --port {port}: {error.strerror or error}; give another port, or 0 for any free one"
        ) from error
    return found


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
