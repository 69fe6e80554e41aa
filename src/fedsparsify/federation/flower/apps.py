"""The apps at both ends of a deployment; what they do is given to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from ...errors import FedSparsifyError
from .records import FAILURE, MODEL, PAYLOAD, TASK, Node, Task, opaque
from .transport import FlowerTransport

__all__ = ["make_client_app", "make_server_app"]

log = logging.getLogger("flwr")


def make_server_app(serve: Callable[[Callable[..., FlowerTransport], Mapping[str, Any]], None]) -> ServerApp:
    """Return a ServerApp.

    Args:
        serve: carries out a run, given what makes the transport (all arguments but the grid) and the app's
            configuration.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(partial(FlowerTransport, grid), context.run_config)

    return app


def make_client_app(answer: Callable[[Task, bytes, Node], bytes]) -> ClientApp:
    """Return a ClientApp.

    Args:
        answer: trains on a broadcast, given the task, the broadcast and where it runs. What it
            raises on purpose (FedSparsifyError) is told to the server in its words, anything else by its type only:
            texts of other errors may hold what must not leave the site.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        try:
            task: Any = message.content.config_records[TASK]
            broadcast = message.content.array_records[MODEL][PAYLOAD].data
            node = Node(context.node_id, context.node_config, context.run_config)
            update = answer(Task(task["client"], task["round"], task["calibration"]), broadcast, node)
            content = RecordDict({MODEL: opaque(update)})
        except FedSparsifyError as error:
            log.error("%s", error)
            content = RecordDict({FAILURE: ConfigRecord({"reason": str(error)})})
        except Exception as error:
            log.exception("The client failed")
            reason = f"{type(error).__name__}: the log of its SuperNode says more"
            content = RecordDict({FAILURE: ConfigRecord({"reason": reason})})
        return Message(content, reply_to=message)

    return app
