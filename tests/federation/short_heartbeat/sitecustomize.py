"""Imported by Python at the start of a SuperNode's process: it says every 10 s that it lives, instead of every 30.

A SuperLink takes a SuperNode for lost after two intervals, so that tests in which one is lost take a minute less.
"""

import flwr.common.constant

flwr.common.constant.HEARTBEAT_DEFAULT_INTERVAL = 10
